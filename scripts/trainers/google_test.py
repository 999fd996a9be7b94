"""Data and a run in Google's storage, as a server on this machine plays it: a run that is killed goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcp_storage_emulator.server import create_server

from onnxpart.storage.remote import Remote, reading
from tests.networks.command import equal, run
from tests.networks.killing import SINGLE

RUN = Remote("gs://bucket/run")
FIT = (
    "fit", "chain.onnx", "--data", "npz:gs://bucket/data.npz", "--epochs", 3, "--merge-at", 2, "--batch-size", 10,
    "--lr", 0.05, "--checkpoint-every", 3, "--keep", 9, "--engine", "series",
)  # fmt: skip
DYING = """
import os, signal, sys
import gcsfs

put = gcsfs.GCSFileSystem._put_file

async def dying(self, path, to, **named):
    if to.endswith("part1-step000000006.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
    return await put(self, path, to, **named)

gcsfs.GCSFileSystem._put_file = dying
from onnxpart.cli.app import app
app(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _bucket(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server with a bucket, and the samples in it."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_address[1]  # noqa: SLF001
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks by gRPC, which this server lacks
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    Remote("gs://bucket/data.npz").put(here / "data.npz")
    yield
    server.stop()


def test_a_run_that_was_killed_goes_on() -> None:
    run(*FIT, "-o", "here")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-c", DYING, *map(str, FIT), "-o", str(RUN)],
        env={**os.environ, **SINGLE, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert "parts/plan.json" in RUN.files()
    assert "report.md" not in RUN.files()
    assert "resumed at step" in run(*FIT, "-o", RUN, "--resume").stderr
    files = sorted(str(path.relative_to("here")) for path in Path("here").rglob("*") if path.is_file())
    named = [[name for name in names if not name.startswith("tensorboard/")] for names in (RUN.files(), files)]
    assert named[0] == named[1]
    with reading(RUN / "trained.onnx") as file:
        assert equal(str(file), "here/trained.onnx")
