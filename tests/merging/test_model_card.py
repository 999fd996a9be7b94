"""The card of a merged model says what the plan says, in the form of Hugging Face's, and replaces nobody's file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from onnx import helper

from models import BUILDERS
from onnxpart import Split, split
from onnxpart.frontend.load import load
from onnxpart.merging.cross_weights import ZERO, Edges
from onnxpart.merging.folder import merge_folder
from onnxpart.merging.model_card import ARCHITECTURE, BASE_MODEL, model_card

PARTS, CARD = Path("parts"), Path("parts/README.md")


def saved(name: str, *, base: str | None = None) -> Split:
    """A network that says that transformers saved it, in two parts."""
    proto = BUILDERS[name]()
    helper.set_model_props(proto, {ARCHITECTURE: "ViTModel"} | ({} if base is None else {BASE_MODEL: base}))
    return split(proto, 2)


def card(done: Split, edges: Edges = ZERO) -> str:
    text = model_card("merged.onnx", load(done.whole), done.plan, "duplicated", "weights", edges)
    assert text is not None
    return text


@pytest.mark.parametrize("base", [None, "google/vit-base"])
def test_the_front_matter_is_yaml_with_the_base_model_where_it_is_known(base: str | None) -> None:
    empty, front, text = card(saved("chain", base=base)).split("---\n", 2)
    assert empty == ""
    known = {} if base is None else {"base_model": base}
    assert yaml.safe_load(front) == {"library_name": "onnx", "tags": ["onnx", "onnxpart"], **known}
    assert "# merged.onnx" in text
    assert "This is a ViTModel as ONNX" in text
    assert "into K = 2 parts" in text


def test_it_says_how_layers_were_divided_and_what_the_merged_model_computes() -> None:
    done = saved("chain")
    text = card(done)
    for layer in done.plan.layers:
        assert f"| {layer.units} | {' + '.join(map(str, layer.parts)) or f'not divided: {layer.reason}'} |" in text
    assert "it computes the mean of the parts" in text
    assert "two parts start at zero" in text
    drawn = card(done, Edges(0.5))
    assert "it doesn't compute the mean of the parts" in drawn
    assert "at random, with a spread of 0.5" in drawn
    assert "two parts are those of the original network in: `" in card(done, Edges(keep=None))


def test_it_is_beside_the_merged_model_and_replaces_only_what_onnxpart_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved("chain").save(PARTS)
    assert merge_folder(PARTS, PARTS / "merged.onnx").card == CARD
    CARD.write_text(CARD.read_text().replace("# merged.onnx", "# old"))
    with pytest.warns(UserWarning, match=r"README\.md exists already and stays; the merged model gets no card"):
        assert merge_folder(PARTS, PARTS / "other.onnx").card is None
    assert "# old" in CARD.read_text()
    merge_folder(PARTS, PARTS / "merged.onnx", force=True)
    assert "# merged.onnx" in CARD.read_text()
    CARD.write_text("# mine")
    with pytest.warns(UserWarning, match=r"README\.md exists already and stays"):
        merge_folder(PARTS, PARTS / "merged.onnx", force=True)
    assert CARD.read_text() == "# mine"


def test_other_models_get_none(tmp_path: Path) -> None:
    split(BUILDERS["chain"](), 2).save(tmp_path / "parts")
    assert merge_folder(tmp_path / "parts", tmp_path / "merged.onnx").card is None
    assert not (tmp_path / "README.md").exists()
