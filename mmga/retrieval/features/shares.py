"""Features of which each process of a group holds some rows, under the labels of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmga.common import ids
from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.retrieval.features.features import Features, joined
from mmga.retrieval.features.sharded_matrix import ShardedMatrix

_ALWAYS = ("pids", "camids", "visibility", "scale")


@dataclass(frozen=True, slots=True)
class SharedGallery:
    """Rows of a gallery, or of queries, that this process holds, and the labels of all.

    Attributes:
        features: labels of all rows; its `rows` are those of this process alone.
        first: number of the first of them.
        total: rows of all processes.
        group: the processes.
    """

    features: Features
    first: int = 0
    total: int = 0
    group: Group = field(default_factory=Group)

    @classmethod
    def alone(cls, features: Features) -> SharedGallery:
        """Return a set of which this process holds all."""
        return cls(features, 0, len(features))

    @classmethod
    def gathered(
        cls,
        own: Features | None,
        group: Group,
        *,
        columns: bool = False,
        paths: bool = False,
        name: str = "gallery",
    ) -> SharedGallery:
        """Return the set that the processes hold together, one after the other by rank.

        Args:
            own: rows and labels of this process; None: it holds none.
            group: the processes.
            columns: paths and further columns are gathered, too.
            paths: paths are.
            name: of the side, for messages.

        Raises:
            UserError: no process has any, or their widths, types or columns differ.
        """
        if group.world == 1 and own is not None:
            return cls(own, 0, len(own), group)
        wanted = (*_ALWAYS, "paths") if paths else _ALWAYS
        arrays = {} if own is None else _labels(own, None if columns else wanted)
        told = [json.loads(text) for text in group.texts(json.dumps(_told(own, group.rank)))]
        found = group.columns(arrays)
        counts = [0 if one is None else one["shape"][0] for one in told]
        with group.together():
            parts = [
                _stub(one, labels)
                for one, labels in zip(told, found, strict=True)
                if one is not None
            ]
            if not parts:
                raise UserError(
                    f"{name}: no process of the group has any of it; give each process its rows, "
                    "and None where there are none"
                )
            _check_alike([one for one in told if one is not None])
            whole = joined(parts) if len(parts) > 1 else parts[0]
        # A file that several processes read parts of is described by each.
        whole.notes = list(dict.fromkeys(whole.notes))
        rows = parts[0].rows.cut(0, 0) if own is None else own.rows
        first = sum(counts[: group.rank])
        return cls(whole.with_rows(rows), first, sum(counts), group)

    @classmethod
    def of_one_set(cls, features: Features, group: Group) -> SharedGallery:
        """Return a share of a set of which every process has all, to be ranked against itself."""
        total = len(features)
        first, last = share_of(total, group)
        if group.world == 1:
            return cls(features, 0, total, group)
        return cls(features.with_rows(features.rows.cut(first, last)), first, total, group)

    @classmethod
    def of_queries(
        cls, queries: SharedGallery, own: Features | None, group: Group
    ) -> SharedGallery:
        """Return the set of the queries as the gallery, to be ranked against itself.

        Args:
            queries: the set, with the labels of all its rows.
            own: rows of it that this process holds as gallery items; None: none.
            group: the processes that hold all of them.

        Raises:
            UserError: they are not the set, row by row.
        """
        whole = queries.features
        counts = group.table([0 if own is None else len(own)])[:, 0].long().tolist()
        first, total = sum(counts[: group.rank]), sum(counts)
        with group.together():
            if total != queries.total:
                raise UserError(
                    f"gallery: expected the {queries.total} items of the set that is ranked "
                    f"against itself, found {total}; give each process its share of them"
                )
            here = slice(first, first + counts[group.rank])
            if own is not None and not np.array_equal(
                ids.written(own.pids, own.pid_names), ids.written(whole.pids[here], whole.pid_names)
            ):
                raise UserError(
                    "gallery: one set is ranked against itself, but pids differ from those of the "
                    "queries; give both in one order"
                )
        rows = whole.rows.cut(0, 0) if own is None else own.rows
        return cls(whole.with_rows(rows), first, total, group)

    def whole(self) -> Features:
        """Return the set with the rows of all processes, in every process."""
        rows, group = self.features.rows, self.group
        if group.world == 1:
            return self.features
        scale = None if rows.scale is None else group.rows(rows.scale.cpu()).to(rows.device)
        numbers = group.rows(rows.numbers().cpu()).to(rows.device)
        return self.features.with_rows(ShardedMatrix([numbers], scale))

    @property
    def last(self) -> int:
        """Number of the row after those of this process."""
        return self.first + len(self.features.rows)


def share_of(count: int, group: Group) -> tuple[int, int]:
    """Return the first of the items that are dealt to this process, and the one after the last."""
    return count * group.rank // group.world, count * (group.rank + 1) // group.world


def _labels(own: Features, wanted: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return wanted labels of a process, or all, codes of names as names."""
    arrays = {name: np.asarray(value) for name, value in own.arrays_without_rows().items()}
    return {name: value for name, value in arrays.items() if wanted is None or name in wanted}


def _told(own: Features | None, rank: int) -> dict[str, Any] | None:
    """Return what is said of a process' rows beside their labels."""
    if own is None:
        return None
    return {
        "shape": list(own.rows.shape),
        "dtype": str(own.rows.stored).removeprefix("torch."),
        "holds": sorted(own.arrays_without_rows()),
        "source": own.source or f"process {rank}",
        "notes": own.notes,
    }


def _check_alike(told: list[dict[str, Any]]) -> None:
    """Refuse rows that hold other columns than the first ones."""
    first = told[0]
    for one in told[1:]:
        if one["holds"] != first["holds"]:
            raise UserError(
                f"{one['source']} holds {', '.join(one['holds'])}, but {first['source']} "
                f"{', '.join(first['holds'])}; all shards must hold the same"
            )


def _stub(told: dict[str, Any], labels: dict[str, np.ndarray]) -> Features:
    """Return features with the labels of another process, and zeros in place of its rows."""
    count, *shape = told["shape"]
    zero = torch.zeros(1, *shape, dtype=getattr(torch, told["dtype"]), device="cpu")
    labels = dict(labels)
    camids = labels.pop("camids", None)
    weights, scale = labels.pop("visibility", None), labels.pop("scale", None)
    stub = Features(
        zero.expand(count, *shape) if len(shape) == 1 else None,
        labels.pop("pids"),
        camids,
        labels.pop("paths", None),
        parts=zero.expand(count, *shape) if len(shape) == 2 else None,
        columns=labels,
        visibility=weights,
        scale=scale,
        source=told["source"],
    )
    stub.notes = told["notes"]
    return stub
