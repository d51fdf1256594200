"""Products are float32, whatever was set before, and what was set before comes back."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from paths import REPOSITORY

import mmga
from mmga.ops import _extension
from mmga.ops.precision import float32_products

PLACES = [
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    ("cuda", "matmul"),
    ("mkldnn", "matmul"),
]


def new(backend, operation, value):
    torch._C._set_fp32_precision_setter(backend, operation, value)


def legacy(value):
    torch.set_float32_matmul_precision(value)


def allow():
    torch.backends.cuda.matmul.allow_tf32 = True


def undo():
    """Set what a process begins with."""
    legacy("highest")
    for place in PLACES:
        new(*place, "none")


SETTINGS = {
    "nothing": [],
    "high": [lambda: legacy("high")],
    "medium": [lambda: legacy("medium")],
    "allow_tf32": [allow],
    "new, of products": [lambda: new("cuda", "matmul", "tf32")],
    "new, of a device": [lambda: new("cuda", "all", "tf32"), lambda: new("mkldnn", "all", "bf16")],
    "new, of everything": [lambda: new("generic", "all", "tf32")],
    "old and new in conflict": [lambda: legacy("high"), lambda: new("cuda", "matmul", "ieee")],
}


def answer(read):
    """Return torch's answer, or its refusal where settings contradict each other."""
    try:
        return read()
    except RuntimeError as error:
        return str(error)[:60]


def state():
    """All that can be read: as it is inherited, and of every place by itself."""
    read = [answer(torch.get_float32_matmul_precision)]
    read += [answer(lambda: torch.backends.cuda.matmul.allow_tf32)]
    read += [torch._C._get_fp32_precision_getter(*place) for place in PLACES]
    own = []
    for place in PLACES:  # from above: what is cleared is not inherited any more
        own.append(torch._C._get_fp32_precision_getter(*place))
        new(*place, "none")
    for place, value in zip(PLACES, own, strict=True):
        new(*place, value)
    return [*read, *own, torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]


@pytest.fixture(params=SETTINGS)
def before(request):
    """The state that a user has set, undone after the test."""
    for change in SETTINGS[request.param]:
        change()
    yield state()
    undo()


def products_are_float32():
    return (
        torch.get_float32_matmul_precision() == "highest"
        and not torch.backends.cuda.matmul.allow_tf32
        and torch.backends.cuda.matmul.fp32_precision == "ieee"
        and torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )


def test_settings_are_replaced_and_restored(before):
    with float32_products():
        assert products_are_float32()
        with float32_products():
            assert products_are_float32()
        assert products_are_float32()
    assert state() == before


def test_settings_are_restored_on_exceptions(before):
    with pytest.raises(KeyError), float32_products():
        raise KeyError
    assert state() == before


def test_autocast_is_off_and_comes_back():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with float32_products():
            assert products_are_float32()
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def features(count, seed):
    points = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return mmga.Features(points, torch.arange(count) % 5, torch.full((count,), seed))


QUERY, GALLERY = features(10, 0), features(40, 1)
RULE = mmga.KReciprocal(k1=5, k2=2)
CALLS = {
    "evaluate": lambda: mmga.evaluate(QUERY, GALLERY, exact="float32"),
    "evaluate, certified": lambda: mmga.evaluate(QUERY, GALLERY, exact="certified"),
    "evaluate, re-ranked": lambda: mmga.evaluate(QUERY, GALLERY, rerank=RULE),
    "rerank": lambda: mmga.rerank(QUERY, GALLERY, RULE),
    "nearest": lambda: mmga.nearest(QUERY, GALLERY, 3),
    "jaccard": lambda: mmga.jaccard_distance(GALLERY, k1=5, k2=2),
    "jaccard, certified": lambda: mmga.jaccard_distance(GALLERY, k1=5, k2=2, exact="certified"),
    "index": lambda: mmga.GalleryIndex.build(GALLERY, RULE).rerank(torch.ones(16)),
    "expand_queries": lambda: mmga.expand_queries(QUERY, GALLERY, 3),
    "augment_gallery": lambda: mmga.augment_gallery(GALLERY, 3),
    "pairwise_distance": lambda: mmga.pairwise_distance(QUERY.rows.whole(), GALLERY.rows.whole()),
}


PRODUCTS = "mm", "addmm_", "matmul", "__matmul__", "einsum", "float_products_"


class Products(torch.overrides.TorchFunctionMode):
    """Record the settings while products are formed."""

    def __init__(self, fail=False):
        super().__init__()
        self.seen, self.fail = [], fail

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "").partition(".")[0] in PRODUCTS:
            self.seen.append(products_are_float32())
            if self.fail:
                raise KeyError("a product that fails")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_every_public_function_forms_float32_products(name):
    legacy("medium")
    allow()
    wanted = state()
    try:
        for fail in (False, True):
            products = Products(fail)
            with torch.autocast("cpu", torch.bfloat16):
                expected = pytest.raises(KeyError) if fail else contextlib.nullcontext()
                with products, expected:
                    CALLS[name]()
                assert torch.is_autocast_enabled("cpu")
            assert products.seen and all(products.seen)
            assert state() == wanted
    finally:
        undo()


class Inside:
    """A thread inside `float32_products` until it is let go."""

    def __init__(self, error=None):
        self._entered, self._go, self._error = threading.Event(), threading.Event(), error
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._entered.wait(10)

    def _run(self):
        with contextlib.suppress(KeyError, KeyboardInterrupt), float32_products():
            self._entered.set()
            assert self._go.wait(10)
            if self._error is not None:
                raise self._error

    def leave(self):
        self._go.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("error", [None, KeyError(), KeyboardInterrupt()])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_last_thread_restores_what_the_first_found(before, order, error):
    threads = [Inside(error if number == 1 else None) for number in range(3)]
    for place in order:
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        threads[place].leave()
    assert state() == before


def test_what_the_program_sets_meanwhile_stays(before):
    thread = Inside()
    legacy("medium")
    wanted = state()
    thread.leave()
    assert state() == wanted


@pytest.mark.parametrize("point", range(1, 18))
def test_an_interrupt_at_any_step_restores(monkeypatch, before, point):
    """Ctrl-C may come between any two calls of torch that read and set."""
    calls = 0

    def counted(function):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == point:
                raise KeyboardInterrupt
            return function(*args)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        for name in ("_get_fp32_precision_getter", "_set_fp32_precision_setter"):
            patch.setattr(torch._C, name, counted(getattr(torch._C, name)))
        for name in ("get_float32_matmul_precision", "set_float32_matmul_precision"):
            patch.setattr(torch, name, counted(getattr(torch, name)))
        with float32_products():
            calls = 100  # entered: what follows is not interrupted
    assert state() == before


def test_inference_mode_comes_back():
    with torch.inference_mode():
        with float32_products():
            assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
            assert not torch.zeros(1).is_inference()
        assert torch.is_inference_mode_enabled()


def smallest_number_survives():
    """Whether all threads of the pool keep subnormal numbers."""
    values = torch.full((1 << 17,), 1, dtype=torch.int32).view(torch.float32)
    return bool((values * 1.0).view(torch.int32).all())


def test_subnormal_numbers_are_kept_in_every_thread_and_flushed_again():
    # Without kernels only the calling thread can be told.
    torch.set_num_threads(2 if _extension.load()["cpu"].loaded else 1)
    torch.set_flush_denormal(True)
    try:
        assert not smallest_number_survives()
        with float32_products():
            assert smallest_number_survives()
        assert not smallest_number_survives()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(1)


def test_threads_that_call_at_once_get_the_right_results():
    legacy("medium")
    wanted = {name: pickle.dumps(plain(CALLS[name]())) for name in ("nearest", "jaccard", "rerank")}
    before, start = state(), threading.Barrier(3)
    found = {}

    def run(name):
        start.wait(10)
        found[name] = {pickle.dumps(plain(CALLS[name]())) for _ in range(5)}

    try:
        threads = [threading.Thread(target=run, args=(name,)) for name in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == {name: {one} for name, one in wanted.items()}
        assert state() == before
    finally:
        undo()


def plain(result):
    """A result as arrays."""
    if isinstance(result, tuple):
        return [plain(one) for one in result]
    return (result.to_dense() if result.layout == torch.sparse_csr else result).numpy()


FORKED = """
import os, signal, torch, mmga
torch.set_num_threads(2)
x = torch.randn(3000, 64)
wanted = mmga.nearest(x[:500], x, 5)[1]
child = os.fork()
if child == 0:
    signal.alarm(20)
    same = torch.equal(mmga.nearest(x[:500], x, 5)[1], wanted)
    os._exit(0 if same and torch.get_num_threads() == 1 else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_after_use_does_not_wait_for_threads_it_lacks():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr.decode()
