"""Training curves: read from metrics.jsonl and drawn by run."""

import json

import pytest

import mmga

pytest.importorskip("matplotlib")
from figures import legend, lines

from mmga import plots


def records(shift=0.0, tests=("eval",)):
    found = [
        {"kind": "train", "step": step, "loss": 9 - step / 10 + shift, "triplet": 1, "lr": 0.1}
        for step in range(0, 30, 5)
    ]
    for kind in tests:
        maps = {"whole": {"iou": 0.4}, "upper": {"iou": 0.6}, "bottom": {"iou": None}}
        found += [
            {"kind": kind, "step": step, "mAP": step / 100, "rank1": 0.5, "attention": maps}
            for step in (10, 20)
        ]
    return found


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_each_metric_has_a_panel():
    figure = plots.training_curves({"x": records()})
    drawn = panels(figure)
    assert list(drawn) == [
        "loss, all terms",
        "triplet loss",
        "learning rate",
        "mAP",
        "rank-1",
        "IoU, attention and mask",
    ]
    (loss,) = drawn["loss, all terms"].get_lines()
    assert loss.get_xydata().tolist() == [[step, 9 - step / 10] for step in range(0, 30, 5)]
    (iou,) = drawn["IoU, attention and mask"].get_lines()
    assert iou.get_xydata().tolist() == [[10, 0.5], [20, 0.5]]
    assert all(axes.get_xlabel() == "step" for axes in drawn.values())
    assert legend(figure) == ["test"]


def test_runs_are_told_apart_and_validation_from_test():
    figure = plots.training_curves({"one": records(), "two": records(1, ("val", "eval"))})
    assert legend(figure) == [
        "one, training",
        "one, test",
        "two, training",
        "two, validation",
        "two, test",
    ]
    first, second = panels(figure)["loss, all terms"].get_lines()
    assert first.get_linestyle() != second.get_linestyle()
    assert len({line.get_marker() for line in panels(figure)["mAP"].get_lines()}) == 2
    assert len(lines(panels(figure)["mAP"])) == 3


def test_lines_that_were_cut_off_are_left_out(tmp_path):
    text = "\n".join(map(json.dumps, records())) + '\n{"kind": "train", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    for path in (tmp_path, tmp_path / "metrics.jsonl"):
        assert plots.read_metrics(path) == records()


def test_values_that_are_no_numbers_are_left_out():
    odd = [{"kind": "train", "step": 7, "loss": value} for value in (None, "x", float("nan"), True)]
    figure = plots.training_curves({"x": [*odd, {"kind": "eval", "step": 7}, *records()]})
    (loss,) = panels(figure)["loss, all terms"].get_lines()
    assert 7 not in loss.get_xdata()


def test_what_holds_no_metrics_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(mmga.UserError, match="cannot be read"):
        plots.read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("[1]\n{}\nno json")
    with pytest.raises(mmga.UserError, match="found 3 others; name the folder of a run"):
        plots.read_metrics(tmp_path)
    with pytest.raises(mmga.UserError, match="expected losses or tests by step, found none in x"):
        plots.training_curves({"x": [{"kind": "train", "step": 1}]})


def test_a_single_point_is_seen():
    """A run of a few steps logs one, which no line connects."""
    drawn = panels(plots.training_curves({"x": records(tests=())[:1]}))
    (loss,) = drawn["loss, all terms"].get_lines()
    assert loss.get_marker() == "."
    (loss,) = panels(plots.training_curves({"x": records()}))["loss, all terms"].get_lines()
    assert loss.get_marker() == "None"
