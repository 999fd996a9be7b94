from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import onnxpart
from models import cifar10_net, lenet
from onnxpart.cli.app import app
from onnxpart.errors import UsageError
from onnxpart.merging.cross_weights import draw_streams
from onnxpart.storage.rows import stream


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


def test_a_negative_spread_is_refused() -> None:
    split, whole = merged(2)
    with pytest.raises(UsageError, match="the spread -1 of cross weights"):
        onnxpart.draw_edges(split.plan, whole, -1)


def test_the_command(tmp_path: Path) -> None:
    split, whole = merged(2)
    split.save(tmp_path / "parts")
    run = CliRunner().invoke
    source, target = str(tmp_path / "parts"), tmp_path / "drawn.onnx"
    done = run(app, ["merge", source, "-o", str(target), "--edges", "1", "--seed", "5"])
    assert done.exit_code == 0, done.output
    found = onnxpart.arrays(str(target))
    expected = onnxpart.draw_edges(split.plan, whole, 1.0, seed=5)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    refused = run(app, ["merge", source, "--to", "2", "--edges", "1"])
    assert (refused.exit_code, "leave out --into, --normalize, --edges" in refused.output) == (2, True)
