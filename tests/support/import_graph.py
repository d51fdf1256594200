"""The import graph of a package, read from its source text: nodes, levels, edges, cycles.

    python tests/support/import_graph.py                  # every package of this checkout
    python tests/support/import_graph.py --root OTHER     # of another checkout
    python tests/support/import_graph.py --edges          # and edges of mmga and mmga.retrieval

A node is a file of the package's own folder, or a sub-folder with all that is below it. Lazy
imports and those under TYPE_CHECKING count like any other.
"""

import argparse
import ast
from collections.abc import Iterable
from pathlib import Path

Graph = dict[str, set[str]]
"""Node -> the nodes that it imports."""

REPOSITORY = Path(__file__).resolve().parents[2]


def module_files(root: Path, package: str = "mmga") -> dict[str, Path]:
    """Return dotted name -> file of every module of a package below `root`."""
    files = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imported(path: Path, modules: Iterable[str]) -> set[str]:
    """Return the modules among `modules` that a file imports anywhere in its text."""
    known, found = set(modules), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found & known


def module_graph(root: Path) -> Graph:
    """Return the graph whose nodes are the modules; an `__init__` is its package."""
    files = module_files(root)
    return {name: imported(path, files) - {name} for name, path in files.items()}


def folded(graph: Graph, package: str) -> Graph:
    """Return the graph of one package: its own files and, each as one node, its sub-packages.

    The package's own `__init__` and `__main__` are left out: they name what there is.
    """
    packages = {name.rsplit(".", 1)[0] for name in graph if "." in name}

    def node(name: str) -> str | None:
        if not name.startswith(f"{package}."):
            return None
        first = name[len(package) + 1 :].split(".")[0]
        if first == "__main__":
            return None
        return first + "/" * (f"{package}.{first}" in packages)

    result: Graph = {}
    for name, others in graph.items():
        own = node(name)
        if own is not None:
            targets = {node(other) for other in others} - {None, own}
            result.setdefault(own, set()).update(t for t in targets if t is not None)
    return result


def components(graph: Graph) -> list[set[str]]:
    """Return the strongly connected components, importers after what they import (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            found.append(set(stack[at:]))
            del stack[at:]

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def cycles(graph: Graph) -> list[set[str]]:
    """Return the sets of nodes that import one another, directly or through others."""
    return [group for group in components(graph) if len(group) > 1]


def levels(graph: Graph) -> int:
    """Return the number of nodes on the longest way down; a cycle counts as one node."""
    height: dict[str, int] = {}
    for group in components(graph):
        below = {other for name in group for other in graph[name]} - group
        height |= dict.fromkeys(group, 1 + max((height[other] for other in below), default=0))
    return max(height.values(), default=0)


def edges(graph: Graph) -> int:
    """Return the number of edges."""
    return sum(map(len, graph.values()))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY)
    parser.add_argument("--edges", action="store_true")
    args = parser.parse_args()
    graph = module_graph(args.root)
    print(f"{'package':<18}{'files':>6}{'nodes':>7}{'levels':>8}{'edges':>7}{'cycles':>8}")
    print(f"{'every file':<18}{len(graph):>6}{len(graph):>7}{levels(graph):>8}", end="")
    print(f"{edges(graph):>7}{len(cycles(graph)):>8}")
    packages = sorted({name.rsplit(".", 1)[0] for name in graph if "." in name})
    for package in packages:
        part = folded(graph, package)
        folder = args.root / package.replace(".", "/")
        own = len([path for path in folder.glob("*.py")])
        print(f"{package:<18}{own:>6}{len(part):>7}{levels(part):>8}", end="")
        print(f"{edges(part):>7}{len(cycles(part)):>8}")
        if args.edges and package in ("mmga", "mmga.retrieval"):
            for name in sorted(part):
                print(f"    {name} -> {' '.join(sorted(part[name]))}")
    for group in cycles(graph):
        print("cycle:", " ".join(sorted(group)))


if __name__ == "__main__":
    main()
