"""The card of a merged model that transformers saved, in the form of Hugging Face's model cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from onnxpart.ir.model import Model
from onnxpart.ir.protos import metadata_of
from onnxpart.merging.cross_weights import Edges, between
from onnxpart.merging.merge import Into, Normalize
from onnxpart.planning.plan import Plan
from onnxpart.storage.outputs import GENERATOR

ARCHITECTURE, BASE_MODEL = "transformers.architecture", "transformers.base_model"
"""Keys of a model's metadata: the class of the original model, and the model on the Hub that it was made from."""


def model_card(name: str, whole: Model, plan: Plan, into: Into, normalize: Normalize, edges: Edges) -> str | None:
    """Return the card of a merged model; it says what the plan says, and no more.

    :param name: of the model's file. :param whole: the network that was filled. :param plan: of the parts.
    :param into: which whole that is. :param normalize: what was divided by K. :param edges: how cross weights start.
    :returns: Markdown with a YAML front matter; None if transformers didn't save the model.
    """
    origin = metadata_of(whole.proto)
    if ARCHITECTURE not in origin:
        return None
    lines = [
        *_front_matter(origin),
        "",
        GENERATOR,
        "<!-- Delete the line above when you change this card: it isn't replaced then. -->",
        "",
        f"# {name}",
        "",
        f"This is a {origin[ARCHITECTURE]} as ONNX. onnxpart divided it across its width into K = {plan.k} parts, by "
        "the method of [Miranda & Von Zuben](https://arxiv.org/abs/1511.02954), and merged the parts' weights into it.",
        "",
        "## How it was divided",
        "",
        *_division(plan),
        "",
        "## How it was merged",
        "",
        *_merging(plan, into, normalize, edges),
        "",
        "## How it was verified",
        "",
        "Merging doesn't run the model. `onnxpart verify` runs the parts and the whole of a split in ONNX Runtime and "
        "compares them. Add its verdict here.",
        "",
        "## What isn't known",
        "",
        "How the parts were trained and on what data, how good the model is, what it is for, and its licence. Add that "
        "before you publish the model.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(origin: Mapping[str, str]) -> list[str]:
    base = [f"base_model: {origin[BASE_MODEL]}"] if BASE_MODEL in origin else []
    return ["---", "library_name: onnx", *base, "tags:", "- onnx", "- onnxpart", "---"]


def _division(plan: Plan) -> Iterator[str]:
    """What became of each layer, and what isn't divided."""
    yield from ("| layers | units | in the parts |", "|---:|---:|---|")
    for (units, parts, reason), n in Counter((each.units, each.parts, each.reason) for each in plan.layers).items():
        yield f"| {n} | {units} | {' + '.join(map(str, parts)) or f'not divided: {reason}'} |"
    yield ""
    yield f"Units were dealt out in {plan.order} order" + (f", seed {plan.seed}." if plan.order == "random" else ".")
    yield "Every part has all inputs and outputs."
    if plan.duplicated:
        yield f"Each part mixes its own units alone in: {_counted(plan.duplicated)}."
    if plan.replicated:
        yield f"Each part has values of its own of: {_named(plan.replicated)}."
    if plan.blocked:
        yield f"Nothing was divided at: {_counted(plan.blocked)}."


def _counted(titles: Iterable[str]) -> str:
    """Operators by type."""
    return ", ".join(f"{n} {kind}" for kind, n in Counter(title.split(" ", 1)[0] for title in titles).items())


def _merging(plan: Plan, into: Into, normalize: Normalize, edges: Edges) -> Iterator[str]:
    """Which graph was filled, what it computes, and where its weights come from."""
    if into == "original" or plan.same_graph:
        yield "The graph is the original one."
    else:
        yield "In the graph, what mixes units stands once for each part."
    if (into == "duplicated" or plan.same_graph) and not edges.spread and not edges.kept(plan):
        yield "Merged, it computes the mean of the parts, at the linear outputs."
    else:
        yield "Merged, it doesn't compute the mean of the parts; it is where training of the whole starts."
    yield "A weight that one part has is that part's; one that several have is their mean."
    yield f"Divided by K: the {'weights of the output' if normalize == 'weights' else 'output itself'}."
    kept = edges.kept(plan)
    if kept:
        yield f"Weights between units of two parts are those of the original network in: {_named(kept)}."
    if len(kept) < len(between(plan)):
        drawn = f"are drawn at random, with a spread of {edges.spread:g}" if edges.spread else "start at zero"
        yield f"{'Other weights' if kept else 'Weights'} between units of two parts {drawn}."


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
