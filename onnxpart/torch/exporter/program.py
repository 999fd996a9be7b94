"""A program saved by torch.export, as an ONNX model to train from."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import torch

from onnxpart.errors import ModelError
from onnxpart.torch.exporter.export import OPSET, first_line, silent
from onnxpart.torch.exporter.module_state import values_of
from onnxpart.torch.exporter.trainable_graph import folded, for_training


def load_program(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Return the network of a .pt2 file as ONNX, its parameters under their own names and in their own layouts.

    The program's batch norms and dropouts stay; the model computes what the program does in evaluation mode.
    Which axes are symbolic was decided when the program was exported.

    :raises ModelError: when the file can't be read, or ONNX can't express the program.
    """
    if not Path(path).is_file():
        raise ModelError(f"{path} doesn't exist; check the path.")
    try:
        with silent():
            program = torch.export.load(path)
    except Exception as error:  # whatever its reader raises: they share no base class
        raise ModelError(
            f"{path} isn't a program of torch.export ({first_line(error)}); write it with torch.export.save."
        ) from None
    module = program.module(check_guards=False)
    try:
        with silent():
            made = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
            assert made is not None
            held = values_of(module, {})
            draft = folded(made.model, module, held)
    except Exception as error:  # whatever the exporter raises
        raise ModelError(
            f"{path} can't be written as ONNX ({first_line(error)}); write what is named there in operations that "
            "ONNX has."
        ) from None
    return for_training(draft, module, [value.name for value in draft.proto.graph.output], held).model()
