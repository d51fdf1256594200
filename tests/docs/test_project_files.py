"""Files that tools read: CITATION.cff, .pre-commit-config.yaml, and CHANGELOG.md's form."""

import re

import yaml
from paths import REPOSITORY

PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
VERSION = re.search(r'^version = "(.+)"', PYPROJECT, re.MULTILINE)[1]


def read(name):
    return yaml.safe_load((REPOSITORY / name).read_text())


def test_citation_names_the_software_and_the_paper():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"]
    assert citation["version"] == VERSION
    assert f'license = "{citation["license"]}"' in PYPROJECT
    assert citation["authors"] == [{"name": "mmga maintainers"}]
    (paper,) = citation["references"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2019
    assert [author["family-names"] for author in paper["authors"]] == ["Cai", "Wang", "Cheng"]
    plain = re.sub(r"\s+", " ", (REPOSITORY / "README.md").read_text())
    assert paper["title"] in plain


def test_pre_commit_runs_the_formatters_of_make_lint():
    repositories = {
        one["repo"].rsplit("/", 1)[1]: one for one in read(".pre-commit-config.yaml")["repos"]
    }
    hooks = {name: [hook["id"] for hook in one["hooks"]] for name, one in repositories.items()}
    assert hooks["ruff-pre-commit"] == ["ruff-check", "ruff-format"]
    assert hooks["mirrors-clang-format"] == ["clang-format"]
    assert {"trailing-whitespace", "end-of-file-fixer"} <= set(hooks["pre-commit-hooks"])
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", one["rev"]) for one in repositories.values())
    pinned = re.search(r'"ruff==([\d.]+)\.\*"', PYPROJECT)[1]
    assert repositories["ruff-pre-commit"]["rev"].startswith(f"v{pinned}.")
    oldest = int(re.search(r'"clang-format>=(\d+)"', PYPROJECT)[1])
    assert int(repositories["mirrors-clang-format"]["rev"][1:].split(".")[0]) >= oldest


def test_changelog_keeps_its_form():
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert versions[0] == VERSION
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
