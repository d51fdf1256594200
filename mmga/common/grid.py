"""A grid of processes: rows that share the queries, columns that share the gallery.

Legend: `W` processes in `R` rows and `W / R` columns.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from mmga.common.distributed import PATIENCE, Group
from mmga.common.errors import UserError, whole_number


@dataclass(frozen=True, slots=True)
class Grid:
    """The processes of a run, by default this one alone, as rows and columns.

    Process `r` stands in row `r // columns` and column `r % columns`.

    Attributes:
        whole: all of them.
        row: those that have the queries of this one, each for another share of the gallery.
        column: those that have this one's share of the gallery, each for other queries.
    """

    whole: Group = field(default_factory=Group)
    row: Group = field(default_factory=Group)
    column: Group = field(default_factory=Group)

    @property
    def deals(self) -> bool:
        """Whether processes hold some of the queries each."""
        return self.column.world > 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that exchanges along rows alone, or columns alone; an error ends all.

        Raises:
            Exception: as `Group.together`.
        """
        with self.whole.together() if self.deals else contextlib.nullcontext():
            yield


def grid_of(processes: Group, query_shares: int) -> Grid:
    """Return processes as a grid that says where they stand; rows and columns exchange nothing.

    Args:
        processes: `W` of them.
        query_shares: `R`, the number of rows.

    Raises:
        UserError: they do not form so many rows.
    """
    rows = whole_number("query_shares", query_shares)
    if rows < 1 or processes.world % rows:
        raise UserError(
            f"query_shares: expected a divisor of the number of processes, {processes.world}, "
            f"found {rows}; start others, or give another number"
        )
    columns = processes.world // rows
    row, column = divmod(processes.rank, columns)
    lines = range(row * columns, (row + 1) * columns), range(column, processes.world, columns)
    return Grid(processes, *(_part(processes, line) for line in lines))


def _part(processes: Group, line: range) -> Group:
    """Return some processes as a group; all, and one alone, need no new one."""
    if len(line) == processes.world:
        return processes
    if len(line) == 1:
        return Group()
    place = line.index(processes.rank)
    return dataclasses.replace(processes, rank=place, world=len(line), numbers=line)


@contextlib.contextmanager
def in_grid(processes: Group, query_shares: int) -> Iterator[Grid]:
    """Yield processes as a grid, whose rows and columns exchange until the block ends.

    Args:
        processes: `W` of them, all of which call this.
        query_shares: `R`, the same in all of them.

    Raises:
        UserError: they do not form so many rows, or are a part of the default group.
    """
    grid, world = grid_of(processes, query_shares), processes.world
    rows, columns = grid.column.world, grid.row.world
    if 1 in (rows, columns):
        yield grid
        return
    if dist.get_world_size() != world:
        raise UserError(
            f"query_shares: rows and columns are made of all {dist.get_world_size()} processes of "
            f"the run, found a group of {world}; give group=True, or 1 or {world} shares"
        )
    lines = [range(first, first + columns) for first in range(0, world, columns)]
    lines += [range(first, world, columns) for first in range(columns)]
    # All processes make all groups, in one order.
    made: list[Any] = [dist.new_group(list(line), timeout=PATIENCE) for line in lines]
    row, column = (one for line, one in zip(lines, made, strict=True) if processes.rank in line)
    try:
        yield Grid(
            processes,
            dataclasses.replace(grid.row, processes=row),
            dataclasses.replace(grid.column, processes=column),
        )
    finally:
        for one in (row, column):
            dist.destroy_process_group(one)
