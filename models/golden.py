"""Small named graphs, each with one structure that a partition must get right."""

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from models.builder import GraphBuilder

CLASSES = 3


def chain() -> ModelProto:
    """Return conv, ReLU, conv, pooling, linear: x ``[N, 2, 4, 4]`` to logits ``[N, 3]``."""
    g = GraphBuilder("chain")
    h = g.relu("relu1", g.conv("conv1", _image(g), (2, 4)))
    h = g.relu("relu2", g.conv("conv2", h, (4, 6)))
    return _classified(g, h, 6)


def residual() -> ModelProto:
    """Return a stem of 4 channels with two residual blocks of 6 hidden channels."""
    g = GraphBuilder("residual")
    stream = g.conv("stem", _image(g), (2, 4))
    for index in (1, 2):
        h = g.relu(f"relu{index}", g.conv(f"block{index}.expand", stream, (4, 6), kernel=1))
        stream = g.node("Add", f"sum{index}", stream, g.conv(f"block{index}.project", h, (6, 4)))
    return _classified(g, stream, 4)


def concat() -> ModelProto:
    """Return two branches of 4 and 2 channels, concatenated before a convolution."""
    g = GraphBuilder("concat")
    x = _image(g)
    left = g.relu("left.relu", g.conv("left", x, (2, 4)))
    right = g.relu("right.relu", g.conv("right", x, (2, 2), kernel=1))
    both = g.node("Concat", "both", left, right, axis=1)
    return _classified(g, g.relu("relu", g.conv("mixed", both, (6, 4))), 4)


def grouped() -> ModelProto:
    """Return a convolution of 2 groups, 4 to 4 channels in each."""
    g = GraphBuilder("grouped")
    h = g.relu("relu1", g.conv("stem", _image(g), (2, 8)))
    h = g.relu("relu2", g.conv("grouped", h, (8, 8), group=2))
    return _classified(g, h, 8)


def depthwise() -> ModelProto:
    """Return a depthwise convolution of 6 channels between two pointwise ones."""
    g = GraphBuilder("depthwise")
    h = g.relu("relu1", g.conv("expand", _image(g), (2, 6), kernel=1))
    h = g.relu("relu2", g.conv("depthwise", h, (6, 6), group=6))
    return _classified(g, g.conv("project", h, (6, 4), kernel=1), 4)


def shuffle() -> ModelProto:
    """Return two convolutions of 2 groups with a channel shuffle between them."""
    g = GraphBuilder("shuffle")
    h = g.relu("relu1", g.conv("stem", _image(g), (2, 8)))
    h = g.relu("relu2", g.conv("grouped1", h, (8, 8), kernel=1, group=2))
    h = g.node("Reshape", "to_groups", h, g.integers("to_groups.shape", [0, 2, 4, 4, 4]))
    h = g.node("Transpose", "exchange", h, perm=[0, 2, 1, 3, 4])
    h = g.node("Reshape", "to_channels", h, g.integers("to_channels.shape", [0, 8, 4, 4]))
    return _classified(g, g.conv("grouped2", h, (8, 8), group=2), 8)


def squeeze_excite() -> ModelProto:
    """Return 6 channels gated by a bottleneck of 4 units that sees their global means."""
    g = GraphBuilder("squeeze_excite")
    features = g.relu("relu1", g.conv("conv", _image(g), (2, 6)))
    h = g.node("GlobalAveragePool", "squeeze", features)
    h = g.relu("relu2", g.conv("reduce", h, (6, 4), kernel=1))
    gate = g.node("Sigmoid", "gate", g.conv("excite", h, (4, 6), kernel=1))
    return _classified(g, g.node("Mul", "scaled", features, gate), 6)


def flatten() -> ModelProto:
    """Return 4 channels of 2x2 flattened into a linear layer of 6 units."""
    g = GraphBuilder("flatten")
    h = g.relu("relu1", g.conv("conv", _image(g), (2, 4), pad=0))
    h = g.node("Flatten", "flat", h, axis=1)
    h = g.relu("relu2", g.linear("fc1", h, (16, 6)))
    logits = g.linear("logits", h, (6, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def lrn() -> ModelProto:
    """Return a local response normalisation over 3 of 8 channels, strong enough to be seen."""
    g = GraphBuilder("lrn")
    h = g.relu("relu1", g.conv("conv1", _image(g), (2, 8)))
    h = g.node("LRN", "norm", h, size=3, alpha=0.5, beta=0.75, bias=1.0)
    return _classified(g, g.relu("relu2", g.conv("conv2", h, (8, 4))), 4)


def layernorm() -> ModelProto:
    """Return a perceptron of 8 and 4 hidden units, layer normalisation over the 8."""
    g = GraphBuilder("layernorm")
    h = g.linear("fc1", g.input("x", "N", 5), (5, 8))
    scale, bias = g.values("norm.weight", 8, center=1.0), g.values("norm.bias", 8)
    h = g.relu("relu1", g.node("LayerNormalization", "norm", h, scale, bias, axis=-1, epsilon=1e-5))
    h = g.relu("relu2", g.linear("fc2", h, (8, 4)))
    logits = g.linear("logits", h, (4, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def qkv() -> ModelProto:
    """Return self-attention of 4 heads of 2 over 5 tokens: x ``[N, 5, 6]`` to logits ``[N, 3]``.

    One projection ``[8, 24]`` makes queries, keys and values; its columns are ordered (kind, head, unit).
    """
    g = GraphBuilder("qkv")
    h = _projection(g, "embed", g.input("x", "N", 5, 6), (6, 8))
    h = _projection(g, "qkv", h, (8, 24))
    h = g.node("Reshape", "heads", h, g.integers("heads.shape", [0, 0, 3, 4, 2]))
    h = g.node("Transpose", "kinds", h, perm=[2, 0, 3, 1, 4])
    parts = g.node_with_outputs("Split", "split", h, outputs=["query.one", "key.one", "value.one"], axis=0)
    axis = g.integers("kind.axis", [0])
    query, key, value = (g.node("Squeeze", part.removesuffix(".one"), part, axis) for part in parts)
    scores = g.node("MatMul", "scores", query, g.node("Transpose", "keys", key, perm=[0, 1, 3, 2]))
    scores = g.node("Mul", "scaled", scores, g.constant("scale", np.array(0.5**0.5, dtype=np.float32)))
    h = g.node("MatMul", "context", g.node("Softmax", "attention", scores, axis=-1), value)
    h = g.node("Transpose", "tokens", h, perm=[0, 2, 1, 3])
    h = g.node("Reshape", "joined", h, g.integers("joined.shape", [0, 0, 8]))
    h = _projection(g, "project", h, (8, 8))
    h = g.node("ReduceMean", "pooled", h, axes=[1], keepdims=0)
    logits = g.linear("logits", h, (8, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def shared_weight() -> ModelProto:
    """Return one square weight used by two layers: its 4 inputs and 4 outputs are the same units."""
    g = GraphBuilder("shared_weight")
    h = g.relu("relu0", g.linear("fc", g.input("x", "N", 5), (5, 4)))
    weight = g.weight("step.weight", 4, 4, fan_in=4)
    for index in (1, 2):
        h = g.node("MatMul", f"step{index}", h, weight)
        h = g.node("Tanh", f"tanh{index}", h)
    logits = g.linear("logits", h, (4, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def transposed_weight() -> ModelProto:
    """Return a weight ``[4, 6]`` that a Transpose turns before its MatMul."""
    g = GraphBuilder("transposed_weight")
    h = g.relu("relu1", g.linear("fc1", g.input("x", "N", 5), (5, 6)))
    turned = g.node("Transpose", "turned", g.weight("fc2.weight", 4, 6, fan_in=6), perm=[1, 0])
    h = g.node("Add", "fc2", g.node("MatMul", "fc2.product", h, turned), g.values("fc2.bias", 4))
    logits = g.linear("logits", g.relu("relu2", h), (4, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def two_inputs() -> ModelProto:
    """Return 4 hidden units of x ``[N, 5]`` concatenated with a second input ``[N, 3]``."""
    g = GraphBuilder("two_inputs")
    hidden = g.relu("relu1", g.linear("fc1", g.input("x", "N", 5), (5, 4)))
    both = g.node("Concat", "both", hidden, g.input("condition", "N", 3), axis=1)
    h = g.relu("relu2", g.linear("fc2", both, (7, 6)))
    logits = g.linear("logits", h, (6, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def batchnorm() -> ModelProto:
    """Return conv, batch normalisation, ReLU, transposed conv: x ``[N, 2, 4, 4]`` to y ``[N, 1, 8, 8]``."""
    g = GraphBuilder("batchnorm")
    h = g.conv("conv", _image(g), (2, 4))
    statistics = [
        g.values(f"norm.{key}", 4, center=center)
        for key, center in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0))
    ]
    h = g.relu("relu", g.node("BatchNormalization", "norm", h, *statistics, epsilon=1e-5))
    weight, bias = g.weight("y.weight", 4, 1, 2, 2, fan_in=4), g.values("y.bias", 1)
    y = g.node("ConvTranspose", "y", h, weight, bias, kernel_shape=[2, 2], strides=[2, 2])
    return g.build({y: ("N", 1, 8, 8)})


def groupnorm() -> ModelProto:
    """Return 8 channels normalised in 4 groups, in the form in which PyTorch exports GroupNorm."""
    g = GraphBuilder("groupnorm")
    h = g.conv("conv", _image(g), (2, 8))
    shape = g.node("Shape", "shape", h)
    grouped = g.node("Reshape", "to_groups", h, g.integers("to_groups.shape", [0, 4, -1]))
    ones = g.constant("ones", np.ones(4, dtype=np.float32))
    zeros = g.constant("zeros", np.zeros(4, dtype=np.float32))
    normed = g.node("InstanceNormalization", "instances", grouped, ones, zeros, epsilon=1e-5)
    h = g.node("Reshape", "to_channels", normed, shape)
    h = g.node("Mul", "scaled", h, g.values("norm.weight", 8, 1, 1, center=1.0))
    h = g.node("Add", "norm", h, g.values("norm.bias", 8, 1, 1))
    return _classified(g, g.relu("relu", h), 8)


def pixel_shuffle() -> ModelProto:
    """Return 16 channels rearranged into 4 of twice the size: x ``[N, 2, 4, 4]`` to y ``[N, 1, 8, 8]``."""
    g = GraphBuilder("pixel_shuffle")
    h = g.conv("expand", _image(g), (2, 16))
    h = g.relu("relu", g.node("DepthToSpace", "rearranged", h, blocksize=2, mode="CRD"))
    y = g.conv("y", h, (4, 1))
    return g.build({y: ("N", 1, 8, 8)})


def slice_split() -> ModelProto:
    """Return 8 channels split into values and gates, then cut and reordered by Slice and Gather."""
    g = GraphBuilder("slice_split")
    h = g.conv("conv1", _image(g), (2, 8))
    sizes = g.integers("halves.sizes", [4, 4])
    values, gates = g.node_with_outputs("Split", "halves", h, sizes, outputs=["values", "gates"], axis=1)
    h = g.node("Mul", "gated", values, g.node("Sigmoid", "open", gates))
    bounds = [g.integers(f"first.{key}", [value]) for key, value in (("start", 0), ("end", 2), ("axis", 1))]
    first = g.node("Slice", "first", h, *bounds)
    last = g.node("Gather", "last", h, g.integers("last.indices", [3, 2]), axis=1)
    joined = g.node("Concat", "joined", last, first, axis=1)
    return _classified(g, g.relu("relu", g.conv("conv2", joined, (4, 4))), 4)


def recurrent() -> ModelProto:
    """Return two LSTMs of 4 units both ways: x ``[N, 5, 3]`` to logits ``[N, 3]`` of the last states."""
    g = GraphBuilder("recurrent")
    h = g.node("Transpose", "time_first", g.input("x", "N", 5, 3), perm=[1, 0, 2])
    y, _ = _both_ways(g, "lstm1", h, (3, 4))
    y = g.node("Transpose", "beside", y, perm=[0, 2, 1, 3])
    y = g.node("Reshape", "joined", y, g.integers("joined.shape", [0, 0, -1]))
    _, last = _both_ways(g, "lstm2", y, (8, 4))
    last = g.node("Transpose", "batch_first", last, perm=[1, 0, 2])
    flat = g.node("Reshape", "flat", last, g.integers("flat.shape", [0, -1]))
    logits = g.linear("logits", flat, (8, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def scan() -> ModelProto:
    """Return a recurrent cell written out in a Scan: x ``[3, N, 5]`` to logits of every step."""
    g = GraphBuilder("scan")
    x = g.input("x", 3, "N", 5)
    batch = g.node("Gather", "batch", g.node("Shape", "sizes", x), g.integers("one", [1]))
    first = g.node("ConstantOfShape", "zeros", g.node("Concat", "zeros_shape", batch, g.integers("four", [4]), axis=0))

    def step() -> list[str]:
        seen = _projection(g, "seen", "x_t", (5, 4))
        kept = g.node("MatMul", "kept", "h", g.weight("kept.weight", 4, 4, fan_in=4))
        h = g.node("Tanh", "h_next", g.node("Add", "sum", seen, kept))
        return [h, g.node("Identity", "h_out", h)]

    body = g.inner("step", ["h", "x_t"], step)
    _, states = g.node_with_outputs("Scan", "cell", first, x, outputs=["last", "states"], num_scan_inputs=1, body=body)
    logits = _projection(g, "logits", states, (4, CLASSES))
    return g.build({logits: (3, "N", CLASSES)})


def branches() -> ModelProto:
    """Return an If that the input decides: a layer of its own in one branch, the units as they are in the other."""
    g = GraphBuilder("branches")
    x = g.input("x", "N", 5)
    h = g.relu("relu", g.linear("fc", x, (5, 4)))
    zero = g.initializer("zero", np.array(0, np.float32))
    condition = g.node("Greater", "positive", g.node("ReduceSum", "total", x, keepdims=0), zero)
    then = g.inner("deeper", [], lambda: [g.node("Tanh", "tanh", g.linear("deep", h, (4, 4)))])
    otherwise = g.inner("shallow", [], lambda: [g.node("Neg", "neg", h)])
    h = g.node("If", "choice", condition, then_branch=then, else_branch=otherwise)
    logits = g.linear("logits", h, (4, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def refused() -> ModelProto:
    """Return a residual stream of 4 units that is an output itself: nothing can be divided."""
    g = GraphBuilder("refused")
    stream = g.linear("stem", g.input("x", "N", 5), (5, 4))
    h = g.linear("step", g.node("Tanh", "tanh", stream), (4, 4))
    features = g.node("Add", "features", stream, h)
    logits = g.linear("logits", features, (4, CLASSES))
    return g.build({features: ("N", 4), logits: ("N", CLASSES)})


def unknown_op() -> ModelProto:
    """Return an operator of a domain that no runtime here knows, between two linear layers."""
    g = GraphBuilder("unknown_op")
    h = g.relu("relu1", g.linear("fc1", g.input("x", "N", 5), (5, 4)))
    h = g.node("Mystery", "mystery", h, domain="example.unknown")
    h = g.relu("relu2", g.linear("fc2", h, (4, 6)))
    logits = g.linear("logits", h, (6, CLASSES))
    return g.build({logits: ("N", CLASSES)})


def _both_ways(g: GraphBuilder, name: str, x: str, units: tuple[int, int]) -> list[str]:
    """Add a bidirectional LSTM; `units` is ``(I, H)``; return the sequence and the last states."""
    features, hidden = units
    w = g.weight(f"{name}.w", 2, 4 * hidden, features, fan_in=2 * features)
    r = g.weight(f"{name}.r", 2, 4 * hidden, hidden, fan_in=2 * hidden)
    b = g.values(f"{name}.b", 2, 8 * hidden)
    outputs = [f"{name}.y", f"{name}.h"]
    return g.node_with_outputs("LSTM", name, x, w, r, b, outputs=outputs, hidden_size=hidden, direction="bidirectional")


def _image(g: GraphBuilder) -> str:
    """Add the input x ``[N, 2, 4, 4]``."""
    return g.input("x", "N", 2, 4, 4)


def _projection(g: GraphBuilder, name: str, x: str, units: tuple[int, int]) -> str:
    """Add a linear layer over the last axis: weight ``[I, O]``, bias ``[O]``; `units` is ``(I, O)``."""
    product = g.node("MatMul", f"{name}.product", x, g.weight(f"{name}.weight", *units, fan_in=units[0]))
    return g.node("Add", name, product, g.values(f"{name}.bias", units[1]))


def _classified(g: GraphBuilder, x: str, channels: int) -> ModelProto:
    """Finish with global pooling and a linear layer: ``[N, channels, H, W]`` to logits ``[N, 3]``."""
    logits = g.linear("logits", g.pooled("pool", x), (channels, CLASSES))
    return g.build({logits: ("N", CLASSES)})


GOLDEN: dict[str, Callable[[], ModelProto]] = {
    builder.__name__: builder
    for builder in (
        chain,
        residual,
        concat,
        grouped,
        depthwise,
        shuffle,
        squeeze_excite,
        flatten,
        lrn,
        layernorm,
        qkv,
        shared_weight,
        transposed_weight,
        two_inputs,
        batchnorm,
        groupnorm,
        pixel_shuffle,
        slice_split,
        recurrent,
        scan,
        branches,
        refused,
        unknown_op,
    )
}
