"""Render pages: templates with escaping, data for scripts, and a policy that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

# "<" alone could end the script element or begin a comment in it; JSON needs none of these.
_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def check_packages(what: str, *names: str) -> None:
    """Import the packages that a page needs.

    Args:
        what: asks for the page, such as a flag, for the message.
        names: of the modules.

    Raises:
        UserError: one is not installed.
    """
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{what} needs {name}, which is not installed; pip install 'mmga[report]'"
            ) from error


def write_page(
    path: str | os.PathLike[str],
    template: str,
    values: Mapping[str, object],
    *,
    scripts: tuple[str, ...] = (),
) -> None:
    """Write a page; an error leaves no file.

    Args:
        path: the .html file.
        template: name of a template, which extends `base.html.j2`.
        values: what the template names.
        scripts: source of the scripts that the page runs, in order; no other one can run in it.

    Raises:
        UserError: the file cannot be written.
    """
    text = (
        _environment()
        .get_template(template)
        .render(**values, scripts=scripts, script_hashes=[_hash(script) for script in scripts])
    )
    # Paths may hold halves of characters, which UTF-8 has no bytes for.
    content = text.encode("utf-8", "backslashreplace")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def script_data(values: object) -> str:
    """Return values as JSON that can stand in a script element."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def packed(values: np.ndarray) -> str:
    """Return numbers as text of a quarter of JSON's size: little-endian bytes in base64."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def asset(name: str) -> str:
    """Return a style sheet or a script that stands beside the templates."""
    return (resources.files("mmga.pages") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    # The parser of HTML turns every line end into a line feed before it hashes.
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("mmga.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = lambda name: Markup(asset(name))
    environment.filters["script_data"] = lambda values: Markup(script_data(values))
    environment.filters["script"] = Markup
    environment.filters["percent"] = _percent
    return environment


def _percent(value: float | None, digits: int = 1) -> str:
    return "\u2013" if value is None else f"{100 * value:.{digits}f}%"
