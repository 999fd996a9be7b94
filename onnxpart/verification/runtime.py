"""Models in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxpart.errors import OnnxpartError, needs
from onnxpart.ir.protos import captured
from onnxpart.storage import onnx_file as files
from onnxpart.storage.draft import empty, fill, without_initializers
from onnxpart.storage.rows import Array, stream

SMALL_MODEL = 1 << 22
"""A model with fewer bytes of weights holds them itself, and one thread runs it: others would start too late."""
MANY_NODES = 4_000
"""A graph with more nodes is run without fusions: ONNX Runtime's time for them grows with the square of the nodes."""


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


def _session(model: onnx.ModelProto, options: Any) -> Any:
    """ONNX Runtime's session on the CPU; without its fusions in large graphs, and if they lose an output."""
    import onnxruntime

    content, plain = model.SerializeToString(), onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if len(model.graph.node) > MANY_NODES:
        options.graph_optimization_level = plain

    def load() -> Any:
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"], enable_fallback=0)

    try:
        return load()
    except Exception:  # the runtime's exceptions share no base class
        if options.graph_optimization_level == plain:
            raise
        options.graph_optimization_level = plain
        return load()


class Session:
    """A model in ONNX Runtime; `outside` are the initializers that it declares external.

    :raises OnnxpartError: when ONNX Runtime can't load it, or isn't installed.
    """

    def __init__(self, model: onnx.ModelProto, outside: Mapping[str, Array] | None = None) -> None:
        with needs("verifying", "gpu"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may want the core
        if not outside:
            options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            if outside:
                held = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for a in outside.values()]
                options.add_external_initializers(list(outside), held)
            self._session = _session(model, options)
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("load", error) from None
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model.

        :param feed: input name -> array; names that the model doesn't know are left out.
        :returns: output name -> array.
        :raises OnnxpartError: when ONNX Runtime can't run it.
        """
        known = {i.name for i in self._session.get_inputs()}
        try:
            values = self._session.run(self._names, {n: v for n, v in feed.items() if n in known})
        except Exception as error:  # the runtime's exceptions share no base class
            raise _refused("run", error) from None
        return dict(zip(self._names, values, strict=True))

    def run_all(self, feeds: Iterable[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run the model on several inputs, one after the other (see `run`)."""
        return [self.run(feed) for feed in feeds]
