"""JSON is read, or is a ValueError."""

import json

import pytest

from onnxpart.storage.json_text import from_json

DEEP = 100_000


def test_values() -> None:
    value = {"a": [1, 2.5, None], "b": "x"}
    assert from_json(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "0" + "}" * DEEP])
def test_deep_nesting(text: str) -> None:
    with pytest.raises(ValueError, match="it is nested too deeply"):
        from_json(text)
