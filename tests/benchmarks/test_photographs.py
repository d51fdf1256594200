"""The experiment on photographs in miniature: splits, harder tests, a run, figures that add up."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.photographs import statistics, trial, untrained, visible
from benchmarks.photographs.degrade import cluttered, misaligned, occluded
from benchmarks.photographs.pictures import PARTIAL_FOLDER, Pictures, listed, sides
from benchmarks.photographs.pictures import test_identities as identities_of
from benchmarks.photographs.plan import PARTIAL, SETS, TESTS, Plan
from benchmarks.photographs.rows import ROWS, configuration
from benchmarks.photographs.summary import summary
from mmga.common.errors import UserError
from mmga.config import as_dict, check
from mmga.data.dataset import ImageTensors, concatenated


def photographs(*counts):
    """Return sets of that many identities with two cameras and two images in each."""
    sets = {}
    for name, count in zip(SETS, counts, strict=True):
        pids = np.repeat(np.arange(count), 4)
        images = torch.zeros(len(pids), 3, 8, 4, dtype=torch.uint8)
        sets[name] = ImageTensors(images, pids, np.tile([0, 0, 1, 1], count))
    return concatenated(sets)


@pytest.fixture
def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 32, 16), generator=generator, dtype=torch.uint8)


def test_each_identity_is_tested_once_and_never_trained_on_in_its_split():
    pooled, plan = photographs(12, 9, 6), Plan(splits=3)
    parts = [identities_of(pooled, split, plan) for split in range(plan.splits)]
    assert sorted(np.concatenate(parts)) == np.unique(pooled.pids).tolist()
    for part in parts:
        by_set = np.bincount(pooled.sources[np.isin(pooled.pids, part)], minlength=3) // 4
        assert by_set.tolist() == [4, 3, 2]


def test_queries_are_the_first_image_of_each_identity_in_each_camera():
    query, gallery = sides(photographs(2, 1, 1))
    assert len(gallery) == 16 and query.indices.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(
    "change",
    [
        lambda crops, pids: misaligned(crops, 0),
        lambda crops, pids: occluded(crops, pids, 0),
        lambda crops, pids: cluttered(crops, torch.zeros(6, 32, 16, dtype=torch.uint8), pids, 0),
    ],
)
def test_harder_tests_show_every_row_the_same_pictures(crops, change):
    pids, before = np.arange(6), crops.clone()
    first, again = change(crops, pids), change(crops, pids)
    assert torch.equal(first, again) and not torch.equal(first, crops)
    assert torch.equal(crops, before)


def test_a_shifted_crop_shows_pixels_of_its_own_image(crops):
    crops[:] = torch.arange(6, dtype=torch.uint8)[:, None, None, None]
    assert torch.equal(misaligned(crops, 3), crops)


def test_an_occluder_covers_a_third_to_a_half_from_one_side_with_another_person(crops):
    crops[:] = 10 * torch.arange(1, 7, dtype=torch.uint8)[:, None, None, None]
    changed = occluded(crops, np.arange(6), 0)
    for before, after in zip(crops, changed, strict=True):
        covered = (after != before)[0]
        assert 0.28 < covered.float().mean() < 0.52
        assert covered.all(0).any() or covered.all(1).any()
        assert len(after[0][covered].unique()) == 1


def test_clutter_leaves_the_body_and_takes_scenes_of_other_identities(crops):
    labels = torch.zeros(6, 32, 16, dtype=torch.uint8)
    labels[:, 8:24, 4:12] = 1
    pids = np.array([0, 0, 1, 1, 2, 2])
    crops[:] = 10 * torch.from_numpy(pids + 1).to(torch.uint8)[:, None, None, None]
    changed = cluttered(crops, labels, pids, 0)
    body = (labels > 0)[:, None].expand_as(crops)
    assert torch.equal(changed[body], crops[body])
    assert (changed[~body] != crops[~body]).all()


def test_rows_differ_in_what_they_say_alone(tmp_path):
    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    full = dict(leaves(as_dict(configuration("6", 1, Plan(), tmp_path))))
    for name in ("1", "4", "A", "B", "4S", "6S"):
        config = configuration(name, 1, Plan(), tmp_path)
        check(config)
        own = dict(leaves(as_dict(config)))
        changed = {key for key in full if own[key] != full[key]}
        assert changed == {key for key, _ in leaves(ROWS[name].values)}, name


def outcome(row, split, precisions, pids, plan=None):
    values = {
        "clean/precisions": np.array(precisions, np.uint16),
        "clean/first": np.array(precisions) == 10_000,
        "clean/pids": np.array(pids, np.int16),
    }
    return statistics.Outcome(row, split, {"plan": plan}, values)


def test_a_difference_is_the_mean_over_splits_with_an_interval_over_identities():
    ours = [outcome("6", 0, [10_000, 8_000], [1, 2]), outcome("6", 1, [10_000, 0], [3, 4])]
    theirs = [outcome("4", 0, [5_000, 5_000], [1, 2]), outcome("4", 1, [5_000, 0], [3, 4])]
    found = statistics.difference(ours, theirs, ["clean"])
    assert found.by_split == pytest.approx((0.4, 0.25)) and found.value == pytest.approx(0.325)
    assert found.low < found.value < found.high
    first = statistics.difference(ours, theirs, ["clean"], "rank1")
    assert first.value == pytest.approx(0.5)
    same = statistics.difference(ours, ours, ["clean"])
    assert (same.value, same.low, same.high) == (0, 0, 0) and same.verdict() == "not shown"
    assert statistics.difference(ours, theirs[:1], ["clean"]).by_split == pytest.approx((0.4,))
    assert statistics.difference(ours, theirs, ["occluded"]) is None
    assert statistics.difference(ours, [], ["clean"]) is None


def test_the_last_gain_is_that_of_the_last_quarter():
    assert statistics.last_gain({"2": 0.1, "4": 0.2, "6": 0.3, "8": 0.35}) == pytest.approx(0.05)


def draw(folder, name, size=(32, 16), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def photos(tmp_path):
    """A folder with six identities of each set, as its files are named."""
    folder, seed = tmp_path / "photos", 0
    for person in range(6):
        for camera in (1, 2):
            seed += 1
            draw(folder, f"viper/cam_{'ab'[camera - 1]}/{person:03d}_45.bmp", seed=seed)
            draw(folder, f"prid450s/{person + 1:04d}{camera:03d}.png", seed=seed + 100)
            side = "train" if person < 4 else "val/all_imgs"
            for shot in (1, 2):
                name = f"pku_reid/{side}/{person:03d}/{camera:02d}_{shot}.png"
                draw(folder, name, seed=seed + 200 + shot)
        for kind in ("occluded", "partial", "whole"):
            name = f"{PARTIAL_FOLDER}/{kind}_body_images/{person + 1:03d}_001.jpg"
            draw(folder, name, seed=seed + 300)
    return folder


@pytest.fixture
def plan():
    return Plan(
        splits=3,
        validation=2,
        size=(32, 16),
        backbone="tiny",
        frozen_stages=0,
        p=4,
        epochs=1,
        eval_every=1,
    )


@pytest.fixture
def silhouettes(monkeypatch):
    """Silhouettes of everybody's middle, in place of SDALF's file."""
    from benchmarks.photographs import pictures
    from mmga.data.masks import PartMask

    labels = torch.zeros(32, 16, dtype=torch.uint8)
    labels[4:28, 4:12] = 1
    monkeypatch.setattr(
        pictures, "read_silhouettes", lambda path, order: dict.fromkeys(order, PartMask(labels)).get
    )


def test_a_run_is_trained_tested_and_summed_up_and_not_repeated(
    photos, plan, silhouettes, tmp_path
):
    pictures = Pictures(photos, tmp_path / "out", plan, tmp_path / "none.mat")
    assert [len(pictures.sets[name]) for name in SETS] == [12, 12, 24]
    results = tmp_path / "results"
    results.mkdir()
    for row in ("6", "1"):
        arguments = (row, 0, pictures, "none", tmp_path / "runs", results)
        assert trial.run(*arguments) and not trial.run(*arguments)
    report = json.loads((results / "6-split0.json").read_text())
    assert set(report["tests"]) == {t + way for t in (*TESTS, *PARTIAL) for way in ("", "/parts")}
    assert set(report["validation"]) == {"1"} and report["config"]["model"]["weights"] == "none"
    assert str(tmp_path) not in (results / "6-split0.json").read_text()
    with np.load(results / "6-split0.npz") as kept:
        shares = kept["clean/precisions"] / 10_000
        assert shares.mean() == pytest.approx(report["tests"]["clean"]["mAP"], abs=1e-4)
    stripes = visible.test(pictures, "none", tmp_path / "runs", results)
    assert set(stripes) == {
        *(f"untrained, {body}" for body in ("parser", "everything")),
        *(f"6-split0, {body}" for body in ("attention", "parser", "everything")),
    }
    assert all(set(figures) == set(PARTIAL) for figures in stripes.values())
    bare = untrained.test(pictures, "none", results)["6 stripes, 128 x 64"]
    assert set(bare) == set(PARTIAL)
    text = summary(results)
    assert "| 6 stripes, 128 x 64 | occluded-whole |" in text
    assert "| 6 - 1 | clean |" in text and "| 6 | full" in text
    other = json.loads((results / "1-split0.json").read_text())
    other["plan"]["epochs"] = 3
    (results / "1-split0.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="different plans"):
        summary(results)


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no photograph named as viper"):
        listed(tmp_path, "viper")


def test_identities_of_a_split_do_not_depend_on_sizes_of_training():
    pooled = photographs(5, 5, 5)
    longer = dataclasses.replace(Plan(), epochs=99)
    assert np.array_equal(identities_of(pooled, 1, Plan()), identities_of(pooled, 1, longer))
