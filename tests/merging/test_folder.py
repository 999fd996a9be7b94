"""A split's folder read back: plan, parts and original, whatever the order of its files, and of no other split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models import BUILDERS
from onnxpart import MergeError, Split, arrays, merge, split
from onnxpart.frontend.load import load
from onnxpart.merging.folder import (
    filled,
    merge_folder,
    merge_level,
    original,
    part_arrays,
    read_parts,
    read_plan,
    widen_part,
)
from onnxpart.storage.rows import stream
from onnxpart.storage.safetensors import save_arrays


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """A network in two parts, in the folder ``parts`` of an empty current folder."""
    monkeypatch.chdir(tmp_path)
    result = split(BUILDERS["chain"](), 2)
    result.save("parts")
    return result


PARTS = Path("parts")
FILES = [PARTS / "part0.onnx", PARTS / "part1.onnx"]


def test_the_plan_is_read_from_its_file_or_else_from_a_part(done: Split) -> None:
    assert read_plan(PARTS) == done.plan
    (PARTS / "plan.json").unlink()
    assert read_plan(PARTS) == done.plan
    FILES[0].unlink()
    with pytest.raises(MergeError, match=r"parts holds no plan; name a folder that `onnxpart split` wrote\."):
        read_plan(PARTS)


def test_parts_say_which_they_are(done: Split) -> None:
    for files in (FILES, FILES[::-1]):
        found = part_arrays(PARTS, done.plan, files)
        for part, model in zip(found, done.parts, strict=True):
            for name, array in arrays(model).items():
                np.testing.assert_array_equal(part[name][:], array)


def test_parts_are_those_of_one_split(done: Split) -> None:
    with pytest.raises(MergeError, match="is part 0, which was given already"):
        read_parts(done.plan, [FILES[0], FILES[0]])
    with pytest.raises(MergeError, match="the plan has 2 parts, but 1 files were given"):
        read_parts(done.plan, FILES[:1])
    split(BUILDERS["chain"](), 2, order="interleaved").save("others")
    with pytest.raises(MergeError, match="is a part of another split than the plan's"):
        read_parts(done.plan, [FILES[0], Path("others/part1.onnx")])


def test_the_original_is_the_plans_own(done: Split) -> None:
    assert original(PARTS, done.plan).digest == done.plan.digest
    onnx.save_model(BUILDERS["lrn"](), PARTS / "original.onnx")
    with pytest.raises(MergeError, match="isn't the network that the plan was made for"):
        original(PARTS, done.plan)


def test_a_merged_folder_is_the_whole(done: Split) -> None:
    wanted = merge(done.plan, [arrays(part) for part in done.parts])
    merged = merge_folder(PARTS, Path("merged.onnx"), initializers=Path("merged.safetensors"))
    assert merged.names == sorted(wanted)
    found = arrays(onnx.load_model("merged.onnx"))
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_alone_are_enough(done: Split) -> None:
    files = []
    for p, part in enumerate(done.parts):
        files.append(Path(f"{p}.safetensors"))
        save_arrays({name: stream(2 * array) for name, array in arrays(part).items()}, files[-1])
    merge_folder(PARTS, Path("one.onnx"))
    merge_folder(PARTS, Path("twice.onnx"), parts=files)
    one, twice = arrays(onnx.load_model("one.onnx")), arrays(onnx.load_model("twice.onnx"))
    assert all(np.array_equal(twice[i.name], 2 * one[i.name]) for i in done.plan.initializers if not i.constant)
    with pytest.raises(MergeError, match="is safetensors and others are ONNX"):
        part_arrays(PARTS, done.plan, [files[0], FILES[1]])
    with pytest.raises(MergeError, match="was given twice"):
        part_arrays(PARTS, done.plan, [files[0], files[0]])
    save_arrays({"nothing": stream(np.zeros(1, np.float32))}, files[1])
    with pytest.raises(MergeError, match=r"has no weight 'conv1\.weight'"):
        part_arrays(PARTS, done.plan, files)


def test_larger_parts_are_a_folder_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split(BUILDERS["chain"](), 4).save("parts")
    merged = merge_level(PARTS, Path("larger"), 2)
    assert read_plan(Path("larger")) == merged.plan
    assert merged.plan.k == 2


@pytest.mark.usefixtures("done")
def test_a_part_fills_the_whole() -> None:
    names = widen_part(FILES[0], Path("wide.onnx"), noise=0.0)
    found = arrays(onnx.load_model("wide.onnx"))
    assert set(names) <= set(found)
    first, second = np.split(found["conv1.weight"], 2)
    assert np.array_equal(first, second)


def test_the_whole_is_filled_with_what_fits(done: Split) -> None:
    whole = load(done.whole)
    name = next(iter(whole.initializers))
    value = np.full_like(arrays(done.whole)[name], 7)
    assert (arrays(filled(whole, {name: stream(value)}).model())[name] == 7).all()
    with pytest.raises(MergeError, match="the model belongs to another split"):
        filled(whole, {name: stream(np.zeros(1, np.float32))})
