"""The site's navigation and API reference are complete; `make docs` builds it."""

import re
from pathlib import Path

import yaml
from paths import REPOSITORY

import mmga
from mmga import models, ops

DOCS = REPOSITORY / "docs"


def leaves(entry):
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in leaves(part)]


def test_every_page_is_in_the_navigation_once():
    named = leaves(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"])
    assert len(named) == len(set(named))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    of_root = re.findall(r'"[A-Z]+\.md": "(\w+\.md)"', (DOCS / "site_hooks.py").read_text())
    assert len(of_root) == 4
    assert set(named) == pages | set(of_root)


def test_every_public_name_has_its_reference():
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    public = {f"mmga.{name}" for name in mmga.__all__ if name != "__version__"} | {
        "mmga.compat",
        "mmga.plots",
    }
    public |= {f"mmga.ops.{name}" for name in ops.__all__}
    public |= {f"mmga.models.{name}" for name in models.__all__ if name != "PARTS"}
    assert set(shown) == public
    assert len(shown) == len(public)


def test_figures_are_used_and_described():
    text = "".join(path.read_text() for path in DOCS.glob("*.md"))
    for figure in Path(DOCS / "figures").glob("*.svg"):
        assert f"](figures/{figure.name})" in text
        assert "<title" in figure.read_text() and "<desc" in figure.read_text()
