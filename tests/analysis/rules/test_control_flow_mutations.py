"""The oracles find a mistake at the borders of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart.analysis.labels import Fields
from onnxpart.analysis.op import Op
from onnxpart.analysis.rules import control_flow
from onnxpart.analysis.rules import table as rules
from onnxpart.ir.flatten import ENTER, LEAVE
from onnxpart.planning.placement import _Modes
from tests.networks.control_flow import CASES, network
from tests.networks.looping import recurrent
from tests.networks.verified import holds

Labels = Callable[[Op], list[Fields]]


def rolled(rule: Labels) -> Labels:
    """The rule with the labels of its result moved by one place along the last axis."""

    def wrong(op: Op) -> list[Fields]:
        return [tuple(np.roll(f, 1, axis=-1) for f in fields) for fields in rule(op)]

    return wrong


def untied(rule: Labels) -> Labels:
    """The rule without the ties that it makes."""

    def wrong(op: Op) -> list[Fields]:
        before = len(op.labels.ties)
        result = rule(op)
        del op.labels.ties[before:], op.labels.tied_at[before:]
        return result

    return wrong


def first_branch(op: Op) -> list[Fields]:
    return [op.fields(0)]


WRONG_LABELS: dict[str, tuple[str, Labels, Callable[[], ModelProto]]] = {
    "a state moved on its way in": (
        f"{ENTER}.state",
        rolled(control_flow.enter_state),
        lambda: recurrent("elman", "Loop", learned=True),
    ),
    "a state that forgets where it comes from": (
        f"{ENTER}.state",
        untied(control_flow.enter_state),
        lambda: network(CASES["Loop"]),
    ),
    "a state that forgets what the body makes of it": (
        f"{LEAVE}.state",
        untied(control_flow.leave_state),
        lambda: recurrent("elman", "Loop"),
    ),
    "the same in a Scan": (f"{LEAVE}.state", untied(control_flow.leave_state), lambda: recurrent("elman", "Scan")),
    "a state moved on its way out": (
        f"{LEAVE}.state",
        rolled(control_flow.leave_state),
        lambda: recurrent("elman", "Scan"),
    ),
    "iterations moved on their way in": (
        f"{ENTER}.each",
        rolled(control_flow.enter_each),
        lambda: network(CASES["Scan: axes and directions"]),
    ),
    "iterations moved on their way out": (
        f"{LEAVE}.each",
        rolled(control_flow.leave_each),
        lambda: recurrent("lstm", "Loop"),
    ),
    "branches that aren't tied": (f"{LEAVE}.branches", untied(control_flow.branches), lambda: network(CASES["If"])),
    "one branch only": (f"{LEAVE}.branches", first_branch, lambda: network(CASES["If: within If"])),
}


pytestmark = pytest.mark.usefixtures("unguarded")


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_a_wrong_tie_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, labels, build = WRONG_LABELS[name]
    assert holds(build())
    monkeypatch.setitem(rules.TABLE, marker, replace(rules.TABLE[marker], labels=labels))
    assert not holds(build())


WRONG_REWRITES: dict[str, tuple[str, Callable[[], ModelProto]]] = {
    "a first state that isn't cut": (f"{ENTER}.state", lambda: recurrent("elman", "Loop")),
    "a branch that isn't cut": (f"{LEAVE}.branches", lambda: network(CASES["If: a branch of zeros"])),
}


@pytest.mark.parametrize("name", WRONG_REWRITES)
def test_a_missing_rewrite_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, build = WRONG_REWRITES[name]
    assert holds(build())
    monkeypatch.setitem(rules.TABLE, marker, replace(rules.TABLE[marker], rewrite=None))
    assert not holds(build())


@pytest.mark.parametrize(
    "name", ["If: a condition on units", "If: a mix in a branch", "Loop: a mix in the body", "Loop: ended by units"]
)
def test_a_region_that_stands_once_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one operator for all parts where each needs its own."""
    assert holds(network(CASES[name]))
    monkeypatch.setattr(_Modes, "tears", lambda self, region: False)
    assert not holds(network(CASES[name]))
