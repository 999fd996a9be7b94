"""Data and runs in S3, as a server on this machine plays it: a run that is killed anywhere is whole, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import datasets
import numpy as np
import pytest
import s3fs
import torch
import webdataset
from moto.server import ThreadedMotoServer
from onnx import TensorProto, helper
from PIL import Image
from torch.nn import functional as F

from onnxpart import arrays
from onnxpart.errors import ModelError
from onnxpart.storage.remote import Remote, reading
from onnxpart.torch.data.signature import signature
from onnxpart.torch.data.sources import open_data
from onnxpart.torch.training.checkpoint import Checkpoints
from onnxpart.torch.training.ray_cluster import Cluster
from onnxpart.torch.training.train import Settings, train
from tests.networks.command import equal, run
from tests.networks.killing import SINGLE
from tests.networks.training import parts, small, stripes

torch.set_num_threads(1)  # sums of several threads differ by rounding

FIT = (
    "fit", "chain.onnx", "--data", "npz:s3://bucket/data.npz", "--epochs", 3, "--merge-at", 2, "--batch-size", 10,
    "--lr", 0.05, "--checkpoint-every", 3, "--keep", 9, "--engine", "series",
)  # fmt: skip
RUN = Remote("s3://bucket/run")
DYING = """
import os, signal, sys
import s3fs

call, method, key = s3fs.S3FileSystem._call_s3, *sys.argv[1:3]

async def dying(self, kind, *args, **named):
    if kind == method and str(named.get("Key")).endswith(key) and named.get("PartNumber") != 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, kind, *args, **named)

s3fs.S3FileSystem._call_s3 = dying
"""
"""Code that lets the process be killed at a request for a key; at the second piece of a large file."""

TARRED = """
import fsspec
import webdataset

webdataset.gopen_schemes["s3"] = lambda url, mode, bufsize: fsspec.open(url, mode).open()

def tar(url): return webdataset.WebDataset(url, shardshuffle=False).decode().to_tuple("x.npy", "target.cls")
def here(): return tar("data.tar")
def there(): return tar("s3://bucket/data.tar")
"""


@pytest.fixture(autouse=True)
def bucket(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A server with a bucket, and the samples in it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "some",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    storage = s3fs.S3FileSystem()
    storage.mkdir("bucket")
    storage.put_file(str(here / "data.npz"), "bucket/data.npz")
    yield storage
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    server.stop()


def killed_at(method: str, key: str, code: str, *arguments: object) -> None:
    """Run code in a process of its own, and see it killed at a request."""
    command = [sys.executable, "-c", DYING + code, method, key, *map(str, arguments)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        command, env={**os.environ, **SINGLE, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    ("engine", "method", "key"),
    [
        ("series", "put_object", "part1-step000000006.safetensors"),
        ("processes", "put_object", "report.md"),
        ("series", "delete_objects", "None"),
    ],
)
def test_a_run_goes_on_wherever_it_was_killed(engine: str, method: str, key: str) -> None:
    run(*FIT, "-o", "here")
    fit = "from onnxpart.cli.app import app\nif __name__ == '__main__': app(sys.argv[3:])"
    killed_at(method, key, fit, *FIT, "--engine", engine, "-o", RUN)
    left = RUN.files()
    assert "parts/plan.json" in left
    assert any(name.startswith("checkpoints/") for name in left)
    assert ("report.md" in left) == (method == "delete_objects")
    resumed = run(*FIT, "-o", RUN, "--resume")
    assert "resumed at step" in resumed.stderr
    files = sorted(str(path.relative_to("here")) for path in Path("here").rglob("*") if path.is_file())
    named = [[name for name in names if not name.startswith("tensorboard/")] for names in (RUN.files(), files)]
    assert named[0] == named[1]
    with reading(RUN / "trained.onnx") as file:
        assert equal(str(file), "here/trained.onnx")
    assert f"{RUN} holds a run that has ended" in run(*FIT, "-o", RUN, "--resume", code=1).stderr
    assert f"{RUN} holds files already; go on with --resume" in run(*FIT, "-o", RUN, "--force", code=1).stderr


def test_workers_of_a_part_put_its_checkpoints_there() -> None:
    settings = Settings(epochs=1, lr=0.01, device="cpu")
    kept = Checkpoints(RUN, every_steps=2, every_minutes=None)
    (module,) = parts(small())[:1]
    train(
        [module],
        stripes(),
        F.cross_entropy,
        settings,
        engine="ray",
        cluster=Cluster(None, 0.25, 0, 2),
        checkpoints=kept,
    )
    assert RUN.files() == [f"part0-step{step:09d}.safetensors" for step in (4, 6)]
    (other,) = parts(small())[:1]
    train([other], stripes(), F.cross_entropy, settings, engine="series", checkpoints=replace(kept, resume=True))
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name])


@pytest.fixture
def _data_sets(here: Path, bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples in forms of the library datasets, here and in the bucket."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", here / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    datasets.disable_progress_bars()
    with np.load("data.npz") as file:
        columns = [{"x": file[f"{name}x"].tolist(), "target": file[f"{name}target"]} for name in ("", "test_")]
    train, test = map(datasets.Dataset.from_dict, columns)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk("saved")
    for name, split in (("train-0", train.select(range(30))), ("train-1", train.select(range(30, 45))), ("test", test)):
        split.to_parquet(f"parquet/{name}.parquet")
    for folder in ("saved", "parquet"):
        bucket.put(folder, f"bucket/{folder}", recursive=True)


@pytest.mark.usefixtures("_data_sets")
@pytest.mark.parametrize(
    ("folder", "options"),
    [("saved", ()), ("parquet", ("--engine", "processes")), ("parquet", ("--steps-per-epoch", 5))],
)
def test_data_sets_in_s3_are_what_they_are_here(folder: str, options: tuple[object, ...]) -> None:
    for place, out in ((folder, "here"), (f"s3://bucket/{folder}", "there")):
        run(*FIT[:3], f"hf:{place}", *FIT[4:], *options, "-o", out)
    assert equal("here/trained.onnx", "there/trained.onnx")


@pytest.mark.usefixtures("_data_sets")
def test_fit_on_ray_reads_its_data_once_and_keeps_its_run_there(caplog: pytest.LogCaptureFixture) -> None:
    """Parts by a task each; the whole by two workers of Ray Train, whose own files are there as long as it runs."""
    caplog.set_level("INFO", logger="werkzeug")
    run(*FIT, "-o", "here")
    options = ("--engine", "ray", "--cpus-per-part", 0.25, "--workers-per-part", 1)
    run(*FIT[:3], "hf:s3://bucket/parquet", *FIT[4:], *options, "-o", RUN)
    asked = Counter(line.split()[6] for line in caplog.messages if '"GET /bucket/parquet/' in line)
    assert asked == {f"/bucket/parquet/{name}.parquet": 1 for name in ("train-0", "train-1", "test")}
    files = sorted(str(path.relative_to("here")) for path in Path("here").rglob("*") if path.is_file())
    named = [[name for name in names if not name.startswith("tensorboard/")] for names in (RUN.files(), files)]
    assert named[0] == named[1]
    with reading(RUN / "trained.onnx") as file:
        found, wanted = arrays(file), arrays("here/trained.onnx")
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_images_in_s3_are_fetched_once_for_all_processes(
    here: Path, bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is in this process, which sees what the loader's workers ask it for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    caplog.set_level("INFO", logger="werkzeug")
    rng, names = np.random.default_rng(0), [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]
    for name in names:
        (here / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(here / "images" / name)
    bucket.put(str(here / "images"), "bucket/images", recursive=True)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    inputs = signature(helper.make_graph([], "g", [value], []))
    local, one, other = (
        open_data(f"folder:{place}/images", inputs, batch_size=2, workers=workers).train
        for place, workers in ((here, 0), ("s3://bucket", 2), ("s3://bucket", 2))
    )
    for number in range(2):
        batches = zip(local.epoch(number), one.epoch(number), other.epoch(number), strict=True)
        for ((wanted,), target), *rest in batches:
            assert all(torch.equal(found, wanted) and torch.equal(label, target) for (found,), label in rest)
    asked = Counter(line.split()[6] for line in caplog.messages if '"GET /bucket/images/' in line)
    assert asked == {f"/bucket/images/{name}": 1 for name in names}


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # it leaves closing files to Python
def test_webdataset_reads_by_fsspec(bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load("data.npz") as file, webdataset.TarWriter("data.tar") as tar:
        for i, (x, y) in enumerate(zip(file["x"], file["target"], strict=True)):
            tar.write({"__key__": f"{i:03d}", "x.npy": x, "target.cls": int(y)})
    bucket.put_file("data.tar", "bucket/data.tar")
    Path("tarred.py").write_text(TARRED)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("here", "there"):
        run(*FIT[:3], f"tarred:{name}", *FIT[4:], "--steps-per-epoch", 5, "-o", name)
    assert equal("here/trained.onnx", "there/trained.onnx")


def test_a_large_file_is_the_old_one_until_the_new_one_is_whole(here: Path) -> None:
    """It is put in pieces of 50 MB."""
    (here / "old").write_bytes(b"old")
    (RUN / "large").put(here / "old")
    (here / "new").write_bytes(bytes(110 << 20))
    put = "from pathlib import Path; from onnxpart.storage.remote import Remote; Remote(sys.argv[3]).put(Path('new'))"
    killed_at("upload_part", "large", put, RUN / "large")
    with reading(RUN / "large") as file:
        assert file.read_bytes() == b"old"
    (RUN / "large").put(here / "new")
    with reading(RUN / "large") as file:
        assert file.stat().st_size == 110 << 20


def test_what_goes_wrong_is_a_sentence(bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "; check the URL, and what you may do there.\n"
    refused = run(*FIT, "-o", "s3://none/run", code=1).stderr
    assert refused == f"error: s3://none/run can't be read (The specified bucket does not exist){advice}"
    refused = run(*FIT[:3], "npz:s3://bucket/none.npz", *FIT[4:], "-o", RUN, code=1).stderr
    assert refused == f"error: s3://bucket/none.npz can't be read (The specified key does not exist){advice}"
    refused = run(*FIT[:3], "hf:s3://bucket/none", *FIT[4:], "-o", RUN, code=1).stderr
    assert refused == f"error: s3://bucket/none can't be read (No such file or directory){advice}"

    call = s3fs.S3FileSystem._call_s3  # noqa: SLF001

    async def forbidding(storage: Any, kind: str, *args: Any, **named: Any) -> Any:
        if kind == "put_object":
            raise PermissionError("Access Denied")
        return await call(storage, kind, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", forbidding)
        refused = run(*FIT, "-o", RUN, code=1).stderr
        assert refused.endswith(f"error: {RUN}/parts/plan.json can't be written (Access Denied){advice}")
    assert RUN.files() == []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket.clear_instance_cache()
    with pytest.raises(ModelError, match=r"s3://bucket/run can't be read \(Could not connect to the endpoint URL"):
        RUN.files()
