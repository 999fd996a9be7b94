"""Data and runs in S3, as a server on this machine plays it: a run that is killed anywhere is whole, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from torch.nn import functional as F

from onnxpart.errors import ModelError
from onnxpart.storage.remote import Remote, reading
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
