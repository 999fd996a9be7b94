"""Packages that only some commands need, and how to get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxpart.errors import UsageError


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """Let a package that is missing be named with the extra that brings it.

    :param what: needs the package, as in `training`. :raises UsageError: when one that isn't onnxpart's own is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "onnxpart":
            raise
        raise UsageError(
            f"{what} needs the package {package}; install it from a checkout with `pip install '.[{extra}]'`."
        ) from None
