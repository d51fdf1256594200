"""A model of operations and bytes on an H200, stage by stage: `python -m benchmarks.gpu_model`.

Its times are projections from counts and rates of the datasheet; nothing of them was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmga.ops.triton.certified import BLOCKS, LEAST_PANEL, kept_rank

# Of an H200's datasheet: bytes of memory, operations on integers of 8 bits and in float32, and half
# of these as instructions; a second each. Of its L2 cache nothing is stated: an assumption.
MEMORY, INT8, FLOAT32, INSTRUCTIONS, CACHE = 4.8e12, 1979e12, 67e12, 33.5e12, 5.5e12
# Shares of pairs that 8 bits leave undecided, and 16 bits, of features that decay (results.md).
UNDECIDED, RESCUED = 0.02, 0.0004
MATCHES = 20  # of a query
PASSING = 6  # candidates that pass bounds of 8 bits for each that stays


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, and what it takes by each rate: the largest time is its projection.

    Attributes:
        what: it does.
        int8: operations on integers of 8 bits.
        float32: operations.
        instructions: of threads.
        memory: bytes.
        cache: bytes through L2.
    """

    what: str
    int8: float = 0
    float32: float = 0
    instructions: float = 0
    memory: float = 0
    cache: float = 0

    def times(self) -> dict[str, float]:
        """Return the seconds by each rate."""
        return {
            "8-bit operations": self.int8 / INT8,
            "float32 operations": self.float32 / FLOAT32,
            "instructions": self.instructions / INSTRUCTIONS,
            "memory": self.memory / MEMORY,
            "L2 (assumed)": self.cache / CACHE,
        }

    def seconds(self) -> float:
        """Return the projected time."""
        return max(self.times().values())


def rounding(rows: float, width: int) -> Stage:
    """Return norms and both kinds of integers of features."""
    return Stage("norms, 8 and 16 bits", memory=rows * width * (3 * 4 + 1 + 2))


def products(rows: float, columns: float, width: int, compared: float, what: str) -> Stage:
    """Return 8-bit products with `compared` instructions a pair, and a bit for each."""
    pairs = rows * columns
    read = pairs * width * (1 / BLOCKS["BLOCK_M"] + 1 / BLOCKS["BLOCK_N"])
    return Stage(what, int8=2 * pairs * width, instructions=pairs * compared, cache=read,
                 memory=pairs / 4)  # fmt: skip


def evaluated(queries: int, gallery: int, width: int) -> Iterator[Stage]:
    """Yield the stages of certified ranks."""
    pairs = queries * gallery
    yield rounding(queries + gallery, width)
    yield products(queries, gallery, width, 8 + 8 * MATCHES, "8-bit products and counting")
    yield Stage("16 bits", memory=UNDECIDED * pairs * (2 * width + 48))
    yield Stage("float64", memory=RESCUED * pairs * (4 * width + 48))


def candidates(items: int, k: int) -> float:
    """Return how many pairs of a row one look compares by 16 bits."""
    seen = total = float(LEAST_PANEL)
    while seen < items:
        total += PASSING * kept_rank(int(seen), k, items) * min(1.0, items / seen - 1)
        seen *= 2
    return total


def neighbours(items: int, width: int, k: int) -> Iterator[Stage]:
    """Yield the stages of the certified k nearest of every item, each pair met once."""
    yield rounding(items, width)
    yield products(items, items / 2, width, 24, "8-bit products and limits")
    yield Stage("16 bits", memory=items * candidates(items, k) * (2 * width + 24))
    yield Stage("float64 and order", memory=items * (k + 34) * (4 * width + 200))


def by_float32(items: int, width: int, k: int) -> Iterator[Stage]:
    """Yield the stages of the same in float32."""
    half = items * items / 2
    yield Stage("float32 products", float32=2 * half * width, memory=4 * half)
    yield Stage("selection", memory=2 * 4 * half, instructions=half * 2 * 24)
    yield Stage("order", memory=items * (2 * k + 16) * 16)


def reranked(queries: int, gallery: int, width: int) -> Iterator[Stage]:
    """Yield the stages of re-ranked figures, from features: k1 20, k2 6."""
    items, pairs = queries + gallery, queries * gallery
    yield from neighbours(items, width, 21)
    yield Stage("sets, weights, means, inverted index", cache=items * 400e3)
    yield Stage("Jaccard rows", cache=queries * 3.9e6)
    yield Stage("distances to the gallery, float32", float32=2 * pairs * width, memory=8 * pairs)
    yield Stage("mixing and ranks", memory=20 * pairs)


SHAPES = {
    "Market-1501 evaluated, 3,368 x 15,913 x 2,048": [*evaluated(3368, 15913, 2048)],
    "Market-1501 evaluated, D = 512": [*evaluated(3368, 15913, 512)],
    "Market-1501 re-ranked, D = 2,048": [*reranked(3368, 15913, 2048)],
    "MSMT17 re-ranked, 11,659 x 82,161 x 2,048": [*reranked(11659, 82161, 2048)],
    "Market-1501 and 500,000 distractors re-ranked, D = 512": [*reranked(3368, 515913, 512)],
    "20 nearest of 519,281 x 512, certified": [*neighbours(519281, 512, 20)],
    "the same by float32 tiles": [*by_float32(519281, 512, 20)],
}


def spelled(seconds: float) -> str:
    """Return a time with two digits."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def table() -> str:
    """Return the model in Markdown."""
    lines = ["| workload | stage | bound by | projected |", "|---|---|---|---|"]
    for shape, stages in SHAPES.items():
        total = sum(stage.seconds() for stage in stages)
        lines.append(f"| **{shape}** | all, one after the other | | **{spelled(total)}** |")
        for stage in stages:
            times = stage.times()
            bound = max(times, key=times.__getitem__)
            lines.append(f"| | {stage.what} | {bound} | {spelled(stage.seconds())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
