"""JSON that others may have written."""

from __future__ import annotations

import json
from typing import Any


def from_json(text: str) -> Any:
    """Read JSON, however deep it is nested.

    :raises ValueError: when it is none, or deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
