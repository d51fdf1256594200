"""Features of the host, ranked on a device: copied there where they fit, streamed where not."""

import numpy as np
import pytest
import torch
from pretended import PretendedDevice
from whole_evaluation import figures, sides

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours import tile_sizes
from mmga.retrieval.tiles import placement, sources

FEW = 1000  # bytes, less than the features take
RULE = mmga.KReciprocal(k1=7, k2=3)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many blocks of few items."""
    monkeypatch.setattr(sources, "DEVICE_TILE", (64, 64))
    monkeypatch.setattr(tile_sizes, "DEVICE_TILE", 64)
    monkeypatch.setattr(tile_sizes, "_LEAST_DEVICE_TILE", 64)


def of_dtype(features, dtype, shards=1):
    pieces = features.rows.whole().to(dtype).tensor_split(shards)
    return mmga.Features(list(pieces), features.pids, features.camids)


def scores(report):
    per_query = report.per_query
    return [
        getattr(per_query, name).tolist() for name in ("average_precision", "first_rank", "tied")
    ]


def same(found, expected):
    one, other = figures(found), figures(expected)
    again, redone = one.pop("reranked"), other.pop("reranked")
    assert one == other
    if again is not None:  # whose distances hold the device's exp
        assert again["mAP"] == pytest.approx(redone["mAP"], rel=1e-9)
    np.testing.assert_equal(scores(found), scores(expected))


@pytest.mark.parametrize("held", [1 << 30, 1], ids=["whole rows", "blocks"])
@pytest.mark.parametrize(
    "dtype, shards", [(torch.float32, 1), (torch.float16, 1), (torch.float16, 3)], ids=str
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_streamed_features_give_the_same_integers(
    small_tiles, monkeypatch, metric, dtype, shards, held
):
    monkeypatch.setattr(sources, "HELD_BYTES", held)
    query, gallery = (of_dtype(side, dtype, shards) for side in sides("cpu"))
    options = {"metric": metric, "verification": True, "exact": "float32"}
    expected = mmga.evaluate(query, gallery, **options)
    kinds = []
    for kind in (sources.FeatureSource, sources.RowSource):
        original = kind.tiles
        monkeypatch.setattr(
            kind,
            "tiles",
            lambda self, *rows, original=original: (
                kinds.append(type(self)) or original(self, *rows)
            ),
        )
    for free, transfers in ((FEW, 1), (1 << 30, 0)):
        kinds.clear()
        with PretendedDevice(free) as device:
            found = mmga.evaluate(query, gallery, device="cuda", **options)
        assert device.transfers == transfers and device.near > 20
        assert set(kinds) == {sources.RowSource if held > 1 else sources.FeatureSource}
        same(found, expected)
        said = "exceed 75% of the" if transfers else "were copied to cuda:0, within 75% of the"
        assert sum(said in note for note in found.notes) == 1


@pytest.mark.parametrize("kept", [512 << 20, 0], ids=["kept distances", "distances again"])
@pytest.mark.parametrize("protocol", ["market1501", "all-vs-all"])
def test_streamed_features_are_re_ranked_alike(small_tiles, monkeypatch, protocol, kept):
    monkeypatch.setattr("mmga.retrieval.reranking.distances.KEPT_BYTES", kept)
    query, gallery = sides("cpu")
    sets = (gallery,) if protocol == "all-vs-all" else (query, gallery)
    options = {"protocol": protocol, "rerank": RULE, "exact": "float32"}
    expected = mmga.evaluate(*sets, **options)
    with PretendedDevice(FEW) as device:
        found = mmga.evaluate(*sets, device="cuda", **options)
    # Plain ranks, neighbours, and distances of each group of queries where these are not kept.
    assert device.passes >= (2 if kept and protocol == "market1501" else 3)
    same(found, expected)
    assert found.reranked.as_dict() == expected.reranked.as_dict()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("held", [1 << 30, 1], ids=["whole rows", "blocks"])
def test_a_card_ranks_streamed_features_alike(small_tiles, monkeypatch, held):
    monkeypatch.setattr(sources, "HELD_BYTES", held)
    monkeypatch.setattr(placement, "free_bytes", lambda device: FEW)
    options = {"rerank": RULE, "exact": "float32", "metric": "euclidean"}
    found = mmga.evaluate(*sides("cpu"), device="cuda", **options)
    assert "were streamed to cuda:0" in found.notes[0]
    same(found, mmga.evaluate(*sides("cpu"), **options))


def test_a_pass_that_uses_a_block_too_late_is_seen(small_tiles, monkeypatch):
    """The tests above would fail on it: the next copy spoils the block."""
    original = VectorSet.blocks

    def late(self, *runs):
        return iter(list(original(self, *runs)))

    monkeypatch.setattr(VectorSet, "blocks", late)
    query, gallery = sides("cpu")
    with PretendedDevice(FEW), pytest.raises((UserError, AssertionError)):
        found = mmga.evaluate(query, gallery, device="cuda")
        same(found, mmga.evaluate(query, gallery, exact="float32"))


def test_certified_ranks_need_their_features_there():
    expected = mmga.evaluate(*sides("cpu"), exact="certified", rerank=RULE)
    with PretendedDevice() as device:
        found = mmga.evaluate(*sides("cpu"), device="cuda", rerank=RULE)
        assert device.near > 20 and found.exact == "certified"
    same(found, expected)
    assert np.array_equal(
        found.reranked.per_query.first_rank, expected.reranked.per_query.first_rank
    )
    with PretendedDevice(FEW):
        assert mmga.evaluate(*sides("cpu"), device="cuda").exact == "float32"
        for rerank in (None, RULE):
            with pytest.raises(UserError, match="features that exceed the device"):
                mmga.evaluate(*sides("cpu"), device="cuda", exact="certified", rerank=rerank)


def rows(count, dtype=torch.float32, width=256):
    return ShardedMatrix([torch.zeros(count, width, dtype=dtype)])


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "free, memory, fits",
    [
        (1 << 20, None, False),
        (4 << 20, None, True),
        (1 << 30, 1 << 20, False),
        (1 << 30, 4 << 20, True),
        (1 << 20, 1 << 30, False),
    ],
)
def test_features_are_copied_if_they_fit(free, memory, fits):
    query, gallery = rows(1000), rows(1000, torch.float16)  # 1.5 MB in all
    with PretendedDevice(free):
        found = placement.place(query, gallery, GPU, memory)
        for side, placed in ((query, found.query), (gallery, found.gallery)):
            assert placed.device == (GPU if fits else torch.device("cpu"))
            assert placed.dtype == side.dtype and (placed is side) == (not fits)
        taken = query.nbytes + gallery.nbytes if fits else 0
        assert found.room == (8 << 30 if memory is None else memory)
        assert found.memory == (None if memory is None else memory - taken)
        bound = "are free there" if memory is None or free < memory else "memory allows"
        assert bound in found.note and "1.5M of features" in found.note
        itself = placement.place(query, query, GPU, memory)
        assert itself.query is itself.gallery and "1000.0K of features" in itself.note


def test_features_that_lie_there_stay():
    with PretendedDevice(0):
        near = rows(10).to(GPU)
        found = placement.place(near, near, GPU, None)
        assert found.query is near and found.note is None
        back = placement.place(near, near, torch.device("cpu"), 1)
        assert back.gallery.device.type == "cpu" and back.memory == 1 and back.room is None
        assert back.note == "10.0K of features were copied to cpu"


def test_tiles_fit_the_card():
    # A card of 139 GiB takes the largest; smaller ones fewer bytes, never less than the CPU.
    assert sources.tile_within(139 << 30, 2048) == sources.DEVICE_TILE == (4096, 8192)
    for room in (64 << 20, 512 << 20, 2 << 30, 8 << 30):
        height, width = sources.tile_within(room, 2048)
        taken = 4 * (height * width + 4 * width * 2048)
        assert (height, width) == (1024, 2048) or taken <= room // 8
    gallery = rows(300, width=4)

    def source(count, room):
        with PretendedDevice():
            asked = torch.arange(count) % 300
            queries = VectorSet([gallery], "cosine", [asked], device=GPU)
            items = VectorSet([gallery.to(GPU)], "cosine")
            return sources.feature_source(queries, items, None, room)

    assert isinstance(source(300, 1 << 30), sources.RowSource)
    assert isinstance(source(2000, 1 << 20), sources.FeatureSource)
    assert source(2000, 1 << 30).max_rows >= 2000


@pytest.mark.parametrize("count, tile", [(100, 1024), (19281, 2432), (519281, 4096)])
def test_neighbour_tiles_fit_the_card(count, tile):
    with PretendedDevice(total=139 << 30):
        assert tile_sizes.tile_on(GPU, count, 2048) == tile
    with PretendedDevice(total=1 << 30):
        assert tile_sizes.tile_on(GPU, count, 2048) <= 2048
    assert tile_sizes.tile_on(torch.device("cpu"), count, 2048) == tile_sizes.TILE


@pytest.mark.parametrize("tile", [64, 128, 4096])
def test_nearest_items_are_the_same_for_any_tile(monkeypatch, tile):
    query, gallery = sides("cpu")
    expected = mmga.nearest(query, gallery, 9, exact="float32")
    monkeypatch.setattr(tile_sizes, "DEVICE_TILE", tile)
    monkeypatch.setattr(tile_sizes, "_LEAST_DEVICE_TILE", tile)
    with PretendedDevice():
        found = mmga.nearest(*sides("cuda"), 9, exact="float32")
        assert [part.device for part in found] == [GPU, GPU]
        found = [part.cpu() for part in found]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
