"""HTML of objects that a notebook shows: tables whose every text is escaped.

Colours are those of the page around them, so that they fit light and dark themes.
"""

from collections.abc import Iterable, Sequence
from html import escape

_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.35)"
_CELL = f"padding: 0.2em 0.9em; {_LINE}; color: inherit; background: transparent"
_SOFT = "opacity: 0.75; max-width: 60em; margin: 0.15em 0"


def block(title: str, table: str, lines: Iterable[str] = ()) -> str:
    """Return a title, a table of `rows` and lines of text below it."""
    below = "".join(f'<p style="{_SOFT}">{escape(line)}</p>' for line in lines)
    head = f'<p style="margin: 0.15em 0"><strong>{escape(title)}</strong></p>'
    return f'<div style="color: inherit">{head}{table}{below}</div>'


def rows(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Return a table whose first column names its rows; other columns are right-aligned."""
    lines = ["".join(_cell("th", text, place, "col") for place, text in enumerate(head))]
    for values in body:
        cells = [_cell("th", values[0], 0, "row")]
        cells += [_cell("td", value, place) for place, value in enumerate(values[1:], 1)]
        lines.append("".join(cells))
    first, *others = (f'<tr style="background: transparent">{line}</tr>' for line in lines)
    begin = '<table style="border-collapse: collapse; margin: 0.4em 0; color: inherit">'
    return f"{begin}<thead>{first}</thead><tbody>{''.join(others)}</tbody></table>"


def _cell(tag: str, value: object, place: int, scope: str = "") -> str:
    side = "right" if place else "left"
    scope = f' scope="{scope}"' if scope else ""
    return f'<{tag}{scope} style="{_CELL}; text-align: {side}">{escape(str(value))}</{tag}>'
