"""What docs/parser.md says of the parser is so, and its example runs."""

import json
import re
import shlex

import pytest
from paths import REPOSITORY

from mmga.bodyparts import train
from mmga.bodyparts.ccp import GARMENTS, HIPS, LONG
from mmga.bodyparts.crops import HIGHEST, LOWEST
from mmga.bodyparts.parser import INPUT, WEIGHTS, Parser
from mmga.common import cli
from mmga.data.masks import BOTTOM, OTHER, UPPER
from mmga.data.synthetic import synthetic

TEXT = (REPOSITORY / "docs" / "parser.md").read_text()
PLAIN = " ".join(TEXT.split())
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL))


def test_the_example_makes_a_mask():
    persons = synthetic(seed=3, num_train=1, num_test=0, images_per_camera=2).train
    names = {"image": persons.image(0)}
    exec(compile(BLOCKS["python"], "docs/parser.md", "exec"), names)
    assert names["mask"].labels.shape == (128, 64) and names["mask"].parts


def test_the_file_is_as_the_card_says():
    size = f"{WEIGHTS.stat().st_size / 1e6:.1f} MB"
    count = sum(one.numel() for one in Parser().network.parameters())
    assert size in TEXT and f"{count / 1e6:.1f} million parameters" in TEXT
    assert f"{INPUT[0]} x {INPUT[1]}" in TEXT


@pytest.mark.parametrize(
    ("part", "garments"),
    [
        ("upper", GARMENTS[UPPER]),
        ("bottom", GARMENTS[BOTTOM]),
        ("cut at the hips", LONG),
        ("whole body, half unknown", GARMENTS[OTHER]),
    ],
)
def test_garments_are_listed(part, garments):
    listed = re.search(rf"^\| {part} \| (.+) \|$", TEXT, re.MULTILINE)[1]
    assert listed.split(", ") == sorted(garments)


def test_the_training_is_as_the_card_says():
    line = BLOCKS["sh"].splitlines()[-1]
    options = cli.parse("bodyparts.train", train.Options, shlex.split(line)[3:])
    assert options.encoder is not None and options.out == WEIGHTS.relative_to(WEIGHTS.parent)
    assert f"`--seed {options.seed}` and {options.steps:,} batches of {options.batch}" in PLAIN
    assert f"{options.held_out} more are held out" in PLAIN
    assert f"{options.generated} persons" in PLAIN and f"at {HIPS} of the" in PLAIN
    assert f"heights of {LOWEST} to {HIGHEST} pixels" in PLAIN


def test_the_quality_is_that_of_the_result_file():
    found = json.loads((REPOSITORY / "benchmarks" / "results" / "parser.json").read_text())
    pose, crops = found["blazepose"], found["market1501"]
    silhouettes = found["viper"]["iou_silhouettes"]["mean"]
    mean = found["viper"]["iou_of_the_mean_silhouette"]
    rows = [f"SDALF's silhouettes, mean IoU (the mean silhouette's) | {_iou(silhouettes, mean)} |"]
    for height in (128, 64):
        each = found["ccp"][f"iou_at_{height}"]
        rows.append(" | ".join(_iou(each[part]) for part in ("whole", "upper", "bottom")))
    hips = [(f"Market-1501's 14 body points, {crops['crops']} crops", crops)]
    for name, key in (("VIPeR", "viper"), ("PKU-Reid", "pku"), ("PRID450S", "prid450s")):
        body = _iou(pose[key]["iou"], pose[key]["iou_of_the_mean_body"])
        rows.append(f"| {body} | | |")
        hips.append(
            (f"BlazePose, {name}, {pose[key]['hips']['with_hips_and_boundary']}", pose[key]["hips"])
        )
    assert [row for row in rows if row not in TEXT] == []
    for name, figures in hips:
        cells = re.search(rf"^\| {name} \| (.+) \|$", TEXT, re.MULTILINE)[1]
        assert re.findall(r"[\d.]+(?=%)", cells) == [
            f"{100 * figures['median_error']:.1f}",
            f"{100 * figures['median_error_of_one_row']:.1f}",
            f"{100 * abs(figures['median_signed']):.1f}",
            f"{100 * figures['under_5_percent']:.0f}",
        ], name
        assert figures["median_signed"] < 0 and "above" in cells
        assert cells.endswith(f"{figures['correlation']:.2f}"[1:])


def _iou(value, mean=None):
    """Return an IoU as tables show it, that of a mean mask in brackets."""
    shown = f"{value:.3f}".removeprefix("0")
    return shown if mean is None else f"{shown} ({_iou(mean)})"
