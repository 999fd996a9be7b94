"""The real trackers show the options of a run, and each network's curves over its own epochs and batches."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.networks.command import run

FIT = (
    "fit", "chain.onnx", "-o", "out", "--data", "npz:data.npz", "--epochs", 3, "--merge-at", 2, "--batch-size", 10,
    "--engine", "series", "--lr", 0.05,
)  # fmt: skip
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _quiet(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers that reach nobody, and keep what they are told in the current folder."""
    settings = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file:{here}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def by_tensorboard() -> tuple[str, Points]:
    """The options, and the points of each curve."""
    events = EventAccumulator("out/tensorboard").Reload()
    (options,) = events.Tensors("options/text_summary")
    points = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return options.tensor_proto.string_val[0].decode(), points


def records(path: Path) -> Iterator[Any]:
    """What an offline run of W&B wrote: records in pieces, in blocks of 32 KB, after a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its last piece
            yield Record.FromString(whole)
            whole = b""


def by_wandb() -> tuple[str, Points]:
    """The options, and the points of each curve over what is defined as its axis."""
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    axes, points, options = dict[str, str](), defaultdict[str, list[tuple[int, float]]](list), {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert (record.run.project, record.run.display_name) == ("onnxpart", "out")
            options = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "metric":
            axes[record.metric.name] = record.metric.step_metric
        elif kind == "history":
            found = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in found.keys() & axes.keys():
                points[name].append((found[axes[name]], found[name]))
    return json.dumps(options), points


def by_mlflow() -> tuple[str, Points]:
    """The options, and the points of each curve."""
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("onnxpart")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("out", "FINISHED")
    curves = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    points = {name: [(point.step, point.value) for point in curve] for name, curve in curves.items()}
    return json.dumps(found.data.params), points


@pytest.mark.parametrize(
    ("kind", "read"), [("tensorboard", by_tensorboard), ("wandb", by_wandb), ("mlflow", by_mlflow)]
)
def test_each_network_has_curves_of_its_own(kind: str, read: Any) -> None:
    done = run(*FIT, "--log-to", kind)
    assert "takes no more news" not in done.stderr
    options, points = read()
    assert "0.05" in options
    assert "npz:data.npz" in options
    points = {name.replace("_", " "): points for name, points in points.items()}  # TensorBoard has no spaces
    report = json.loads(Path("out/report.json").read_text())
    for network, curve in (("part 0", report["parts"][0]), ("part 1", report["parts"][1]), ("whole", report["whole"])):
        for name, key in (("loss in training", "train_loss"), ("loss in test", "loss"), ("error rate", "metric")):
            expected = [(epoch["epoch"], pytest.approx(epoch[key])) for epoch in curve]
            assert points[f"{network}/{name}"] == expected
        batches = [step for step, _ in points[f"{network}/loss of batches"]]
        assert batches == sorted(batches)
        assert batches[-1] == 5 * curve[-1]["epoch"]


def test_a_resumed_run_is_the_same_in_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpart.torch.runs import fit

    with monkeypatch.context() as patch:
        patch.setattr(fit, "merge_parts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*FIT, "--log-to", "mlflow")
    run(*FIT, "--log-to", "mlflow", "--resume")
    _, points = by_mlflow()
    assert {name.partition("/")[0] for name in points} == {"part 0", "part 1", "whole"}
