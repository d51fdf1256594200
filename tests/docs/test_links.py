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


def test_readme_points_to_every_document():
    text = (REPOSITORY / "README.md").read_text()
    for path in DOCUMENTS:
        name = path.relative_to(REPOSITORY).as_posix()
        if name not in ("README.md", "CHANGELOG.md", "docs/gpu.md", "docs/ablation.md"):
            assert f"]({name}" in text, name
