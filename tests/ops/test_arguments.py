"""Every compiled operator refuses arguments that it would read past, and says what it found.

`valid` has a call of each operator; one argument of it is then given another dtype, fewer rows, a
gap between its elements, another device, or indices and offsets out of range. The CUDA operators,
whose checks are the same but for values in memory of the device, run by their source on the CPU.
"""

import functools
import re

import emulated
import pytest
import torch
from torch import Tensor

from mmga.ops import (  # noqa: F401
    attention,
    backends,
    certified,
    distance,
    k_reciprocal,
    neighbours,
    ranking,
)

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def longs(*values: int) -> Tensor:
    return torch.tensor(values)


def doubles(*shape: int) -> Tensor:
    return torch.full(shape, 0.5, dtype=torch.float64)


def halves(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def tile() -> tuple[object, ...]:
    """Values [2, 3], terms, and the number of the metric."""
    return halves(2, 3), halves(2), halves(3), 1


def masks() -> tuple[Tensor, ...]:
    """The items that are excluded from a tile [2, 3]."""
    removed = torch.zeros((2, 3), dtype=torch.bool)
    return longs(0, 1, 2), longs(0, 2), ints(0, 1), ints(0, 1, 2), removed


def sparse(*, weighted: bool = True) -> tuple[Tensor, ...]:
    """Rows [3, 3] whose columns name every item."""
    rows = longs(0, 2, 3, 5), ints(0, 2, 1, 1, 2)
    return (*rows, doubles(5)) if weighted else rows


def candidates(lists: int, slots: int) -> tuple[Tensor, ...]:
    """Empty lists of `collect_candidates_`."""
    shape = lists, slots, 3
    return torch.zeros(shape, dtype=torch.int32), ints(*[0] * lists), halves(lists)


def calls_of_lists(
    bound: tuple[Tensor, ...], limits: tuple[Tensor, ...]
) -> dict[str, tuple[object, ...]]:
    """Return calls of the operators on candidate lists, given bounds in float64 and float32."""
    return {
        "collect_candidates_": (
            *candidates(5, 6),
            *candidates(5, 4),
            2,
            *(torch.ones((n, 5), dtype=torch.int8) for n in (2, 3)),
            halves(2),
            halves(3),
            halves(2),
            halves(3),
            *limits,
            *(torch.ones((n, 5), dtype=torch.int16) for n in (2, 3)),
            doubles(2),
            doubles(3),
            *bound,
            1,
            longs(0, 1),
            0,
            2,
            True,
            0,
            3,
        ),
        "settle_candidates": (
            *candidates(3, 6)[:1],
            ints(2, 2, 2),
            longs(0, 2),
            longs(1, 0),
            longs(0, 1, 2),
            halves(2, 3),
            halves(1, 3),
            longs(0, 1, 2),
            None,
            doubles(3),
            torch.ones(2, 3, dtype=torch.int8),
            torch.ones(1, 3, dtype=torch.int8),
            longs(2, 1, 0),
            halves(3),
            doubles(3),
            1,
            2,
            False,
            False,
        ),
        "sure_candidates": candidates(3, 6),
        "nearest_of": (ints(0, 1, 2, 3, 4, 5).view(2, 3), doubles(2, 3), 2),
    }


def valid() -> dict[str, tuple[object, ...]]:
    """Return a valid call of every operator, with every optional argument."""
    matches = longs(0, 2, 4), longs(0, 2, 0, 1)
    two, bound = doubles(2), (doubles(2), doubles(3), doubles(2), doubles(3))
    limits = tuple(one.float() for one in bound)
    lists = ints(0, 1, 1, 2, 2, 0).view(3, 2)
    x, spatial, channel = torch.randn(2, 3, 4, 2), torch.randn(2, 2, 4, 2), torch.randn(2, 2, 3)
    places = torch.zeros((2, 2, 2, 3), dtype=torch.int32)
    rows, upper = longs(0, 1, 2), (longs(0, 2, 4, 5), ints(0, 2, 1, 2, 2), doubles(5))
    return {
        "attention_multiply": (x, spatial[:, :1], channel[:, 0], False),
        "attention_multiply_backward": (x, x, spatial[:, :1], channel[:, 0], False),
        "attention_pool": (x, spatial, channel, False, False, 2),
        "attention_pool_backward": (
            torch.randn(2, 2, 2, 3), x, spatial, channel, places, False, False, 2
        ),
        "average_rows": (*sparse(), lists, 2),
        "int8_rows": (halves(2, 3), 127),
        "count_certain": (
            *tile(), 0, halves(2), halves(3), halves(3), *matches, halves(4), halves(4), *masks(),
            zeros(4),
        ),
        "count_impostors": (
            *tile(), 0, *masks()[:4], True, masks()[4], torch.ones(3, dtype=torch.bool),
            doubles(4).cumsum(0), zeros(5), doubles(2), zeros(2),
        ),
        "count_preceding": (
            *tile(), 0, *matches, halves(4), *masks(), zeros(4), zeros(2), halves(2), zeros(2)
        ),
        "encode": (sparse()[0], doubles(5), doubles(3)),
        "expand_sets": (*sparse(weighted=False), *sparse(weighted=False)),
        "int8_products_": (
            torch.ones((2, 5), dtype=torch.int8), torch.ones((3, 5), dtype=torch.int8), halves(2),
            halves(3), halves(2, 3),
        ),
        "float_products_": (halves(2, 5), halves(3, 5), 2, halves(2, 3)),
        "prefix_rows": (*sparse(), 0.5),
        "int16_rows": (halves(2, 3), doubles(2)),
        "jaccard_rows": (*sparse(), *sparse(), rows, 0.5, False),
        "listed_distances": (*sparse(weighted=False), lists, halves(3, 2)),
        "symmetrise": upper,
        "mix_distances": (halves(3, 3), doubles(3), *sparse(), 0, 0.3, 1, 1.0),
        "refine_candidates": (
            ints(0, 0, 1, 2).view(2, 2), halves(2, 3), halves(3, 3), doubles(2), doubles(3), 1,
            *bound, *bound,
        ),
        "jaccard_join": (*sparse(), *sparse(), *sparse(), rows, 0.5),
        "nearest_in_rows": (halves(2, 3), 2),
        "insert_candidates": (
            torch.zeros((3, 6), dtype=torch.int32), doubles(3, 6), ints(0, 1, 2), doubles(3),
            ints(0, 1, 1, 2).view(2, 2), doubles(2), doubles(3), 0, 0, True, 2,
        ),
        "filter_int8_candidates": (
            *(torch.ones((n, 5), dtype=torch.int8) for n in (2, 3)), halves(2), halves(3),
            *tile()[1:], *limits, *limits, 0, 0, False,
        ),
        **calls_of_lists(bound, limits),
        "filter_candidates": (*tile(), *limits, *limits, 0, 0, False),
        "ordered_candidates": (zeros(2, 6) + torch.arange(6), ints(3, 4), 2),
        "pair_sums": (halves(2, 3), halves(3, 3), longs(0, 1), longs(0, 2), 1),
        "part_keys": (
            halves(2, 3, 4), halves(2, 3), halves(2, 4), halves(2, 3), halves(2, 4), 1, halves(3, 4)
        ),
        "read_matches": (*tile(), *matches, halves(4)),
        "reciprocal_sets": (lists, 2),
        "select_neighbours": (
            zeros(3, 6), ints(0, 1, 2), halves(3), halves(3), halves(1, 2), halves(3, 3),
            halves(3), halves(3), False, 2, 0, 0, True,
        ),
        "refine_pairs": (
            ints(0, 0, 0, 2, 1, 2, 0, 1).view(2, 4), halves(2, 3), halves(3, 3), doubles(2),
            doubles(3), 1, *bound, 0, *matches, doubles(4), zeros(4), zeros(2),
        ),
        "rounded_rows": (*[halves(2, 3)] * 2, longs(0, 3, 1), None, longs(2, 0, 1), doubles(3), 9),
        "sort_matches": (*matches, halves(4)),
        "squared_distances_": (halves(2, 3), halves(2), halves(3), True),
        "squared_norms": (halves(2, 3),),
        "take_overlaps_": (halves(2, 3), rows[:2], rows[1:], longs(0, 2), two, two, 0),
        "transpose_rows": (*sparse(), 0),
    }  # fmt: skip


# Values of any layout are copied first, or read as they are.
ANY_GAPS = {
    "attention_multiply", "attention_multiply_backward", "attention_pool",
    "attention_pool_backward", "squared_norms", ("float_products_", "x"), ("float_products_", "y"),
}  # fmt: skip
# No other argument says how many rows these have.
ANY_LENGTH = {
    ("int8_rows", "x"), ("prefix_rows", "offsets"), ("jaccard_rows", "rows"),
    ("refine_candidates", "pairs"), ("jaccard_join", "rows"), ("nearest_in_rows", "distances"),
    ("refine_pairs", "undecided"), ("sort_matches", "match_start"), ("squared_norms", "x"),
}  # fmt: skip
# What says so are offsets and indices, which a device does not read back.
LENGTH_BY_VALUES = {
    ("*", "ignored_item"), ("encode", "distances"), ("encode", "offsets"),
    ("expand_sets", "columns"), ("expand_sets", "half_columns"), ("symmetrise", "offsets"),
    ("pair_sums", "x"), ("pair_sums", "y"), ("reciprocal_sets", "neighbours"),
    ("transpose_rows", "offsets"), ("listed_distances", "columns"),
}  # fmt: skip
# Integers that are compared or copied, never used as an index: any value will do.
COMPARED = {
    ("*", "ignored_item"), ("*", "row_camera"), ("*", "column_camera"), ("*", "preceding"),
    ("*", "tied"), ("*", "mismatched"), ("*", "nearest_item"), ("count_impostors", "counts"),
    ("count_certain", "match_item"), ("count_preceding", "match_item"),
    ("prefix_rows", "columns"),
    ("listed_distances", "neighbours"), ("insert_candidates", "index"),
    ("ordered_candidates", "candidates"), ("select_neighbours", "candidates"),
    ("refine_pairs", "match_item"), ("sort_matches", "match_item"),
    ("collect_candidates_", "candidates"), ("collect_candidates_", "far_candidates"),
    ("collect_candidates_", "own"), ("nearest_of", "index"), ("sure_candidates", "candidates"),
}  # fmt: skip
# Counts that say with -1 that a list is lost.
LOST = {
    ("collect_candidates_", "counts"), ("collect_candidates_", "far_counts"),
    ("sure_candidates", "counts"),
}  # fmt: skip
# Indices that the Python wrappers take from `transpose_rows`, which makes none out of range; a pass
# over all of them may cost more than the call, see csrc/args/jaccard.h.
TRUSTED = {("jaccard_rows", "inverted_rows"), ("jaccard_join", "index_rows")}
# Items and bits of numbers that are no index; test_certified_knn.py has wrong items.
TRUSTED.add(("settle_candidates", "candidates"))


def listed(table: set[tuple[str, str]], name: str, argument: str) -> bool:
    return (name, argument) in table or ("*", argument) in table


@functools.cache
def arguments_of(name: str) -> tuple[str, ...]:
    return tuple(a.name for a in getattr(torch.ops.mmga, name).default._schema.arguments)


def value_of(name: str, argument: str) -> Tensor:
    value = valid()[name][arguments_of(name).index(argument)]
    assert isinstance(value, Tensor)
    return value


NAMES = sorted(valid())
HOSTS = [("cpu", name) for name in NAMES]
HOSTS += [("cuda", name) for name in NAMES if name in emulated.OPERATORS]
# Each with the tensors of the operator.
TENSORS = [
    (host, name, argument)
    for host, name in HOSTS
    for argument, value in zip(arguments_of(name), valid()[name], strict=True)
    if isinstance(value, Tensor)
]
INTEGERS = [case for case in TENSORS if value_of(*case[1:]).dtype in (torch.int32, torch.int64)]


@pytest.fixture
def run(kernel):
    """Run an operator on its host, whatever the devices of its arguments; one may be replaced."""

    def call(host: str, name: str, argument: str | None = None, value: object = None) -> object:
        op = kernel(name).default
        if host == "cuda":
            try:
                emulated.library()
            except emulated.Absent as reason:
                pytest.skip(f"kernels cannot be emulated: {reason}")
            op = getattr(torch.ops.mmga_emulated, name).default
        given = list(valid()[name])
        if argument is not None:
            given[arguments_of(name).index(argument)] = value
        return op.redispatch(CPU, *given)

    return call


def refuses(run, host: str, name: str, argument: str, value: object, says: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        run(host, name, argument, value)
    assert re.search(rf"\b{name}: .*{says}", str(refused.value)), refused.value


def test_every_operator_has_a_call(kernel):
    kernel("count_preceding")
    registered = {
        name.removeprefix("mmga::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mmga::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    }
    assert registered == {*NAMES}


@pytest.mark.parametrize("host, name", HOSTS)
def test_the_call_is_valid(run, host, name):
    run(host, name)


@pytest.mark.parametrize("host, name, argument", TENSORS)
def test_dtype(run, host, name, argument):
    value = value_of(name, argument)
    other = torch.int8 if value.dtype in (torch.uint8, torch.bool) else torch.uint8
    says = f"{argument}: expected .*, found {str(other).removeprefix('torch.')}"
    refuses(run, host, name, argument, value.to(other), says)


@pytest.mark.parametrize("host, name, argument", TENSORS)
def test_device(run, host, name, argument):
    value = value_of(name, argument).to("meta")
    refuses(run, host, name, argument, value, f"{argument}: expected .* on cpu, found .* on meta")


@pytest.mark.parametrize("host, name, argument", TENSORS)
def test_dimensions(run, host, name, argument):
    value = value_of(name, argument)[None]
    shape = re.escape(str([*value.shape]))
    refuses(run, host, name, argument, value, f"expected .*, found .*{shape}")


@pytest.mark.parametrize("host, name, argument", TENSORS)
def test_too_few_rows(run, host, name, argument):
    value = value_of(name, argument)[:-1].clone()
    if listed(ANY_LENGTH, name, argument):
        run(host, name, argument, value)
    elif host == "cpu" or not listed(LENGTH_BY_VALUES, name, argument):
        refuses(run, host, name, argument, value, "found ")


@pytest.mark.parametrize("host, name, argument", TENSORS)
def test_gaps(run, host, name, argument):
    value = value_of(name, argument)
    value = torch.stack([value, value], -1)[..., 0]
    if name in ANY_GAPS or (name, argument) in ANY_GAPS:
        run(host, name, argument, value)
    else:
        says = f"{argument}: expected .*contiguous .* with strides "
        refuses(run, host, name, argument, value, says)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("wrong", [-1, 2**31 - 1])
@pytest.mark.parametrize("host, name, argument", INTEGERS)
def test_out_of_range(run, host, name, argument, wrong, place):
    value = value_of(name, argument).clone()
    value.view(-1)[place] = wrong
    if listed(COMPARED, name, argument) or (wrong == -1 and (name, argument) in LOST):
        run(host, name, argument, value)
    elif host == "cpu" and not listed(TRUSTED, name, argument):
        refuses(run, host, name, argument, value, f"{argument}: .*found")


def test_offsets_ascend(run):
    value = longs(0, 3, 2, 5)
    refuses(run, "cpu", "encode", "offsets", value, "offsets: expected .*, found 3 at 1")


NUMBERS = [
    ("attention_pool", "stripes", 0), ("attention_pool", "stripes", 5),
    ("attention_pool_backward", "stripes", 0), ("average_rows", "k2", 3),
    ("count_certain", "metric", 3), ("count_impostors", "metric", -1),
    ("count_preceding", "metric", 3), ("prefix_rows", "max_distance", 1.0),
    ("jaccard_rows", "max_distance", 1.5), ("mix_distances", "power", 3),
    ("refine_candidates", "metric", 0), ("jaccard_join", "max_distance", 1.0),
    ("nearest_in_rows", "k", 4), ("insert_candidates", "k", 6), ("filter_candidates", "metric", 3),
    ("ordered_candidates", "k", 7), ("part_keys", "metric", 0), ("read_matches", "metric", 3),
    ("reciprocal_sets", "k", 0), ("select_neighbours", "first_item", 1),
    ("select_neighbours", "first_other", -1), ("select_neighbours", "k", 6),
    ("refine_pairs", "metric", 0), ("transpose_rows", "first", 4),
]  # fmt: skip


@pytest.mark.parametrize("name, argument, wrong", NUMBERS)
def test_numbers(run, name, argument, wrong):
    for host in ("cpu", "cuda"):
        if (host, name) in HOSTS:
            says = f"{argument}: expected .*, found {wrong:g}"
            refuses(run, host, name, argument, wrong, says)


@pytest.mark.parametrize("host", ["cpu", "cuda"])
def test_arguments_come_together(run, host):
    says = "row_camera: expected with column_camera"
    refuses(run, host, "count_preceding", "row_camera", None, says)
    refuses(run, host, "count_preceding", "column_camera", None, says)
    says = "row_radius: expected with column_radius"
    refuses(run, host, "refine_pairs", "row_slack", None, says)
    says = "kept: expected with symmetric tiles"
    refuses(run, host, "select_neighbours", "symmetric", False, says)


@pytest.mark.parametrize("host", ["cpu", "cuda"])
def test_the_message_says_all(run, host):
    """Names, types, shapes, layout and device, expected and found."""
    with pytest.raises(RuntimeError) as refused:
        run(host, "squared_distances_", "row_term", doubles(3, 2).T)
    assert str(refused.value) == (
        "squared_distances_: row_term: expected a contiguous float32 tensor [2] on cpu, "
        "found float64 [2, 3] with strides [1, 2] on cpu"
    )
