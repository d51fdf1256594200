"""ARCHITECTURE.md is compared with the code: its tree, its calls, its ranks, its places."""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest
from paths import REPOSITORY
from test_layering import RANKS

TEXT = (REPOSITORY / "ARCHITECTURE.md").read_text()
PACKAGE = REPOSITORY / "mmga"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
TREE, CALLS, IMPORTS, PLACES = SECTIONS.values()
MOST_CALLS = 20

Call = tuple[Path, str]
"""A file and a function, class or method of it."""


def block(section):
    return re.search(r"```\n(.*?)```", section, re.DOTALL)[1].splitlines()


def drawn_files():
    """Files of the tree; a line's indent says in which of the folders before it they are."""
    folders, found = {}, []
    for line in block(TREE):
        indent = len(line) - len(line.lstrip())
        folder = re.match(r" *(\w+)/ ", line)
        if folder:
            above = [folders[i] for i in sorted(folders) if i < indent]
            folders = {i: path for i, path in folders.items() if i < indent}
            folders[indent] = (above[-1] if above else REPOSITORY) / folder[1]
        if line.startswith(("csrc", "tests", "benchmarks")):
            break
        own = folders[max(i for i in folders if i <= indent and (folder or i < indent))]
        found += [own / name for name in re.findall(r"\w+\.py", line)]
    return found


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 100


def test_the_tree_names_every_file():
    found = drawn_files()
    assert len(found) == len(set(found))
    wanted = set(PACKAGE.rglob("*.py"))
    assert set(found) <= wanted
    assert {path for path in wanted - set(found) if not path.name.startswith("__")} == set()


@functools.cache
def definitions(path):
    """Functions, classes, methods (Class.method) and constants of a file by name."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            found |= {f"{node.name}.{part.name}": part for part in methods}
    return found


def names_in(node):
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} | {
        part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)
    }


def ways():
    """The numbered lists: below which folder each is, and its lines as steps of (file, name)."""
    for base, numbered in re.findall(r"below\s+`([\w/]+)`.*?:\n\n((?:\d+\. .*\n)+)", CALLS):
        path, lines = None, []
        for line in numbered.splitlines():
            steps = []
            for step in line.split(" → "):
                steps.append([])
                for file, name in re.findall(r"`(?:([\w/.]+): )?([\w.]+)`", step):
                    path = REPOSITORY / base / file if file else path
                    steps[-1].append((path, name))
            lines.append(steps)
        yield lines


WAYS = list(ways())


def test_three_ways_are_shown():
    assert [lines[0][0][0][1] for lines in WAYS] == ["evaluate", "_rerank", "_Training.run"]


@pytest.mark.parametrize("lines", WAYS, ids=["evaluate", "rerank", "training"])
def test_every_step_calls_the_next(lines):
    seen = set()
    for steps in lines:
        first = steps[0][0]
        assert not seen or any(f"{name}.".startswith(f"{first[1]}.") for _, name in seen), first
        for callers, called in itertools.pairwise(steps):
            path, caller = callers[-1]
            mentioned = names_in(definitions(path)[caller])
            for other, name in called:
                assert name in definitions(other), f"{other}: {name}"
                assert name.rsplit(".")[-1] in mentioned, f"{caller} does not call {name}"
        seen |= {call for step in steps for call in step}
    assert len(seen) <= MOST_CALLS


def test_ranks_are_those_of_the_layering_test():
    shown, rank = {}, None
    for word in " ".join(block(IMPORTS)).replace("(the commands)", "").split():
        if word.isdigit():
            rank = int(word)
        else:
            shown["mmga" if word == "mmga" else f"mmga.{word}"] = rank
    assert shown == RANKS


def test_places_to_add_things_exist():
    lines = re.findall(r"^- (.+)$", PLACES, re.MULTILINE)
    assert len(lines) == 15
    for line in lines:
        places = re.findall(r"`([\w/.]+)(?:: (\w+))?`", line)
        places = [(path, name) for path, name in places if "/" in path or "." in path]
        assert places, line
        for path, name in places:
            assert (REPOSITORY / path).exists(), path
            assert not name or name in definitions(REPOSITORY / path), f"{path}: {name}"
