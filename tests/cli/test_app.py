"""Every command from end to end, and what `--json` promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from typer.main import get_command

from models import BUILDERS
from onnxpart import __version__, arrays, merge
from onnxpart.cli import app as cli
from onnxpart.merging.folder import original, read_plan
from tests.networks.command import FIELDS, process, run, run_json


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for three models."""
    for name in ("chain", "lrn", "lenet"):
        onnx.save_model(BUILDERS[name](), tmp_path / f"{name}.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_inspect_shows_table_1_and_the_layers(here: Path) -> None:
    lines = run("inspect", here / "lenet.onnx", "-k", 5).stdout.splitlines()
    assert "Gemm 'logits'     10       10            shared: output layer" in lines
    assert any(line.split()[:4] == ["Conv", "'conv1'", "20", "20"] and "divided" in line for line in lines)
    assert any(line.split()[:3] == ["whole", "431,080", "100.00%"] for line in lines)
    assert any("18,224" in line and "4.23%" in line for line in lines)
    assert not any("logits.weight" in line for line in lines)


def test_inspect_lists_initializers(here: Path) -> None:
    lines = run("inspect", here / "chain.onnx", "--initializers").stdout.splitlines()
    assert any(line.split()[0:1] == ["logits.weight"] and "divided by K" in line for line in lines)


def test_inspect_names_what_is_duplicated(here: Path) -> None:
    assert "duplicated: LRN 'norm': each part mixes its own" in run("inspect", here / "lrn.onnx").stdout


def test_inspect_json(here: Path) -> None:
    data = run_json("inspect", here / "lenet.onnx", "--initializers")
    assert data.keys() == FIELDS | {"model", "layers", "sizes", "initializers"}
    assert data["k"] == 2
    assert data["sizes"]["whole"]["parameters"] == 431_080
    assert [p["parameters"] for p in data["sizes"]["parts"]] == [109_295] * 2
    assert [layer["outcome"] for layer in data["layers"]] == ["divided"] * 3 + ["shared: output layer"]
    assert data["initializers"][0] == {
        "name": "conv1.weight",
        "shape": [20, 1, 5, 5],
        "parts": [[10, 1, 5, 5]] * 2,
        "merging": "joined",
    }


def test_split_writes_beside_the_current_folder(here: Path) -> None:
    result = run("split", here / "chain.onnx", "-k", 2)
    folder = here / "chain_parts"
    assert sorted(p.name for p in folder.iterdir()) == ["part0.onnx", "part1.onnx", "plan.json", "whole.onnx"]
    assert result.stdout.splitlines()[-1] == "wrote 2 parts and the whole to chain_parts"
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)


def test_split_json_and_options(here: Path) -> None:
    options = ("--order", "random", "--seed", 3, "--shares", "2,1", "--init", "he")
    data = run_json("split", here / "lrn.onnx", "-k", 2, "-o", here / "deep" / "out", *options)
    assert data.keys() == FIELDS | {"model", "folder", "files", "sizes", "check"}
    assert data["files"] == ["original.onnx", "part0.onnx", "part1.onnx", "plan.json", "whole.onnx"]
    assert (data["order"], data["seed"], data["shares"]) == ("random", 3, [2, 1])
    assert data["duplicated"] == ["LRN 'norm'"]
    assert data["sizes"]["parts"][0]["parameters"] > data["sizes"]["parts"][1]["parameters"]
    plan = read_plan(here / "deep" / "out")
    assert original(here / "deep" / "out", plan).digest == plan.digest


def test_existing_folder_is_replaced_only_with_force(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    before = (here / "out" / "plan.json").read_bytes()
    refused = run("split", here / "chain.onnx", "-k", 3, "-o", "out", code=1)
    assert refused.stderr == "error: out exists already; give another folder, or --force to replace it.\n"
    assert (here / "out" / "plan.json").read_bytes() == before
    run("split", here / "lrn.onnx", "-k", 2, "-o", "out", "--force")
    assert (here / "out" / "original.onnx").exists()
    run("split", here / "chain.onnx", "-k", 2, "-o", "out", "--force")
    assert sorted(p.name for p in (here / "out").iterdir()) == ["part0.onnx", "part1.onnx", "plan.json", "whole.onnx"]


@pytest.mark.parametrize("name", ["chain", "lrn"])
def test_merge_gives_what_the_api_gives(here: Path, name: str) -> None:
    run("split", here / f"{name}.onnx", "-k", 2, "-o", "out", "--init", "glorot")
    said = run("merge", "out").stdout
    assert said.startswith("merged ")
    assert "of 2 parts into out/merged.onnx\n" in said
    merged = merge(read_plan(Path("out")), [arrays(f"out/part{p}.onnx") for p in range(2)])
    found = arrays("out/merged.onnx")
    for key in merged.keys() & found.keys():
        np.testing.assert_array_equal(found[key], merged[key])
    assert arrays("out/whole.onnx").keys() == found.keys()


def test_merge_into_the_original(here: Path) -> None:
    run("split", here / "lrn.onnx", "-k", 2, "-o", "out")
    data = run_json("merge", "out", "--into", "original", "-o", "m.onnx")
    assert data["model"] == "m.onnx"
    assert data["initializers"] is None
    merged = onnx.load_model("m.onnx")
    assert [n.op_type for n in merged.graph.node] == [n.op_type for n in BUILDERS["lrn"]().graph.node]


def test_merge_with_a_scaled_output(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    run("merge", "out", "--normalize", "output")
    last = onnx.load_model("out/merged.onnx").graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Mul", ["logits"])


def test_merge_writes_initializers_on_their_own(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    run("merge", "out", "--initializers", "m.safetensors")
    assert not (here / "out" / "merged.onnx").exists()
    assert load_file("m.safetensors")["logits.weight"].shape == (3, 6)
    run("merge", "out", "--initializers", "m.safetensors", "-o", "m.onnx", "--force")
    assert (here / "m.onnx").exists()


def test_merge_takes_parts_from_elsewhere(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    run("merge", "out", "-o", "a.onnx")
    for p in range(2):
        save_file(arrays(f"out/part{p}.onnx"), f"p{p}.safetensors")
        (here / "out" / f"part{p}.onnx").rename(here / f"p{p}.onnx")
    run("merge", "out", "-o", "b.onnx", "--parts", "p1.onnx", "--parts", "p0.onnx")
    run("merge", "out", "-o", "c.onnx", "--parts", "p0.safetensors", "--parts", "p1.safetensors")
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes() == (here / "c.onnx").read_bytes()


@pytest.mark.parametrize(("name", "against"), [("chain", "original"), ("lrn", "duplicated whole")])
def test_verify(here: Path, name: str, against: str) -> None:
    run("split", here / f"{name}.onnx", "-k", 2, "-o", "out")
    lines = run("verify", "out").stdout.splitlines()
    assert lines[0].startswith("ensemble identity: holds")
    assert lines[2].startswith("block identity: holds")
    assert "largest deviation" in lines[1]
    assert lines[-2:] == [f"compared with the parts: the {against}", "verified"]
    data = run_json("verify", "out")
    assert data["holds"] is True
    assert data["against"] == against
    assert {f["oracle"] for f in data["findings"]} == {"ensemble identity", "block identity"}


def test_verify_fails_for_a_part_that_computes_something_else(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    part = onnx.load_model("out/part1.onnx")
    next(n for n in part.graph.node if n.op_type == "Relu").op_type = "Tanh"
    onnx.save_model(part, "out/part1.onnx")
    result = run("verify", "out", code=1)
    assert "ensemble identity: FAILS" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("NOT verified")
    assert run_json("verify", "out", code=1)["holds"] is False


def test_trained_parts_keep_their_plan(here: Path) -> None:
    run("split", here / "chain.onnx", "-k", 2, "-o", "out")
    for path in [*(here / "out").glob("part*.onnx"), here / "out" / "whole.onnx"]:
        model = onnx.load_model(path)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values + np.float32(0.5), tensor.name))
        onnx.save_model(model, path)
    run("verify", "out")
    run("merge", "out", "--into", "original")


@pytest.mark.parametrize("name", [command.name for command in cli.app.registered_commands])
def test_help_of_every_command(name: str) -> None:
    """It fits a terminal, its options are described in sentences, and its example is a command line that is taken."""
    told = run(name, "--help").stdout
    assert all(len(line) <= 80 for line in told.splitlines())
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.help[0].isupper(), parameter.name
        assert parameter.help.endswith("."), parameter.name
    assert command.epilog.startswith(f"Example: onnxpart {name} ")
    assert f"\n  {command.epilog}\n" in told
    command.make_context(name, command.epilog.split()[3:])


def test_help_of_all_commands_is_whole_sentences() -> None:
    assert run("--version").stdout == f"onnxpart {__version__}\n"
    told = run().stdout
    assert told == run("--help").stdout
    listed = told[told.index("Commands:") :].splitlines()[1:]
    assert len(listed) == len(cli.app.registered_commands)
    assert all(line.endswith(".") and not line.endswith("..") and len(line) <= 80 for line in listed)


@pytest.mark.parametrize(
    "command",
    [[sys.executable, "-m", "onnxpart"], [sys.executable, "-c", "from onnxpart.cli.app import main; main()"]],
    ids=["module", "console script"],
)
def test_as_a_process(here: Path, command: list[str]) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return process(*command, *arguments)

    assert call("--version").stdout == f"onnxpart {__version__}\n"
    done = call("inspect", str(here / "chain.onnx"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["k"] == 2
    failed = call("inspect", "nothing.onnx", "--json")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert json.loads(failed.stdout)["error"] == "nothing.onnx doesn't exist; check the path."
    misused = call("inspect", "--sideways")
    expected = "error: no such option: --sideways; `onnxpart inspect --help` lists what there is.\n"
    assert (misused.returncode, misused.stdout, misused.stderr) == (2, "", expected)


def test_names_that_the_terminal_cannot_show_are_written_as_escapes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model(here / "chain.onnx")
    model.graph.node[0].name = "größe→"
    onnx.save_model(model, here / "chain.onnx")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    done = process(sys.executable, "-m", "onnxpart", "inspect", str(here / "chain.onnx"))
    assert done.returncode == 0
    assert "e\\u2192'" in done.stdout


@pytest.mark.parametrize("code", ["import onnxpart", "from typer.testing import CliRunner; "
                                  "from onnxpart.cli import app as cli; assert "
                                  "CliRunner().invoke(cli.app, ['--help']).exit_code == 0"])  # fmt: skip
def test_starting_imports_nothing_heavy(code: str) -> None:
    code += "; import sys; print(*sorted({'torch', 'onnxruntime', 'scipy', 'matplotlib'} & set(sys.modules)))"
    found = process(sys.executable, "-c", code)
    assert (found.stdout, found.stderr) == ("\n", "")


def test_interruption_is_quiet(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "split", interrupted)
    result = run("split", here / "chain.onnx", "-k", 2, code=130)
    assert result.output == ""
