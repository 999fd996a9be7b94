"""Errors that a user can act on. The message names what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OnnxpartError(Exception):
    """A job that can't be done as asked; the message is one sentence with the next step in it."""

    exit_code = 1


class UsageError(OnnxpartError):
    """Arguments that contradict each other or the model (exit code 2)."""

    exit_code = 2


class ModelError(OnnxpartError):
    """A model file that can't be read or isn't valid ONNX."""


class PartitionError(OnnxpartError):
    """A model in which nothing can be divided as asked."""


class MergeError(OnnxpartError):
    """Parts that don't fit the plan, or don't belong together."""


class VerificationError(OnnxpartError):
    """Parts and whole that don't compute what they should, which is a fault of this package."""


class DataError(OnnxpartError):
    """Samples that don't fit the graph or the loss, or can't be read."""


class CheckpointError(OnnxpartError):
    """A checkpoint that is damaged, or of another run."""


class Resumable(OnnxpartError):
    """Training that ended early, and goes on from its checkpoints when it is started again."""


class Interrupted(Resumable):
    """A run that was stopped by hand (exit code 130)."""

    exit_code = 130


def reason(error: BaseException) -> str:
    """Return the first line of another package's error, without its full stop; its type's name if it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def check_seed(seed: int) -> None:
    """Check that random numbers can be drawn with a seed.

    :raises UsageError: when it is negative.
    """
    if seed < 0:
        raise UsageError(f"the seed is {seed}; give 0 or more.")


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Let a package that is missing be named with the extra that brings it.

    :param what: needs the package, as in `training`. :param extra: see `pyproject.toml`.
    :raises UsageError: when a package that isn't onnxpart's own can't be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "onnxpart":
            raise
        raise UsageError(
            f"{what} needs the package {package}; install it from a checkout with `pip install '.[{extra}]'`."
        ) from None
