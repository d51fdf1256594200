"""Code blocks of the documents: read, run in their order, compared with the output they show."""

import contextlib
import importlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from paths import REPOSITORY

DOCS = REPOSITORY / "docs"


@dataclass(frozen=True)
class Block:
    """A block of Python or of commands, and the text that it is said to print, if any."""

    language: str
    code: str
    shown: str | None


def blocks(name: str) -> list[Block]:
    """The blocks of a page of docs/; one marked `text` right after another is its output."""
    text = (DOCS / f"{name}.md").read_text()
    found = re.findall(
        r"^```(python|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.MULTILINE | re.DOTALL
    )
    return [Block(language, code, shown or None) for language, code, shown in found]


def lines(block: Block) -> list[str]:
    """The commands of a block, without remarks."""
    joined = block.code.replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in joined if line.split("#")[0].strip()]


def run_command(line: str) -> None:
    """Run `python -m module ...` in this process; leaving with another code than 0 is an error."""
    line, _, output = line.partition(" > ")
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"], line
    module = importlib.import_module(words[2])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[2]}.__main__")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            module.main(words[3:])
        except SystemExit as leave:
            assert not leave.code, line
    if output:
        Path(output).write_text(said.getvalue())
    print(said.getvalue(), end="")


def run(name: str, names: dict[str, object], smaller: dict[str, str]) -> None:
    """Run a page in the current folder.

    Args:
        name: the page, without suffix.
        names: the variables that its Python speaks of; one name space for all blocks.
        smaller: what to replace in the code, so that it takes seconds.
    """
    used = set()
    for block in blocks(name):
        code = block.code
        for old, new in smaller.items():
            if old in code:
                used.add(old)
                code = code.replace(old, new)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            if block.language == "python":
                exec(compile(code, f"docs/{name}.md", "exec"), names)
            else:
                for line in lines(Block("sh", code, None)):
                    run_command(line)
        if block.shown is not None:
            assert said.getvalue() == block.shown
    assert used == set(smaller), f"not in the page: {set(smaller) - used}"
