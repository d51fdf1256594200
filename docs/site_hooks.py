"""Hooks of mkdocs: documents of the repository's root become pages, and all links keep working.

Documents link to each other as files of the repository. On the site, README.md is the first page;
a link to a file under benchmarks/results or examples leads to a copy of it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
RAW = ("benchmarks/results", "examples")
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """Give headings the anchors that GitHub gives them."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and the raw data with a list of each of its folders."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for path in (one for raw in RAW for one in (ROOT / raw, *sorted((ROOT / raw).rglob("*")))):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file():
            file = File.generated(config, name, abs_src_path=str(path))
        else:
            links = [one.name + "/index.md" * one.is_dir() for one in sorted(path.iterdir())]
            listed = "\n".join(f"- [{link.removesuffix('/index.md')}]({link})" for link in links)
            file = File.generated(config, f"{name}/index.md", content=f"# {name}\n\n{listed}\n")
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    name = page.file.src_uri
    source = next((old for old, new in PAGES.items() if new == name), f"docs/{name}")
    if name.startswith(RAW):
        return markdown

    def changed(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if (ROOT / target).is_dir():
            target += "/index.md"
        target = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(name) or ".")

    return LINK.sub(changed, markdown)
