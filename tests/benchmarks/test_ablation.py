"""The ablation in miniature: rows differ in what they say, runs go on, figures add up."""

import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest
import torch
from paths import REPOSITORY

from benchmarks.ablation import pictures as rendering
from benchmarks.ablation import statistics, trial
from benchmarks.ablation import summary as report
from benchmarks.ablation.__main__ import main
from benchmarks.ablation.degrade import DegradedMasks, degrade
from benchmarks.ablation.fairness import audit, bounds
from benchmarks.ablation.pictures import Pictures, digest
from benchmarks.ablation.plan import QUARTERS, SMOKE, TESTS, Plan
from benchmarks.ablation.rows import MAIN, ROWS, configuration
from benchmarks.ablation.statistics import HARD, Outcome, difference, gain, interval, read
from benchmarks.ablation.summary import draw, summary
from mmga.common.errors import UserError
from mmga.config import as_dict, check
from mmga.data.dataset import ImageTensors
from mmga.data.masks import PartMask
from mmga.data.synthetic.audit import ProbeResult
from mmga.training import trainer

PLAN = dataclasses.replace(SMOKE, epochs=4)


FEW = {name: TESTS[name] for name in ("clean", "pose-1", "pose-2", "pose-3")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return Pictures(tmp_path_factory.mktemp("pictures"), PLAN)


@pytest.fixture
def few(monkeypatch):
    """Test on one challenge out of four, to save time."""
    for module in (trial, statistics, rendering):
        monkeypatch.setattr(module, "TESTS", FEW)
    for module in (statistics, report):
        monkeypatch.setattr(module, "HARD", tuple(FEW)[1:])
        monkeypatch.setattr(module, "CHALLENGES", ("pose",))


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_rows_differ_from_the_full_one_in_what_they_say_alone():
    full = dict(leaves(as_dict(configuration("6", 1, Plan()))))
    for name, row in ROWS.items():
        config = configuration(name, 1, Plan())
        check(config)
        own = dict(leaves(as_dict(config)))
        changed = {key for key in full if own[key] != full[key]}
        assert changed == {key for key, _ in leaves(row.values)}, name
    assert set(MAIN) <= set(ROWS)


def test_the_plan_is_what_was_asked_for():
    plan = Plan()
    assert (plan.train_persons, plan.validation_persons, plan.test_persons) == (300, 50, 150)
    assert plan.epochs % 4 == 0 and plan.p * plan.k == 64 and plan.least_steps >= 1500
    assert len(TESTS) == 13 and len(HARD) == 12


def test_pictures_are_rendered_once_and_never_taken_for_others(pictures):
    train = pictures.train()
    assert len(np.unique(train.pids)) == PLAN.train_persons
    file = pictures.folder / "train.npz"
    before = file.stat().st_mtime_ns
    again = Pictures(pictures.folder.parent, PLAN).train()
    assert file.stat().st_mtime_ns == before
    assert torch.equal(again.image(3), train.image(3))
    assert digest(dataclasses.replace(PLAN, test_persons=9)) != pictures.digest
    assert digest(dataclasses.replace(PLAN, lr=0.5, epochs=8)) == pictures.digest


def test_a_challenge_changes_the_test_alone(pictures):
    """Same persons, cameras and shots in every test; queries are the first shot of a camera."""
    clean = pictures.test("clean")
    for name in ("pose-1", "clutter-3"):
        for one, other in zip(clean, pictures.test(name), strict=True):
            assert np.array_equal(one.pids, other.pids)
            assert np.array_equal(one.camids, other.camids)
            assert any(not torch.equal(one.image(i), other.image(i)) for i in range(len(one)))
    assert len(np.unique(pictures.validation()[0].pids)) == PLAN.validation_persons


def test_degraded_masks_overlap_by_three_quarters():
    random = np.random.default_rng(0)
    masks = []
    for _ in range(60):
        labels = torch.zeros(96, 48, dtype=torch.uint8)
        top, left = random.integers(4, 20, 2)
        labels[top : top + 35, left : left + 14] = 1
        labels[top + 35 : top + 70, left : left + 14] = 2
        masks.append(PartMask(labels))
    images = ImageTensors(
        torch.zeros(60, 3, 96, 48, dtype=torch.uint8), range(60), [0] * 60, masks=masks
    )
    degraded = DegradedMasks(images, seed=1)
    missing = [i for i in range(60) if degraded.mask(i) is None]
    assert 1 <= len(missing) <= 15
    overlaps, grown = [], 0
    for i in set(range(60)) - set(missing):
        old, new = masks[i].labels, degraded.mask(i).labels
        body, other = old > 0, new > 0
        overlaps.append(float((body & other).sum() / (body | other).sum()))
        grown += bool(other.sum() > body.sum())
        assert torch.equal(new[body & other], old[body & other])
    assert abs(np.mean(overlaps) - 0.75) < 0.06
    assert 10 < grown < 50
    assert degrade(None, True) is None


def test_a_run_is_tested_at_every_quarter_and_not_repeated(pictures, tmp_path, few):
    out, results = tmp_path / "out", tmp_path / "results"
    assert trial.run("B", 0, pictures, out, results)
    found = json.loads((results / "B-seed0.json").read_text())
    assert list(found["figures"]) == [str(share) for share in QUARTERS]
    steps = [found["figures"][str(share)]["steps"] for share in QUARTERS]
    assert steps == sorted(steps) and len(set(steps)) == 4 and steps[-1] == found["steps"]
    assert found["config"]["loss"]["guide"] == "other"
    assert set(found["attention"]) == {"whole0", "whole", "upper", "bottom"}
    assert found["pictures"] == pictures.digest and found["seconds"] > 0
    (sitting,) = found["sittings"]
    assert sitting["commit"] and sitting["machine"] and sitting["threads"] == 1
    (outcome,) = read(results)
    for test in FEW:
        figures = found["figures"]["100"]["tests"][test]
        assert outcome.precisions[test].mean() == pytest.approx(figures["mAP"], abs=1e-4)
    before = (results / "B-seed0.json").stat().st_mtime_ns
    assert not trial.run("B", 0, pictures, out, results)
    assert (results / "B-seed0.json").stat().st_mtime_ns == before


def test_a_stopped_run_ends_as_one_that_ran_through(pictures, tmp_path, monkeypatch, few):
    """Stopped after the second quarter was tested, and within the third."""
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    trial.run("A", 0, pictures, through / "out", through)
    real, taken = trainer.Step.take, []

    def take(self, *arguments, **options):
        taken.append(1)
        if len(taken) == limit:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(trainer.Step, "take", take)
    per_epoch = json.loads((through / "A-seed0.json").read_text())["figures"]["25"]["steps"]
    limit = 2 * per_epoch + 2
    with pytest.raises(KeyboardInterrupt):
        trial.run("A", 0, pictures, stopped / "out", stopped)
    assert not (stopped / "A-seed0.json").exists()
    tested = stopped / "out" / "A-seed0" / "test-50.npz"
    before = tested.stat().st_mtime_ns
    limit = -1
    trial.run("A", 0, pictures, stopped / "out", stopped)
    assert tested.stat().st_mtime_ns == before
    one, other = (json.loads((f / "A-seed0.json").read_text()) for f in (through, stopped))
    assert len(other["sittings"]) == 2 and len(one["sittings"]) == 1
    for key in ("figures", "attention", "steps", "config"):
        assert one[key] == other[key]


def test_the_commit_is_marked_where_sources_differ(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(trial, "ROOT", tmp_path)
    assert trial.commit() == "unknown"
    git("init")
    for name in ("mmga", "csrc", "benchmarks/ablation", "benchmarks/results/ablation"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    git("add", ".")
    git("commit", "-m", "first")
    clean = trial.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "benchmarks/results/ablation/6-seed0.json").touch()
    assert trial.commit() == clean
    for name in ("mmga", "csrc", "benchmarks/ablation"):
        (tmp_path / name / "file").write_text("changed")
        assert trial.commit() == f"{clean}+", name
        git("checkout", "--", name)


def test_another_configuration_is_not_gone_on_with(pictures, tmp_path):
    config = configuration("1", 0, PLAN)
    (tmp_path / "1-seed0").mkdir()
    from mmga.config import save_config

    save_config(dataclasses.replace(config, recipe="mgn"), tmp_path / "1-seed0" / "config.yaml")
    with pytest.raises(UserError, match="holds a run with another configuration"):
        trial.run("1", 0, pictures, tmp_path, tmp_path / "results")


def outcome(row, seed, level, rise=0.0, queries=40):
    random = np.random.default_rng(seed + 10)
    base = random.uniform(0.2, 0.6, queries)
    precisions = {name: base + level for name in TESTS}
    tests = {name: {"mAP": float(v.mean()), "rank1": 0.5} for name, v in precisions.items()}
    earlier = {k: {"mAP": v["mAP"] - rise, "rank1": 0.4} for k, v in tests.items()}
    figures = {"25": earlier, "50": earlier, "75": earlier, "100": tests}
    found = {
        "figures": {share: {"steps": 1, "tests": one} for share, one in figures.items()},
        "attention": {},
        "steps": 1500,
        "images_per_step": 64,
        "sittings": [{"commit": "abc", "machine": "m"}],
    }
    pids = np.arange(queries) // 2
    return Outcome(row, seed, found, precisions, dict.fromkeys(TESTS, pids))


def test_differences_are_paired_over_seeds_and_queries():
    full = [outcome("6", seed, 0.05) for seed in (0, 1)]
    other = [outcome("1", seed, 0.0) for seed in (0, 1, 2)]
    found = difference(full, other)
    assert found.seeds == (0, 1)
    assert found.value == pytest.approx(0.05)
    # The same queries are easy for both: the pairs leave no spread at all.
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.05))
    assert found.by_seed == (pytest.approx(0.05), pytest.approx(0.05))
    assert found.flat and "ends higher" in found.verdict() and "3 points or more" in found.verdict()
    assert difference(full, [outcome("1", 2, 0.0)]) is None


def test_what_still_rises_converges_sooner():
    full = [outcome("6", 0, 0.02, rise=0.02)]
    found = difference(full, [outcome("1", 0, 0.0)])
    assert gain(full) == pytest.approx(0.02) and not found.flat
    assert found.verdict() == "row 6 converges sooner, by less than 3 points"
    assert (
        difference([outcome("6", 0, -0.05)], [outcome("1", 0, 0.0)]).verdict() == "row 6 is worse"
    )


def test_the_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        person = np.repeat(random.normal(0.0, 1.0, 60), 3)
        shares = (person + random.normal(0, 0.5, 180)) / 180
        low, high = interval(shares, np.arange(180) // 3, draws=400)
        covered += low <= 0 <= high
    assert 178 <= covered <= 200
    # Identities, not queries, are what is drawn: treating queries as independent is too narrow.
    narrow = interval(shares, np.arange(180), draws=2000)
    wide = interval(shares, np.arange(180) // 3, draws=2000)
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_the_summary_says_what_is_missing(tmp_path):
    runs = [outcome("1", 0, 0.0), outcome("1", 1, 0.01), outcome("6", 0, 0.05)]
    text = summary(runs)
    assert "6 seed 1" in text and "Missing" in text and "1 seed 0" not in text
    assert "| 1 | 0 | +5.0 |" in text
    draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert summary([]) == "No run is finished.\n"
    assert "nothing is compared" in summary(runs[:2])


def test_the_audit_hangs_on_row_one(tmp_path):
    figures = {figure.name: figure for figure in audit(PLAN, tmp_path)}
    assert figures["linear probe on patches, IoU"].limit == 0.6
    assert figures["colour stripes, true mask"].limit is None
    stripes = [ProbeResult("colour stripes", 0.1), ProbeResult("colour stripes, true mask", 0.3)]
    limits = {figure.name: figure for figure in bounds(stripes, 0.5)}
    assert limits["colour stripes"].passed and not limits["colour stripes, true mask"].passed
    assert limits["row 1, clean, at most"].passed and limits["row 1, clean, short of 40"].passed
    assert not {f.name: f for f in bounds(stripes, 0.3)}["row 1, clean, short of 40"].passed
    assert not {f.name: f for f in bounds(stripes, 0.8)}["row 1, clean, at most"].passed


def test_what_the_documentation_says_is_run(tmp_path, monkeypatch, capsys, few):
    monkeypatch.setenv("MMGA_SMOKE", "1")
    words = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    words += ["--seeds", "4"]
    text = (REPOSITORY / "docs" / "ablation.md").read_text()
    commands = re.findall(r"^python -m benchmarks.ablation (.*?)\s*#", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        try:
            main([*words, *command.split()])
        except SystemExit as left:  # so few pictures may break a limit of the audit
            assert (command, left.code) == ("--audit", 1)
    assert {file.name for file in (tmp_path / "results").iterdir()} == {
        "C-seed4.json",
        "C-seed4.npz",
        "E-seed4.json",
        "E-seed4.npz",
        "ablation.png",
        "summary.md",
        "tuning.json",
    }
    said = capsys.readouterr().out
    assert "lr 0.004: validation mAP" in said and "linear probe" in said
    main([*words, "--rows", "C"])
    assert "there already" in capsys.readouterr().out
    main([*words, "--summary"])
    assert "| E |" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main([*words, "--rows", "7"])
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("threads", "sentence"), [("0", "at least 1"), ("1000000", "at most 1024")]
)
def test_threads_that_cannot_be_meant_are_refused(capsys, threads, sentence):
    with pytest.raises(SystemExit, match="2"):
        main(["--threads", threads])
    assert f"--threads must be {sentence}, got {threads}" in capsys.readouterr().err
