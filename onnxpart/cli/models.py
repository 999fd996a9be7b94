"""The network that a command is given."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from onnxpart.errors import needs
from onnxpart.frontend.export_advice import zipped
from onnxpart.frontend.extract import cut
from onnxpart.frontend.load import load
from onnxpart.frontend.torch_export import advice
from onnxpart.ir.model import Model

_HF = "hf:"


def loaded(path: Path, outputs: Sequence[str] | None = None) -> Model:
    """Return the network in a file, and warn of what its exporter did to it.

    :param path: an ONNX file, a program of torch.export (.pt2), or `hf:FOLDER`, a model that transformers saved.
    :param outputs: names, or several between commas, of values that are to be its only outputs.
    :raises ModelError: when it can't be read. :raises UsageError: when it has no such values, or PyTorch is missing.
    """
    model = _of_transformers(path) if _is_folder(path) else _exported(path) if path.suffix == ".pt2" else load(path)
    if outputs is not None:
        model = cut(model, [name for text in outputs for name in text.split(",")])
    for sentence in (*advice(model.proto), *zipped(model.proto)):
        warnings.warn(sentence, stacklevel=2)
    return model


def _exported(path: Path) -> Model:
    """Return the network of a program of torch.export."""
    with needs("reading a .pt2 file", "train"):
        proto = import_module("onnxpart.torch").load_program(path)
    return replace(load(proto), name=str(path))


def named(path: Path, ending: str) -> Path:
    """Return where in the current folder to write what is made of a model, by the model's name."""
    return Path(f"{Path(_folder(path)).name if _is_folder(path) else path.stem}_{ending}")


def _is_folder(path: Path) -> bool:
    return str(path).startswith(_HF)


def _folder(path: Path) -> str:
    return str(path).removeprefix(_HF)


def _of_transformers(path: Path) -> Model:
    """Return the network of a folder that transformers wrote."""
    with needs("reading a model of transformers", "hf"):
        proto = import_module("onnxpart.torch.hf").load_pretrained(_folder(path))
    return replace(load(proto), name=str(path))
