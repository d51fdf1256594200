"""The command: table, JSON, exit codes, and nothing heavy at start."""

import json
import os
import re
import subprocess
import sys
import time
import typing

import numpy as np
import pytest
from miniatures import images
from paths import REPOSITORY, SHARED_DATA
from small_run import write_run
from terminal import on_a_terminal

import mmga
from mmga import eval as command
from mmga.retrieval.features import Features, load_features
from mmga.retrieval.protocols.protocol import PROTOCOLS
from mmga.retrieval.reranking.settings import KReciprocal


def run(capsys, *words):
    """Run the command here; return exit code, stdout and stderr."""
    try:
        command.main([str(word) for word in words])
        code = 0
    except SystemExit as leave:
        code = leave.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    for name, count, camid in (("q", 6, 0), ("g", 20, 1)):
        Features(
            generator.standard_normal((count, 8)).astype(np.float32),
            np.arange(count) % 3,
            np.full(count, camid),
        ).save(tmp_path / f"{name}.npz")
    return tmp_path


def test_table_json_and_csv(files, capsys):
    code, out, _ = run(
        capsys, "--query", files / "q.npz", "--gallery", files / "g.npz",
        "--json", files / "out.json", "--per-query", files / "out.csv",
    )  # fmt: skip
    assert code == 0
    assert "mAP" in out
    assert "rank-10" in out
    assert out.endswith(f"\nreport: {files / 'out.json'}\nqueries: {files / 'out.csv'}\n")
    found = json.loads((files / "out.json").read_text())
    assert found["num_query"] == 6
    assert len((files / "out.csv").read_text().splitlines()) == 7


def test_pku_sketch(capsys, tmp_path):
    path = SHARED_DATA / "pku-sketch" / "pytorch_result.mat"
    if not path.exists():
        pytest.skip(f"{path} is absent; set MMGA_TEST_DATA")
    words = ("--features", path, "--json", tmp_path / "o.json")
    assert run(capsys, *words, "--protocol", "market1501-matlab")[0] == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["mAP"] == pytest.approx(0.17799972, abs=1e-6)
    assert (found["rank1"], found["rank5"], found["rank10"]) == pytest.approx((0.14, 0.36, 0.48))
    assert run(capsys, *words)[0] == 0
    assert json.loads((tmp_path / "o.json").read_text())["mAP"] == pytest.approx(0.217137, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--query", "{}/q.npz"], "--gallery is missing"),
        (["--query", "{}/no.npz", "--gallery", "{}/g.npz"], "no such file or folder"),
        (["--query", "{}/q.npz", "--gallery", "{}/narrow.npz"], "must come from one network"),
        (["--query", "{}/q.npz", "--gallery", "{}/nocam.npz"], "no-camera"),
        (["--query", "{}/q.npz", "--gallery", "{}/strangers.npz"], "no query has a match"),
        (["--query", "{}/q.npz", "--gallery", "{}/nan.npz"], "NaN"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--memory", "10"], "at least"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--protocl", "x"], "--protocol"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--max-rank", "0"], "max_rank"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--max-rank", f"{10**9}"], "max_rank"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--seed", "-1"], "seed: expected at"),
        (["--query", "{}/q.npz", "--gallery", "{}/g.npz", "--bootstrap", f"{10**9}"], "at most"),
        (["--features", "{}/q.npz"], "holds one set of features"),
    ],
)
def test_mistakes_are_one_sentence(files, capsys, words, sentence):
    rows = np.ones((3, 8), np.float32)
    Features(np.ones((3, 4), np.float32), [0, 1, 2], [1, 1, 1]).save(files / "narrow.npz")
    Features(rows, [0, 1, 2]).save(files / "nocam.npz")
    Features(rows, [7, 8, 9], [1, 1, 1]).save(files / "strangers.npz")
    Features(np.where(np.eye(3, 8) == 1, np.nan, rows), [0, 1, 2], [1, 1, 1]).save(
        files / "nan.npz"
    )
    before = set(os.listdir(files))
    words = [word.format(files) for word in words]
    code, out, err = run(capsys, *words, "--json", files / "out.json")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert set(os.listdir(files)) == before


def test_protocols_are_those_of_the_library():
    assert set(typing.get_args(command.ProtocolName)) == set(PROTOCOLS)


def test_start_is_fast_and_light():
    begun = time.monotonic()
    code = "import sys, mmga.eval; mmga.eval.main(['--help'])"
    heavy = ["torch", "torchvision", "triton", "scipy", "h5py"]
    script = (
        f"import atexit, sys; atexit.register(lambda: print('LOADED', "
        f"[m for m in {heavy} if m in sys.modules])); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert "LOADED []" in done.stdout
    assert "--protocol" in done.stdout
    # One second on an idle machine; the rest is for machines that do other things too.
    assert time.monotonic() - begun < 5


def test_an_evaluation_loads_torch_and_numpy_alone(files):
    """Nothing else is imported, and no garbage is looked for among what torch made."""
    words = ["--query", str(files / "q.npz"), "--gallery", str(files / "g.npz")]
    script = (
        f"import gc, sys; from mmga import eval as command; command.main({words})\n"
        "heavy = 'torchvision triton scipy h5py safetensors matplotlib yaml PIL sklearn'\n"
        "heavy += ' torch._dynamo torch._inductor sympy pandas'\n"
        "print([one for one in heavy.split() if one in sys.modules])\n"
        "print(gc.get_freeze_count() > 50_000, gc.isenabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["[]", "True True"], done.stdout


def test_shards_one_by_one_and_two_files_to_compare(files, capsys):
    """A shell expands a pattern that is not in quotes."""
    whole = load_features(files / "g.npz")
    for number, rows in enumerate((slice(0, 7), slice(7, 20))):
        whole.select(rows).save(files / f"s-{number}.npz")
    words = ["--query", files / "q.npz", "--json", files / "o.json"]
    found = []
    for gallery in ([files / "g.npz"], [files / "s-0.npz", files / "s-1.npz"], [files / "s-*.npz"]):
        assert run(capsys, *words, "--gallery", *gallery)[0] == 0
        found.append(json.loads((files / "o.json").read_text())["cmc"])
    assert found[0] == found[1] == found[2]
    words += ["--gallery", files / "g.npz"]
    code, out, _ = run(capsys, *words, "--compare", files / "q.npz", files / "g.npz")
    assert code == 0
    assert "+0.00 points against this" in out
    code, _, err = run(capsys, *words, "--compare", *[files / "q.npz"] * 3)
    assert (code, "found 3 files" in err) == (2, True)
    code, _, err = run(capsys, *words, "--explain", "market1501", "no-camera", "--rerank")
    assert (code, "leave out --rerank" in err) == (2, True)
    code, _, err = run(capsys, *words, "--explain", "market1501", "no-camera", "--seed", 3)
    assert (code, "leave out --seed" in err) == (2, True)
    assert run(capsys, "--features", files / "g.npz", "--protocol", "all-vs-all")[0] == 0


def test_the_second_line_says_what_the_figures_are_of(files, capsys):
    words = ("--query", files / "q.npz", "--gallery", files / "g.npz")
    _, out, _ = run(capsys, *words)
    assert "protocol market1501: cosine distance" in out
    assert "queries: 6 of 6 queries, 3 identities" in out
    assert "gallery: 20 items, 0 of them distractors; 2 cameras in all" in out
    for technical in ("certified", "kernels", "reference", "products"):
        assert technical not in out
    _, out, _ = run(capsys, *words, "--verbose")
    assert "certified: 100.00% of 120 pairs" in out
    assert "ieee products" in out
    _, out, _ = run(capsys, *words, "--ap", "trapezoid", "--protocol", "no-camera")
    assert "protocol no-camera: cosine distance, trapezoid AP" in out


def test_a_variant_of_the_re_ranking(files, capsys):
    words = ["--query", files / "q.npz", "--gallery", files / "g.npz", "--json", files / "o.json"]
    found = {}
    for variant in ("zhong", "fastreid"):
        assert run(capsys, *words, "--rerank", "--k1", 4, "--variant", variant)[0] == 0
        written = json.loads((files / "o.json").read_text())
        assert written["rerank"]["variant"] == variant
        found[variant] = written["reranked"]["mAP"]
    query, gallery = (load_features(files / name) for name in ("q.npz", "g.npz"))
    rule = KReciprocal(4, variant="fastreid")
    assert found["fastreid"] == mmga.evaluate(query, gallery, rerank=rule).reranked.mAP
    assert found["fastreid"] != found["zhong"]
    code, _, err = run(capsys, *words, "--variant", "fastreid")
    assert (code, "--variant belongs to re-ranking" in err) == (2, True)


def test_a_run_on_viper_evaluates_its_test_half_as_it_is(tmp_path, capsys):
    images(
        tmp_path / "VIPeR",
        [f"{cam}/{p:03d}_45.bmp" for cam in ("cam_a", "cam_b") for p in range(8)],
    )
    write_run(tmp_path / "run")
    words = ("--run", tmp_path / "run", "--data", "viper", "--root", tmp_path, "--device", "cpu")
    found = {}
    for protocol in ("viper", "no-camera"):
        code, _, err = run(capsys, *words, "--protocol", protocol, "--json", tmp_path / "o.json")
        assert code == 0, err
        found[protocol] = json.loads((tmp_path / "o.json").read_text())
    assert found["viper"]["splits"]["persons"] == found["no-camera"]["num_query"] == 4
    assert found["viper"]["splits"]["directions"] == 2
    assert found["viper"]["num_valid_query"] == 8
    code, _, err = run(capsys, *words, "--protocol", "all-vs-all")
    assert (code, "a run's test split has two sides" in err) == (2, True)


def test_lines_fit_a_terminal(files):
    words = ["-m", "mmga.eval", "--query", str(files / "q.npz"), "--gallery", str(files / "g.npz")]
    for columns in (60, 80):
        code, said = on_a_terminal(words, columns, TERM="dumb")
        assert code == 0
        assert max(map(len, said.splitlines())) <= columns
        assert re.search(r"^plain +[0-9.]+", said, re.MULTILINE)


@pytest.mark.parametrize("flag", ["--per-query=p.csv", "--bootstrap=9", "--compare=q.npz"])
def test_what_repeated_evaluations_cannot_give_is_refused_before(files, capsys, flag):
    words = ["--features", files / "g.npz", "--protocol", "vehicleid", "--json", files / "o.json"]
    code, _, err = run(capsys, *words, flag)
    assert (code, "vehicleid has no figures of single queries" in err) == (2, True)
    assert not (files / "o.json").exists()


def test_intervals_of_drawn_galleries_are_of_the_full_ones_figures_alone(files, capsys):
    words = ["--query", files / "q.npz", "--gallery", files / "g.npz", "--json", files / "o.json"]
    words += ["--compare", files / "q.npz", files / "g.npz", "--bootstrap", 20]
    for protocol, figures in (("market1501", {"mAP", "rank1"}), ("single-shot", {"mAP"})):
        assert run(capsys, *words, "--protocol", protocol)[0] == 0
        found = json.loads((files / "o.json").read_text())
        assert set(found["bootstrap"]) == figures
        assert {"mAP", "rank1"} & set(found["compare"]["difference"]) == figures


def test_multi_query_takes_the_images_that_a_file_calls_so(files, capsys):
    query, gallery = (load_features(files / f"{side}.npz") for side in "qg")
    many = gallery.arrays("mquery") | {"mquery_cam": np.zeros(20, int)}
    arrays = {**query.arrays("query"), **gallery.arrays("gallery"), **many}
    np.savez(files / "three.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    words = ["--features", files / "three.npz", "--json", files / "o.json"]
    for protocol, queries in (("market1501", 6), ("multi-query", 3)):
        code, out, _ = run(capsys, *words, "--protocol", protocol)
        found = json.loads((files / "o.json").read_text())
        assert (code, found["num_query"]) == (0, queries)
        assert ("mquery_f" in out) == (protocol == "multi-query")
    pooled = mmga.evaluate(
        Features(gallery.features, gallery.pids, np.zeros(20, int)), gallery, protocol="multi-query"
    )
    assert found["mAP"] == pooled.mAP


def test_outputs_overwrite_nothing_that_is_given(files, capsys):
    """Features or tables that were named as an output by mistake stay as they are."""
    words = ["--query", files / "q.npz", "--gallery", files / "g.npz"]
    (files / "q.csv").write_text("time\n" + "1\n" * 6)
    (files / "list.json").write_text('{"schema": 1, "shards": [{"file": "g.npz"}]}')
    before = {path: path.read_bytes() for path in files.iterdir()}
    code, _, err = run(capsys, *words, "--json", files / "q.npz")
    assert (code, "--json: expected a .json file, found" in err) == (2, True)
    columns = [
        "--query-columns",
        files / "q.csv",
        "--per-query",
        files / ".." / files.name / "q.csv",
    ]
    code, _, err = run(capsys, *words, *columns)
    assert (code, "is given as --query-columns, too; name another" in err) == (2, True)
    listed = ["--gallery", files / "list.json", "--json", files / "list.json"]
    code, _, err = run(capsys, *words[:2], *listed)
    assert (code, "is given as --gallery, too; name another" in err) == (2, True)
    assert before == {path: path.read_bytes() for path in files.iterdir()}


def test_flags_of_verification_name_it(files, capsys):
    words = ["--query", files / "q.npz", "--gallery", files / "g.npz"]
    code, _, err = run(capsys, *words, "--fpr", "0.01")
    assert (code, "--fpr belongs to verification: give --verification, too" in err) == (2, True)


def test_explained_changes_are_in_points(files, capsys):
    words = ["--query", files / "q.npz", "--gallery", files / "g.npz"]
    _, out, _ = run(capsys, *words, "--explain", "market1501", "no-camera")
    assert re.search(r"\ncamera: same-identity -> none +\+0\.00  +\+0\.00 ", out)
    assert "(changes are in percentage points)" in out


def test_one_set_in_place_of_two(files, capsys):
    code, _, err = run(capsys, "--features", files / "g.npz")
    assert (code, "or choose protocol all-vs-all, which ranks one set" in err) == (2, True)
