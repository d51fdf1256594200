"""Curves of reports: what is drawn is what the report says."""

import dataclasses

import numpy as np
import pytest

import mmga

pytest.importorskip("matplotlib")
from figures import legend, lines, overlap

from mmga import plots
from mmga.plots.curves import rates
from mmga.plots.style import LINES


def features(count, seed, noise=0.8):
    generator = np.random.default_rng(seed)
    pids = np.arange(count) % 12
    rows = np.random.default_rng(0).standard_normal((12, 16))[pids]
    rows = rows + noise * generator.standard_normal((count, 16))
    return mmga.Features(rows.astype(np.float32), pids, np.arange(count) // 12 % 3)


@pytest.fixture(scope="module")
def report():
    rule = mmga.KReciprocal(k1=5, k2=2)
    return mmga.evaluate(features(36, 1), features(120, 2), rerank=rule, verification=True)


@pytest.fixture(scope="module")
def other():
    return mmga.evaluate(features(36, 3, 1.5), features(120, 4, 1.5), verification=True)


def test_cmc_is_that_of_the_report(report):
    figure = plots.cmc(report, ranks=10)
    drawn = list(lines(figure.axes[0]).items())
    for (label, points), (name, figures) in zip(
        drawn, (("plain", report.figures), ("re-ranked", report.reranked)), strict=True
    ):
        np.testing.assert_array_equal(points[:, 0], np.arange(1, 11))
        np.testing.assert_array_equal(points[:, 1], figures.cmc[:10])
        assert label == f"{name}: rank-1 {figures.rank(1):.1%}, mAP {figures.mAP:.1%}"
    assert figure.axes[0].get_xlabel() == "rank"
    assert round(figure.get_figwidth() * 25.4, 6) == plots.COLUMN


def test_several_reports_have_their_names_and_differ_in_more_than_colour(report, other):
    figure = plots.cmc({"ours": report, "$theirs_x": other})
    names = [entry.split(":")[0] for entry in legend(figure)]
    assert names == ["ours", "ours, re-ranked", "$theirs_x"]
    drawn = figure.axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in drawn}) == 3
    assert len({line["color"] for line in LINES}) == len({str(line["linestyle"]) for line in LINES})


def test_roc_and_det_are_the_rates_of_the_counted_pairs(report, other):
    false, true = rates(report.pair_counts)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    for row in report.extra["verification"]["tpr_at_fpr"]:
        if row["tpr"] is not None:
            assert true[np.searchsorted(false, row["fpr"], "right") - 1] == row["tpr"]
    drawn = lines(plots.roc({"ours": report, "theirs": other}).axes[0])
    assert [name.split(":")[0] for name in drawn] == ["ours", "theirs", "chance"]
    np.testing.assert_array_equal(next(iter(drawn.values())), np.stack([false, true], 1))
    axes = plots.det(report).axes[0]
    points = next(iter(lines(axes).values()))
    assert set(map(tuple, points)) <= set(zip(false, 1 - true, strict=True)) and len(points) > 5
    low, high = axes.transData.transform([(0.1, 0.1), (0.9, 0.9)])
    middle = axes.transData.transform((0.5, 0.5))
    np.testing.assert_allclose(middle, (low + high) / 2)  # deviates are symmetric


def test_rates_of_many_thresholds_are_thinned_and_stay_those_of_the_counts(report):
    generator = np.random.default_rng(0)
    genuine, impostor = (generator.integers(0, 50, 65537) for _ in range(2))
    counts = dataclasses.replace(report.pair_counts, genuine=genuine, impostor=impostor)
    false, true = rates(counts)
    assert 500 < len(false) <= 2100
    all_false = np.cumsum(impostor[:-1]) / impostor.sum()
    all_true = np.cumsum(genuine[:-1]) / genuine.sum()
    at = np.searchsorted(all_false, false[1:])
    np.testing.assert_array_equal(all_false[at], false[1:])
    assert np.isin(true[1:], all_true).all()


def test_the_histogram_holds_every_pair(report):
    figure = plots.distances(report, bins=20)
    outlines = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    for patch, counts in zip(
        outlines, (report.pair_counts.genuine, report.pair_counts.impostor), strict=True
    ):
        values, edges, _ = patch.get_data()
        assert len(values) <= 21
        np.testing.assert_allclose(values.sum(), 1)
        centres = report.pair_counts.width * (np.arange(len(counts) - 1) + 0.5)
        expected, _ = np.histogram(centres, edges, weights=counts[:-1])
        np.testing.assert_allclose(values * counts.sum(), expected)
    assert figure.axes[0].get_xlabel() == "cosine distance"


def test_a_legend_covers_no_axes(report):
    many = {f"a network with a rather long name, number {i}": report for i in range(4)}
    figure = plots.cmc(many)
    figure.draw_without_rendering()
    (box,) = figure.legends
    assert not overlap(box, figure.axes[0])
    extent = box.get_window_extent()
    assert extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1 + 1


@pytest.mark.parametrize("draw", [plots.roc, plots.det, plots.distances])
def test_a_report_without_pairs_says_how_to_count_them(draw, report):
    plain = mmga.evaluate(features(36, 1), features(120, 2))
    assert plain.pair_counts is None
    with pytest.raises(mmga.UserError, match="evaluate with verification=True"):
        draw(plain)


def test_wrong_arguments_are_refused_in_a_sentence(report):
    with pytest.raises(mmga.UserError, match="ranks: expected at least 1, found 0"):
        plots.cmc(report, ranks=0)
    with pytest.raises(mmga.UserError, match="bins: expected at least 1, found -3"):
        plots.distances(report, bins=-3)
    with pytest.raises(mmga.UserError, match="reports: expected at least one"):
        plots.cmc({})
    with pytest.raises(mmga.UserError, match="width: expected from 20 to 1000 mm, found 3"):
        plots.cmc(report, width=3)


def test_pair_counts_leave_json_as_it_was(report):
    assert "pair_counts" not in report.as_dict()
