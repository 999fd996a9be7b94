"""Models that transformers saved are read from their folders, and divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
)

from onnxpart import arrays
from onnxpart.errors import ModelError
from onnxpart.ir.protos import metadata_of
from onnxpart.merging.model_card import BASE_MODEL
from onnxpart.torch.hf import load_pretrained
from onnxpart.verification.runtime import Session
from tests.networks.command import run


def saved(kind: str, folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small model of a kind, saved in a folder, and inputs for it of other sizes than the exporter's."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "vit":
        model: Any = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes))
        inputs = {"pixel_values": torch.randn(3, 3, 16, 16)}
    else:
        bert = BertConfig(vocab_size=32, max_position_embeddings=32, **sizes)
        gpt2 = GPT2Config(vocab_size=32, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(gpt2) if kind == "gpt2" else BertForSequenceClassification(bert)
        tokens = torch.arange(3 * 5).reshape(3, 5) + 1
        inputs = {"input_ids": tokens, "attention_mask": (tokens % 5 > 0).long()}
    model.save_pretrained(folder)
    return model.eval(), inputs


@pytest.mark.parametrize("kind", ["gpt2", "bert", "vit"])
def test_a_saved_model_is_divided_from_its_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, inputs = saved(kind, tmp_path / kind)
    proto = load_pretrained(kind)
    assert any(node.op_type == "Dropout" for node in proto.graph.node) == (kind != "vit")  # of which none is set
    (found,) = Session(proto).run({name: value.numpy() for name, value in inputs.items()}).values()
    assert torch.allclose(torch.from_numpy(found), model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert "checked in ONNX Runtime" in run("split", f"hf:{kind}", "-k", 2).stdout
    run("merge", f"{kind}_parts", "--into", "original", "-o", "merged.onnx")
    card = ModelCard.load("README.md")
    assert card.data.library_name == "onnx"
    assert card.data.base_model is None
    assert f"This is a {type(model).__name__} as ONNX" in card.text
    names = {name for name, _ in model.named_parameters()}
    assert names <= arrays("merged.onnx").keys()


def test_the_base_model_is_what_the_folder_says(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--google--vit-base" / "snapshots" / "0"
    saved("vit", snapshot)
    assert metadata_of(load_pretrained(snapshot))[BASE_MODEL] == "google/vit-base"
    folder = snapshot.rename(tmp_path / "copied")
    assert BASE_MODEL not in metadata_of(load_pretrained(folder))
    config = folder / "config.json"
    for name, known in (("google/vit-base", True), ("/home/me/vit", False), ("./vit", False)):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": name}))
        assert (BASE_MODEL in metadata_of(load_pretrained(folder))) == known


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json; name a folder that save_pretrained wrote"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"can't be read by transformers \(.*\); save the model again"):
        load_pretrained(tmp_path)
    T5Model(T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="what a T5Model takes isn't known; export it with "):
        load_pretrained(tmp_path)
