"""Imports point down only: each module may import its own layer's neighbours below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "mmga"

# From the top: a module may import modules of lower rank, or of its own package.
COMMANDS = 10
RANKS = {
    "errors": 0,
    "files": 1,
    "progress": 1,
    "config": 2,
    "_extension": 2,
    "schedule": 3,
    "runlog": 3,
    "checkpoint": 3,
    "cli": 3,
    "data": 3,
    "ops": 3,
    "bodyparts": 4,
    "models": 4,
    "losses": 5,
    "retrieval": 5,
    "compat": 6,
    "distributed": 4,
    "averaging": 4,
    "holdout": 4,
    "step": 6,
    "embedder": 6,
    "graph": 6,
    "imagelist": 4,
    "pictures": 7,
    "extraction": 7,
    "shards": 7,
    "guidance": 8,
    "evaluation": 9,
    "engine": 9.5,
}


def rank(module: str) -> int:
    return RANKS.get(module, COMMANDS)


def imports(path: Path) -> set[str]:
    """The first name below mmga of everything that the file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "mmga":
                names = [f"mmga.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("mmga.")}
    return found - {"__version__"}


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name not in ("__main__.py",))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own == "__init__":
        pytest.skip("the lazy table names modules as strings")
    for other in imports(path) - {own}:
        # Commands may call one another: evaluating a run extracts its features first.
        below = rank(other) < rank(own) or rank(own) == rank(other) == COMMANDS
        assert below, f"{own} must not import {other}"


def test_reference_imports_torch_alone() -> None:
    tree = ast.parse((ROOT / "ops" / "reference.py").read_text())
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert names <= {"torch", "__future__", "math", "collections", "typing", "dataclasses"}


def test_no_function_shares_a_name_with_a_command() -> None:
    import mmga
    from mmga.__main__ import VERBS

    assert not set(mmga._PUBLIC) & set(VERBS)
