"""One model of the zoo in a process of its own: exported, divided, verified, and pruned by Torch-Pruning.

What is known so far is in the record's file after every step, so that a killed process leaves it behind.
"""

import inspect
import json
import logging
import os
import re
import signal
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch_pruning
from torch import Tensor, nn

import onnxpart
from onnxpart.errors import OnnxpartError
from onnxpart.inspection.tie_graph import Cause, Ties
from onnxpart.storage.rows import Array
from onnxpart.verification.oracles import TOLERANCE
from onnxpart.verification.runtime import Session, assemble

SEED, SPREAD, HALF = 0, 0.1, 0.5
PATIENCE = 30
"""Seconds that Torch-Pruning may take."""
PARTS = (2, 4)
EXPORTERS = (("TorchScript", 17), ("dynamo", 18))
FORMS = {"TorchScript, constants folded": EXPORTERS[0], "dynamo, dynamic batch": EXPORTERS[1]}
"""What people export most, to run a model: norms and constants folded, any batch. Exporter and opset of each."""
BATCHES = (1, 2, 3)
RECORD = "record.json"
SMALL = 1e-4
"""Share of the parameters below which nobody asks why an initializer is undivided."""
KINDS = {"narrow": "fewer classes of units than parts", "output": "an output of the network"}
"""What some kinds of causes are called, whatever their reason."""
LONGEST = 240
"""Characters of a message that are kept."""
QUOTED = re.compile("'[^']*'")


@dataclass
class Row:
    """A model in K parts. Shares are of the whole's parameters.

    `part` what the largest part has, `ideal` what it would have with all units divided that no output holds;
    `divided`, `replicated` and `blocked` share out the whole by what became of its initializers, `duplicated` is what
    mixes read that exist once per part; `causes` what a part has beyond a K-th along each axis of units, by cause.
    """

    k: int
    part: float = 0.0
    ideal: float = 0.0
    divided: float = 0.0
    duplicated: float = 0.0
    replicated: float = 0.0
    blocked: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    causes: dict[str, float] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    deviation: float | None = None
    worst: str = ""
    holds: bool = False
    split: float = 0.0
    verify: float = 0.0
    error: str = ""


@dataclass
class Record:
    """What came out for one model.

    `form` is one of `FORMS`, or empty for the export to train; `batches` of a form are the deviations of the whole from
    the mean of its parts by batch size, relative to the largest output, over `compared` outputs. `fallback` says why
    the first exporter couldn't, `pruned` how many parameters Torch-Pruning leaves with half of the channels, `unpruned`
    why it can't; `seconds` by step.
    """

    name: str
    form: str = ""
    batches: dict[int, float] = field(default_factory=dict)
    compared: int = 0
    family: str = ""
    inputs: dict[str, list[int]] = field(default_factory=dict)
    exporter: str = ""
    opset: int = 0
    fallback: str = ""
    nodes: int = 0
    parameters: int = 0
    rows: list[Row] = field(default_factory=list)
    pruned: int = 0
    unpruned: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""


def message(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())
    kind = "" if isinstance(error, OnnxpartError) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def scatter(network: nn.Module) -> None:
    """Make weights vary that are all the same: gates of zero and the like hide what is behind them."""
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.is_floating_point() and value.numel() > 1 and bool((value == value.flatten()[0]).all()):
                value.add_(SPREAD * torch.randn_like(value).abs())


def export(network: nn.Module, inputs: dict[str, Tensor], path: Path, exporter: str, opset: int) -> None:
    """Write the network as an ONNX model to train: with its own parameters, none folded into others."""
    values, names = tuple(inputs.values()), list(inputs)
    if exporter == "TorchScript":
        torch.onnx.export(
            network,
            values,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=names,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    else:
        torch.onnx.export(network, values, path, dynamo=True, opset_version=opset, input_names=names, verbose=False)


def divide(path: Path, k: int) -> Row:
    """Divide a model into K parts and verify it; an error of the compiler is the row's."""
    row, start = Row(k), time.perf_counter()
    try:
        split = onnxpart.split(path, k)
        row.split = time.perf_counter() - start
        share(row, split.analysis, split.plan)
        start = time.perf_counter()
        verdict = onnxpart.verify(split.analysis, split.plan, parts=split.part_drafts, whole=split.whole_draft)
        row.verify, row.deviation, row.holds = time.perf_counter() - start, verdict.deviation, verdict.holds
        row.worst = max(verdict.findings, key=lambda f: f.deviation).worst
    except Exception as error:  # a crash is a finding too
        row.error = message(error).removeprefix(f"{path}: ")
    return row


def share(row: Row, analysis: onnxpart.Analysis, plan: onnxpart.Plan) -> None:
    """Fill in what became of the parameters."""
    total = max(1, plan.parameters())
    part = max(range(plan.k), key=plan.parameters)
    read = {name for i in plan.duplicated_nodes for name in analysis.inputs(i)}
    ties = Ties(analysis, plan.k)
    causes: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    for initializer in plan.initializers:
        if initializer.constant:
            continue
        size, kept = prod(initializer.shape), float(prod(initializer.part_shape(part)))
        why = held(ties, initializer.name) if kept >= SMALL * total else []
        kinds = {cause.kind for cause, _ in why}
        fate = "divided" if kept < size else "blocked" if "barrier" in kinds else "replicated"
        sums[fate] += size / total
        row.counts[fate] = row.counts.get(fate, 0) + 1
        sums["duplicated"] += size / total if initializer.name in read else 0.0
        for cause, fraction in why:
            beyond = kept * fraction * (1 - 1 / plan.k)
            causes[reason(cause)] += beyond / total
            if cause.kind != "output":
                row.ideal -= beyond / total
                kept -= beyond
    row.part = plan.parameters(part) / total
    row.ideal += row.part
    for name, value in sums.items():
        setattr(row, name, value)
    row.counts["duplicated"] = len(plan.duplicated)
    row.causes = dict(sorted(causes.items(), key=lambda c: -c[1]))
    row.blocks = [b[:LONGEST] for b in plan.blocked]


def held(ties: Ties, name: str) -> list[tuple[Cause, float]]:
    """Why units along the axes of an initializer are undivided, and which fraction of what a part keeps they are.

    Axes of kernels, and those that only the network's inputs reach, have no units.
    """
    found = []
    for f in ties.analysis.fields(name):
        parts = ties.parts[f]
        undivided = parts < 0
        if f.size > 1 and undivided.any():
            labels = f[undivided]
            chain, cause = ties.chain(labels, name)
            if cause.kind in ("shared", "input") and not chain:
                continue
            found.append((cause, undivided.sum() / (undivided.sum() + (parts >= 0).sum() / ties.k)))
    return found


def reason(cause: Cause) -> str:
    """A cause without what is one model's own."""
    return KINDS.get(cause.kind) or f"{cause.kind}: {QUOTED.sub('...', cause.reason)}"


def prune(network: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Let Torch-Pruning take half of all channels, but of the layers that make the outputs.

    As in its own examples: layers with as many channels as the outputs are left alone, and heads stay whole.
    """
    with torch.no_grad():
        result = network(*inputs.values())
    tensors = result if isinstance(result, tuple) else (result,)
    outputs = {y.shape[-1 if y.ndim == 3 else 1] for y in tensors if y.ndim > 1}
    ignored: list[nn.Module] = []
    heads: dict[Any, int] = {}
    module: Any
    for module in network.modules():
        width = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and width in outputs:
            ignored.append(module)
        if isinstance(module, nn.MultiheadAttention):
            heads[module] = module.num_heads
        elif hasattr(module, "qkv") and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        tuple(inputs.values()),
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=HALF,
        ignored_layers=ignored,
        num_heads=heads,
    )
    pruner.step()
    for module in network.modules():
        if getattr(module, "qkv", None) in heads and hasattr(module, "head_dim"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)


class Steps:
    """A record in the making: what is known is in its file."""

    def __init__(self, record: Record, path: Path) -> None:
        self.record, self.path = record, path

    def run(self, step: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call, and write down the seconds."""
        start = time.perf_counter()
        result = call(*arguments)
        self.record.seconds[step] = round(time.perf_counter() - start, 2)
        self.save()
        return result

    def save(self) -> None:
        """Write the record, whole or not at all."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self.record)))
        fresh.replace(self.path)


def first_export(steps: Steps, network: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """Export by the first exporter that can, and write down why one couldn't."""
    record = steps.record
    for exporter, opset in EXPORTERS:
        try:
            steps.run("export", export, network, inputs, path, exporter, opset)
        except Exception as error:  # exporters fail in any way
            record.fallback, record.error = record.error, message(error)
        else:
            record.exporter, record.opset = exporter, opset
            record.fallback, record.error = record.error, ""
            return
    raise RuntimeError(f"neither exporter can: {record.fallback}; {record.error}")


def build(steps: Steps) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model with random weights, and inputs for it by name."""
    record = steps.record
    zoo, _, name = record.name.partition("/")
    module = import_module(f"scripts.zoo_{zoo}")
    record.family = module.family(name)
    torch.manual_seed(SEED)
    network, inputs = steps.run("build", module.build, name)
    network.eval()
    scatter(network)
    record.inputs = {name: list(value.shape) for name, value in inputs.items()}
    return network, inputs


def measure(steps: Steps, folder: Path) -> None:
    """All steps for one model as it is exported to train."""
    record, path = steps.record, folder / "model.onnx"
    network, inputs = build(steps)
    first_export(steps, network, inputs, path)
    model = onnx.load_model(path, load_external_data=False)
    record.nodes, record.parameters = len(model.graph.node), parameters(path)
    for k in PARTS:
        record.rows.append(divide(path, k))
        steps.save()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(PATIENCE)
    try:
        steps.run("prune", prune, network, inputs)
        export(network, inputs, path, record.exporter, record.opset)
        record.pruned = parameters(path)
    except Exception as error:  # that is Torch-Pruning's
        record.unpruned = message(error)
    signal.alarm(0)
    steps.save()


def measure_form(steps: Steps, folder: Path) -> None:
    """All steps for one model as it is exported to run."""
    record, path = steps.record, folder / "model.onnx"
    network, inputs = build(steps)
    if len({len(value) for value in inputs.values()}) > 1:
        raise RuntimeError("its inputs have no batch in common")
    exporter, opset = FORMS[record.form]
    steps.run("export", export_form, network, inputs, path, exporter, opset)
    record.exporter, record.opset = exporter, opset
    record.nodes = len(onnx.load_model(path, load_external_data=False).graph.node)
    split = steps.run("split", onnxpart.split, path, PARTS[0])
    record.parameters = split.plan.parameters()
    part = max(map(split.plan.parameters, range(PARTS[0]))) / max(1, record.parameters)
    record.rows.append(Row(PARTS[0], part=part, split=record.seconds["split"]))
    steps.save()
    steps.run("verify", compare, record, split, path, {name: value.numpy() for name, value in inputs.items()})
    record.rows[0].deviation = max(record.batches.values())
    record.rows[0].holds = record.rows[0].deviation <= TOLERANCE


def export_form(network: nn.Module, inputs: dict[str, Tensor], path: Path, exporter: str, opset: int) -> None:
    """Write the network as most people do, to run it with any batch."""
    values = tuple(value.repeat_interleave(2, dim=0) if len(value) == 1 else value for value in inputs.values())
    names = list(inputs)
    if exporter == "TorchScript":
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(
            network, values, path, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes
        )  # fmt: skip
        return
    batches: Any = tuple({0: torch.export.Dim.DYNAMIC} for _ in names)
    if any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(network.forward).parameters.values()):
        batches = (batches,)
    torch.onnx.export(
        network, values, path, dynamo=True, opset_version=opset, input_names=names, dynamic_shapes=batches,
        verbose=False,
    )  # fmt: skip


def compare(record: Record, split: onnxpart.Split, path: Path, inputs: dict[str, Array]) -> None:
    """Run whole and parts in ONNX Runtime, at every one of `BATCHES`; where no output is a mean, verify them.

    :raises RuntimeError: when the export itself doesn't run at one of them.
    """
    arrays = [onnxpart.arrays(part) for part in split.parts]
    merged = onnxpart.merge(split.plan, arrays)
    wholes = Session(*assemble(split.whole, merged))
    parts = [Session(*assemble(part, values)) for part, values in zip(split.parts, arrays, strict=True)]
    means = [output.name for output in split.whole.graph.output if output.name in split.plan.mean]
    if not means:
        verdict = onnxpart.verify(split.analysis, split.plan, parts=split.parts, whole=split.whole, fresh=False)
        for finding in verdict.findings:
            record.batches[finding.batch] = max(finding.deviation, record.batches.get(finding.batch, 0.0))
        return
    record.compared = len(means)
    rng = np.random.default_rng(SEED)
    for batch in BATCHES:
        feed = {name: _of_batch(value, batch, rng) for name, value in inputs.items()}
        try:
            made, apart = wholes.run(feed), [part.run(feed) for part in parts]
        except onnxpart.OnnxpartError as error:
            if runs(path, feed):
                raise
            raise RuntimeError(f"the export itself can't be run with a batch of {batch}: {error}") from None
        record.batches[batch] = max(_apart(made[n], [part[n] for part in apart]) for n in means)


def _of_batch(value: Array, batch: int, rng: np.random.Generator) -> Array:
    """An input like another one, for a batch of another size."""
    repeated = value[np.arange(batch) % len(value)]
    noise = SPREAD * rng.standard_normal(repeated.shape).astype(value.dtype) if value.dtype.kind == "f" else 0
    return np.asarray(repeated + noise, value.dtype)


def _apart(whole: Array, parts: list[Array]) -> float:
    """How far an output is from the mean of the parts', relative to its largest element."""
    mean = np.mean(np.stack(parts), axis=0)
    return float(np.abs(whole - mean).max() / max(float(np.abs(mean).max()), np.finfo(np.float32).tiny))


def runs(path: Path, feed: dict[str, Array]) -> bool:
    """Whether ONNX Runtime runs a model of a file."""
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    except Exception:  # the runtime's exceptions share no base class
        return False
    return True


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"more than {PATIENCE} seconds")


def parameters(path: Path) -> int:
    """Number of parameters of a model in a file."""
    return onnxpart.plan(onnxpart.analyse(onnxpart.load(path)), 1).parameters()


def main(name: str, form: str, folder: Path) -> None:
    """Write what comes out for a model, in a form or to train, to `RECORD` in a folder, where its exports are too."""
    warnings.simplefilter("ignore")  # what the exporters and the models say of their own code
    logging.disable(logging.ERROR)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    steps = Steps(Record(name, form), folder / RECORD)
    try:
        (measure_form if form else measure)(steps, folder)
    except Exception as error:  # what any model's code may raise
        steps.record.error = message(error).replace(f"{folder}/", "")
    steps.save()
