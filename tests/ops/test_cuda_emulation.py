"""The emulation of CUDA itself: it finds the faults that it is there to find."""

import ctypes
import re

import emulated
import numpy as np
import pytest

FAULTS = {
    "reversed": "",
    "without_barrier": "two threads are at one place of shared memory",
    "with_warp_barrier": "two threads are at one place of shared memory",
    "past_the_end": "shared memory is left",
    "two_barriers": "threads wait at two barriers",
    "missing_lane": "threads wait for each other forever",
    "last_wins": "",
}


@pytest.fixture(scope="module")
def faults():
    try:
        names = ("runtime.cpp", "faults.cpp")
        path = emulated.linked("faults", [emulated.compiled(emulated.HERE / n) for n in names])
    except emulated.Absent as reason:
        pytest.skip(f"kernels cannot be emulated: {reason}")
    library = ctypes.CDLL(str(path))
    library.run_kernel.restype = ctypes.c_char_p
    return library


def run(library, name, order):
    library.emulation_set_order(ctypes.c_uint64(order))
    out = np.full(128, -1, np.int32)
    which = list(FAULTS).index(name)
    said = library.run_kernel(which, out.ctypes.data_as(ctypes.c_void_p)).decode()
    return said, out


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(faults, name, order):
    said, out = run(faults, name, order)
    assert said.startswith(FAULTS[name]) and bool(said) == bool(FAULTS[name])
    if name == "reversed":
        assert out.tolist() == [*reversed(range(64))] * 2


def test_orders_differ(faults):
    """A result that hangs on the order of threads differs between orders."""
    winners = {tuple(run(faults, "last_wins", order)[1][:2]) for order in range(6)}
    assert (63, 63) in winners and (0, 0) in winners and len(winners) > 3


def test_every_operator_is_emulated():
    sources = [path.read_text() for path in emulated.sources()]
    registered = {name for text in sources for name in re.findall(r'm\.impl\("(\w+)"', text)}
    assert registered == {*emulated.OPERATORS}
