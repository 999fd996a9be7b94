"""Errors that a user can act on. The message names what is wrong, where, and what to do next."""

from __future__ import annotations


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


class Interrupted(OnnxpartError):
    """A run that was stopped by hand (exit code 130)."""

    exit_code = 130
