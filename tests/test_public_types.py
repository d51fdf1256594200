"""Public names are declared to type checkers, and no public signature holds `Any`."""

import ast
import importlib
import inspect
import re
import typing

import pytest
from paths import REPOSITORY

import mmga

FUNCTIONS = {
    f"mmga.{name}": getattr(mmga, name)
    for name in mmga._PUBLIC
    if inspect.isfunction(getattr(mmga, name))
}
CLASSES = [getattr(mmga, name) for name in mmga._PUBLIC if inspect.isclass(getattr(mmga, name))]
FUNCTIONS |= {
    f"mmga.{owner.__name__}.{name}": getattr(owner, name)
    for owner in CLASSES
    for name, found in vars(owner).items()
    if (name == "__init__" or not name.startswith("_"))
    and inspect.isroutine(inspect.unwrap(getattr(found, "__func__", found)))
    and not issubclass(owner, Exception)
}
COMPAT = importlib.import_module("mmga.compat")
FUNCTIONS |= {
    f"mmga.compat.{name}": found
    for name, found in vars(COMPAT).items()
    if inspect.isfunction(found) and found.__module__ == "mmga.compat" and name[0] != "_"
}
# Plain values for JSON, whose keys depend on the options.
OPEN = {"mmga.Report.as_dict", "mmga.Report.__init__", "mmga.KReciprocal.as_dict"}


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - OPEN))
def test_public_signatures_are_complete(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    signature = inspect.signature(function)
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    assert not missing and signature.return_annotation is not signature.empty
    parts = [parameter.annotation for parameter in signature.parameters.values()]
    for part in [*parts, signature.return_annotation]:
        assert not re.search(r"\bAny\b", str(part)), f"{name} has {part} in its signature"


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((REPOSITORY / "mmga" / "__init__.py").read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    declared = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    packages = {name: declared.pop(name) for name in mmga._PACKAGES}
    assert set(packages.values()) == {"mmga"}
    assert declared == mmga._PUBLIC


def test_public_names_are_where_the_table_says() -> None:
    for name, module in mmga._PUBLIC.items():
        found = getattr(importlib.import_module(module), name)
        assert found is getattr(mmga, name) and found.__module__ == module
    assert typing.get_type_hints(mmga.Features.save)["return"] is type(None)


def test_one_version() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert f'version = "{mmga.__version__}"' in text
