"""External data: what lies in a file goes to a file a few rows at a time, and nothing else comes out than in memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from typer.testing import CliRunner

from models import BUILDERS, GOLDEN
from onnxpart import ModelError, Plan, arrays, load, merge, split, verify
from onnxpart.cli import app as cli
from onnxpart.emission.initial import initial
from onnxpart.ir.arrays import array_of
from onnxpart.merging.folder import merge_folder, read_plan
from onnxpart.merging.merge import merge_streams
from onnxpart.planning.plan import slice_array, slice_stream
from onnxpart.storage.onnx_file import ALIGNMENT
from onnxpart.storage.rows import Stored, Stream
from onnxpart.storage.safetensors import save_arrays
from tests.networks.copies import restored
from tests.networks.external import outside
from tests.networks.net import Net

ORACLES = import_module("onnxpart.verification.oracles")  # the package has a function of this name
FEW = 1 << 12
"""Bytes at a time: a few rows of the weights here."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; arrays go a few rows at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxpart.storage.rows.CHUNK", FEW)
    monkeypatch.setattr("onnxpart.ir.arrays.CHUNK", FEW)
    return tmp_path


def run(*arguments: object, code: int = 0) -> str:
    """What a command prints, on stdout or else on stderr."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def wide() -> ModelProto:
    """Convolutions of which all weights are large, one grouped, and a perceptron behind."""
    n = Net(("x", ("N", 3, 8, 8)))
    h = n.op("Relu", n.conv("x", 3, 48, kernel=7))
    h = n.op("Relu", n.conv(h, 48, 48, kernel=5, group=4))
    h = n.op("Relu", n.conv(h, 48, 96))
    h = n.op("Flatten", n.op("MaxPool", h, kernel_shape=[4, 4], strides=[4, 4]), axis=1)
    h = n.op("Relu", n.op("MatMul", h, n.random("table", 384, 60, spread=0.07)))
    return n.model(n.linear(h, 60, 80, name="y"), shape=("N", 80))


def replicated() -> ModelProto:
    """A layer that is tied to an output, so that every part has its own, and one behind it."""
    n = Net(("x", ("N", 80)))
    features = n.op("Tanh", n.linear("x", 80, 60, name="tied"))
    h = n.op("Relu", n.linear(features, 60, 90))
    return n.model(features, n.linear(h, 90, 70, name="y"))


NETWORKS: dict[str, Callable[[], ModelProto]] = {"wide": wide, "replicated": replicated, "lenet": BUILDERS["lenet"]}


def external(path: Path | str) -> set[str]:
    """Names of the external initializers of a file."""
    graph = onnx.load_model(path, load_external_data=False).graph
    return {t.name for t in graph.initializer if t.data_location == TensorProto.EXTERNAL}


def same(a: Path | str, b: Path | str) -> None:
    """Two files hold the same model, wherever its numbers are."""
    one, other = (restored(load(path)) for path in (a, b))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_models_as_in_memory(name: str, k: int) -> None:
    onnx.save_model(NETWORKS[name](), "inline.onnx")
    outside(NETWORKS[name](), "external.onnx")
    for kind in ("inline", "external"):
        run("split", f"{kind}.onnx", "-k", k, "-o", kind, "--order", "interleaved")
        run("merge", kind)
        run("merge", kind, "--into", "original", "-o", f"{kind}/original_merged.onnx")
        run("merge", kind, "--normalize", "output", "-o", f"{kind}/scaled.onnx")
        run("merge", kind, "--initializers", f"{kind}/merged.safetensors")
    assert read_plan(Path("inline")).digest == read_plan(Path("external")).digest
    names = {path.name for path in Path("inline").glob("*.onnx")}
    assert {f"part{k - 1}.onnx", "whole.onnx", "merged.onnx", "scaled.onnx"} < names
    for path in names:
        assert not external(f"inline/{path}")
        assert external(f"external/{path}")
        onnx.checker.check_model(f"external/{path}", full_check=True)
        inline, streamed = (restored(load(f"{kind}/{path}")) for kind in ("inline", "external"))
        for model in (inline, streamed):
            del model.metadata_props[:]  # the plan names its source
        assert inline.SerializeToString(deterministic=True) == streamed.SerializeToString(deterministic=True)
    assert Path("inline/merged.safetensors").read_bytes() == Path("external/merged.safetensors").read_bytes()
    run("verify", "external")


@pytest.mark.parametrize("name", NETWORKS)
def test_models_in_memory_from_external_data(name: str) -> None:
    done = split(outside(NETWORKS[name]()), 2)
    inline = split(NETWORKS[name](), 2)
    for a, b in zip((*done.parts, done.whole), (*inline.parts, inline.whole), strict=True):
        assert all(t.data_location != TensorProto.EXTERNAL for t in a.graph.initializer)
        assert all(np.array_equal(value, arrays(b)[key]) for key, value in arrays(a).items())
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
    assert verify(done.analysis, done.plan).holds


def joined(rows: Stream, size: int) -> np.ndarray:
    """An array from its chunks of `size` bytes."""
    return np.concatenate(list(rows.chunks(size))) if rows.shape else next(rows.chunks(size))


@pytest.mark.parametrize("size", [1, 333, 5000, 1 << 40])
@pytest.mark.parametrize(
    "name", ["wide", "replicated", "grouped", "shuffle", "depthwise", "shared_weight", "groupnorm"]
)
def test_rows_do_not_depend_on_how_many_at_a_time(name: str, size: int) -> None:
    done = split({**NETWORKS, **GOLDEN}[name](), 3, order="interleaved")
    parts = [arrays(part) for part in done.parts]
    for initializer in done.plan.initializers:
        array = array_of(done.analysis.model, initializer.name)
        for p in range(3):
            sliced = slice_stream(initializer, p, array)
            np.testing.assert_array_equal(joined(sliced, size), slice_array(initializer, p, array))
    for into in ("duplicated", "original"):
        expected = merge(done.plan, parts, into=into)
        for key, merged in merge_streams(done.plan, parts, into=into).items():
            np.testing.assert_array_equal(joined(merged, size), expected[key])
            assert (merged.shape, merged.dtype) == (expected[key].shape, expected[key].dtype)


@pytest.mark.parametrize("init", ["he", "glorot", "scaled"])
def test_first_weights_do_not_depend_on_how_many_at_a_time(init: str) -> None:
    done = split(outside(wide()), 2, init=init, seed=3)
    again = split(wide(), 2, init=init, seed=3)
    for a, b in zip(done.parts, again.parts, strict=True):
        assert all(np.array_equal(value, arrays(b)[key]) for key, value in arrays(a).items())
    fresh = initial(done.partition, 0, init, 3)
    for key, drawn in fresh.items():
        np.testing.assert_array_equal(joined(drawn, 1000), arrays(done.parts[0])[key])
    spreads = {"he": (2 / 192) ** 0.5, "glorot": (2 / (192 + 30)) ** 0.5}
    spreads["scaled"] = float(np.std(arrays(split(wide(), 2).parts[0])["table"])) * 2**0.5
    assert np.std(arrays(done.parts[0])["table"]) == pytest.approx(spreads[init], rel=0.03)


def test_memory_stays_below_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 MB of weights, with tensors of 4 MB, nothing as large is ever held; the maps aren't counted here."""
    for module in ("storage.rows", "ir.arrays"):
        monkeypatch.setattr(f"onnxpart.{module}.CHUNK", 1 << 17)
    n = Net(("x", ("N", 1024)))
    h = n.op("Relu", n.linear("x", 1024, 1024))
    h = n.op("Relu", n.op("MatMul", h, n.random("table", 1024, 1024, spread=0.04)))
    outside(n.model(n.linear(h, 1024, 1024, name="y")))
    run("inspect", "m.onnx")  # loads libraries
    tracemalloc.start()
    try:
        for init in ("slices", "he"):
            split("m.onnx", 2, init=init).save(init)
            merge_folder(Path(init), Path(f"{init}.onnx"), initializers=Path(f"{init}.safetensors"))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        arrays("m.onnx")["y.weight"].copy()
        assert tracemalloc.get_traced_memory()[1] > 4_000_000
    finally:
        tracemalloc.stop()


# -- more than protobuf can hold --------------------------------------------------------------------------------------


def test_models_too_large_for_protobuf_get_external_data(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save_model(wide(), "m.onnx")
    run("split", "m.onnx", "-k", 2, "-o", "inline")
    run("merge", "inline", "-o", "inline.onnx")
    monkeypatch.setattr("onnxpart.storage.onnx_file.MAX_PROTOBUF", 20_000)
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("merge", "parts", "-o", "merged.onnx")
    files = sorted(path.name for path in Path("parts").iterdir())
    assert files == ["part0.onnx", "part0.onnx.data", "part1.onnx", "part1.onnx.data", "plan.json", "whole.onnx",
                     "whole.onnx.data"]  # fmt: skip
    for name in ("part0.onnx", "part1.onnx", "whole.onnx"):
        same(f"inline/{name}", f"parts/{name}")
    assert external("merged.onnx") == {"conv.weight", "conv2.weight", "conv3.weight", "table", "y.weight"}
    same("inline.onnx", "merged.onnx")


def test_external_tensors_are_aligned_and_say_their_length() -> None:
    run("split", outside(wide()), "-k", 2)
    for tensor in onnx.load_model("m_parts/part0.onnx", load_external_data=False).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "part0.onnx.data"
            assert int(entries["offset"]) % ALIGNMENT == 0
            assert int(entries["length"]) == 4 * int(np.prod(tensor.dims))


@pytest.mark.parametrize("name", NETWORKS)
def test_verify_gives_protobuf_no_more_than_it_can_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("split", outside(NETWORKS[name]()), "-k", 2, "-o", "parts")
    monkeypatch.setattr("onnxpart.storage.onnx_file.MAX_PROTOBUF", 20_000)
    monkeypatch.setattr("onnxpart.verification.runtime.SMALL_MODEL", 20_000)
    given = []
    session = ORACLES.Session

    def spy(model: ModelProto, held: dict[str, np.ndarray]) -> object:
        given.append((model.ByteSize(), set(held)))
        return session(model, held)

    monkeypatch.setattr(ORACLES, "Session", spy)
    assert "verified" in run("verify", "parts")
    assert len(given) == 2 * 3
    assert all(size < 20_000 and held for size, held in given)

    def doubled(planned: Plan, values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {n: v * 2 if v.ndim > 1 else v for n, v in merge(planned, values).items()}

    monkeypatch.setattr(ORACLES, "merge", doubled)
    assert "FAILS" in CliRunner().invoke(cli.app, ["verify", "parts"]).stdout


# -- nothing half-written ---------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_full_disk_leaves_everything_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    outside(wide())
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("merge", "parts")
    before = contents(here)
    calls = []

    def full(*_: object) -> int:
        calls.append(0)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        return 0

    for module in ("onnx_file", "safetensors"):
        monkeypatch.setattr(f"onnxpart.storage.{module}.write_rows", full)
    sentence = run("split", "m.onnx", "-k", 3, "-o", "parts", "--force", code=1)
    assert "can't be written (No space left on device); free space or choose another place." in sentence
    for arguments in (("--force",), ("--initializers", "m.safetensors"), ("-o", "new.onnx")):
        calls.clear()
        sentence = run("merge", "parts", *arguments, code=1)
        assert "can't be written (No space left on device)" in sentence
    assert contents(here) == before


def test_data_of_others_stay_where_they_are() -> None:
    outside(wide())
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    Path("new.onnx.data").write_bytes(b"precious")
    run("merge", "parts", "-o", "new.onnx")
    assert Path("new.onnx.data").read_bytes() == b"precious"
    before = arrays("new.onnx")
    for taken in ("2", "1", "2"):
        run("merge", "parts", "-o", "new.onnx", "--force")
        assert sorted(path.name for path in Path().glob("new.onnx*")) == [
            "new.onnx", f"new.onnx.{taken}.data", "new.onnx.data",
        ]  # fmt: skip
        for name, array in arrays("new.onnx").items():
            np.testing.assert_array_equal(array, before[name])
    assert Path("new.onnx.data").read_bytes() == b"precious"


# -- what external data look like -------------------------------------------------------------------------------------


def entries(change: Callable[[TensorProto, dict[str, str]], dict[str, str]]) -> None:
    """Let every external tensor of m.onnx say something else of where it is."""
    model = onnx.load_model("m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        before = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for key, value in change(tensor, before).items():
            tensor.external_data.add(key=key, value=value)
    Path("m.onnx").write_bytes(model.SerializeToString())


def split_like(model: ModelProto) -> None:
    """m.onnx is divided as `model` is."""
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    expected = split(model, 2)
    for p in range(2):
        found = arrays(f"parts/part{p}.onnx")
        for key, array in arrays(expected.parts[p]).items():
            np.testing.assert_array_equal(found[key], array)


def test_data_in_a_folder_of_their_own() -> None:
    outside(wide(), data="deep/er/m.data")
    split_like(wide())


def test_checksums_and_unknown_entries_are_ignored() -> None:
    outside(wide())
    entries(lambda _, before: {**before, "checksum": "0" * 40, "note": "none"})
    split_like(wide())


def test_lengths_may_be_left_out() -> None:
    outside(wide())
    entries(lambda _, before: {key: before[key] for key in ("location", "offset")})
    split_like(wide())


def test_a_file_per_tensor_needs_no_offset() -> None:
    model = wide()
    onnx.save_model(model, "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    entries(lambda _, before: {"location": before["location"]})
    split_like(wide())


def test_tensors_may_share_their_data() -> None:
    def alike() -> ModelProto:
        n = Net(("x", ("N", 80)))
        h = n.op("Relu", n.linear("x", 80, 80, name="first"))
        model = n.model(n.linear(n.op("Relu", n.linear(h, 80, 80, name="second")), 80, 80, name="y"))
        weights = {t.name: t for t in model.graph.initializer}
        weights["second.weight"].raw_data = weights["first.weight"].raw_data
        return model

    outside(alike())
    first: dict[str, str] = {}

    def change(tensor: TensorProto, before: dict[str, str]) -> dict[str, str]:
        if tensor.name == "first.weight":
            first.update(before)
        return first if tensor.name == "second.weight" else before

    entries(change)
    split_like(alike())


@pytest.mark.parametrize(
    ("entry", "value", "sentence"),
    [
        ("length", "12", "initializer 'conv.weight' of shape (48, 3, 7, 7) is 28224 bytes, the model says 12; "),
        ("length", "many", "the model says many; "),
        ("offset", "-1", "is too short for initializer 'conv.weight'"),
        ("offset", "99999999", "is too short for initializer 'conv.weight'"),
        ("location", "", "of 'conv.weight' is missing"),
    ],
)
def test_entries_that_make_no_sense(here: Path, entry: str, value: str, sentence: str) -> None:
    outside(wide())
    entries(lambda tensor, before: {**before, entry: value} if tensor.name == "conv.weight" else before)
    found = run("split", "m.onnx", "-k", 2, code=1)
    assert sentence in found
    assert found.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["m.data", "m.onnx"]


def test_truncated_data_of_a_part() -> None:
    run("split", outside(wide()), "-k", 2, "-o", "parts")
    path = Path("parts/part1.onnx.data")
    path.write_bytes(path.read_bytes()[:-1000])
    for command in ("merge", "verify"):
        found = run(command, "parts", code=1)
        assert "parts/part1.onnx.data is too short for initializer 'y.weight'" in found
        assert found.count("\n") == 1
    assert not Path("parts/merged.onnx").exists()


def test_data_that_vanish_meanwhile(here: Path) -> None:
    done = split(outside(wide()), 2)
    Path("m.data").unlink()
    with pytest.raises(ModelError, match=r"m.data can't be read"):
        done.save("parts")
    assert [path.name for path in here.iterdir()] == ["m.onnx"]


def test_a_model_in_memory_whose_data_are_elsewhere() -> None:
    model = onnx.load_model(outside(wide()), load_external_data=False)
    with pytest.raises(ModelError, match="give the path of its file"):
        load(model)


def test_packed_numbers_are_kept() -> None:
    """Two int4 in a byte, in external data: an odd number of them, more than are looked at."""
    model = wide()
    values = np.arange(9001, dtype=np.int64) % 16 - 8
    packed = onnx.helper.make_tensor("packed", TensorProto.INT4, [9001], values)
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(packed), "packed"))
    model.graph.node.append(onnx.helper.make_node("Cast", ["packed"], ["wide"], to=TensorProto.FLOAT, name="wide"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("wide", TensorProto.FLOAT, [9001]))
    model.opset_import[0].version, model.ir_version = 21, 10
    outside(model)
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("merge", "parts")
    for name in ("part0", "whole", "merged"):
        tensor = next(t for t in onnx.load_model(f"parts/{name}.onnx").graph.initializer if t.name == "packed")
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int64), values)


def test_data_of_subgraphs_and_constants_travel_within_nodes() -> None:
    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.full((60, 80), len(name), np.float32), f"{name}.weight")
        node = onnx.helper.make_node("MatMul", ["hidden", weight.name], [name])
        return onnx.helper.make_graph([node], name, [], [onnx.ValueInfoProto(name=name)], [weight])

    n = Net(("x", ("N", 80)))
    h = n.linear(n.op("Relu", n.linear("x", 80, 90)), 90, 60)
    value = numpy_helper.from_array(np.linspace(-1, 1, 60, dtype=np.float32), "value")
    n.op("Add", h, n.op("Constant", value=value), name="hidden")
    flag = n.array("flag", np.asarray(True))
    n.op("If", flag, name="y", then_branch=branch("yes"), else_branch=branch("otherwise"))
    model = n.model("y", shape=("N", 80))
    assert external(outside(model)) == {t.name for t in model.graph.initializer}
    run("split", "m.onnx", "-k", 2, "-o", "parts")
    run("merge", "parts")
    Path("m.data").unlink()
    for name in ("part0", "part1", "whole", "merged"):
        onnx.checker.check_model(f"parts/{name}.onnx", full_check=True)
    run("verify", "parts")


# -- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_are_what_the_library_reads() -> None:
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(0)
    values = {
        "a": rng.standard_normal((7, 5)).astype(np.float32),
        "b": rng.standard_normal((3,)).astype(np.float16),
        "c": np.asarray(2.5),
        "d": np.zeros((0, 4), np.int64),
        "e": rng.random((1000, 9)) < 0.5,
    }
    save_arrays(values, "mine.safetensors")
    save_file(values, "theirs.safetensors")
    for path in ("mine.safetensors", "theirs.safetensors"):
        for found in (load_file(path), arrays(path)):
            assert found.keys() == values.keys()
            for key, array in values.items():
                np.testing.assert_array_equal(found[key], array)
                assert found[key].dtype == array.dtype


def test_safetensors_of_unknown_numbers() -> None:
    header = b'{"a":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[0,1]}}'
    Path("a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ModelError, match="holds numbers of type F8_E5M2"):
        arrays("a.safetensors")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_safetensors_of_parts_are_read_row_by_row(order: Sequence[int]) -> None:
    run("split", outside(wide()), "-k", 2, "-o", "parts")
    for p in range(2):
        save_arrays(arrays(f"parts/part{p}.onnx"), f"{p}.safetensors")
    run("merge", "parts")
    options = [option for p in order for option in ("--parts", f"{p}.safetensors")]
    run("merge", "parts", *options, "-o", "m2.onnx")
    if order == (0, 1):
        same("parts/merged.onnx", "m2.onnx")
    else:
        assert not np.array_equal(arrays("parts/merged.onnx")["table"], arrays("m2.onnx")["table"])


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_rows_are_mapped_but_on_windows_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    (tmp_path / "rows").write_bytes(b"head" + np.arange(12, dtype=np.float32).tobytes())
    rows = Stored(tmp_path / "rows", 4, np.dtype(np.float32), (4, 3))
    beyond = Stored(tmp_path / "rows", 4, np.dtype(np.float32), (5, 3))
    monkeypatch.setattr(sys, "platform", platform)
    found = rows[slice(1, 3),]
    base = found
    while isinstance(base.base, np.ndarray):
        base = base.base
    np.testing.assert_array_equal(found, [[3, 4, 5], [6, 7, 8]])
    assert isinstance(base, np.memmap) == (platform == "linux")
    with pytest.raises(ModelError, match="can't be read"):
        beyond[slice(4, 5),]
