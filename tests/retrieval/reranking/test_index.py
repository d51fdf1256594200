"""Single queries over a stored gallery against the full computation."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reranking_cases import assert_equal, grid

import mmga
from mmga.retrieval.reranking.index import GalleryIndex
from mmga.retrieval.reranking.rerank import rerank
from mmga.retrieval.reranking.settings import KReciprocal

CASES = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.program_settings
@CASES
@given(
    st.integers(1, 60),
    st.sampled_from([1, 2, 6, 30]),
    st.sampled_from([(1, 1), (2, 3), (7, 3), (20, 6), (3, 9)]),
    st.sampled_from(["zhong", "torchreid", "fastreid"]),
    st.sampled_from(["python", "matlab"]),
    st.integers(0, 2**31),
)
def test_equals_full_computation(count, top, k, variant, half, seed):
    x = grid(count, 3, top, seed)
    rule = KReciprocal(*k, variant=variant, half=half)
    index = GalleryIndex.build(x, rule, "euclidean")
    inside = x[count // 2] + grid(1, 3, 1, seed + 1)[0]
    far = grid(1, 3, 3 * top + 5, seed + 2)[0]  # raises row maxima
    for query in (inside, far, x[0]):
        expected = rerank(query[None], x, rule, metric="euclidean")
        assert_equal(index.rerank(query)[None], expected.numpy())


@pytest.fixture(scope="module")
def people():
    generator = torch.Generator().manual_seed(2)
    centres = torch.randint(-9, 10, (60, 12), generator=generator).float()
    x = centres.repeat_interleave(14, 0)
    return x + torch.randint(-3, 4, x.shape, generator=generator).float(), centres


@pytest.fixture(scope="module")
def index(people):
    return GalleryIndex.build(people[0], metric="euclidean")


@pytest.mark.program_settings
def test_equals_full_computation_on_clusters(people, index):
    x, centres = people
    before = {name: array.copy() for name, array in index.arrays.items()}
    for query in (*centres[:6], torch.full((12,), 60.0)):
        expected = rerank(query[None], x, metric="euclidean")
        assert_equal(index.rerank(query)[None], expected.numpy())
    for name, array in index.arrays.items():  # the stored index stays as it is
        np.testing.assert_array_equal(array, before[name])


def test_the_nearest_are_the_first_by_distance_and_number(people, index):
    query = people[1][3]
    final = index.rerank(query)
    distances, items = index.nearest(query, 50)
    order = np.lexsort((np.arange(len(final)), final))[:50]
    assert np.array_equal(items, order) and np.array_equal(distances, final[order])
    with pytest.raises(mmga.UserError, match="topk must be from 1 to the 840 items, got 841"):
        index.nearest(query, 841)


def test_saved_and_loaded_by_python_3_10(index, tmp_path, monkeypatch):
    monkeypatch.delattr("hashlib.file_digest", raising=False)  # it came with 3.11
    index.save(tmp_path / "gallery.mmga-index")
    assert len(GalleryIndex.load(tmp_path / "gallery.mmga-index")) == len(index)


def test_saved_and_loaded(people, index, tmp_path):
    path = tmp_path / "gallery.mmga-index"
    index.save(path)
    loaded = GalleryIndex.load(path)
    assert loaded.rule == index.rule and loaded.metric == "euclidean" and len(loaded) == 840
    query = people[1][3]
    np.testing.assert_array_equal(loaded.rerank(query), index.rerank(query))


def test_damage_is_noticed(index, tmp_path):
    path = tmp_path / "gallery.mmga-index"
    index.save(path)
    file = path / "maxima.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(mmga.UserError, match=r"maxima\.npy differs from its checksum"):
        GalleryIndex.load(path)
    GalleryIndex.load(path, verify=False)
    file.unlink()
    with pytest.raises(mmga.UserError, match=r"maxima\.npy cannot be read"):
        GalleryIndex.load(path)


def test_versions_and_other_folders_are_refused(index, tmp_path):
    path = tmp_path / "gallery.mmga-index"
    index.save(path)
    meta = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(mmga.UserError, match="expected an index of version 1 or 2, found 99"):
        GalleryIndex.load(path)
    with pytest.raises(mmga.UserError, match=r"is no \.mmga-index folder"):
        GalleryIndex.load(tmp_path)
    with pytest.raises(mmga.UserError, match=r"ending in \.mmga-index"):
        index.save(tmp_path / "gallery")


def test_bad_queries_are_one_sentence(index):
    with pytest.raises(mmga.UserError, match="one vector of 12 numbers"):
        index.rerank(np.zeros(11))
    with pytest.raises(mmga.UserError, match="finite"):
        index.rerank(np.full(12, np.nan))


def test_junk_is_refused(people):
    gallery = mmga.Features(people[0], np.arange(840) - 1)
    with pytest.raises(mmga.UserError, match="1 junk items"):
        GalleryIndex.build(gallery)


CHANGES = [
    ("rule", None),
    ("rule", []),
    ("rule", {"k1": "x"}),
    ("rule", {"no": 1}),
    ("rule", {"k1": 20, "lambda_value": "a"}),
    ("metric", []),
    ("metric", "manhattan"),
    ("items", "x"),
    ("items", 5),
    ("sha256", []),
    ("sha256", None),
    ("sha256", {"features": 1}),
    ("version", []),
    ("format", 3),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=str)
def test_a_damaged_description_is_one_sentence(index, tmp_path, name, value):
    path = tmp_path / "x.mmga-index"
    index.save(path)
    meta = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**meta, name: value}))
    with pytest.raises(mmga.UserError):
        mmga.GalleryIndex.load(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{"])
def test_something_else_than_a_description_is_one_sentence(index, tmp_path, text):
    path = tmp_path / "x.mmga-index"
    index.save(path)
    (path / "index.json").write_text(text)
    with pytest.raises(mmga.UserError, match=r"is no \.mmga-index folder"):
        mmga.GalleryIndex.load(path)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_duplicates_and_near_ties_stand_where_the_full_computation_has_them(metric):
    draw = np.random.default_rng(7)
    x = draw.standard_normal((15, 512))[draw.integers(0, 15, 150)]
    x = (x + 0.6 * draw.standard_normal(x.shape)).astype(np.float32)
    for to, of in draw.integers(0, 150, (30, 2)):
        x[to] = x[of]
    x[40:60] = x[40] * (1 + 1e-7 * draw.standard_normal((20, 1)))
    if metric == "euclidean":  # else the bits that float32 leaves of a distance are those of 1,000
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    query, gallery = x[:5], x[5:]
    for rule in (KReciprocal(), KReciprocal(5, 2, variant="fastreid")):
        index = GalleryIndex.build(gallery, rule, metric)
        for one in (*query, gallery[36], gallery[50]):
            expected = mmga.rerank(one[None], gallery, rule, metric=metric)[0]
            np.testing.assert_allclose(index.rerank(one), expected, rtol=1e-5, atol=1e-6)


def test_near_ties_have_the_order_asked_for():
    farther = np.float32(0.01)  # by less than float32 tells
    nearer = np.nextafter(farther, np.float32(0))
    x = np.array([[1, 0, 0], [1, farther, 0], [1, 0, nearer]], np.float32)
    for exact, order in ((None, [0, 2, 1]), ("certified", [0, 2, 1]), ("float32", [0, 1, 2])):
        index = GalleryIndex.build(x, exact=exact)
        assert index.arrays["neighbours"][0].tolist() == order
    with pytest.raises(mmga.UserError, match="the neighbours of 3 items; give at least"):
        GalleryIndex.build(x, memory="1K")
