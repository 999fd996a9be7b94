"""Writes Flax networks as ONNX files, by jax2onnx: <folder>/flax_<name>.onnx."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx
import onnx
from flax import nnx

Array = Any


class Mlp(nnx.Module):
    """Two hidden layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a, self.b, self.c = (nnx.Linear(i, o, rngs=rngs) for i, o in ((20, 32), (32, 24), (24, 5)))

    def __call__(self, x: Array) -> Array:
        return self.c(jnp.tanh(self.b(nnx.relu(self.a(x)))))


class Cnn(nnx.Module):
    """Convolutions with channels last, batch normalisation, pooling."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Conv(3, 12, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.b = nnx.Conv(12, 12, (3, 3), feature_group_count=12, rngs=rngs)
        self.c = nnx.Conv(12, 24, (1, 1), rngs=rngs)
        self.d = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = nnx.avg_pool(nnx.relu(self.norm(self.a(x))), window_shape=(2, 2), strides=(2, 2))
        h = nnx.relu(self.c(nnx.relu(self.b(h))))
        return self.d(jnp.mean(h, axis=(1, 2)))


class Lenet(nnx.Module):
    """Convolutions, max pooling, and a dense layer on the flattened places."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Conv(1, 8, (5, 5), rngs=rngs)
        self.b = nnx.Conv(8, 16, (5, 5), rngs=rngs)
        self.c, self.d = nnx.Linear(7 * 7 * 16, 48, rngs=rngs), nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = nnx.max_pool(nnx.relu(self.a(x)), window_shape=(2, 2), strides=(2, 2))
        h = nnx.max_pool(nnx.relu(self.b(h)), window_shape=(2, 2), strides=(2, 2))
        return self.d(nnx.relu(self.c(h.reshape(h.shape[0], -1))))


class Transformer(nnx.Module):
    """An encoder block with multi-head attention, layer normalisation in front."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.into, self.out = nnx.Linear(8, 24, rngs=rngs), nnx.Linear(24, 3, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(24, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, 24, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(24, 48, rngs=rngs), nnx.Linear(48, 24, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = self.into(x)
        h = h + self.attention(self.norms[0](h))
        h = h + self.down(nnx.gelu(self.up(self.norms[1](h))))
        return self.out(jnp.mean(h, axis=1))


NETWORKS: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (20,)),
    "cnn": (Cnn, (16, 16, 3)),
    "lenet": (Lenet, (28, 28, 1)),
    "transformer": (Transformer, (9, 8)),
}


def main(folder: str) -> None:
    """Export every network with random weights; one that can't be exported is named on standard error."""
    for name, (build, shape) in NETWORKS.items():
        network = build(nnx.Rngs(0))
        path = Path(folder) / f"flax_{name}.onnx"
        # biases and statistics as they are made, zeros and ones, would hide errors
        state = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
        leaves, tree = jax.tree.flatten(state)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        leaves = [
            w + 0.2 * abs(jax.random.normal(key, w.shape)) * (w.ndim == 1) for key, w in zip(keys, leaves, strict=True)
        ]
        nnx.update(network, jax.tree.unflatten(tree, leaves))
        try:
            onnx.save_model(jax2onnx.to_onnx(network, [("B", *shape)], model_name=name), path)
        except Exception as error:  # whatever an exporter raises
            print(f"{path.stem}: {' '.join(str(error).split())[:200]}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
