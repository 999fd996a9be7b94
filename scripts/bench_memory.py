"""Memory and throughput of splitting and merging a model with more weights than memory should have to hold.

The model is made here: weights of 256 and 512 MiB written to external data chunk by chunk, or a decoder in bfloat16.
Each command of the command line runs in a process of its own; its peak must stay within the largest tensor and `SPARE`.
With `--module` the decoder is a PyTorch module on the meta device, which `split_module` divides.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import decoder
from scripts.machine import machine

WIDTHS = (8192, 8192, 16384)
SPARE = 300_000_000
"""Bytes allowed beyond the largest tensor."""
PARTS = 2
MB, GB = 1e6, 1e9
PACKAGES = ("onnxpart", "onnx", "numpy", "protobuf")
PAUSE = 0.01
"""Seconds between looks at a process's memory."""


@dataclass
class Run:
    """One command: peaks in bytes (all resident pages, from the kernel; those that no file backs, as sampled), seconds,
    bytes written.

    `copy` is how long a plain copy of the files that it wrote takes; both times include bringing them to the disk.
    """

    name: str
    peak: int
    anonymous: int
    seconds: float
    written: int
    copy: float = 0.0


def build(size: int, path: Path) -> int:
    """Write a perceptron whose weights take `size` bytes or somewhat more; returns the bytes of the largest."""
    import numpy as np
    from onnx import NodeProto, TensorProto, helper

    rng = np.random.default_rng(0)
    tensors: list[TensorProto] = []
    nodes: list[NodeProto] = []
    largest = 0
    with path.with_name("weights.bin").open("wb") as file:

        def weight(name: str, rows: int, columns: int, fan_in: int) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(rows, columns))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", str(file.tell()))):
                tensor.external_data.add(key=key, value=value)
            step = 2**22 // columns
            for start in range(0, rows, step):
                chunk = rng.standard_normal((min(step, rows - start), columns), np.float32)
                file.write((chunk * np.float32((2 / fan_in) ** 0.5)).data)
            tensors.append(tensor)
            return name

        value, before = "x", 64
        while file.tell() < size or len(nodes) < 2:
            width, i = WIDTHS[len(nodes) // 2 % len(WIDTHS)], len(nodes) // 2
            name, out = f"fc{i}", f"fc{i}.sum"
            if i % 2:
                nodes.append(helper.make_node("MatMul", [value, weight(name, before, width, before)], [out], name=name))
            else:
                inputs = [value, weight(name, width, before, before)]
                nodes.append(helper.make_node("Gemm", inputs, [out], name=name, transB=1))
            nodes.append(helper.make_node("Relu", [out], [f"relu{i}"], name=f"relu{i}"))
            value, largest, before = f"relu{i}", max(largest, 4 * before * width), width
        nodes.append(helper.make_node("MatMul", [value, weight("y.weight", before, 16, before)], ["y"], name="y"))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n, width in (("x", 64), ("y", 16))]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return largest


def measure(name: str, arguments: list[str], written: list[Path], spare: Path) -> Run:
    """Run a command of the command line, then copy what it wrote, file by file, to the folder `spare` and back off."""
    root = str(Path(__file__).resolve().parents[1])
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxpart", name, *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root},
    )
    anonymous = pid = 0
    while not pid:
        time.sleep(PAUSE)
        anonymous = max(anonymous, memory(process.pid).get("RssAnon", 0))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    files = sorted(f for path in written for f in (path.iterdir() if path.is_dir() else [path]))
    to_disk(files)
    run = Run(
        name, usage.ru_maxrss * 1024, anonymous, time.perf_counter() - start, sum(f.stat().st_size for f in files)
    )
    spare.mkdir()
    start = time.perf_counter()
    for file in files:
        shutil.copyfile(file, spare / file.name)
    to_disk(sorted(spare.iterdir()))
    run.copy = time.perf_counter() - start
    shutil.rmtree(spare)
    return run


def memory(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, as Linux names it; nothing when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in pairs if words[-1] == "kB"}


def to_disk(files: list[Path]) -> None:
    """Wait until files are on the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def table(runs: list[Run], largest: int) -> str:
    """The figures in Markdown."""
    lines = [
        "| command | peak, MB | without pages of files, MB | peak - largest tensor, MB | within 300 MB "
        "| written, GB | seconds | plain copy, seconds | ratio |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for run in runs:
        cells = [
            run.name,
            *(f"{value / MB:,.0f}" for value in (run.peak, run.anonymous, run.peak - largest)),
            "yes" if run.peak - largest <= SPARE else "NO",
            *(f"{value:.1f}" for value in (run.written / GB, run.seconds, run.copy, run.seconds / run.copy)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    folder: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Where to make a folder, which is deleted.")
    ],
    size: Annotated[float, typer.Option(help="Weights of the model in GB; four times this must be free.")] = 6.0,
    decode: Annotated[str, typer.Option("--decoder", help=f"A decoder of {', '.join(decoder.SIZES)} instead.")] = "",
    module: Annotated[str, typer.Option(help="The same as a PyTorch module, on the meta device and in a file.")] = "",
) -> None:
    """Split and merge a large model with external data, and measure the peak memory and the throughput."""
    if module:
        _module(module, folder)
        return
    runs, console = [], Console()
    with tempfile.TemporaryDirectory(dir=folder) as name, Progress(console=console, transient=True) as progress:
        work = Path(name)
        task = progress.add_task("making the model", total=None)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            make = partial(decoder.build, decode) if decode else partial(build, int(size * GB))
            largest = pool.submit(make, work / "large.onnx").result()
        total = sum(file.stat().st_size for file in work.iterdir())
        parts, merged = work / "parts", work / "merged.onnx"
        options = {
            "split": ([str(work / "large.onnx"), "-k", str(PARTS), "-o", str(parts)], [parts]),
            "merge": ([str(parts), "-o", str(merged)], [merged, work / "merged.onnx.data"]),
        }
        for command, (arguments, written) in options.items():
            progress.update(task, description=command)
            runs.append(measure(command, arguments, written, work / "copy"))
    print(table(runs, largest))
    print(f"\nModel of {total / GB:.1f} GB, largest tensor {largest / MB:,.0f} MB, {PARTS} parts.")
    print(", ".join(f"{key} {value}" for key, value in machine(*PACKAGES).items()))


def peaks(size: str, folder: Path) -> dict[str, int]:
    """Split a decoder on the meta device, and merge its parts; returns bytes, those of no file at their peaks.

    To be run in a process of its own.
    """
    import torch

    import onnxpart.torch
    from scripts import decoder_module

    torch.set_num_threads(1)
    highest = 0

    def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, memory(os.getpid())["RssAnon"])
            time.sleep(PAUSE)

    with torch.device("meta"):
        module = decoder_module.Decoder(size)
    path = folder / "model.safetensors"
    found = {"weights": decoder_module.empty_file(module, path), "before": memory(os.getpid())["RssAnon"]}
    threading.Thread(target=watch, daemon=True).start()
    example = torch.zeros(2, 8, dtype=torch.long)
    parts, handle = onnxpart.torch.split_module(module, example, PARTS, weights=path)
    found["parts"] = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    found["split_module"] = highest
    module.load_state_dict(handle.merge(), assign=True)
    return found | {"merge": highest}


def _module(size: str, folder: Path) -> None:
    """Print what `split_module` and `merge` take of a decoder on the meta device."""
    with tempfile.TemporaryDirectory(dir=folder) as name, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(peaks, size, Path(name)).result()
    print(", ".join(f"{key} {value / MB:,.0f} MB" for key, value in found.items()))
    print(", ".join(f"{key} {value}" for key, value in machine(*PACKAGES, "torch").items()))


if __name__ == "__main__":
    typer.run(main)
