"""The report and features as data frames and as HTML of a notebook."""

import csv
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import mmga
from mmga import UserError


def side(count, seed, names=str, camids=True):
    random = np.random.default_rng(seed)
    pids = random.integers(0, 6, count)
    rows = np.random.default_rng(9).normal(size=(6, 8))[pids] + random.normal(size=(count, 8))
    labels = [names(pid) for pid in pids]
    return mmga.Features(
        rows.astype(np.float32), labels, random.integers(0, 3, count) if camids else None
    )


@pytest.fixture(scope="module")
def report():
    """Of 20 queries, of whom one has no match."""
    query, gallery = side(20, 0, int), side(60, 1, int)
    pids = query.pids.copy()
    pids[4] = 77
    query = mmga.Features(query.features, pids, query.camids)
    return mmga.evaluate(query, gallery, rerank=mmga.KReciprocal(5, 2), max_rank=20)


def test_queries_are_those_of_the_csv_file(report, tmp_path):
    pandas = pytest.importorskip("pandas")
    report.to_csv(tmp_path / "q.csv")
    frame = report.to_pandas()
    lines = list(csv.DictReader((tmp_path / "q.csv").open()))
    assert list(frame.columns) == list(lines[0]) and len(frame) == len(lines) == 20
    read = pandas.read_csv(tmp_path / "q.csv")
    for name in frame:
        given, found = (one[name].astype("Float64") for one in (read, frame))
        pandas.testing.assert_series_equal(given, found)
    assert frame.AP.mean() == pytest.approx(report.mAP)
    assert (frame.first_rank == 1).sum() / report.num_valid_query == report.rank1
    assert frame.reranked_AP.mean() == pytest.approx(report.reranked.mAP)
    assert frame.AP.isna().tolist() == [row == 4 for row in range(20)]
    assert frame.first_rank.isna().tolist() == [row == 4 for row in range(20)]
    assert str(frame.pid.dtype) == "Int64" and frame.AP.dtype == float


def test_names_and_what_is_not_known():
    pytest.importorskip("pandas")
    report = mmga.evaluate(
        side(9, 0, lambda pid: f"p{pid}"), side(30, 1, lambda pid: f"p{pid}", False),
        protocol="no-camera",
    )  # fmt: skip
    frame = report.to_pandas()
    assert frame.pid.str.startswith("p").all()
    assert "reranked_AP" not in frame
    report.pids = None
    assert report.to_pandas().pid.isna().all()


def test_queries_with_paths_are_listed_with_them(tmp_path):
    query, gallery = side(9, 0, int), side(30, 1, int)
    paths = [f"c{row}/{row}.jpg" for row in range(7)] + ["é, 7.jpg", os.fsdecode(b"\xff8.jpg")]
    named = mmga.Features(query.features, query.pids, query.camids, paths)
    report = mmga.evaluate(named, gallery)
    report.to_csv(tmp_path / "q.csv")
    with (tmp_path / "q.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[-1] == "path"
    assert [line[-1] for line in lines] == [*paths[:-1], "\\udcff8.jpg"]
    assert "path" not in mmga.evaluate(query, gallery)._queries()
    pytest.importorskip("pandas")
    assert report.to_pandas().path.tolist() == paths


def test_figures_and_curves_of_both_rankings(report):
    pytest.importorskip("pandas")
    figures = report.to_pandas("figures")
    assert list(figures.index) == ["plain", "re-ranked"] and figures.index.name == "ranking"
    assert list(figures.columns) == ["mAP", "mINP", "rank1", "rank5", "rank10"]
    assert figures.loc["re-ranked", "mAP"] == report.reranked.mAP
    curves = report.to_pandas("cmc")
    assert list(curves.columns) == ["ranking", "rank", "cmc"] and len(curves) == 40
    plain = curves[curves.ranking == "plain"]
    assert plain.cmc.tolist() == report.cmc.tolist()
    assert plain["rank"].tolist() == list(range(1, 21))


def test_tables_that_are_not_there(report, monkeypatch):
    pytest.importorskip("pandas")
    with pytest.raises(UserError, match="expected queries, figures or cmc, found 'query'"):
        report.to_pandas("query")
    halves = mmga.evaluate(
        mmga.Features(np.eye(8), [0, 1, 2, 3] * 2, [0] * 4 + [1] * 4),
        mmga.Features(np.eye(8), [0, 1, 2, 3] * 2, [0] * 4 + [1] * 4),
        protocol="viper",
    )
    with pytest.raises(UserError, match="protocol viper has no figures of single queries"):
        halves.to_pandas()
    assert len(halves.to_pandas("figures")) == 1
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas.*mmga\[pandas\]"):
        report.to_pandas()


class Parsed(HTMLParser):
    """Elements, attributes, and the text of each cell."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.styles, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert {name for name, _ in attrs} <= {"style", "scope"}
        self.styles += [value for name, value in attrs if name == "style"]

    def handle_data(self, data):
        self.text.append(data)


ALLOWED = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_report_in_a_notebook(report):
    found = Parsed(report._repr_html_())
    assert set(found.tags) <= ALLOWED
    for cell in ("plain", "re-ranked", f"{report.mAP:.2%}", f"{report.reranked.mINP:.2%}"):
        assert cell in found.text
    text = report.table()
    assert all(line in text for line in found.text[found.text.index("re-ranked") + 6 :])
    assert any(line.startswith("protocol market1501: cosine") for line in found.text)


def test_colours_are_those_of_the_page(report):
    styles = Parsed(report._repr_html_()).styles
    declared = [one for style in styles for one in style.split(";")]
    colours = {one.strip() for one in declared if re.match(r"\s*(color|background)", one)}
    assert colours == {"color: inherit", "background: transparent"}


def test_markup_is_text():
    hostile = "<script>alert(1)</script>"
    features = mmga.Features(
        np.eye(3), [hostile, "", "-1"], [0, 1, 2], [f"{hostile}.png", '"\'>', "&lt;"],
        columns={hostile: ["<b>", "x", "</table>"]}, source=f"{hostile}.npz",
    )  # fmt: skip
    found = Parsed(features._repr_html_())
    assert set(found.tags) <= ALLOWED
    assert f"{hostile}.png ... &lt;" in found.text and hostile in found.text
    assert f"mmga.Features {hostile}.npz" in found.text
    assert "1, 1 items junk, 1 items unknown" in found.text and "3 x 3 float32" in found.text
    report = mmga.evaluate(side(9, 0, int), side(30, 1, int))
    report.notes.append(hostile)
    found = Parsed(report._repr_html_())
    assert f"note: {hostile}" in found.text and "script" not in found.tags


def test_parts_in_a_notebook():
    parts = mmga.Features(parts=np.ones((4, 2, 3), np.float32), pids=[0, 1, 2, 3])
    text = Parsed(parts._repr_html_()).text
    assert "parts" in text and "4 x 2 x 3 float32" in text
