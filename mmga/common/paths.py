"""Paths that two files write differently, and labels that are read from paths."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from mmga.common.errors import UserError

# Market-1501, DukeMTMC-reID and those that took over their names: 0002_c1s1_000451_03.jpg.
MARKET = r"(^|/)(?P<pid>-1|\d+)_c(?P<camid>\d+)[^/]*$"


def matched(
    wanted: Sequence[str], listed: Sequence[str], names: tuple[str, str]
) -> tuple[np.ndarray, str | None]:
    """Return the place of each path among listed ones, and a note where they are not the same text.

    A path that is not listed as it stands belongs to the only listed one of which it is the end, or
    which is its end (`query/1.jpg` and `/data/query/1.jpg`); if there is none, suffixes of files
    are disregarded (`1.jpg` and `1.png`).

    Args:
        wanted: the paths that are looked for.
        listed: the paths that are there; of equal ones the first counts.
        names: of the files of both, for messages.

    Returns:
        Places in `listed`, int64 [N].

    Raises:
        UserError: a path is not there, or several fit it, or one fits several.
    """
    first: dict[str, int] = {}
    for place, path in enumerate(listed):
        first.setdefault(path, place)
    places = np.asarray([first.get(path, -1) for path in wanted], np.int64)
    odd = np.flatnonzero(places < 0)
    if not len(odd):
        return places, None
    for whole_name in (True, False):
        ends = _Ends(first, whole_name)
        for row in np.flatnonzero(places < 0).tolist():
            found = ends.of(wanted[row])
            if len(found) > 1:
                raise UserError(
                    f"{names[1]}: {len(found)} paths fit {wanted[row]} of {names[0]}, such as "
                    f"{found[0]} and {found[1]}; write paths alike on both sides"
                )
            places[row] = first[found[0]] if found else -1
    missing = np.flatnonzero(places < 0)
    if len(missing):
        raise UserError(
            f"{names[1]}: {len(missing)} of {len(wanted)} paths of {names[0]} are not there, the "
            f"first is {wanted[missing[0]]}; those of {names[1]} are such as {listed[0]}"
        )
    _check_distinct(wanted, listed, places, names)
    row = int(odd[0])
    return places, (
        f"{names[1]}: {len(odd)} of {len(wanted)} paths differ from those of {names[0]} in folder "
        f"or suffix and were matched by the rest, {wanted[row]} with {listed[places[row]]}"
    )


class _Ends:
    """Listed paths by their last component."""

    def __init__(self, listed: dict[str, int], whole_name: bool) -> None:
        self._whole_name = whole_name
        self._by_name: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        for path in listed:
            parts = self._parts(path)
            self._by_name[parts[-1]].append((parts, path))

    def of(self, path: str) -> list[str]:
        """Return the listed paths that end as a path does."""
        own = self._parts(path)
        found = []
        for parts, other in self._by_name.get(own[-1], ()):
            common = min(len(own), len(parts))
            if own[-common:] == parts[-common:]:
                found.append(other)
        return found

    def _parts(self, path: str) -> tuple[str, ...]:
        pieces = path.strip().replace("\\", "/").split("/")
        parts = [piece for piece in pieces if piece not in ("", ".")] or [""]
        if not self._whole_name:
            parts[-1] = parts[-1].rpartition(".")[0] or parts[-1]
        return tuple(parts)


def _check_distinct(
    wanted: Sequence[str], listed: Sequence[str], places: np.ndarray, names: tuple[str, str]
) -> None:
    """Refuse different paths that were matched with one.

    Raises:
        UserError: there are such.
    """
    holder: dict[int, str] = {}
    for path, place in zip(wanted, places.tolist(), strict=True):
        if holder.setdefault(place, path) != path:
            raise UserError(
                f"{names[1]}: {listed[place]} fits both {holder[place]} and {path} of {names[0]}; "
                "write paths alike on both sides"
            )


def find_below(folders: Iterable[Path], path: str) -> Path | None:
    """Return the file of a path below one of some folders, None where there is none.

    A path may begin elsewhere: it is looked for as it is, then without its first folders one after
    the other. Nothing outside of the folders is found.
    """
    whole = PurePosixPath(path.replace("\\", "/"))
    parts = [part for part in whole.parts if part not in (".", whole.anchor)]
    if ".." in parts or "\0" in path:
        return None
    places = (folder.joinpath(*parts[cut:]) for cut in range(len(parts)) for folder in folders)
    return next((file for file in places if os.path.isfile(file)), None)


class Files(Protocol):
    """The file of each row; None where there is none."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, row: int, /) -> Path | None:
        """Return the file of a row."""


class FilesBelow:
    """Files of paths below a folder, each found by `find_below` when it is asked for.

    Args:
        folder: where they are.
        paths: of the rows.
    """

    def __init__(self, folder: Path, paths: Sequence[str] | np.ndarray) -> None:
        self._folder, self._paths = folder, paths

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._paths)

    def __getitem__(self, row: int, /) -> Path | None:
        """Return the file of a row, None where the folder holds none."""
        return find_below([self._folder], str(self._paths[row]))


def from_names(
    files: Sequence[str], pattern: str | None, title: str
) -> tuple[dict[str, list[str]], str]:
    """Read labels from paths.

    Args:
        files: the paths.
        pattern: a regular expression with the groups pid and camid, or one of them, looked for in
            each path; None: names as Market-1501 has them.
        title: names the files in messages.

    Returns:
        The text of each named group, empty where a path does not fit; and a sentence on how many
        were read.

    Raises:
        UserError: the pattern is none, or fits no path.
    """
    rule = _compiled(pattern or MARKET)
    matches = [rule.search(file) for file in files]
    fit = [place for place, match in enumerate(matches) if match is not None]
    by = f"the pattern {pattern}" if pattern else "Market-1501's pattern 0002_c1"
    if not fit:
        if pattern is not None:
            raise UserError(
                f"--pattern {pattern} fits none of the {len(files)} paths of {title}, the first is "
                f"{files[0]}"
            )
        return {}, (
            f"{title}: no name fits {by}, the first is {files[0]}: identities and cameras are "
            "unknown; --pattern reads other names"
        )
    groups = {
        name: ["" if match is None else match[name] or "" for match in matches]
        for name in rule.groupindex
    }
    shown = ", ".join(f"{name} {cells[fit[0]]}" for name, cells in groups.items())
    note = (
        f"{title}: {len(fit)} of {len(files)} names were read by {by}, {files[fit[0]]} as {shown}"
    )
    if len(fit) < len(files):
        odd = next(file for file, match in zip(files, matches, strict=True) if match is None)
        note += f"; {len(files) - len(fit)} do not fit and are unknown, the first is {odd}"
    return groups, note


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern} is no regular expression: {error}") from error
    if not {"pid", "camid"} & set(rule.groupindex):
        raise UserError(
            f"--pattern {pattern} has no group pid and no group camid; write for example "
            "(?P<pid>\\d+)_c(?P<camid>\\d+)"
        )
    taken = {"path", "features", "parts", "visibility", "pids", "camids", "paths"}
    wrong = sorted(taken & set(rule.groupindex))
    if wrong:
        raise UserError(f"--pattern {pattern}: a group cannot be called {wrong[0]}; rename it")
    return rule
