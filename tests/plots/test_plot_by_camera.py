"""Figures by camera pair, and their plot."""

import numpy as np
import pytest

import mmga

pytest.importorskip("matplotlib")
from mmga import plots


def features(count, seed, cameras=("a", "b", "c")):
    generator = np.random.default_rng(seed)
    pids = np.arange(count) % 7
    rows = np.random.default_rng(0).standard_normal((7, 8))[pids]
    rows = rows + generator.standard_normal((count, 8))
    camids = np.array(cameras)[np.arange(count) // 7 % len(cameras)]
    return mmga.Features(rows.astype(np.float32), pids, camids)


def test_each_pair_is_an_evaluation_of_its_own():
    query, gallery = features(42, 1, ("a", "b")), features(90, 2)
    pairs = plots.camera_pairs(query, gallery)
    assert (pairs.query, pairs.gallery) == (["a", "b"], ["a", "b", "c"])
    # Of one camera all matches are left out.
    assert np.isnan(pairs.mAP[[0, 1], [0, 1]]).all() and not pairs.valid_queries[0, 0]
    names = (
        np.asarray(query.camid_names)[query.camids],
        np.asarray(gallery.camid_names)[gallery.camids],
    )
    for row, one in enumerate("ab"):
        for column, other in enumerate("abc"):
            if one != other:
                rows = np.flatnonzero(names[0] == one), np.flatnonzero(names[1] == other)
                report = mmga.evaluate(query.select(rows[0]), gallery.select(rows[1]))
                assert pairs.rank1[row, column] == report.rank1
                assert pairs.mAP[row, column] == report.mAP
                assert pairs.valid_queries[row, column] == report.num_valid_query


def test_queries_without_a_match_in_a_camera_are_in_no_mean():
    query, gallery = features(14, 1, ("a", "b")), features(90, 2)
    gallery = gallery.select(np.flatnonzero((gallery.pids < 5) | (gallery.camids != 2)))
    skipped, zero = (
        plots.camera_pairs(query, gallery, protocol=name)
        for name in ("market1501", "market1501-matlab")
    )
    assert skipped.valid_queries.tolist() == [[0, 7, 5], [7, 0, 5]]
    np.testing.assert_array_equal(skipped.valid_queries, zero.valid_queries)
    np.testing.assert_array_equal(skipped.rank1, zero.rank1)


def test_what_cannot_be_ranked_is_not_taken_for_a_missing_match():
    gallery = features(90, 2)
    gallery.features[3] = float("nan")
    with pytest.raises(mmga.UserError, match="row 3"):
        plots.camera_pairs(features(42, 1), gallery)


def test_the_plot_shows_the_figures():
    pairs = plots.camera_pairs(features(42, 1), features(90, 2), metric="euclidean")
    figure = plots.cameras(pairs)
    for axes, values in zip(figure.axes, (pairs.rank1, pairs.mAP), strict=False):
        np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), values)
        shown = [text.get_text() for text in axes.texts]
        assert shown == ["-" if np.isnan(v) else f"{100 * v:.0f}" for v in values.ravel()]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
        assert axes.get_xlabel() == "gallery camera"
    assert figure.axes[0].get_ylabel() == "query camera"


def test_of_many_cameras_those_with_the_most_rows_are_compared():
    many = [f"camera {place:02d}" for place in range(30)]
    query = features(21, 1, many[:2])
    pairs = plots.camera_pairs(query, features(217, 2, many), protocol="no-camera")
    assert len(pairs.gallery) == 24 and pairs.left_out == 6
    assert pairs.gallery[0] == "camera 00"  # it has 14 rows, all others 7
    assert plots.cameras(pairs).axes[0].images[0].get_array().shape == (2, 24)


def test_what_has_no_camera_pairs_is_refused_in_a_sentence():
    bare = mmga.Features(np.eye(3, dtype=np.float32), [1, 1, 2])
    with pytest.raises(mmga.UserError, match="need camids, which the gallery lacks"):
        plots.camera_pairs(features(21, 1), bare)
    for name in ("viper", "multi-query", "all-vs-all", "single-shot"):
        with pytest.raises(mmga.UserError, match=f"{name} has no figures by camera pair"):
            plots.camera_pairs(features(21, 1), features(21, 2), protocol=name)
    one = features(21, 1, ("a",))
    with pytest.raises(mmga.UserError, match="no query has a match in the gallery of one camera"):
        plots.camera_pairs(one, features(21, 2, ("a",)))
