"""Ranked lists of a search as a sheet of photographs: one HTML page, or one picture."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mmga import plots
from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.paths import Files
from mmga.common.progress import Progress
from mmga.common.version import __version__
from mmga.data.pictures import read_image
from mmga.pages import html
from mmga.plots.sheets import Verdict
from mmga.plots.style import need_matplotlib
from mmga.retrieval.reranking.index import row_labels
from mmga.retrieval.reranking.ranked_lists import RankedLists

MOST = {".html": 200, ".png": 20}
"""Queries of a sheet."""

_THUMBNAIL = 112, 224
"""Most pixels of a thumbnail: width, height; it is shown at half of them or a little more."""


@dataclass(frozen=True, slots=True)
class Item:
    """A photograph of a sheet.

    Attributes:
        file: of the image; None where there is none.
        name: its path, as results have it.
        labels: what else is known of it: identity and camera, by name.
        distance: from the query; None of the query itself.
        verdict: what it is to the query.
        own: whether it is the query's own file.
    """

    file: Path | None
    name: str
    labels: dict[str, object]
    distance: float | None = None
    verdict: Verdict = "unknown"
    own: bool = False


@dataclass(slots=True)
class Sheet:
    """The queries of a sheet with their lists.

    Attributes:
        rows: a query and its nearest items, nearest first.
        total: queries of the search, of which these are the first.
        settings: what was searched and how, by name.
        missing: names of photographs whose files are not there.
        unreadable: files that could not be drawn.
    """

    rows: list[tuple[Item, list[Item]]]
    total: int
    settings: Mapping[str, str]
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    _sizes: list[tuple[int, int]] = field(default_factory=list)  # width and height of each drawn

    @classmethod
    def of(
        cls,
        found: RankedLists,
        files: tuple[Files, Files],
        settings: Mapping[str, str],
        most: int,
    ) -> Sheet:
        """Take the first lists of a search, with the image files of its queries and its gallery."""
        own, left_out = row_labels(found.query), set(found.left_out.tolist())
        asked = [number for number in range(len(found.query)) if number not in left_out]
        rows = []
        for number in asked[:most]:
            query = _item(files[0][number], own, number)
            real = query.file and os.path.realpath(query.file)
            items = []
            pairs = zip(found.distances[number], found.indices[number], strict=True)
            for distance, index in pairs:
                item = _item(files[1][index], found.labels, int(index))
                same = item.file is not None and os.path.realpath(item.file) == real
                verdict = _verdict(query, item)
                labelled = (item.file, item.name, item.labels)
                items.append(Item(*labelled, float(distance), verdict, same))
            rows.append((query, items))
        return cls(rows, len(found.query), settings)

    def write(self, out: Path, progress: Progress | None = None) -> None:
        """Write the sheet as .html or .png.

        Raises:
            UserError: the file cannot be written.
        """
        if out.suffix.lower() == ".png":
            self._draw(out, progress)
            return
        rows = []
        for done, (query, items) in enumerate(self.rows, 1):
            rows.append((self._shown(query), [self._shown(item) for item in items]))
            if progress is not None:
                progress("sheet", done, len(self.rows))
        used = {item.verdict for _, items in self.rows for item in items}
        values = {
            "rows": rows,
            "total": self.total,
            "settings": self.settings,
            "judged": bool(used & {"right", "wrong"}),
            "version": __version__,
            "aspect": self._aspect(),
        }
        html.write_page(out, "sheet.html.j2", values)

    def _shown(self, item: Item) -> dict[str, object]:
        """Return what the template shows of an item."""
        image = self._read(item)
        return {
            "image": None if image is None else _data_uri(image),
            "there": item.file is not None,
            "name": item.name,
            "pieces": re.split(r"(?<=[/_-])", item.name),  # between which lines may break
            "labels": item.labels,
            "distance": None if item.distance is None else f"{item.distance:.4f}",
            "verdict": item.verdict,
            "own": item.own,
        }

    def _aspect(self) -> float:
        """Return the width of the photographs by their height, their median."""
        found = sorted(width / height for width, height in self._sizes)
        return round(min(max(found[len(found) // 2], 0.3), 2.0), 3) if found else 0.5

    def _read(self, item: Item) -> torch.Tensor | None:
        if item.file is None:
            self.missing.append(item.name)
            return None
        try:
            image = read_image(item.file)
        except UserError:
            self.unreadable.append(str(item.file))
            return None
        self._sizes.append((image.shape[2], image.shape[1]))
        return image

    def _draw(self, out: Path, progress: Progress | None) -> None:
        queries, hits, titles = [], [], []
        for done, (query, items) in enumerate(self.rows, 1):
            queries.append(self._read(query))
            titles.append(_title(query))
            hits.append(
                [
                    plots.Hit(
                        self._read(item), item.verdict, f"{item.distance:.3f}\n{_title(item)}"
                    )
                    for item in items
                ]
            )
            if progress is not None:
                progress("sheet", done, len(self.rows))
        note = "nearest first; above each: distance"
        plots.save(plots.ranked_sheet(queries, hits, titles, note=note), out)


def _item(file: Path | None, labels: Mapping[str, np.ndarray], row: int) -> Item:
    values = {name: ids.plain(column[row]) for name, column in labels.items()}
    name = str(values.pop("path", None) or file)
    shown = {"pid": "id", "camid": "camera"}
    known = {shown[k]: v for k, v in values.items() if k in shown and v is not None}
    return Item(file, name, known)


def _verdict(query: Item, item: Item) -> Verdict:
    labels = [one.labels.get("id") for one in (query, item)]
    if None in labels:
        return "unknown"
    own, other = (ids.key(str(label)) for label in labels)
    return "right" if own == other != str(ids.JUNK) else "wrong"


def _title(item: Item) -> str:
    parts = [f"{name} {value}" for name, value in item.labels.items()]
    return "\n".join(parts or [Path(item.name).name])


def _data_uri(image: torch.Tensor) -> str:
    """Return an image, uint8 [3, H, W], as the data: URI of a small JPEG."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def check_packages(out: Path) -> None:
    """Import what a sheet needs, before anything else is done.

    Raises:
        UserError: it is not installed.
    """
    if out.suffix == ".html":
        html.check_packages(f"--out {out}", "jinja2")
    else:
        need_matplotlib(f"--out {out}")
