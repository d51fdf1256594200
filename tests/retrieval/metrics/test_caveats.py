"""What the notes of a report say of figures that mean something else than they seem to."""

import numpy as np
import pytest
import torch

from mmga import Features, KReciprocal, evaluate, evaluate_distances
from mmga.retrieval.repeated import half_of

CHANCE = "rank-1 is no better than chance"


def sides(noise=2.0, queries=100, items=400, people=50, seed=0):
    """Features whose cameras move them as far as identities do, with cameras of their own."""
    generator = np.random.default_rng(seed)
    centres, cameras = generator.standard_normal((2, people, 16))
    made = []
    for count, first in ((queries, 0), (items, 3)):
        pids, camids = np.arange(count) % people, generator.integers(0, 3, count) + first
        rows = centres[pids] + cameras[camids] + noise * generator.standard_normal((count, 16))
        made.append(Features(rows.astype(np.float32), pids, camids))
    return made


def shuffled(side, seed=1):
    rows = np.random.default_rng(seed).permutation(len(side))
    return Features(side.features[torch.from_numpy(rows)], side.pids, side.camids)


def saying(report, words):
    return [note for note in report.notes if words in note]


@pytest.mark.parametrize("protocol", ["market1501", "no-camera", "other-cameras"])
def test_rows_apart_from_their_labels_are_no_better_than_chance(protocol):
    query, gallery = sides()
    assert not saying(evaluate(query, gallery, protocol=protocol), CHANCE)
    (note,) = saying(evaluate(query, shuffled(gallery), protocol=protocol), CHANCE)
    assert "a random order gives 2.00%" in note  # 8 of 400 items
    assert "rows sorted apart from their labels" in note
    assert "ascontiguousarray" in note


def test_column_ordered_features_that_were_stored_as_they_lay():
    query, gallery = sides(noise=0.1)
    lying = np.asfortranarray(gallery.features.numpy()).ravel("K").reshape(400, 16)
    scrambled = Features(lying, gallery.pids, gallery.camids)
    assert saying(evaluate(query, scrambled), CHANCE)


def test_similarities_given_as_distances():
    query, gallery = sides()
    similarity = query.features @ gallery.features.T
    assert not saying(evaluate_distances(-similarity, query, gallery), CHANCE)
    (note,) = saying(evaluate_distances(similarity, query, gallery), CHANCE)
    assert "similarities" in note


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("noise", "size"),
    [
        (3.0, {}),  # rank-1 about 5%
        (3.0, {"queries": 316, "items": 316, "people": 316}),  # below 1%
        (3.0, {"queries": 6, "items": 12, "people": 6}),  # too few to say anything
    ],
)
def test_weak_features_and_small_sets_raise_no_alarm(noise, size, seed):
    assert not saying(evaluate(*sides(noise, **size, seed=seed)), CHANCE)


def test_the_number_of_items_that_a_query_ranks_follows_the_protocol():
    generator = np.random.default_rng(0)
    pids, camids = generator.integers(0, 40, 640), generator.integers(0, 8, 640)
    rows = generator.standard_normal((640, 8)).astype(np.float32)
    query = Features(rows[:40], np.arange(40), camids[:40])
    gallery = Features(rows, pids, camids)
    condition = "camid == query.camid or pid == 3"
    for protocol, exclude in (("other-cameras", None), ("no-camera", condition)):
        left = np.ones((40, 640), bool)
        if exclude is None:
            left &= camids[:40, None] != camids
        else:
            left &= (camids[:40, None] != camids) & (pids != 3)
        same = (query.pids[:, None] == pids) & left
        valid = same.any(1)
        expected = (same.sum(1)[valid] / left.sum(1)[valid]).mean()
        report = evaluate(query, gallery, protocol=protocol, exclude=exclude)
        (note,) = saying(report, CHANCE)
        assert f"a random order gives {expected:.2%}, " in note


def test_most_queries_without_a_match():
    query, gallery = sides()
    few = Features(query.features, np.where(query.pids < 20, query.pids, 900), query.camids)
    (note,) = saying(evaluate(few, gallery), "the others have no match")
    assert "of 40 of 100 queries" in note
    assert not saying(evaluate(query, gallery), "the others have no match")


def test_features_that_are_all_alike():
    query, gallery = sides()
    flat = Features(torch.ones(400, 16), gallery.pids, gallery.camids)
    (note,) = saying(evaluate(query, flat), "the order of the gallery decides")
    assert "100 of 100 queries" in note
    assert not saying(evaluate(query, gallery), "the order of the gallery decides")


def test_query_images_in_the_gallery_where_nothing_leaves_them_out():
    query, gallery = sides()
    both = torch.cat([query.features, gallery.features])
    pids = np.concatenate([query.pids, gallery.pids])
    camids = np.concatenate([query.camids, gallery.camids])
    paths = [f"{i}.jpg" for i in range(500)]
    words = "exactly the features of a query"
    whole = Features(both, pids, camids)
    (note,) = saying(evaluate(query, whole, protocol="no-camera"), words)
    assert "100 gallery items" in note
    assert not saying(evaluate(query, whole), words), "removed with the query's camera"
    named = Features(query.features, query.pids, query.camids, paths[:100])
    assert not saying(
        evaluate(named, Features(both, pids, camids, paths), protocol="no-camera"), words
    )


def test_re_ranking_with_a_single_match():
    query, gallery = sides(queries=40, items=40, people=40)
    (note,) = saying(evaluate(query, gallery, rerank=KReciprocal()), "re-ranking rests on")
    assert "40 of 40 queries have a single match" in note
    assert not saying(evaluate(query, gallery), "re-ranking")
    assert not saying(evaluate(*sides(), rerank=KReciprocal()), "re-ranking")


def test_repeated_evaluations_say_what_holds_for_most_of_them():
    query, gallery = sides(noise=4.0, queries=80, items=80, people=80)
    with_alarms = [
        evaluate(*(side.select(half_of(np.arange(80), split)) for side in (query, gallery)))
        for split in range(10)
    ]
    assert 0 < sum(bool(saying(one, CHANCE)) for one in with_alarms) < 5
    assert not saying(evaluate(query, gallery, protocol="viper"), CHANCE)
    assert len(saying(evaluate(query, shuffled(gallery), protocol="viper"), CHANCE)) == 1


def test_query_and_gallery_exchanged():
    query, gallery = sides()
    junk = Features(
        gallery.features, np.where(np.arange(400) < 30, -1, gallery.pids), gallery.camids
    )
    assert saying(evaluate(junk, query), "were not exchanged")
    assert not saying(evaluate(query, junk), "were not exchanged")


def test_cameras_that_are_unknown_or_written_differently():
    query, gallery = sides()
    words = "query and gallery have no camera in common (3 and 3 cameras)"
    assert saying(evaluate(query, gallery), words)
    assert not saying(evaluate(query, gallery, protocol="no-camera"), "camera")
    like = Features(query.features, query.pids, query.camids + 2)
    assert not saying(evaluate(like, gallery), "camera in common")
    unknown = [
        Features(side.features, side.pids, np.where(side.pids % 2, -1, side.camids))
        for side in (query, gallery)
    ]
    (note,) = saying(evaluate(*unknown), "camid -1 stands on both sides")
    assert note.endswith("use protocol no-camera")
    assert not saying(evaluate(unknown[0], gallery), "camid -1")


def test_a_condition_that_leaves_out_nothing():
    query, gallery = sides()
    words = "leaves out no pair that the protocol keeps"
    assert saying(evaluate(query, gallery, exclude="camid == 99"), words)
    assert not saying(evaluate(query, gallery, exclude="camid == 4"), words)
    assert not saying(evaluate(query, gallery), words)


def test_a_gallery_of_little_else_than_matches():
    query, gallery = sides(people=6, queries=30, items=30)
    two = Features(gallery.features, np.where(np.arange(30) < 25, 0, 1), gallery.camids)
    alone = Features(query.features, np.zeros(30, int), query.camids)
    assert saying(evaluate(alone, two), "a random order gives rank-1 83.33% already")
    assert not saying(evaluate(query, gallery), "already")


def test_pooled_queries_and_a_gallery_of_other_lengths():
    query, gallery = sides()
    words = "pooled queries have length 1, the features of the gallery lengths of"
    options = {"protocol": "multi-query", "metric": "euclidean"}
    assert saying(evaluate(query, gallery, **options), words)
    assert not saying(evaluate(query, gallery, protocol="multi-query"), words)
    assert not saying(evaluate(query, gallery, metric="euclidean"), words)
    unit = torch.nn.functional.normalize(gallery.features, dim=1)
    gallery = Features(unit, gallery.pids, gallery.camids)
    assert not saying(evaluate(query, gallery, **options), words)
