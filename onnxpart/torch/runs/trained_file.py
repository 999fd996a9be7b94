"""Trained weights into ONNX files, and a check of these files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.inliner import inline_local_functions

from onnxpart.errors import ModelError, OnnxpartError, needs, reason
from onnxpart.frontend.norm_statistics import own_statistics
from onnxpart.ir.trainable import FLOATS
from onnxpart.storage.draft import Draft, empty, to_array
from onnxpart.storage.onnx_file import check_external, read
from onnxpart.storage.rows import stream
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.importer.module import ImportedModule, export_weights
from onnxpart.torch.training.objective import Objective
from onnxpart.verification.oracles import FLAT, TOLERANCE

TOLERANCE_HALF = 2e-2
"""Largest deviation of a file with float16 or bfloat16; for others it is the oracles'."""
_TINY = 1e-30


def read_whole(path: Path) -> onnx.ModelProto:
    """Read a model with its external data; local functions are inlined, and each batch norm gets statistics of its own.

    :raises ModelError: when it can't be read.
    """
    proto = read(path)
    if not proto.graph.node:
        raise ModelError(f"{path} holds no graph: it is empty, truncated or not an ONNX model; export it again.")
    check_external(proto, path)
    onnx.load_external_data_for_model(proto, str(path.parent))
    proto = inline_local_functions(proto) if proto.functions else proto
    own_statistics(proto)
    return proto


def with_weights(module: ImportedModule, source: Path) -> Draft:
    """Return the model in a file with a module's weights; external data stay external.

    :param source: the model that the module was imported from.
    :raises ModelError: when it can't be read.
    """
    external = {t.name for t in read(source).graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    proto = export_weights(module, read_whole(source))
    streams = {}
    for tensor in proto.graph.initializer:
        if tensor.name in external:
            streams[tensor.name] = stream(to_array(tensor))
            tensor.CopyFrom(empty(tensor.name, streams[tensor.name], tensor.doc_string))
    return Draft(proto, streams)


def deviation(module: ImportedModule, objective: Objective, path: Path, batch: Batch) -> float:
    """Return how far ONNX Runtime is from the trained module, as a share of the output's standard deviation.

    :raises OnnxpartError: when ONNX Runtime can't run the file, or deviates by more than rounding explains.
    """
    names = [value.name for value in _inputs(path)]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, batch[0], strict=True)}
    with torch.no_grad():
        found = objective.finished(module.cpu().eval()(*batch[0])).double().numpy()
    wanted = _run(path, objective.output, feeds)
    scale = max(float(np.std(found)), FLAT * float(np.abs(found).max(initial=0.0)), _TINY)
    result = float(np.abs(wanted - found).max(initial=0.0)) / scale
    if not result <= (TOLERANCE_HALF if _has_half(path) else TOLERANCE):
        raise OnnxpartError(
            f"{path}: ONNX Runtime's {objective.output!r} differs from the trained module's by {result:.1e} of its "
            "standard deviation; "
            "report this model."
        )
    return result


def _run(path: Path, output: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The output of a file in ONNX Runtime.

    :raises OnnxpartError: when it can't be run.
    """
    with needs("checking the trained file", "gpu"):
        import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([output], feeds)[0], np.float64)
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise OnnxpartError(f"{path} is written, but ONNX Runtime can't run it ({reason(error)}).") from None


def _inputs(path: Path) -> list[onnx.ValueInfoProto]:
    graph = read(path).graph
    initializers = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initializers]


def _has_half(path: Path) -> bool:
    halves = FLOATS - {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    return any(tensor.data_type in halves for tensor in read(path).graph.initializer)
