"""Small configurations of well-known transformers: a few layers of width 64, with random weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH, LAYERS, HEADS, HIDDEN, VOCABULARY, CLASSES, IMAGE = 2, 7, 2, 4, 64, 160, 5, 32

WIDTHS = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY}
ENCODER = {**WIDTHS, "intermediate_size": 128, "max_position_embeddings": 40, "num_labels": CLASSES}
DECODER = {**WIDTHS, "intermediate_size": 128, "max_position_embeddings": 40, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2, "head_dim": 16}
PAIR = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "max_position_embeddings": 40, "use_cache": False,
}  # fmt: skip
VISION = {"image_size": IMAGE, "patch_size": 8, "num_labels": CLASSES}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

Spec = tuple[str, str, dict[str, Any], tuple[str, ...]]
"""Kind of configuration, automatic class, settings, inputs."""
TEXT, BOTH = ("input_ids",), ("input_ids", "decoder_input_ids")

SPECS: dict[str, Spec] = {
    "bert": ("bert", "SequenceClassification", ENCODER, TEXT),
    "bert_mlm": ("bert", "MaskedLM", ENCODER, TEXT),
    "bert_masked": ("bert", "SequenceClassification", ENCODER, ("input_ids", "attention_mask")),
    "distilbert": ("distilbert", "SequenceClassification", {
        "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 128, "vocab_size": VOCABULARY,
        "max_position_embeddings": 40, "num_labels": CLASSES}, TEXT),
    "roberta": ("roberta", "SequenceClassification", ENCODER | TOKENS, TEXT),
    "albert": ("albert", "SequenceClassification", {**ENCODER, "embedding_size": 32}, TEXT),
    "electra": ("electra", "SequenceClassification", {**ENCODER, "embedding_size": 32}, TEXT),
    "deberta-v2": ("deberta-v2", "SequenceClassification", {
        **ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
        "max_relative_positions": 40}, TEXT),
    "mpnet": ("mpnet", "SequenceClassification", ENCODER, TEXT),
    "squeezebert": ("squeezebert", "SequenceClassification", {**ENCODER, "embedding_size": HIDDEN}, TEXT),
    "gpt2": ("gpt2", "CausalLM", {
        "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 40,
        "use_cache": False, **TOKENS}, TEXT),
    "gptj": ("gptj", "CausalLM", {
        "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 40,
        "rotary_dim": 8, "use_cache": False, **TOKENS}, TEXT),
    "gpt_neo": ("gpt_neo", "CausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_layers": 2, "num_heads": HEADS,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 40, "intermediate_size": 128,
        "window_size": 4, "use_cache": False, **TOKENS}, TEXT),
    "gpt_neox": ("gpt_neox", "CausalLM", DECODER | TOKENS, TEXT),
    "opt": ("opt", "CausalLM", {
        **DECODER, "ffn_dim": 128, "word_embed_proj_dim": HIDDEN, **TOKENS}, TEXT),
    "bloom": ("bloom", "CausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "use_cache": False,
        **TOKENS}, TEXT),
    "llama": ("llama", "CausalLM", GROUPED | TOKENS, TEXT),
    "mistral": ("mistral", "CausalLM", {**GROUPED, "sliding_window": 4, **TOKENS}, TEXT),
    "mixtral": ("mixtral", "CausalLM", {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, **TOKENS}, ("input_ids", "attention_mask")),
    "qwen2": ("qwen2", "CausalLM", GROUPED | TOKENS, TEXT),
    "qwen3": ("qwen3", "CausalLM", GROUPED | TOKENS, TEXT),
    "gemma": ("gemma", "CausalLM", GROUPED | TOKENS, TEXT),
    "gemma2": ("gemma2", "CausalLM", {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 16, **TOKENS}, TEXT),
    "phi": ("phi", "CausalLM", DECODER | TOKENS, TEXT),
    "falcon": ("falcon", "CausalLM", {
        **DECODER, "multi_query": True, "new_decoder_architecture": False, **TOKENS}, TEXT),
    "mamba": ("mamba", "CausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 8,
        "time_step_rank": 4, "use_cache": False, **TOKENS}, TEXT),
    "t5": ("t5", "Seq2SeqLM", {
        "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": LAYERS,
        "num_heads": HEADS, "use_cache": False, "decoder_start_token_id": 0, "pad_token_id": 0}, BOTH),
    "bart": ("bart", "Seq2SeqLM", PAIR | TOKENS, BOTH),
    "whisper": ("whisper", "SpeechSeq2Seq", {
        **PAIR, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 40,
        "decoder_start_token_id": 1, **TOKENS}, ("input_features", "decoder_input_ids")),
    "wav2vec2": ("wav2vec2", "AudioClassification", {
        **WIDTHS, "intermediate_size": 128, "conv_dim": [32, 32, 32], "conv_kernel": [10, 3, 2],
        "conv_stride": [5, 2, 2], "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 32, "num_labels": CLASSES}, ("input_values",)),
    "vit": ("vit", "ImageClassification", {**ENCODER, **VISION}, ("pixel_values",)),
    "swin": ("swin", "ImageClassification", {
        "image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4, "num_labels": CLASSES}, ("pixel_values",)),
    "segformer": ("segformer", "SemanticSegmentation", {
        "num_encoder_blocks": 2, "depths": [2, 2], "sr_ratios": [4, 2], "hidden_sizes": [32, 64],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [4, 4],
        "decoder_hidden_size": 32, "num_labels": CLASSES}, ("pixel_values",)),
    "clip": ("clip", "", {
        "projection_dim": 32,
        "text_config": {**ENCODER, "projection_dim": 32, **TOKENS},
        "vision_config": {**ENCODER, **VISION, "projection_dim": 32}}, ("input_ids", "pixel_values")),
    "detr": ("detr", "ObjectDetection", {
        **{n: v for n, v in PAIR.items() if n not in ("vocab_size", "use_cache")}, "num_queries": 6,
        "num_labels": CLASSES, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
        "backbone_config": {
            "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_features": ["stage4"]}}, ("pixel_values",)),
}  # fmt: skip
ATTENTIONS = ("eager", "sdpa")
ONE_ATTENTION = frozenset(
    (
        "bloom", "deberta-v2", "detr", "gemma2", "gpt_neo", "gptj", "mamba", "mpnet", "segformer", "squeezebert",
        "swin", "t5",
    )
)  # fmt: skip
"""Models that have one way of computing attention."""


class Logits(nn.Module):
    """A transformer that takes its inputs in order and returns its logits alone."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits, or what else comes first."""
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        logits: Tensor = result["logits"] if "logits" in result else result[0]
        return logits


def names() -> list[str]:
    """All models, each with every way of computing attention that it has."""
    return [
        name if attention == "eager" else f"{name}-{attention}"
        for attention in ATTENTIONS
        for name in SPECS
        if attention == "eager" or name not in ONE_ATTENTION
    ]


def family(name: str) -> str:
    """The kind of configuration."""
    return SPECS[name.removesuffix("-sdpa")][0]


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model with random weights, and inputs for it by name."""
    import transformers

    attention = "sdpa" if name.endswith("-sdpa") else "eager"
    kind, task, settings, inputs = SPECS[name.removesuffix("-sdpa")]
    config = transformers.AutoConfig.for_model(kind, **settings)
    make = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    # of the ways of computing experts one can be exported as it is
    experts = {"experts_implementation": "batched_mm"} if "num_local_experts" in settings else {}
    model = make.from_config(config, attn_implementation=attention, **experts)
    return Logits(model, inputs), {name: INPUTS[name](config) for name in inputs}


def _image(config: Any) -> Tensor:
    size = getattr(config, "vision_config", config)
    pixels = getattr(size, "image_size", None) or 2 * IMAGE
    return torch.randn(BATCH, 3, pixels, pixels)


def _tokens(_: Any) -> Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, LENGTH))


INPUTS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "attention_mask": lambda _: torch.tensor([[1] * LENGTH, [1] * (LENGTH - 2) + [0] * 2]),
    "pixel_values": _image,
    "input_features": lambda config: torch.randn(BATCH, config.num_mel_bins, 2 * config.max_source_positions),
    "input_values": lambda _: torch.randn(BATCH, 1600),
}
