"""Bad input gives one sentence with the next step in it, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from models import BUILDERS
from onnxpart import (
    MergeError,
    ModelError,
    Split,
    UsageError,
    analyse,
    draw_edges,
    load,
    merge,
    plan,
    shallow,
    split,
    verify,
    widen,
)
from onnxpart.cli import app as cli
from onnxpart.emission.shallow import METADATA
from onnxpart.errors import needs, reason
from onnxpart.planning.plan import Plan
from onnxpart.storage.onnx_file import save
from onnxpart.storage.safetensors import save_arrays
from onnxpart.verification.oracles import growth_deviation
from tests.networks.copies import restored


def refused(*arguments: object, code: int = 1) -> str:
    """The sentence with which a command refuses."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert result.stdout == ""
    start, _, sentence = result.stderr.partition(": ")
    assert start == "error"
    assert sentence.count("\n") == 1
    assert sentence.endswith(".\n")
    return sentence.strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(BUILDERS["chain"](), "chain.onnx")
    return tmp_path


@pytest.fixture
def parts(here: Path) -> Path:
    """A split of two parts."""
    split("chain.onnx", 2).save("parts")
    return here / "parts"


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("inspect",), ("split", "-k", 2)])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "m.onnx doesn't exist; check the path."),
        (b"", "m.onnx holds no graph: it is empty, truncated or not an ONNX model; export it again."),
        (
            b"no protobuf at all",
            "m.onnx isn't an ONNX file or is truncated (protobuf can't decode it); export it again.",
        ),
    ],
    ids=["missing", "empty", "text"],
)
def test_unreadable_file(here: Path, command: tuple[object, ...], content: bytes | None, sentence: str) -> None:
    if content is not None:
        Path("m.onnx").write_bytes(content)
    assert refused(command[0], "m.onnx", *command[1:]) == sentence
    assert not (here / "m_parts").exists()


@pytest.mark.usefixtures("here")
def test_folder_in_place_of_a_file() -> None:
    assert refused("inspect", ".") == ". is a folder; name the .onnx file in it."


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_what_has_no_end_in_place_of_a_file(name: str, here: Path) -> None:
    os.mkfifo(here / "pipe")
    for command in (("inspect", name), ("split", name, "-k", 2)):
        assert refused(*command) == f"{name} is a device or a pipe; name the .onnx file itself."


def test_truncated_file(here: Path) -> None:
    content = Path("chain.onnx").read_bytes()
    for size in range(1, len(content), 37):
        Path("m.onnx").write_bytes(content[:size])
        assert refused("split", "m.onnx", "-k", 2).startswith("m.onnx ")
    assert not (here / "m_parts").exists()


@pytest.mark.usefixtures("here")
def test_checker_failure() -> None:
    model = BUILDERS["chain"]()
    model.graph.node[1].input[0] = "nowhere"
    onnx.save_model(model, "m.onnx")
    sentence = refused("inspect", "m.onnx")
    assert sentence.startswith("m.onnx is not a valid ONNX model: ")
    assert "nowhere" in sentence
    assert sentence.endswith("; fix the export.")


@pytest.mark.usefixtures("here")
def test_cycle(capfd: pytest.CaptureFixture[str]) -> None:
    model = BUILDERS["chain"]()
    model.graph.node[0].input[0] = model.graph.node[-1].input[0]
    onnx.save_model(model, "m.onnx")
    sentence = refused("inspect", "m.onnx")
    assert sentence == "m.onnx: the graph has a cycle, so its nodes have no order; fix the export."
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("here")
def test_contradicting_shapes() -> None:
    model = BUILDERS["chain"]()
    model.graph.initializer[2].CopyFrom(
        numpy_helper.from_array(np.ones((6, 5, 3, 3), np.float32), model.graph.initializer[2].name)
    )
    onnx.save_model(model, "m.onnx")
    assert refused("inspect", "m.onnx") == "m.onnx: the shapes at Conv 'conv2' contradict each other; fix the export."


@pytest.mark.usefixtures("here")
def test_numbers_that_do_not_fill_the_shape() -> None:
    model = BUILDERS["lenet"]()
    tensor = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    tensor.raw_data = tensor.raw_data[:-8]
    onnx.save_model(model, "m.onnx")
    assert "'fc1.weight'" in refused("split", "m.onnx", "-k", 2)
    assert not Path("m_parts").exists()


@pytest.mark.usefixtures("here")
def test_old_opset() -> None:
    model = BUILDERS["chain"]()
    model.opset_import[0].version = 6
    onnx.save_model(model, "m.onnx")
    assert refused("inspect", "m.onnx") == (
        "m.onnx has opset 6, and the oldest that is read is 7; convert it with onnx.version_converter first."
    )


@pytest.mark.usefixtures("here")
def test_no_initializers() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "bare", value[:1], value[1:])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
    assert refused("inspect", "m.onnx") == (
        "m.onnx has no initializers, so there are no weights to divide; export it with its weights."
    )


@pytest.fixture
def external(here: Path) -> Path:
    """A model of which every weight is external."""
    onnx.save_model(BUILDERS["chain"](), "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    return here / "e.onnx"


def move_data(location: str) -> None:
    """Let the model say that its data are elsewhere."""
    model = onnx.load_model("e.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    Path("e.onnx").write_bytes(model.SerializeToString())


def test_external_data_work(external: Path) -> None:
    done = split(external, 2)
    assert all(t.data_location != TensorProto.EXTERNAL for m in (*done.parts, done.whole) for t in m.graph.initializer)
    assert done.plan.digest == split("chain.onnx", 2).plan.digest
    kept = restored(load(external)).graph.initializer
    assert all(t.data_location != TensorProto.EXTERNAL for t in kept)


@pytest.mark.usefixtures("external")
def test_missing_external_data() -> None:
    Path("e.data").unlink()
    sentence = refused("split", "e.onnx", "-k", 2)
    assert sentence == ("e.onnx: the external data file e.data of 'conv1.weight' is missing; copy it beside the model.")


@pytest.mark.usefixtures("external")
def test_truncated_external_data() -> None:
    Path("e.data").write_bytes(Path("e.data").read_bytes()[:100])
    for command in (("inspect", "e.onnx"), ("split", "e.onnx", "-k", 2)):
        sentence = refused(*command)
        assert "e.data is too short for initializer 'conv1.weight'" in sentence
        assert sentence.endswith("; copy it again.")


@pytest.mark.parametrize("location", ["../outside.data", "deeper/../../outside.data", "ABSOLUTE", "link.data"])
def test_external_data_outside_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    inside = tmp_path / "inside"
    (inside / "deeper").mkdir(parents=True)
    monkeypatch.chdir(inside)
    onnx.save_model(BUILDERS["chain"](), "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    Path("e.data").rename(tmp_path / "outside.data")
    (inside / "link.data").symlink_to(tmp_path / "outside.data")
    location = location.replace("ABSOLUTE", str(tmp_path / "outside.data"))
    move_data(location)
    sentence = refused("inspect", "e.onnx")
    assert "lie outside the model's folder" in sentence
    assert location in sentence
    assert "'conv1.weight'" in sentence


def test_external_data_of_a_constant_node_outside_the_folder(here: Path) -> None:
    (here.parent / "secret").write_bytes(bytes(400))
    model = BUILDERS["groupnorm"]()
    tensor = next(n for n in model.graph.node if n.op_type == "Constant").attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    Path("m.onnx").write_bytes(model.SerializeToString())
    assert "lie outside the model's folder (../secret)" in refused("inspect", "m.onnx")


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("-k", 0), "K is 0; ask for at least 1 part."),
        (("-k", -3), "K is -3; ask for at least 1 part."),
        (
            ("-k", 2, "--seed", -1),
            "invalid value for '--seed': Input should be greater than or equal to 0; `onnxpart split --help` lists "
            "what there is.",
        ),
        (("-k", 10**6), "K is 1000000; ask for at most 32767 parts."),
        (("-k", 2, "--shares", "1,1,1"), "3 shares [1, 1, 1] for 2 parts; give 2 positive whole numbers."),
        (("-k", 2, "--shares", "1,0"), "2 shares [1, 0] for 2 parts; give 2 positive whole numbers."),
        (("-k", 2, "--shares", "3,-1"), "2 shares [3, -1] for 2 parts; give 2 positive whole numbers."),
        (("-k", 2, "--shares", "a,b"), "--shares 'a,b' aren't whole numbers; give them as in 2,1,1."),
        (("-k", 2, "--shares", ""), "--shares '' aren't whole numbers; give them as in 2,1,1."),
        (
            ("-k", 2, "--order", "sorted"),
            "invalid value for '--order': 'sorted' is not one of 'contiguous', 'interleaved', 'random'; "
            "`onnxpart split --help` lists what there is.",
        ),
        (
            ("-k", 2, "--init", "ones"),
            "invalid value for '--init': 'ones' is not one of 'slices', 'he', 'glorot', 'scaled'; "
            "`onnxpart split --help` lists what there is.",
        ),
    ],
)
def test_usage(here: Path, options: tuple[object, ...], sentence: str) -> None:
    assert refused("split", "chain.onnx", *options, code=2) == sentence
    assert not (here / "chain_parts").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "arguments",
    [
        ("split", "chain.onnx"),
        ("split", "chain.onnx", "-k", "two"),
        ("inspect",),
        ("merge", "parts", "--into", "elsewhere"),
        ("merge", "parts", "--normalize", "nothing"),
        ("divide", "chain.onnx"),
    ],
)
def test_usage_of_the_command_line(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("k", [5, 7, 100, 2000])
@pytest.mark.parametrize("name", ["chain", "lrn", "shuffle", "qkv", "groupnorm"])
def test_more_parts_than_units(name: str, k: int) -> None:
    onnx.save_model(BUILDERS[name](), "m.onnx")
    result = CliRunner().invoke(cli.app, ["split", "m.onnx", "-k", str(k)])
    if result.exit_code == 0:
        assert "not divided" in CliRunner().invoke(cli.app, ["inspect", "m.onnx", "-k", str(k)]).stdout
        return
    assert "Traceback" not in result.stderr
    assert f"no layer can be divided into {k} parts" in result.stderr
    assert result.exit_code == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "reason"), [("refused", "'features'"), ("unknown_op", "Mystery 'mystery'")])
def test_nothing_to_divide(name: str, reason: str) -> None:
    onnx.save_model(BUILDERS[name](), "m.onnx")
    assert reason in refused("split", "m.onnx", "-k", 2)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_missing_part(parts: Path) -> None:
    (parts / "part1.onnx").unlink()
    for command in ("merge", "verify"):
        assert refused(command, "parts") == "parts/part1.onnx doesn't exist; check the path."
    assert not (parts / "merged.onnx").exists()


@pytest.mark.usefixtures("parts")
def test_too_few_files() -> None:
    for suffix in ("onnx", "safetensors"):
        assert refused("merge", "parts", "--parts", f"parts/part0.{suffix}") == (
            "the plan has 2 parts, but 1 files were given; name one file per part."
        )


def test_the_same_part_twice(parts: Path) -> None:
    shutil.copy(parts / "part0.onnx", "copy.onnx")
    for again in ("parts/part0.onnx", "copy.onnx"):
        sentence = refused("merge", "parts", "--parts", "parts/part0.onnx", "--parts", again)
        assert sentence == f"{again} is part 0, which was given already; name each part once."
    np_file = "p.safetensors"
    save_arrays({"conv1.weight": np.ones(2, np.float32)}, np_file)
    assert "given twice" in refused("merge", "parts", "--parts", np_file, "--parts", np_file)


@pytest.mark.usefixtures("parts")
def test_parts_of_different_plans() -> None:
    split("chain.onnx", 2, order="interleaved").save("other")
    sentence = refused("merge", "parts", "--parts", "parts/part0.onnx", "--parts", "other/part1.onnx")
    assert sentence == "other/part1.onnx is a part of another split than the plan's; give the parts of one split."
    shutil.copy("other/part1.onnx", "parts/part1.onnx")
    assert "of another split" in refused("verify", "parts")


@pytest.mark.parametrize("number", ["2", "-1", "one"])
def test_part_that_is_no_part(parts: Path, number: str) -> None:
    model = onnx.load_model(parts / "part1.onnx")
    next(p for p in model.metadata_props if p.key == "onnxpart.part").value = number
    onnx.save_model(model, parts / "part1.onnx")
    assert f"part {number} of 2" in refused("merge", "parts")


def reshape(model: ModelProto, name: str) -> None:
    """Let a weight, and what says whose it is, be another's."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ones((4, 2, 3, 3), np.float32), name))
    del model.metadata_props[:]


def test_shapes_of_another_split(parts: Path) -> None:
    model = onnx.load_model(parts / "part1.onnx")
    reshape(model, "conv1.weight")
    onnx.save_model(model, parts / "part1.onnx")
    assert refused("merge", "parts") == (
        "part 1: 'conv1.weight' has shape (4, 2, 3, 3), but the plan says (2, 2, 3, 3); it comes from another split."
    )
    assert not (parts / "merged.onnx").exists()


@pytest.mark.usefixtures("parts")
def test_safetensors_that_lack_a_weight() -> None:
    save_arrays({"conv1.weight": np.ones((2, 2, 3, 3), np.float32)}, "a.safetensors")
    shutil.copy("a.safetensors", "b.safetensors")
    sentence = refused("merge", "parts", "--parts", "a.safetensors", "--parts", "b.safetensors")
    assert sentence == "a.safetensors has no weight 'conv1.bias'; save all of the part's weights."
    assert "same form" in refused("merge", "parts", "--parts", "a.safetensors", "--parts", "parts/part1.onnx")


@pytest.mark.usefixtures("parts")
def test_damaged_safetensors() -> None:
    Path("a.safetensors").write_bytes(b"nothing")
    Path("b.safetensors").write_bytes(b"nothing")
    assert "a.safetensors" in refused("merge", "parts", "--parts", "a.safetensors", "--parts", "b.safetensors")
    assert "c.safetensors" in refused("merge", "parts", "--parts", "c.safetensors", "--parts", "b.safetensors")


def test_nan_is_warned_of_and_merged(parts: Path) -> None:
    model = onnx.load_model(parts / "part1.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "logits.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save_model(model, parts / "part1.onnx")
    result = CliRunner().invoke(cli.app, ["merge", "parts"])
    assert (result.exit_code, result.stderr) == (0, "warning: part 1: 'logits.weight' holds NaN or infinite values\n")
    merged = {t.name: numpy_helper.to_array(t) for t in onnx.load_model(parts / "merged.onnx").graph.initializer}
    assert np.isnan(merged["logits.weight"]).sum() == 1
    result = CliRunner().invoke(cli.app, ["verify", "parts", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["deviation"] is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda done, _: plan(done.analysis, 2, seed=-1),
        lambda done, _: split(done.analysis.model, seed=-1, init="he"),
        lambda done, part: widen(done.analysis, done.plan, part, seed=-1),
        lambda done, part: draw_edges(done.plan, merge(done.plan, [part, part]), 0.1, seed=-1),
        lambda done, _: verify(done.analysis, done.plan, seed=-1),
        lambda done, _: growth_deviation(done.analysis, done.whole_draft, done.whole_draft, seed=-1),
    ],
)
def test_a_negative_seed_in_python(draw: Callable[[Split, dict[str, np.ndarray]], object]) -> None:
    done = split(BUILDERS["chain"]())
    part = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.parts[0].graph.initializer}
    with pytest.raises(UsageError, match=r"^the seed is -1; give 0 or more\.$"):
        draw(done, part)


# -- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe"])
def test_corrupt_plan(parts: Path, content: bytes) -> None:
    (parts / "plan.json").write_bytes(content)
    for command in ("merge", "verify"):
        sentence = refused(command, "parts")
        assert sentence.startswith("parts/plan.json isn't a plan")
        assert sentence.endswith("; split the model again.")


def test_plan_that_is_nested_too_deeply(parts: Path) -> None:
    (parts / "plan.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    sentence = "parts/plan.json isn't a plan (it is nested too deeply); split the model again."
    assert refused("merge", "parts") == sentence


def edited(parts: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads((parts / "plan.json").read_text())
    change(data)
    (parts / "plan.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(k=3),
        lambda d: d.update(k="2"),
        lambda d: d.update(k=0),
        lambda d: d.pop("mean"),
        lambda d: d.update(unheard_of=1),
        lambda d: d["initializers"][0].update(shape=[2]),
        lambda d: d["initializers"][0]["blocks"].pop(),
        lambda d: d["initializers"][0]["blocks"][0].clear(),
        lambda d: d["initializers"][0].update(blocks=[[[[[0, 99, 1]], None, None, None]]] * 2),
    ],
)
def test_plan_that_contradicts_itself(parts: Path, change: Callable[[dict[str, object]], object]) -> None:
    edited(parts, change)
    assert refused("merge", "parts").startswith("parts/plan.json isn't a plan")


def test_plan_of_another_schema(parts: Path) -> None:
    edited(parts, lambda d: d.update(schema=99))
    assert refused("merge", "parts") == (
        "parts/plan.json has plan schema 99, but this version reads 1; split the model again."
    )


def test_plan_of_another_model(parts: Path) -> None:
    onnx.save_model(BUILDERS["residual"](), parts / "whole.onnx")
    assert refused("verify", "parts") == (
        "parts/whole.onnx isn't the network that the plan was made for; split the model again."
    )
    assert refused("merge", "parts").startswith("parts/whole.onnx has no initializer 'conv1.weight'; it belongs to ")
    with pytest.raises(MergeError, match="the plan isn't one of residual"):
        split_with(BUILDERS["residual"](), plan(analyse(load("chain.onnx")), 2))


@pytest.mark.parametrize("network", ["chain", "lrn"])
@pytest.mark.parametrize("options", [{"k": 3}, {"k": 4}, {"order": "interleaved"}])
def test_whole_of_another_split(here: Path, network: str, options: dict[str, object]) -> None:
    onnx.save_model(BUILDERS[network](), "m.onnx")
    split("m.onnx", 2).save("parts")
    split("m.onnx", **options).save("other")  # type: ignore[arg-type]
    for part in range(2):
        model = onnx.load_model(f"parts/part{part}.onnx")
        del model.metadata_props[:]
        onnx.save_model(model, f"parts/part{part}.onnx")
    for name in ("whole.onnx", "plan.json"):
        shutil.copytree("parts", f"with_{name}")
        shutil.copy(f"other/{name}", f"with_{name}/{name}")
        sentence = refused("merge", f"with_{name}")
        assert "another split" in sentence or "files were given" in sentence or "doesn't exist" in sentence
        assert not (here / f"with_{name}" / "merged.onnx").exists()
    shutil.copy("other/whole.onnx", "parts/whole.onnx")
    assert "belongs to another split than the plan" in refused("widen", "parts/part0.onnx", "-o", "w.onnx")
    assert "another split" in refused("verify", "parts")


@pytest.mark.parametrize("suffix", ["onnx", "safetensors"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_floats_of_another_type_are_converted(parts: Path, dtype: str, suffix: str) -> None:
    for part in range(2):
        model = onnx.load_model(parts / f"part{part}.onnx")
        for tensor in model.graph.initializer:
            if tensor.name == "conv1.weight" and part == 1:
                kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
                values = np.full(tensor.dims, 0.5).astype(kind)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save_model(model, f"p{part}.onnx")
        save_arrays({t.name: numpy_helper.to_array(t) for t in model.graph.initializer}, f"p{part}.safetensors")
    command = ["merge", "parts", "--parts", f"p0.{suffix}", "--parts", f"p1.{suffix}"]
    result = CliRunner().invoke(cli.app, command)
    sentence = f"warning: part 1: converted 'conv1.weight' from {dtype} to float32\n"
    assert (result.exit_code, result.stderr) == (0, sentence)
    merged = {t.name: numpy_helper.to_array(t) for t in onnx.load_model(parts / "merged.onnx").graph.initializer}
    assert merged["conv1.weight"].dtype == np.float32
    assert (merged["conv1.weight"] == 0.5).sum() == merged["conv1.weight"].size // 2
    result = CliRunner().invoke(cli.app, ["widen", f"p1.{suffix}", "-o", "w.onnx", "--folder", "parts"])
    assert (result.exit_code, result.stderr) == (0, sentence.replace("part 1", "part 0"))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_weights_that_are_no_floats(dtype: str) -> None:
    for part in range(2):
        model = onnx.load_model(f"parts/part{part}.onnx")
        arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        if part:
            arrays["conv1.weight"] = arrays["conv1.weight"].astype(dtype)
        save_arrays(arrays, f"p{part}.safetensors")
    assert refused("merge", "parts", "--parts", "p0.safetensors", "--parts", "p1.safetensors") == (
        f"part 1: 'conv1.weight' is of type {dtype}, the network's of float32; save it as float32."
    )


def split_with(model: ModelProto, planned: Plan) -> None:
    """Make a partition from a plan that may be another model's."""
    from onnxpart.planning.partition import partition_of

    partition_of(analyse(load(model)), planned)


@pytest.mark.usefixtures("here")
def test_folder_that_is_no_split() -> None:
    assert refused("merge", "nowhere") == "nowhere holds no plan; name a folder that `onnxpart split` wrote."


# -- depth ------------------------------------------------------------------------------------------------------------


def test_blocks_that_are_not_there(here: Path) -> None:
    onnx.save_model(BUILDERS["residual"](), "deep.onnx")
    assert refused("shallow", "chain.onnx", "--blocks", 1, "-o", "s.onnx").startswith(
        "chain.onnx has no repeated blocks: "
    )
    assert refused("shallow", "deep.onnx", "--blocks", 2, "-o", "s.onnx", code=2) == (
        "deep.onnx has a stack of 2 blocks; keep at least 1 and fewer than 2 of them, not 2."
    )
    assert sorted(p.name for p in here.iterdir()) == ["chain.onnx", "deep.onnx"]


def test_deepening_what_is_of_no_deep_network(here: Path) -> None:
    onnx.save_model(BUILDERS["residual"](), "deep.onnx")
    assert refused("deepen", "chain.onnx", "deep.onnx", "-o", "d.onnx") == (
        "chain.onnx doesn't say which network it was made from; give a file that `shallow` wrote."
    )
    save(shallow("deep.onnx", 1), "s.onnx")
    assert refused("deepen", "s.onnx", "chain.onnx", "-o", "d.onnx") == (
        "chain.onnx isn't the network that s.onnx was made from; give that one."
    )
    assert not (here / "d.onnx").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"digest": "", "sources": [[1]]}', '{"digest": "", "sources": [[-1]]}'])
@pytest.mark.usefixtures("here")
def test_what_a_shallow_network_says_was_damaged(text: str) -> None:
    made = shallow(BUILDERS["residual"](), 1)
    helper.set_model_props(made, {METADATA: text})
    save(made, "s.onnx")
    assert "doesn't say which network it was made from" in refused("deepen", "s.onnx", "chain.onnx", "-o", "d.onnx")


# -- output -----------------------------------------------------------------------------------------------------------


def test_output_below_a_file(here: Path) -> None:
    Path("file").touch()
    assert refused("split", "chain.onnx", "-k", 2, "-o", "file/out").startswith("file/out can't be written (")
    split("chain.onnx", 2).save("parts")
    assert refused("merge", "parts", "-o", "file/m.onnx").startswith("file/m.onnx can't be written (")
    assert refused("merge", "parts", "-o", "absent/m.onnx").startswith("absent/m.onnx can't be written (")
    assert sorted(p.name for p in here.iterdir()) == ["chain.onnx", "file", "parts"]


def test_failure_half_way_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    split("chain.onnx", 2).save("parts")
    before = (here / "parts" / "plan.json").read_bytes()
    monkeypatch.setattr("os.replace", full)
    assert refused("split", "chain.onnx", "-k", 3, "-o", "new") == (
        "new/part0.onnx can't be written (No space left on device); free space or choose another place."
    )
    refused("split", "chain.onnx", "-k", 3, "-o", "parts", "--force")
    refused("merge", "parts")
    monkeypatch.undo()
    assert sorted(p.name for p in here.iterdir()) == ["chain.onnx", "parts"]
    assert (here / "parts" / "plan.json").read_bytes() == before
    assert not (here / "parts" / "merged.onnx").exists()


def test_force_keeps_folders_of_other_things(here: Path) -> None:
    (here / "home").mkdir()
    (here / "home" / "letter").touch()
    sentence = refused("split", "chain.onnx", "-k", 2, "-o", "home", "--force")
    assert sentence == "home holds letter, which onnxpart didn't write; give another folder, or move it."
    assert (here / "home" / "letter").exists()


def test_existing_output_of_merge(parts: Path) -> None:
    (parts / "merged.onnx").touch()
    assert refused("merge", "parts") == (
        "parts/merged.onnx exists already; give another file, or --force to replace it."
    )
    assert refused("merge", "parts", "-o", "parts") == "parts is a folder; name a file to write."
    assert CliRunner().invoke(cli.app, ["merge", "parts", "--force"]).exit_code == 0
    assert (parts / "merged.onnx").stat().st_size > 0


# -- the same from Python ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_children_of_one_error() -> None:
    with pytest.raises(ModelError):
        load("nothing.onnx")
    with pytest.raises(UsageError):
        split("chain.onnx", 0)
    with pytest.raises(MergeError):
        merge(split("chain.onnx", 2).plan, [])
    assert (ModelError.exit_code, UsageError.exit_code) == (1, 2)


# -- what other packages say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "told"), [("\n one thing.\nmore of it", "one thing"), ("", "ValueError")])
def test_another_packages_error_is_told_in_its_first_line(text: str, told: str) -> None:
    assert reason(ValueError(text)) == told


# -- packages that aren't installed -----------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(UsageError, match=r"^flight needs the package no_wings; .* `pip install '\.\[air\]'`\.$"):  # noqa: SIM117
        with needs("flight", "air"):
            import_module("no_wings.left")


def test_a_module_of_our_own_that_is_missing_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), needs("flight", "air"):
        import_module("onnxpart.no_wings")
