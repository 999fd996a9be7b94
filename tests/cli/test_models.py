"""The network that a command is given."""

from __future__ import annotations

from pathlib import Path

import onnx

from models import BUILDERS
from onnxpart.cli.models import loaded


def test_outputs_may_be_given_one_by_one_or_between_commas(tmp_path: Path) -> None:
    onnx.save_model(BUILDERS["chain"](), tmp_path / "chain.onnx")
    model = loaded(tmp_path / "chain.onnx")
    inner = [node.output[0] for node in model.proto.graph.node][:2]
    for outputs in (inner, [",".join(inner)]):
        found = loaded(tmp_path / "chain.onnx", outputs)
        assert [value.name for value in found.proto.graph.output] == inner
