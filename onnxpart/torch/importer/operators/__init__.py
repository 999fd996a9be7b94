"""The table of ONNX operators in terms of torch; importing this folder fills it."""

from onnxpart.torch.importer.operators import (
    control,
    elementwise,
    images,
    layers,
    movement,
    normalization,
    pooling,
    positions,
    quantize,
    recurrent,
    reductions,
    resize,
    sequences,
    signal,
    values,
)

__all__ = [
    "control",
    "elementwise",
    "images",
    "layers",
    "movement",
    "normalization",
    "pooling",
    "positions",
    "quantize",
    "recurrent",
    "reductions",
    "resize",
    "sequences",
    "signal",
    "values",
]
