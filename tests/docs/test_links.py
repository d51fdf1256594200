"""Links between the documents lead somewhere, to the heading that they name."""

import re

import pytest
from paths import REPOSITORY

DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]


def anchors(path):
    """Return the anchors of a document's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_every_document_is_reached_from_readme():
    found, open_ends = set(), [REPOSITORY / "README.md"]
    while open_ends:
        path = open_ends.pop()
        if path in found or path.suffix != ".md":
            continue
        found.add(path)
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
        open_ends += [(path.parent / target).resolve() for target in targets]
    assert set(DOCUMENTS) <= found


def test_files_that_contributing_names_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:mmga|tests|benchmarks|docs|\.ci)/[\w./]+)(?:: \w+)?`", text):
        assert (REPOSITORY / path).exists() or path == "tests/ops/test_arguments.py", path
