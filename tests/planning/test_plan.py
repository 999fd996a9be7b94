"""What a plan promises to files: the keys under which models carry it outlive the code's own names."""

from __future__ import annotations

from models import figure1
from onnxpart import Plan, split


def test_the_keys_in_model_files_are_a_format() -> None:
    """Parts and wholes written by other versions are found by them."""
    result = split(figure1(), 2)
    props = {entry.key: entry.value for entry in result.parts[1].metadata_props}
    assert Plan.from_json(props["onnxpart.plan"]) == result.plan
    assert props["onnxpart.part"] == "1"
    assert "onnxpart.plan" in {entry.key for entry in result.whole.metadata_props}
