"""The table of ONNX operators in terms of torch; importing this folder fills it."""

from onnxpart.torch.operators import (
    control,
    elementwise,
    layers,
    movement,
    normalization,
    pooling,
    positions,
    recurrent,
    reductions,
    sequences,
    values,
)

__all__ = [
    "control",
    "elementwise",
    "layers",
    "movement",
    "normalization",
    "pooling",
    "positions",
    "recurrent",
    "reductions",
    "sequences",
    "values",
]
