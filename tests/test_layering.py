"""Imports point down: every package has a rank, and no two files import each other."""

import ast

import import_graph
import pytest
from paths import REPOSITORY

# A file may import files of its own folder and of folders of lower rank. Nothing is said of a
# folder's rank but by its own line: a new folder needs a line here and in ARCHITECTURE.md.
RANKS = {
    "mmga.common": 0,
    "mmga.config": 1,
    "mmga.ops.reference": 1,
    "mmga.ops": 2,
    "mmga.ops.triton": 3,
    "mmga.retrieval.features": 4,
    "mmga.retrieval.protocols": 5,
    "mmga.retrieval.bounds": 5,
    "mmga.retrieval.tiles": 6,
    "mmga.retrieval.metrics": 7,
    "mmga.retrieval.neighbours": 7,
    "mmga.retrieval.reranking": 8,
    "mmga.retrieval": 9,
    "mmga.compat": 10,
    "mmga.pages": 10,
    "mmga.data": 4,
    "mmga.data.readers": 5,
    "mmga.data.synthetic": 5,
    "mmga.data.build": 6,
    "mmga.data.datasets": 6,
    "mmga.bodyparts": 6,
    "mmga.models": 6,
    "mmga.extraction": 10,
    "mmga.training": 11,
    "mmga": 12,  # the commands
}
GRAPH = import_graph.module_graph(REPOSITORY)
PACKAGES = {name for name in GRAPH if any(other.startswith(f"{name}.") for other in GRAPH)}


def room(module: str) -> str:
    """Return the folder that holds a module; files of the root that have a rank are rooms."""
    if module in RANKS or module in PACKAGES:
        return module
    return module.rsplit(".", 1)[0]


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_down(module: str) -> None:
    own = room(module)
    for other in GRAPH[module]:
        if room(other) != own and other != "mmga":  # the version
            message = f"{module} must not import {other}"
            assert RANKS[room(other)] < RANKS[own], message


def test_no_files_import_one_another() -> None:
    assert import_graph.cycles(GRAPH) == []


def test_the_house_stays_small() -> None:
    whole = import_graph.folded(GRAPH, "mmga")
    assert len(whole) <= 26 and import_graph.levels(whole) <= 9 and import_graph.edges(whole) <= 90
    part = import_graph.folded(GRAPH, "mmga.retrieval")
    assert len(part) <= 14 and import_graph.levels(part) <= 8 and import_graph.edges(part) <= 40
    assert import_graph.cycles(whole) == import_graph.cycles(part) == []
    assert len(list((REPOSITORY / "mmga").glob("*.py"))) <= 14


def test_a_cycle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert import_graph.cycles(graph) == [{"a", "b", "c"}]
    assert import_graph.levels(graph) == 2 and import_graph.edges(graph) == 4


def test_reference_imports_torch_alone() -> None:
    names = set()
    files = import_graph.module_files(REPOSITORY)
    for module in (name for name in files if name.startswith("mmga.ops.reference")):
        for node in ast.walk(ast.parse(files[module].read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    own = {name for name in names if name.startswith("mmga.ops.reference")}
    tops = {name.split(".")[0] for name in names - own}
    assert tops <= {"torch", "__future__", "math", "collections", "typing", "dataclasses"}


def test_no_function_shares_a_name_with_a_command() -> None:
    import mmga
    from mmga.__main__ import VERBS

    assert not set(mmga._PUBLIC) & set(VERBS)
