"""Run a command that is killed at its n-th step on the disk, for nearly each n; leave what each left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from onnxpart.storage.atomic import NEW

HOOKED = ("replace", "rename", "unlink", "rmdir", "mkdir", "open", "chmod")
"""The functions of `os` that change what is on the disk."""


ROOT = Path(__file__).parents[2]
SINGLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_LAST = 20
"""So many steps at the end are tried each, of those before every fifth: they are all of one kind, to write files."""


LOADED = {
    "train": ("onnxpart.torch.runs", "onnxruntime", "torch._dynamo"),
    "fit": ("onnxpart.torch.runs", "onnxruntime", "torch._dynamo", "onnxpart.report.page", "scipy.sparse.csgraph"),
    "report": ("onnxpart.report.page",),
}
"""What a command, or an optimizer of torch's, imports when it runs; here once, before the process is copied."""


def armed(at: int) -> list[int]:
    """Let this process be killed in front of its `at`-th call of any of them; return the list that counts them."""
    count = [0]

    def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in HOOKED:
        setattr(os, name, hooked(getattr(os, name)))
    return count


def run(start: Path, place: Path, call: Callable[[], object], at: int) -> int:
    """Run `call` in a copy of a folder, in a process of its own, killed at a step; return how many it took, or 0."""
    shutil.copytree(start, place, symlinks=True)
    mine, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(place)
            count = armed(at)
            call()
            os.write(theirs, str(count[0]).encode())
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(theirs)
    said, status = os.read(mine, 100), os.waitpid(pid, 0)[1]
    os.close(mine)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the command failed")
    return int(said or 0)


def killed_runs(start: Path, work: Path, call: Callable[[], object]) -> int:
    """Run `call` in copies of a folder, `work`/1, `work`/2 and so on; only the last one ends. Return its number.

    This process must have a single thread.
    """
    total = run(start, work / "whole", call, 0)
    points = [n for n in range(1, total + 1) if n > total - _LAST or n % 5 == 0]
    for number, point in enumerate(points, 1):
        if run(start, work / str(number), call, point):
            raise RuntimeError("the command wasn't killed")
    (work / "whole").rename(work / str(len(points) + 1))
    return len(points) + 1


def killed(start: Path, *arguments: object) -> list[Path]:
    """The folders that are there after a command was killed at its steps, the last of them when it ended."""
    work = start.parent / "work"
    command = [sys.executable, "-m", "tests.networks.killing", start, work, *arguments]
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=os.environ | SINGLE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [work / str(number) for number in range(1, int(done.stdout.split()[-1]) + 1)]
    assert len(found) >= 4
    return found


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if NEW in path.name]


def main() -> None:
    """Do so with a command of onnxpart: folder to start from, folder to work in, and its arguments.

    Instead of a command there may be a function, as module:function.
    """
    start, work, *arguments = sys.argv[1:]
    if ":" in arguments[0]:
        module, _, name = arguments[0].partition(":")
        print(killed_runs(Path(start), Path(work), getattr(import_module(module), name)))
        return
    import onnxpart.cli.app as cli
    import onnxpart.emission.scale_output
    import onnxpart.merging.folder  # noqa: F401

    for module in LOADED.get(arguments[0], ()):
        import_module(module)

    print(killed_runs(Path(start), Path(work), lambda: cli.app(arguments, standalone_mode=False)))


if __name__ == "__main__":
    main()
