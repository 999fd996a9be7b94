"""The folder that a run works in, and the storage that it is kept in; of a run that fails at once nothing stays.

A run in a storage works in a temporary folder of this machine, and nothing of it stays here. From its beginning on the
storage has the plan, by which the run is known, and then each checkpoint. All other files are put there when the run is
over; the checkpoints are removed after that. So it can be resumed whenever it ends. What it recorded is also put there
when it fails or is stopped.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnxpart.emission.split import PLAN
from onnxpart.errors import ModelError, OnnxpartError, Resumable
from onnxpart.storage.outputs import EVENTS
from onnxpart.storage.remote import Place, Remote, exists, unlink
from onnxpart.torch.runs.fit import CHECKPOINTS, PARTS, TRAINED
from onnxpart.torch.runs.progress import METRICS
from onnxpart.torch.training import checkpoint


@contextmanager
def working_folder(place: Place, resume: bool) -> Iterator[Path]:
    """The folder that a run works in: its place, or a temporary one, from which the files get to their place.

    A new run that fails before there is anything to resume, or trained, is removed.

    :param resume: whether to fetch what a run that goes on needs; otherwise there must be nothing in the storage.
    :raises ModelError: when there is, or when the storage can't be read or written.
    """
    if isinstance(place, Path):
        before = _identity(place)
        try:
            yield place
        except OnnxpartError as error:
            if not resume and _identity(place) != before and _useless(place, error):
                shutil.rmtree(place)
            raise
        return
    if not resume and place.files():
        raise ModelError(f"{place} holds files already; go on with --resume, remove them, or give another URL.")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / place.name
        for name in (f"{PARTS}/{PLAN}", METRICS) if resume else ():
            if exists(place / name):
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).get(work / name)
        try:
            yield work
        except BaseException as error:
            with suppress(ModelError):
                if not resume and _useless(place, error):
                    unlink([place / name for name in place.files()])
                else:
                    _put([work / METRICS, *(work / EVENTS).glob("*")], work, place)
            raise
        _put(work.rglob("*"), work, place)
        checkpoint.remove(place / CHECKPOINTS)


def _identity(folder: Path) -> int | None:
    """Return what tells a folder from the one that replaces it; None if there is none."""
    return folder.stat().st_ino if folder.exists() else None


def _useless(place: Place, error: BaseException) -> bool:
    """Whether a run that ended by an error has left nothing to go on with."""
    ended = isinstance(error, OnnxpartError) and not isinstance(error, Resumable)
    return ended and not checkpoint.all_in(place / CHECKPOINTS) and not exists(place / TRAINED)


def _put(paths: Iterable[Path], work: Path, place: Remote) -> None:
    """Put those of the paths that are files in their place: each after the files whose names begin with its own."""
    for path in sorted(filter(Path.is_file, paths), reverse=True):
        (place / path.relative_to(work).as_posix()).put(path)
