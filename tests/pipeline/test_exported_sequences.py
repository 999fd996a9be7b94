"""Recurrent networks as PyTorch's two exporters write them."""

from __future__ import annotations

import onnx
import pytest

import onnxpart
from onnxpart.verification.conditions import check_conditions
from tests.networks.exported_sequences import HIDDEN, SEQUENCES, export

DYNAMO = ("gru", "rnn", "text_lstm", "translator_stacked", "states_from_outside", "lstm_cells")
"""Networks that the slower exporter is tried on."""
CASES = [
    *((name, "torchscript", 17) for name in SEQUENCES),
    *((name, "dynamo", 20) for name in DYNAMO),
    ("lstm_bidirectional", "torchscript", 11),
    ("lstm_bidirectional", "dynamo", 23),
]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize(("name", "exporter", "opset"), CASES)
def test_exported_sequences_split_and_verify(name: str, exporter: str, opset: int) -> None:
    model = export(name, exporter, opset)
    for k in (2, 3):
        check(onnxpart.split(model, k), k)


def check(result: onnxpart.Split, k: int) -> None:
    """Both oracles hold; nothing but the output is undivided, and each part has 1/K of every recurrent layer."""
    for model in (*result.parts, result.whole):
        onnx.checker.check_model(model, full_check=True)
    verdict = onnxpart.verify(result.analysis, result.plan, parts=result.parts, whole=result.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    assert not check_conditions(result.analysis, result.plan)
    assert result.plan.same_graph
    assert not result.plan.blocked
    assert sum(not layer.parts for layer in result.plan.layers) == 1
    for op in result.analysis.ops:
        if op.node.op_type in GATES:
            rows, columns = result.plan.by_name[op.node.input[2]].part_shape(0)[1:]
            assert rows == GATES[op.node.op_type] * columns
            assert columns in (HIDDEN // k, -(-HIDDEN // k))
