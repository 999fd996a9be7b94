"""Pages of some networks, for tests in the browser, pictures and times."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

import onnxpart
from models import BUILDERS
from models.builder import GraphBuilder
from onnxpart.inspection.sizes import measure
from onnxpart.page.write import write
from onnxpart.planning.planner import partition
from scripts.paper.gpt import gpt

NODES = 5_000
MARKUP = "</script><script>document.title='taken over'</script><img src=x onerror=\"document.title='taken over'\">"


def unet() -> ModelProto:
    """A U-Net: x ``[N, 3, 64, 64]`` to mask ``[N, 2, 64, 64]``, three levels of 32 to 128 channels and 256 below."""
    g = GraphBuilder("unet")
    h, width = g.input("x", "N", 3, 64, 64), 3
    left: list[tuple[str, int]] = []
    for level, wider in enumerate((32, 64, 128)):
        h = _twice(g, f"down{level}", h, (width, wider))
        left.append((h, wider))
        h, width = g.max_pool(f"pool{level}", h, kernel=2, stride=2), wider
    h, width = _twice(g, "bottom", h, (width, 256)), 256
    for level, (across, narrower) in reversed(list(enumerate(left))):
        weight = g.weight(f"up{level}.weight", width, narrower, 2, 2, fan_in=width)
        h = g.node("ConvTranspose", f"up{level}", h, weight, kernel_shape=[2, 2], strides=[2, 2])
        h = g.node("Concat", f"both{level}", h, across, axis=1)
        h, width = _twice(g, f"right{level}", h, (2 * narrower, narrower)), narrower
    return g.build({g.conv("mask", h, (width, 2), kernel=1): ("N", 2, 64, 64)})


def _twice(g: GraphBuilder, name: str, h: str, channels: tuple[int, int]) -> str:
    """Two convolutions, the first of which changes the number of channels."""
    for n, between in enumerate((channels, (channels[1], channels[1])), start=1):
        h = g.relu(f"{name}.relu{n}", g.conv(f"{name}.conv{n}", h, between, kernel=3))
    return h


def nested() -> ModelProto:
    """Four times a wide layer and three narrow ones, which repeat within what repeats."""
    g = GraphBuilder("nested")
    h, width = g.input("x", "N", 8), 8
    for block in range(4):
        h, width = g.relu(f"wide{block}.relu", g.linear(f"wide{block}", h, (width, 24))), 24
        h, width = g.relu(f"into{block}.relu", g.linear(f"into{block}", h, (width, 8))), 8
        for inner in range(3):
            h = g.relu(f"deep{block}.{inner}.relu", g.linear(f"deep{block}.{inner}", h, (width, width)))
    return g.build({g.linear("y", h, (width, 3)): ("N", 3)})


def irregular(nodes: int = NODES) -> ModelProto:
    """Residual blocks of about `nodes` nodes in all, hardly two of which are alike."""
    g = GraphBuilder("irregular")
    rng = np.random.default_rng(0)
    h, width = g.linear("stem", g.input("x", "N", 32), (32, 32)), 32
    for block in range(nodes // 4):
        inner = int(rng.integers(8, 65))
        hidden = g.relu(f"relu{block}", g.linear(f"fc{block}", h, (width, inner)))
        h = g.node("Add", f"sum{block}", h, g.linear(f"out{block}", hidden, (inner, width)))
    return g.build({g.linear("y", h, (width, 4)): ("N", 4)})


def held() -> ModelProto:
    """A stream that an operator without a rule and an output hold, in a network whose names carry markup."""
    g = GraphBuilder("held")
    stem = g.relu("stem.relu", g.conv("stem", g.input("x", "N", 2, 4, 4), (2, 6), kernel=3))
    inner = g.relu("inner.relu", g.conv("inner", stem, (6, 24), kernel=3))
    total = g.node("Add", "total", stem, g.conv("back", inner, (24, 6), kernel=3))
    scaled = g.node("Mul", "scaled", total, g.conv("beside", g.conv("other", "x", (2, 8), kernel=3), (8, 6), kernel=1))
    g.node("Det", "odd", scaled)
    wide = g.relu("wide.relu", g.conv(f"wide{MARKUP}", scaled, (6, 12), kernel=3))
    logits = g.linear("logits", g.pooled("pool", wide), (12, 3))
    model = g.build({logits: ("N", 3)})
    model.graph.output.append(helper.make_tensor_value_info("odd", TensorProto.FLOAT, ("N", 6)))
    onnx.checker.check_model(model)
    return model


EXAMPLES: dict[str, tuple[Callable[[], ModelProto], int]] = {
    "lenet": (BUILDERS["lenet"], 2),
    "resnet50": (BUILDERS["light_resnet50"], 2),
    "gpt": (lambda: gpt(0, 65, 64, blocks=6), 2),
    "unet": (unet, 4),
    "held": (held, 2),
    "nested": (nested, 2),
    "irregular": (irregular, 4),
}
"""By name: the network and the number of parts."""


def main(folder: Path, *names: str) -> None:
    """Write the pages of the named networks, of all where none is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or EXAMPLES:
        build, k = EXAMPLES[name]
        proto = build()
        proto.graph.name = name
        made = partition(onnxpart.analyse(onnxpart.load(proto)), k)
        write(made, measure(made.analysis, made.plan), folder / f"{name}.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
