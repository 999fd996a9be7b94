"""The network that a command is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from onnxpart.frontend.export_advice import zipped
from onnxpart.frontend.extract import cut
from onnxpart.frontend.load import load
from onnxpart.frontend.torch_export import advice
from onnxpart.ir.model import Model


def loaded(path: Path, outputs: Sequence[str] | None = None) -> Model:
    """Return the network in a file, and warn of what its exporter did to it.

    :param outputs: names, or several between commas, of values that are to be its only outputs.
    :raises ModelError: when it can't be read. :raises UsageError: when it has no such values.
    """
    model = load(path)
    if outputs is not None:
        model = cut(model, [name for text in outputs for name in text.split(",")])
    for sentence in (*advice(model.proto), *zipped(model.proto)):
        warnings.warn(sentence, stacklevel=2)
    return model
