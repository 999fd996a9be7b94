from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxpart
from models import cifar10_net, lenet
from onnxpart.cli.app import app
from onnxpart.errors import UsageError
from onnxpart.ir.trainable import FROZEN
from onnxpart.merging.cross_weights import Edges, between, draw_streams, fill_edges
from onnxpart.storage.rows import stream
from tests.networks.command import run, run_json


def merged(k: int) -> tuple[onnxpart.Split, dict[str, np.ndarray]]:
    split = onnxpart.split(lenet(), k)
    return split, onnxpart.merge(split.plan, [onnxpart.arrays(part) for part in split.parts])


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_cross_weights_are_drawn_and_others_kept(spread: float) -> None:
    split, whole = merged(4)
    drawn = onnxpart.draw_edges(split.plan, whole, spread)
    changed = {name for name, array in drawn.items() if not np.array_equal(array, whole[name])}
    assert changed == {"conv2.weight", "fc1.weight"}, "the only weights between hidden units"
    for name in changed:
        between = drawn[name] != whole[name]
        assert not whole[name][between].any()
        assert between.mean() == pytest.approx(3 / 4, abs=0.02)
        assert drawn[name][between].std() == pytest.approx(spread * whole[name][~between].std(), rel=0.03)
        assert drawn[name].dtype == whole[name].dtype


def test_no_spread_changes_nothing() -> None:
    split, whole = merged(2)
    assert all(
        np.array_equal(array, whole[name]) for name, array in onnxpart.draw_edges(split.plan, whole, 0.0).items()
    )


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else() -> None:
    split, whole = merged(2)
    streams = {name: stream(array) for name, array in whole.items()}
    pieces = draw_streams(split.plan, streams, 1.0, seed=3)["fc1.weight"].chunks(4096)
    once, other = (onnxpart.draw_edges(split.plan, whole, 1.0, seed=seed)["fc1.weight"] for seed in (3, 4))
    assert np.array_equal(np.concatenate(list(pieces)), once)
    assert not np.array_equal(once, other)


def test_weights_that_are_apart_have_no_cross_weights() -> None:
    split = onnxpart.split(cifar10_net(), 2)
    whole = onnxpart.merge(split.plan, [onnxpart.arrays(part) for part in split.parts])
    drawn = onnxpart.draw_edges(split.plan, whole, 1.0)
    changed = {name for name, array in drawn.items() if not np.array_equal(array, whole[name])}
    assert changed == {"conv2.weight", "local3.weight", "local4.weight"}


def cross(split: onnxpart.Split, name: str) -> np.ndarray:
    """Where an initializer has weights between parts."""
    return np.asarray(split.plan.by_name[name].counts() == 0)


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("keep", [None, frozenset({"conv2.weight"})])
def test_weights_between_parts_are_kept(spread: float, keep: frozenset[str] | None) -> None:
    split, whole = merged(4)
    assert between(split.plan) == ["conv2.weight", "fc1.weight"]
    before = {name: 2 * array for name, array in onnxpart.arrays(lenet()).items()}
    streams, drawn = {n: stream(a) for n, a in whole.items()}, onnxpart.draw_edges(split.plan, whole, spread)
    filled = fill_edges(split.plan, streams, before, Edges(spread, keep))
    for name, rows in filled.items():
        kept = name in ("conv2.weight", "fc1.weight") and (keep is None or name in keep)
        other = before[name] if kept else drawn[name]
        expected = np.where(split.plan.by_name[name].counts() > 0, whole[name], other)
        assert np.array_equal(np.concatenate([c.reshape(-1) for c in rows.chunks(4096)]).reshape(rows.shape), expected)


def test_what_cannot_be_kept_is_named() -> None:
    split, _ = merged(2)
    with pytest.raises(UsageError, match=r"'conv1.weight' has no weights between parts .* of conv2.weight, fc1.weight"):
        Edges(keep=frozenset({"conv1.weight", "fc1.weight"})).check(split.plan)


@pytest.fixture
def frozen_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> onnxpart.Split:
    """The split in `parts` of a network that says that one of its parameters is frozen."""
    monkeypatch.chdir(tmp_path)
    model = lenet()
    onnx.helper.set_model_props(model, {FROZEN: '["fc1.weight", "fc1.bias"]'})
    split = onnxpart.split(model, 4)
    split.save("parts")
    return split


@pytest.mark.parametrize("into", ["original", "duplicated"])
@pytest.mark.parametrize(
    ("edges", "kept"),
    [
        ((), ["fc1.weight"]),
        (("--edges", "keep:conv2.weight"), ["conv2.weight", "fc1.weight"]),
        (("--edges", "keep"), ["conv2.weight", "fc1.weight"]),
        (("--edges", "0.5"), ["fc1.weight"]),
    ],
)
def test_frozen_parameters_keep_the_weights_between_parts(
    frozen_parts: onnxpart.Split, into: str, edges: tuple[str, ...], kept: list[str]
) -> None:
    said = run("merge", "parts", "-o", "m.onnx", "--into", into, *edges).stdout
    assert f"weights between parts stay as they were in {', '.join(kept)}\n" in said
    assert run_json("merge", "parts", "-o", "m.onnx", "--into", into, "--force", *edges)["kept"] == kept
    found, before = onnxpart.arrays("m.onnx"), onnxpart.arrays(lenet())
    for name in ("conv2.weight", "fc1.weight"):
        where = cross(frozen_parts, name)
        assert where.any()
        assert np.array_equal(found[name][where], before[name][where]) == (name in kept)
        assert found[name][where].any() == (name in kept or "0.5" in edges)
    start = "are drawn with 0.5 of the others' deviation" if "0.5" in edges else "start at zero"
    assert (f"weights between parts {start} in conv2.weight\n" in said) == ("conv2.weight" not in kept)


def test_larger_parts_keep_them_too(frozen_parts: onnxpart.Split) -> None:
    run("merge", "parts", "--to", 2, "-o", "halves")
    run("merge", "halves", "-o", "m.onnx", "--into", "original")
    found, before = onnxpart.arrays("m.onnx"), onnxpart.arrays(lenet())
    assert np.array_equal(found["fc1.weight"], before["fc1.weight"])
    where = cross(frozen_parts, "conv2.weight")
    assert not found["conv2.weight"][where].any()


@pytest.mark.usefixtures("frozen_parts")
@pytest.mark.parametrize("edges", ["some", "-1", "nan", "inf", "keep,conv2.weight", "keep:lost"])
def test_edges_that_make_no_sense(edges: str) -> None:
    result = run("merge", "parts", "-o", "m.onnx", "--edges", edges, code=2)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not Path("m.onnx").exists()


def test_a_negative_spread_is_refused() -> None:
    split, whole = merged(2)
    with pytest.raises(UsageError, match="the spread -1 of cross weights"):
        onnxpart.draw_edges(split.plan, whole, -1)


def test_the_command(tmp_path: Path) -> None:
    split, whole = merged(2)
    split.save(tmp_path / "parts")
    invoke = CliRunner().invoke
    source, target = str(tmp_path / "parts"), tmp_path / "drawn.onnx"
    done = invoke(app, ["merge", source, "-o", str(target), "--edges", "1", "--seed", "5"])
    assert done.exit_code == 0, done.output
    found = onnxpart.arrays(str(target))
    expected = onnxpart.draw_edges(split.plan, whole, 1.0, seed=5)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    refused = invoke(app, ["merge", source, "--to", "2", "--edges", "1"])
    assert (refused.exit_code, "leave out --into, --normalize, --edges" in refused.output) == (2, True)
