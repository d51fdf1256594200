"""Lists of matches and ignored items for tests of the ranking and verification operators."""

from typing import NamedTuple

import torch
from torch import Tensor


class Lists(NamedTuple):
    match_start: Tensor
    match_item: Tensor
    ignored_start: Tensor
    ignored_item: Tensor


def ignored_and_matches(
    rows: int, width: int, matches: int, offset: int, seed: int, extra: int = 2
) -> Lists:
    """Draw items of a tile and of beside it; matches in any order, ignored ones ascending."""
    generator = torch.Generator().manual_seed(seed)
    starts, ignored_starts, chosen, ignored = [0], [0], [], []
    for row in range(rows):
        order = torch.randperm(width + 2 * min(offset, 9), generator=generator)
        order = order + offset - min(offset, 9)
        count = max(0, min(matches - row % 3, len(order)))
        chosen.append(order[:count])
        ignored.append(order[: count + extra].sort().values)
        starts.append(starts[-1] + len(chosen[-1]))
        ignored_starts.append(ignored_starts[-1] + len(ignored[-1]))
    return Lists(
        torch.tensor(starts), torch.cat(chosen), torch.tensor(ignored_starts), torch.cat(ignored)
    )
