"""The parser that comes with mmga: its file, and `python -m mmga.masks` with it."""

import json
import pickle
import threading

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image

from mmga import masks
from mmga.bodyparts.mask_folder import in_threads
from mmga.bodyparts.network import ParserNetwork, fuse
from mmga.bodyparts.parser import INPUT, WEIGHTS, Parser
from mmga.bodyparts.quality import PARTS, ious
from mmga.common.errors import UserError
from mmga.data.masks import PartMask, read_mask
from mmga.data.synthetic import synthetic

TRAIN = "Market-1501-v15.09.15/bounding_box_train"


@pytest.fixture(scope="module")
def persons():
    """Generated persons as the parser has not seen them: another seed, and nothing in front."""
    return synthetic(
        seed=77, num_train=4, num_test=0, images_per_camera=2, train_challenge="clean"
    ).train


@pytest.fixture
def market(tmp_path, persons):
    """Market-1501 of generated persons, and one picture that shows nobody."""
    for place in (TRAIN, f"{TRAIN}/../query", f"{TRAIN}/../bounding_box_test"):
        (tmp_path / place).mkdir(parents=True)
    for i in range(12):
        picture = Image.fromarray(persons.image(i).permute(1, 2, 0).numpy())
        name = f"{i // 2 + 1:04d}_c{i % 2 + 1}s1_{i:06d}_00.jpg"
        picture.save(tmp_path / TRAIN / name, quality=95)
    Image.new("RGB", (64, 128), (90, 100, 95)).save(tmp_path / TRAIN / "0001_c3s1_000099_00.jpg")
    for place in ("query", "bounding_box_test"):
        Image.new("RGB", (64, 128)).save(
            tmp_path / "Market-1501-v15.09.15" / place / "0009_c1s1_000001_00.jpg"
        )
    return tmp_path


def options(market, **changes):
    return masks.Options(out=market / "masks", root=market, preview=0, batch=5, **changes)


def test_the_file_is_small_and_holds_tensors_alone(monkeypatch):
    def refuse(*arguments, **names):
        raise AssertionError("pickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    parser = Parser()
    assert WEIGHTS.suffix == ".safetensors" and WEIGHTS.stat().st_size <= 6_000_000
    assert sum(value.numel() for value in parser.network.parameters()) <= 3_000_000
    labels = parser.labels(torch.zeros((1, 3, 37, 19), dtype=torch.uint8))
    assert labels.shape == (1, 37, 19) and labels.dtype == torch.uint8


def test_the_file_is_part_of_the_package(monkeypatch):
    from setuptools import Distribution

    monkeypatch.chdir(REPOSITORY)
    package = Distribution()
    package.parse_config_files()
    build = package.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # the files that package-data names, and no version control's
    assert str(WEIGHTS.relative_to(REPOSITORY)) in build.find_data_files("mmga", "mmga")


def test_masks_of_generated_persons(market, persons, capsys):
    assert masks.body(options(market)) == 0
    out = market / "masks"
    files = sorted((out / "bounding_box_train").glob("*.png"))
    found = [ious(read_mask(file).labels, persons.labels[i]) for i, file in enumerate(files)]
    assert len(found) == 12
    for part, least in zip(PARTS, (0.7, 0.6, 0.5), strict=True):
        assert np.median([one[part] for one in found]) > least, part
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["origin"]["from"] == "parser"
    assert manifest["counts"] == {
        "images": 13, "masks": 12, "silhouettes": 0, "without_person": 1, "broken": 0,
    }  # fmt: skip
    assert manifest["area_by_camera"]["3"]["without_mask"] == 1.0
    assert "12 masks of 13 images; without a person 1 (7.7%)" in capsys.readouterr().out


def test_a_second_run_makes_what_is_missing(market, capsys):
    masks.body(options(market))
    made = {path: path.stat().st_mtime_ns for path in (market / "masks").rglob("*.png")}
    first = sorted(made)[3]
    first.unlink()
    masks.body(options(market))
    assert "12 of 13 images are done already" in capsys.readouterr().out
    assert first.is_file()
    assert all(path.stat().st_mtime_ns == then for path, then in made.items() if path != first)


def test_a_folder_of_another_maker_is_refused(market):
    masks.body(options(market))
    with pytest.raises(UserError, match="holds masks made with from 'parser', now it is 'torchvi"):
        masks.body(options(market, by="detectors"))


def test_images_of_several_sizes_in_one_batch(persons):
    small = persons.image(0)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    one, two, again = Parser()([small, large, small])
    assert torch.equal(one.labels, again.labels)
    assert two.labels.shape == large.shape[1:]
    halved = two.labels[::2, ::2]
    assert (halved == one.labels).float().mean() > 0.97
    assert INPUT[0] > INPUT[1]


def test_images_of_all_sizes_go_through_the_network_at_once(persons):
    small = persons.image(0)
    parser, seen = Parser(), []
    parser.network.register_forward_hook(lambda _, given, scores: seen.append(len(scores)))
    parser([small, small[:, :-4], small, small[:, 9:, 3:]])
    assert seen == [4, 4]  # and the mirror images
    assert parser([]) == []


@pytest.mark.parametrize("size", [(160, 64), (75, 33)])
def test_a_fused_network_pads_nothing_and_gives_the_same_scores(size):
    torch.manual_seed(0)
    network = ParserNetwork().eval()
    images = 255 * torch.rand(2, 3, *size)
    with torch.inference_mode():
        before = network(images)
        fuse(network)
        assert not any(isinstance(one, torch.nn.ZeroPad2d) for one in network.modules())
        assert torch.allclose(network(images), before, atol=1e-4 * float(before.abs().max()))


def test_pieces_of_a_batch_are_made_side_by_side():
    both = threading.Barrier(2, timeout=30)

    def first_pixels(images):
        both.wait()
        assert torch.get_num_threads() == 1
        return [PartMask(image[0]) for image in images]

    images = [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in range(10)]
    made = in_threads(first_pixels, threads=2, piece=3)(images)
    assert [int(mask.labels[0, 0]) for mask in made] == list(range(10))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--by", "parser", "--detector-weights", "x"], "leave them out with --by parser"),
        (["--by", "parser", "--from", "lip", "--source", "x"], "masks are made or imported"),
    ],
)
def test_options_that_exclude_each_other(words, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        masks.main(["--out", str(tmp_path / "m"), *words])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors do not fit; expected a file that python"):
        Parser(tmp_path / "a.safetensors")
