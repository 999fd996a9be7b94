"""The rule table: for every operator what happens to labels, and how its node is rewritten for a part.

An operator, or a version of it, that isn't in the table is a barrier: nothing that flows into it is divided. The rows
stand above the functions in the files beside this one; importing the package fills the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import onnx

from onnxpart.analysis.labels import Fields
from onnxpart.analysis.op import Op, qualified
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.analysis.rules.opaque import opaque
from onnxpart.ir.flatten import ENTER, GRAPHS, LEAVE, opaque_reason, role_of

Kind = Literal["contraction", "recurrent", "elementwise", "movement", "mix", "source", "control flow"]
Mean = Literal["no", "data", "sum", "scale"]
"""Whether the mean over parts passes through: never; if the first input has it and the rest is the same in every part;
if every input has it or is the same in every part; if one input has it and the others are the same in every part."""
Zero = Literal["no", "data", "sum", "scale", "parameters"]
"""Whose zeros make the result zero: nobody's, for all that is known; the first input's; those of all inputs; those of
one of the first two, and of what is added to them; those of scale and bias, the second input and the third."""
LabelRule = Callable[[Op], list[Fields]]
"""What a rule makes of an operator: the label fields of each output. It ties labels on the way."""
RewriteRule = Callable[[Rewrite], None]
"""Adapts a node to a part, in place."""


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    `versions` are the operator versions that it is right for, `labels` gives the outputs' fields, `rewrite` adapts the
    node to a part (None: the node stays as it is), `mean` says whether the mean over parts passes through, and `zero`
    whose zeros make the result zero.
    """

    kind: Kind
    versions: tuple[int, ...]
    labels: LabelRule
    rewrite: RewriteRule | None = None
    mean: Mean = "no"
    zero: Zero = "no"


TABLE: dict[str, Rule] = {}
"""Rules by the operator's name (see `op.qualified`); markers of control flow by their domain and role."""


def register(
    *op_types: str,
    domain: str,
    versions: Iterable[int],
    kind: Kind,
    rewrite: RewriteRule | None = None,
    mean: Mean = "no",
    zero: Zero = "no",
) -> Callable[[LabelRule], LabelRule]:
    """Decorate a function to enter it into the table as the label rule of some operators.

    :param op_types: the operators. :param domain: their domain; the empty string is ONNX's own.
    :param versions: the versions that the rule is right for. In a domain whose operators ONNX doesn't know these are
        versions of the domain, as a model's opset imports name them.
    :param kind: what happens to the units. :param rewrite: adapts a node to a part; None leaves it as it is.
    :param mean: whether the mean over parts passes through. :param zero: whose zeros make the result zero.
    :returns: a decorator that returns the function as it is.
    :raises ValueError: when one of the operators has a rule already.
    """

    def enter(labels: LabelRule) -> LabelRule:
        for op_type in op_types:
            name = qualified(domain, op_type)
            if name in TABLE:
                raise ValueError(f"the operator {name} has a rule already")
            TABLE[name] = Rule(kind, tuple(versions), labels, rewrite, mean, zero)
        return labels

    return enter


operator = partial(register, domain="")
"""`register` for ONNX's own operators."""


@cache
def _version(domain: str, op_type: str, opset: int) -> int | None:
    """The version of an operator at an opset of its domain, which has that number itself if ONNX doesn't know it."""
    try:
        return int(onnx.defs.get_schema(op_type, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset if domain else None


def find(op: Op) -> Rule | str:
    """The rule of an operator, or why there is none."""
    rule = TABLE.get(op.op_type)
    if rule is None:
        return _missing(op)
    version = _version(op.schema_domain, op.node.op_type, op.opset)
    if version not in rule.versions:
        return f"version {version} of {op.op_type} has no rule"
    if op.domain in (ENTER, LEAVE):
        return TABLE[qualified(op.domain, role_of(op.node))]
    if op.op_type in GRAPHS:
        return opaque_reason(op.node)
    return rule


def _missing(op: Op) -> str:
    if not op.schema_domain:
        reason = opaque(op.op_type)
        return f"the operator {op.op_type} has no rule" + (f": {reason}" if reason else "")
    if any(name.rpartition(".")[0] == op.domain for name in TABLE):
        return f"the operator {op.op_type} has no rule"
    return f"operators of the domain {op.domain!r} have no rule"
