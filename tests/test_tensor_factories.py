"""Tensors have the types and devices they name, not a program's defaults (layers of models do)."""

import ast
from pathlib import Path

import pytest
from paths import REPOSITORY

# Functions whose result is on the default device, and those whose dtype is the default one.
OF_A_DTYPE = {"empty", "zeros", "ones", "full", "rand", "randn", "linspace", "logspace", "eye"}
OF_A_DTYPE |= {"tensor", "as_tensor", "asarray", "scalar_tensor", "empty_strided", "normal"}
OF_A_DEVICE = OF_A_DTYPE | {"arange", "range", "randint", "randperm", "tril_indices"}
OF_A_DEVICE |= {"triu_indices", "sparse_csr_tensor", "sparse_coo_tensor", "complex", "polar"}

FOLDERS = ("bodyparts", "common", "data", "extraction", "ops", "retrieval", "training")
FILES = [file for folder in FOLDERS for file in (REPOSITORY / "mmga" / folder).rglob("*.py")]
FILES += [REPOSITORY / "mmga" / name for name in ("compat.py", "models/export.py")]


def left_to_defaults(text: str) -> list[str]:
    """Return the calls of torch's factories that leave out a dtype or a device."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, node.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "torch" and name in OF_A_DEVICE):
            continue
        given = {keyword.arg for keyword in node.keywords}
        wanted = {"device", "dtype"} if name in OF_A_DTYPE else {"device"}
        if "out" not in given and not wanted <= given:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_every_factory_names_dtype_and_device(file: Path) -> None:
    assert left_to_defaults(file.read_text()) == []


def test_what_is_left_out_is_found() -> None:
    assert len(left_to_defaults("torch.zeros(3)\ntorch.arange(3)\ntorch.full((2,), 1, out=x)")) == 2
    assert not left_to_defaults("torch.zeros(3, dtype=d, device=e)\ntorch.arange(3, device=e)")
