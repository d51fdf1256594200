"""The report in the browser, taken apart without one: what it holds, and that it loads nothing."""

import base64
import fnmatch
import hashlib
import json
import re
import sys

import numpy as np
import pytest
from html_page import Page, loads
from miniatures import images
from paths import REPOSITORY
from PIL import Image
from small_run import write_run

from mmga import eval as command
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features
from mmga.retrieval.reranking.settings import KReciprocal

pytest.importorskip("bokeh", reason="the report's charts are drawn by bokeh")
pytest.importorskip("jinja2", reason="the report is made from templates of jinja2")

HOSTILE = (
    "</script><script>window.caught=1</script>",
    "\"'><img src=x onerror=window.caught=1>",
    "{{ 7 * 7 }} <b>&amp;</b> \u202e \u2028",
)


def run(capsys, *words):
    """Run the command here; return exit code, stdout and stderr."""
    try:
        command.main([str(word) for word in words])
        code = 0
    except SystemExit as leave:
        code = leave.code
    out, err = capsys.readouterr()
    return code, out, err


def sides(people=8, seed=0, **changes):
    """Query and gallery of people seen by three cameras, with junk and paths."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((people, 16))
    found = []
    for side, count in (("query", 20), ("gallery", 90)):
        pids = draw.integers(0, people, count)
        rows = centres[pids] + 1.6 * draw.standard_normal((count, 16))
        if side == "gallery":
            pids = np.where(draw.random(count) < 0.1, -1, pids)
        camids = draw.integers(1, 4, count)
        paths = [f"{side}/{number}.png" for number in range(count)]
        columns = {"weather": np.where(np.arange(count) % 3 == 0, "rain", "sun")}
        values = {"camids": camids, "paths": paths, "columns": columns, **changes}
        found.append(Features(rows.astype(np.float32), pids, **values))
    return found


@pytest.fixture
def files(tmp_path):
    """The features in files, and a page beside them to be written."""
    for name, side in zip(("q.npz", "g.npz"), sides(), strict=True):
        side.save(tmp_path / name)
    return tmp_path


def words_of(folder, *more):
    given = ("--query", folder / "q.npz", "--gallery", folder / "g.npz")
    return (*given, "--report", folder / "out.html", *more)


def written(folder, capsys, *more):
    code, out, err = run(capsys, *words_of(folder, *more))
    assert code == 0, err
    assert out.endswith(f"\npage: {folder / 'out.html'}\n")
    return Page((folder / "out.html").read_text())


def test_lists_are_those_of_the_protocol(files, capsys):
    page = written(files, capsys, "--rerank", "--k1", "10", "--k2", "3")
    data = page.data()
    query, gallery = sides()
    report = evaluate(query, gallery, rerank=KReciprocal(10, 3))
    rows = data["queries"]["row"]
    precision = report.per_query.average_precision[rows]
    assert (np.diff(np.nan_to_num(precision, nan=2)) >= 0).all()
    assert data["queries"]["first"] == report.per_query.first_rank[rows].tolist()
    unit = [side.features / side.features.norm(dim=1, keepdim=True) for side in (query, gallery)]
    distances = (1 - unit[0] @ unit[1].T).numpy()
    lists, item_rows = page.lists("plain"), np.asarray(data["items"]["row"])
    for number, row in enumerate(rows):
        items = item_rows[lists["item"][number]]
        assert items.tolist() == np.argsort(distances[row], kind="stable")[: len(items)].tolist()
        same = gallery.pids[items] == query.pids[row]
        left_out = same & (gallery.camids[items] == query.camids[row])
        want = np.where(left_out, 2, np.where(gallery.pids[items] == -1, 3, same))
        assert lists["mark"][number].tolist() == want.tolist()
        assert (lists["mark"][number] <= 1).sum() == 10
    again = page.lists("reranked")
    for number, row in enumerate(rows):
        kept = again["mark"][number] <= 1
        right = np.flatnonzero(again["mark"][number][kept] == 1)
        first = report.reranked.per_query.first_rank[row]
        assert (first <= 10) == (len(right) > 0)
        if len(right):
            assert right[0] + 1 == first
        # What moved: the rank that an item has in the plain list.
        plain = lists["item"][number][lists["mark"][number] <= 1].tolist()
        for item, before in zip(
            again["item"][number][kept], again["elsewhere"][number][kept], strict=True
        ):
            assert item not in plain or before == plain.index(item) + 1


def test_many_queries_are_sampled(files, capsys, monkeypatch):
    monkeypatch.setattr("mmga.pages.content.LISTED", 8)
    page = written(files, capsys)
    queries = page.data()["queries"]
    query, gallery = sides()
    precision = np.sort(evaluate(query, gallery).per_query.average_precision)
    assert np.allclose(queries["ap"][:4], precision[:4], atol=1e-4) and len(queries["ap"]) == 8
    assert queries["ap"][-1] == round(precision[-1], 4)
    assert "Of 20 queries the 8 listed ones" in page.words
    assert max(page.data()["pairs"]["genuine"]["query"]) < 8


def test_thresholds_count_every_kept_pair(files, capsys):
    data = written(files, capsys).data()
    query, gallery = sides()
    unit = [side.features / side.features.norm(dim=1, keepdim=True) for side in (query, gallery)]
    distances = (1 - unit[0] @ unit[1].T).double().numpy()
    same = query.pids[:, None] == gallery.pids
    kept = (gallery.pids != -1) & ~(same & (query.camids[:, None] == gallery.camids))
    found = data["thresholds"]
    assert found["genuines"] == (same & kept).sum()
    assert found["impostors"] == (~same & kept).sum()
    for place in range(0, len(found["threshold"]), 25):
        accepted = distances <= found["threshold"][place]
        near = np.abs(distances - found["threshold"][place]) < 1e-4  # within a bin of rounding
        for name, kind in (("trueAccepts", same), ("falseAccepts", ~same)):
            assert abs(found[name][place] - (accepted & kind & kept).sum()) <= (near & kept).sum()
    for kind, equal in (("genuine", True), ("impostor", False)):
        pairs = data["pairs"][kind]
        assert pairs["distance"] == sorted(pairs["distance"]) and len(pairs["distance"]) > 20
        for one, other, distance in zip(*pairs.values(), strict=True):
            row, item = data["queries"]["row"][one], data["items"]["row"][other]
            assert same[row, item] == equal and kept[row, item]
            assert abs(distances[row, item] - distance) < 1e-5


def test_a_cell_of_cameras_searches_one_camera(files, capsys):
    page = written(files, capsys)
    query, gallery = sides()
    part = gallery.select(np.flatnonzero(gallery.camids == 2))
    scores = evaluate(query, part).per_query
    mine = (query.camids == 1) & (scores.num_matches > 0)
    share = f"{100 * (scores.first_rank[mine] == 1).mean():.1f}%"
    table = re.search(r'data-matrix="rank1">.*?</table>', page.text, re.DOTALL)[0]
    cells = re.findall(r"<t[dh][^>]*>(?:<bdi>)?([^<]*)", table.split("<tbody>")[1])
    rows = [[cell.strip() for cell in cells[start : start + 4]] for start in (0, 4, 8)]
    assert rows[0][0] == "1" and rows[0][2] == share
    assert [rows[at][at + 1] for at in range(3)] == ["\u2013"] * 3  # the query's own camera


def test_the_map_is_of_all_that_takes_part(files, capsys):
    page = written(files, capsys)
    query, gallery = sides()
    rows = np.concatenate([query.features, gallery.features[gallery.pids != -1]]).astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    squares = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    told = f"{len(rows)} features differ most (principal components; "
    assert f"{told}{100 * squares[:2].sum() / squares.sum():.1f}% of" in page.words


def test_identities_of_the_map_have_their_own_names(tmp_path, capsys):
    query, gallery = sides(people=4)
    names = np.asarray(["ann", "bob", "eve", "zoe"])
    others = np.where(gallery.pids < 0, 0, gallery.pids)
    cameras = np.asarray(["", "hall", "yard", "gate"])
    sets = [
        Features(query.features, names[query.pids], cameras[query.camids]),
        # Names that only the gallery has stand before those of the queries.
        Features(
            gallery.features,
            np.where(gallery.pids < 0, "aaa", names[others]),
            np.where(gallery.pids < 0, "attic", cameras[gallery.camids]),
        ),
    ]
    for name, side in zip(("q.npz", "g.npz"), sets, strict=True):
        side.save(tmp_path / name)
    drawn = written(tmp_path, capsys).data("charts")
    assert set(re.findall(r"id (\w+)", json.dumps(drawn["map-identity"]))) >= set(names)
    assert "id aaa" not in json.dumps(drawn["map-identity"])
    found = set(re.findall(r"camera (\w+)", json.dumps(drawn["map-camera"])))
    assert found == {"attic", "gate", "hall", "yard"}


def test_text_of_strangers_stays_text(tmp_path, capsys):
    names = np.asarray([*HOSTILE, "plain"])
    changed = []
    for side in sides(people=4):
        pids = np.where(side.pids < 0, "-1", names[side.pids])
        paths = [f"{names[number % 4]}/{number}.png" for number in range(len(side))]
        camids = names[side.camids]
        columns = {HOSTILE[1]: names[np.arange(len(side)) % 2]}
        changed.append(Features(side.features, pids, camids, paths, columns=columns))
    changed[0].save(tmp_path / "q.npz")
    changed[1].save(tmp_path / "g.npz")
    other = tmp_path / "<b onload=x>.json"
    assert run(capsys, *words_of(tmp_path, "--json", other))[0] == 0
    page = written(tmp_path, capsys, "--compare", other)
    assert len(page.run()) == 2 and len(page.scripts) == 4
    assert loads(page) == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "b", "iframe", "object"}
    data = page.data()
    assert set(data["queries"]["pid"]) <= {name.strip() for name in names}
    assert data["queries"]["path"][0].startswith(tuple(names.tolist()))
    assert data["queries"]["columns"][0]["name"] == HOSTILE[1]
    # The name of the report, and names of cameras in their table.
    assert "<b onload=x>" in page.words and HOSTILE[1] in page.words
    assert "{{ 7 * 7 }} <b>&amp;</b>" in page.words


def test_nothing_is_loaded_and_no_other_script_runs(files, capsys):
    page = written(files, capsys)
    assert loads(page) == []
    policy = page.policy()
    assert policy["default-src"] == ["'none'"] and policy["img-src"] == ["data:"]
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.run()
    ]
    assert policy["script-src"] == [f"'sha256-{one}'" for one in hashes]
    assert len(page.text) < 3_000_000


def test_manifest_names_inputs_and_command(files, capsys):
    page = written(files, capsys, "--rerank", "--bootstrap", "50")
    digest = hashlib.sha256((files / "g.npz").read_bytes()).hexdigest()
    assert digest in page.words
    assert f"mmga eval --query {files}/q.npz --gallery {files}/g.npz" in page.words
    assert "--rerank --bootstrap 50" in page.words.replace("--protocol market1501 ", "")
    assert "lambda_value 0.3" in page.words


def test_runs_are_compared(files, capsys):
    other = [side.with_rows(side.rows) for side in sides(seed=1)]
    for name, side, like in zip(("oq.npz", "og.npz"), other, sides(), strict=True):
        Features(side.features, like.pids, like.camids).save(files / name)
    assert run(capsys, *words_of(files, "--rerank", "--json", files / "first.json"))[0] == 0
    page = written(
        files, capsys, "--compare", files / "first.json", files / "oq.npz", files / "og.npz"
    )
    assert "first, re-ranked" in page.words and "paired by identity" in page.words
    legend = json.dumps(page.data("charts")["cmc"])
    assert "this run" in legend and "first, re-ranked" in legend
    report = json.loads((files / "first.json").read_text())
    assert f"{100 * report['reranked']['mAP']:.1f}%" in page.words


def test_a_list_of_shards_is_compared_as_features(files, capsys):
    for side in ("q", "g"):
        shards = {"schema": 1, "shards": [{"file": f"{side}.npz"}]}
        (files / f"{side}.json").write_text(json.dumps(shards))
    page = written(files, capsys, "--compare", files / "q.json", files / "g.json")
    assert "paired by identity" in page.words


@pytest.mark.parametrize(
    ("more", "there", "absent"),
    [
        (("--protocol", "no-camera"), ("queries", "thresholds"), ()),
        (("--protocol", "other-cameras", "--metric", "euclidean"), ("queries", "cameras"), ()),
        (("--protocol", "multi-query", "--memory", "64M"), ("queries", "cameras"), ()),
        (("--protocol", "single-shot"), ("queries", "map"), ()),
        (("--protocol", "market1501-matlab", "--rerank"), ("queries",), ()),
        (("--exclude", "weather == query.weather"), ("queries", "thresholds"), ()),
        (("--exact", "float32", "--verification", "--cross-camera"), ("queries",), ()),
    ],
)
def test_protocols(files, capsys, more, there, absent):
    page = written(files, capsys, *more)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert ids >= set(there) and not ids & set(absent)
    first = page.data()["queries"]["first"]
    lists = page.lists("plain")
    for rank, mark in zip(first, lists["mark"], strict=True):
        right = np.flatnonzero(mark[mark <= 1] == 1)
        assert not len(right) or right[0] + 1 == rank


def test_one_set_against_itself(tmp_path, capsys):
    gallery = sides()[1]
    gallery.save(tmp_path / "all.npz")
    code, _, err = run(
        capsys, "--features", tmp_path / "all.npz", "--protocol", "all-vs-all",
        "--report", tmp_path / "out.html",
    )  # fmt: skip
    assert code == 0, err
    page = Page((tmp_path / "out.html").read_text())
    lists = page.lists("plain")
    assert all(mark[0] == 5 and distance[0] < 1e-6 for mark, distance in zip(
        lists["mark"], lists["distance"], strict=True
    ))  # fmt: skip
    assert 'id="cameras"' in page.text


def test_parts_list_the_items_that_take_part(tmp_path, capsys):
    draw = np.random.default_rng(0)
    made = []
    for name, side in zip(("q", "g"), sides(), strict=True):
        parts = side.features.numpy().reshape(len(side), 4, 4)
        visibility = draw.integers(0, 2, (len(side), 4))
        made.append(Features(None, side.pids, side.camids, parts=parts, visibility=visibility))
        made[-1].save(tmp_path / f"{name}.npz")
    page = written(tmp_path, capsys)
    report = evaluate(*made)
    data, lists = page.data(), page.lists("plain")
    assert data["queries"]["columns"][0]["name"] == "visible parts"
    first = report.per_query.first_rank[data["queries"]["row"]]
    for rank, mark in zip(first, lists["mark"], strict=True):
        right = np.flatnonzero(mark[mark <= 1] == 1)
        assert (rank <= 10) == (len(right) > 0)
        assert not len(right) or right[0] + 1 == rank


def test_without_cameras_and_with_means_of_several(tmp_path, capsys):
    for name, side in zip(("q.npz", "g.npz"), sides(), strict=True):
        Features(side.features, side.pids).save(tmp_path / name)
    page = written(tmp_path, capsys, "--protocol", "no-camera")
    assert 'id="cameras"' not in page.text and 'id="queries"' in page.text
    draw = np.random.default_rng(0)
    for name in ("q.npz", "g.npz"):
        rows = draw.standard_normal((12, 8)).astype(np.float32)
        Features(rows, np.arange(12), np.full(12, name == "g.npz")).save(tmp_path / name)
    page = written(tmp_path, capsys, "--protocol", "viper")
    assert 'id="queries"' not in page.text and 'id="curves"' in page.text


def draw_images(folder, side):
    for path in side.paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = sum(path.encode()) % 200
        Image.new("RGB", (20, 44), (shade, 90, 200 - shade)).save(file)


def test_pictures_and_what_of_them_is_missing(files, capsys, tmp_path):
    images = tmp_path / "images"
    for side in sides():
        draw_images(images, side)
    (images / "gallery/3.png").unlink()
    (images / "gallery/4.png").write_bytes(b"no picture")
    code, _, err = run(capsys, *words_of(files, "--images", images))
    assert code == 0
    assert err.count("note: --images: 1 of") == 2 and "gallery/3.png" in err
    page = Page((files / "out.html").read_text())
    pictures, data = page.data()["pictures"], page.data()
    assert pictures["width"] * 2 == pictures["height"]
    bodies = dict(zip(data["items"]["row"], pictures["items"], strict=True))
    assert {row for row, body in bodies.items() if not body} == {3, 4}
    content = base64.b64decode(pictures["header"] + pictures["queries"][0])
    assert content[:2] == b"\xff\xd8" and content[-2:] == b"\xff\xd9"
    (files / "one.jpg").write_bytes(content)
    with Image.open(files / "one.jpg") as picture:
        assert picture.size == (pictures["width"], pictures["height"])
        path = data["queries"]["path"][0]
        shade = sum(path.encode()) % 200
        assert np.abs(np.asarray(picture)[10, 10] - [shade, 90, 200 - shade]).max() < 12


def test_no_picture_outside_of_the_folder_is_read(tmp_path, capsys):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 16)).save(secret)
    for name, side in zip(("q.npz", "g.npz"), sides(), strict=True):
        side.paths = np.asarray([["../secret.png", str(secret)][i % 2] for i in range(len(side))])
        side.save(tmp_path / name)
    (tmp_path / "images").mkdir()
    page = written(tmp_path, capsys, "--images", tmp_path / "images")
    pictures = page.data()["pictures"]
    assert not any(pictures["queries"]) and not any(pictures["items"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--report", "{here}/folder"), "expected a .html file"),
        (("--report", "{here}/folder.html"), "is a folder"),
        (("--report", "{here}/q.npz/out.html"), "cannot be written"),
        (("--report", "{here}/new.html", "--images", "{here}/none"), "is no folder"),
        (("--images", "{here}"), "--report"),
        (("--compare", "{here}/other.json"), "give --report"),
        (("--report", "{here}/new.html", "--compare", "{here}/old.html"), "old.html is a page"),
        (("--report", "{here}/new.html", "--compare", "{here}/other.json"), "cannot be read"),
        (("--report", "{here}/new.html", "--compare", "{here}/empty.json"), "no mAP and cmc"),
        (("--report", "{here}/new.html", "--explain", "market1501", "no-camera"), "leave out"),
    ],
)
def test_mistakes_end_in_one_sentence_and_no_file(files, capsys, more, sentence):
    (files / "folder.html").mkdir()
    (files / "empty.json").write_text('{"mAP": 0.5, "cmc": [0.5, 2]}')
    before = sorted(files.rglob("*"))
    given = [word.format(here=files) for word in more]
    code, _, err = run(capsys, "--query", files / "q.npz", "--gallery", files / "g.npz", *given)
    assert code == 2 and sentence in err and err.count("\n") == 1
    assert sorted(files.rglob("*")) == before


def test_pictures_need_paths(tmp_path, capsys):
    for name, side in zip(("q.npz", "g.npz"), sides(), strict=True):
        Features(side.features, side.pids, side.camids).save(tmp_path / name)
    code, _, err = run(capsys, *words_of(tmp_path, "--images", tmp_path))
    assert code == 2 and "hold no paths" in err and not (tmp_path / "out.html").exists()


def test_a_missing_package_is_named(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    code, _, err = run(capsys, *words_of(files))
    assert code == 2 and "pip install 'mmga[report]'" in err


def test_templates_are_part_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    told = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = told["tool"]["setuptools"]["package-data"]["mmga"]
    package = REPOSITORY / "mmga"
    files = [file.relative_to(package) for file in (package / "pages/templates").iterdir()]
    assert len(files) >= 5
    for file in files:
        assert any(fnmatch.fnmatch(str(file), pattern) for pattern in patterns), file


def test_of_a_run_on_its_own_pictures(tmp_path, capsys):
    names = [f"{cam}/{p:03d}_45.bmp" for cam in ("cam_a", "cam_b") for p in range(8)]
    images(tmp_path / "VIPeR", names)
    write_run(tmp_path / "run")
    page_file = tmp_path / "out.html"
    code, _, err = run(
        capsys, "--run", tmp_path / "run", "--data", "viper", "--root", tmp_path,
        "--device", "cpu", "--protocol", "no-camera", "--report", page_file,
        "--images", tmp_path / "VIPeR",
    )  # fmt: skip
    assert code == 0, err
    page = Page(page_file.read_text())
    digest = hashlib.sha256((tmp_path / "run/last.safetensors").read_bytes()).hexdigest()
    assert digest in page.words
    assert all(page.data()["pictures"]["queries"])
