"""Models in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxpart.errors import OnnxpartError, needs
from onnxpart.ir.protos import captured
from onnxpart.storage import onnx_file as files
from onnxpart.storage.draft import empty, fill, without_initializers
from onnxpart.storage.rows import Array, stream
from onnxpart.verification.pieces import pieces

SMALL_MODEL = 1 << 22
"""A model with fewer bytes of weights holds them itself, and one thread runs it: others would start too late."""
MANY_NODES = 4_000
"""A graph with more nodes is run in pieces: ONNX Runtime's time to load one grows with the square of the nodes."""
_NUMBERS = re.compile(r"tensor\((float|double|float16|u?int\d+|bool)\)")
"""Types of what numpy hands from piece to piece."""


def _refused(verb: str, error: Exception) -> OnnxpartError:
    """The error for a model that ONNX Runtime refuses."""
    text = " ".join(str(error).split())[:300]
    return OnnxpartError(f"ONNX Runtime can't {verb} the model: {text}; check its operators.")


def assemble(model: onnx.ModelProto, values: Mapping[str, Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A copy of a model with other weights.

    Initializers that nothing reads are left out: ONNX Runtime refuses them if they are handed over beside a model.

    :param model: left as it is.
    :param values: initializer name -> array.
    :returns: the model, and the arrays to hand over beside it: the large ones of a large model.
    """
    result, outside = without_initializers(model), {}
    large = sum(array.nbytes for array in values.values()) >= SMALL_MODEL
    read = {name for node in model.graph.node for name in (*node.input, *captured(node))}
    read.update(value.name for value in model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.name not in read:
            continue
        array = values.get(tensor.name)
        if array is None:
            result.graph.initializer.append(tensor)
        elif large and array.nbytes >= files.SMALL_TENSOR:
            outside[tensor.name] = array
            result.graph.initializer.append(empty(tensor.name, stream(array)))
            result.graph.initializer[-1].external_data.add(key="location", value="memory")
        else:
            fill(result.graph.initializer.add(name=tensor.name), array)
    return result, outside


class Session:
    """A model in ONNX Runtime; `outside` are the initializers that it declares external.

    :raises OnnxpartError: when ONNX Runtime can't load it, or isn't installed.
    """

    def __init__(self, model: onnx.ModelProto, outside: Mapping[str, Array] | None = None) -> None:
        with needs("verifying", "gpu"):
            import onnxruntime  # noqa: F401

        self._names = [value.name for value in model.graph.output]
        try:
            self._sessions = _loaded(model, outside or {})
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("load", error) from None

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        :param feed: input name -> array; names that the model doesn't know are left out.
        :returns: output name -> array.
        :raises OnnxpartError: when ONNX Runtime can't run it.
        """
        values = dict(feed)
        try:
            for session in self._sessions:
                read = {value.name: values[value.name] for value in session.get_inputs() if value.name in values}
                names = [value.name for value in session.get_outputs()]
                values.update(zip(names, session.run(names, read), strict=True))
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("run", error) from None
        return {name: values[name] for name in self._names}

    def run_all(self, feeds: Iterable[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on several inputs, one after the other (see `run`)."""
        return [self.run(feed) for feed in feeds]


def _loaded(model: onnx.ModelProto, outside: Mapping[str, Array]) -> list[Any]:
    """ONNX Runtime's sessions of a model, which run one after the other: several where the graph is large."""
    if len(model.graph.node) <= MANY_NODES:
        return [_session(model, outside)]
    values, sessions = {value.name: value for value in model.graph.input}, []
    for piece in pieces(model, MANY_NODES, values):
        names = [tensor.name for tensor in piece.graph.initializer if tensor.name in outside]
        sessions.append(_session(piece, {name: outside[name] for name in names}, fused=False))
        for given in sessions[-1].get_outputs():
            numbers = _NUMBERS.fullmatch(given.type)
            if numbers is None:
                return [_session(model, outside, fused=False)]
            kind = TensorProto.DataType.Value(numbers[1].upper())
            values[given.name] = helper.make_tensor_value_info(given.name, kind, None)
    return sessions


def _session(model: onnx.ModelProto, outside: Mapping[str, Array], fused: bool = True) -> Any:
    """ONNX Runtime's session on the CPU; without its fusions where they lose an output, too."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may want the core
    if not outside:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in outside.values()]
    options.add_external_initializers(list(outside), held)
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception:  # the runtime's exceptions share no base class
        if not fused:
            raise
        return _session(model, outside, fused=False)
