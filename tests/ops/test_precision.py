"""Products are float32, whatever was set before, and what was set before comes back."""

import contextlib

import pytest
import torch

import mmga
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


class Products(torch.overrides.TorchFunctionMode):
    """Record the settings while products are formed."""

    def __init__(self, fail=False):
        super().__init__()
        self.seen, self.fail = [], fail

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("mm", "addmm_", "matmul", "__matmul__", "einsum"):
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
