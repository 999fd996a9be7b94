"""What is loaded when: nothing by `import onnxpart`, and by splitting and merging only what these need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"matplotlib", "networkx", "onnx_graphsurgeon", "onnxruntime", "ray", "rich", "torch", "typer"}
SPLIT_AND_MERGE = """
import onnxpart
from models import figure1
done = onnxpart.split(figure1(), 2)
whole = onnxpart.merge(done.plan, [onnxpart.arrays(part) for part in done.parts])
assert whole
done.save("parts")
"""


def loaded(code: str, where: Path) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after running code, beyond its own."""
    script = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nbefore = set(sys.modules)\n{code}\n"
    script += "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    command = [sys.executable, "-P", "-c", script]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=where).stdout.split())


def test_the_package_alone_loads_the_standard_library_only(tmp_path: Path) -> None:
    assert loaded("import onnxpart", tmp_path) - sys.stdlib_module_names == {"onnxpart"}


def test_splitting_and_merging_load_nothing_heavy(tmp_path: Path) -> None:
    found = loaded(SPLIT_AND_MERGE, tmp_path)
    assert {"numpy", "onnx"} <= found
    assert not found & HEAVY


def test_what_is_heavy_would_be_seen(tmp_path: Path) -> None:
    assert loaded("import networkx", tmp_path) & HEAVY == {"networkx"}
