"""Says how the modules of onnxpart import each other: how many, on how many levels, in which circles, and upwards."""

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import grimp
import networkx as nx
import typer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "onnxpart"
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Imports:
    """The modules' imports in figures, those for type checking alone among them.

    `levels` is the number of modules on the longest way of imports, where a circle counts as one. `upwards` are
    imports from a package that stands higher in the contract, or beside the importer.
    """

    modules: int
    levels: int
    circles: tuple[tuple[str, ...], ...]
    upwards: tuple[tuple[str, str], ...]


def layers() -> list[frozenset[str]]:
    """The packages of each layer, topmost first, as the contract in pyproject.toml has them.

    :raises ValueError: when it has none, or several such contracts.
    """
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["type"] == "layers")
    return [frozenset(f"{PACKAGE}.{name.strip()}" for name in line.split("|")) for line in contract["layers"]]


def imported() -> nx.DiGraph:
    """Each module of this checkout with an edge to each one that it imports."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = [(module, found) for module in graph.modules for found in graph.find_modules_directly_imported_by(module)]
    result = nx.DiGraph(edges)
    result.add_nodes_from(graph.modules)
    return result


def measure(graph: nx.DiGraph, order: list[frozenset[str]]) -> Imports:
    """Measure imports.

    :param graph: edges from importing to imported modules. :param order: packages of each layer, topmost first.
    """
    level = {package: depth for depth, packages in enumerate(order) for package in packages}

    def package(module: str) -> str:
        return ".".join(module.split(".")[:2])

    upwards = []
    for edge in graph.edges:
        a, b = (package(module) for module in edge)
        if a != b and a in level and b in level and level[a] >= level[b]:
            upwards.append(edge)
    circles = [tuple(sorted(c)) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    levels = nx.dag_longest_path_length(nx.condensation(graph)) + 1
    return Imports(len(graph), levels, tuple(sorted(circles)), tuple(sorted(upwards)))


def main() -> None:
    """Print the figures; fail where there is a circle or an import that runs upwards."""
    found = measure(imported(), layers())
    typer.echo(
        f"{found.modules} modules on {found.levels} levels, {len(found.circles)} circles, "
        f"{len(found.upwards)} imports upwards"
    )
    for circle in found.circles:
        typer.echo(f"circle: {', '.join(circle)}")
    for importer, target in found.upwards:
        typer.echo(f"upwards: {importer} imports {target}")
    raise typer.Exit(1 if found.circles or found.upwards else 0)


if __name__ == "__main__":
    typer.run(main)
