"""Each pass keeps its promise, and leaves a valid model, on every network that there is."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from models import GOLDEN
from onnxpart.frontend.load import read_checked
from onnxpart.frontend.passes import PASSES, Pass, run, steps
from onnxpart.ir.model import Model
from onnxpart.ir.validate import Contract, validate
from tests.networks import exported, exported_control, exported_sequences, looping

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    **GOLDEN,
    **{f"exported {name}": lambda name=name: exported.export(name, "dynamo", 20) for name in exported.NETWORKS},
    **{
        f"control {name}": lambda name=name: exported_control.export(name)
        for name in (*exported_control.SCRIPTED, *exported_control.TRACED)
    },
    **{
        f"sequences {name}": lambda name=name: exported_sequences.export(name, "torchscript", 17)
        for name in exported_sequences.SEQUENCES
    },
    **{
        f"{cell} as {form}": lambda cell=cell, form=form: looping.recurrent(cell, form)
        for cell in looping.CELLS
        for form in ("Scan", "Loop")
    },
}


def _unloaded(proto: onnx.ModelProto) -> Model:
    proto, name, data = read_checked(proto)
    return Model(proto, name, data=data)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_pass_keeps_its_promise(name: str) -> None:
    """A simplification that changed something keeps the model valid; what others promised holds once they ran again."""
    model, held = _unloaded(NETWORKS[name]()), dict[str, Contract]()
    for step, result in steps(model):
        if step.simplifies and result is not model:
            held.clear()
        else:
            held[step.name] = step.holds
        validate(result, held.values())
        model = result
    validate(model, [step.holds for step in PASSES])


def test_passes_have_names_of_their_own() -> None:
    assert len({step.name for step in PASSES}) == len(PASSES)


@pytest.mark.parametrize("step", [step for step in PASSES if step.simplifies], ids=lambda step: step.name)
def test_a_simplification_with_nothing_to_do_gives_the_same_model(step: Pass) -> None:
    for name in ("scan", "branches"):
        model = run(_unloaded(GOLDEN[name]()))
        assert step.run(model) is model
