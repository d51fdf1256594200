"""Training of the parser: Clothing Co-Parsing's labels, the crops, and a few steps."""

import math

import clothing
import numpy as np
import pytest
import torch

from mmga.bodyparts import train
from mmga.bodyparts.ccp import part_labels, read_photos
from mmga.bodyparts.crops import Crops
from mmga.bodyparts.network import ParserNetwork, encoder_names
from mmga.bodyparts.parser import Parser
from mmga.bodyparts.quality import ious
from mmga.common.errors import UserError
from mmga.data.masks import BACKGROUND, BOTTOM, OTHER, UPPER


@pytest.fixture
def photos(tmp_path):
    return read_photos(clothing.folder(tmp_path / "ccp", 4), 160)


def parts(garments):
    return part_labels(garments.astype(np.int64), clothing.NAMES)


def test_garments_are_sorted_into_parts():
    found = parts(clothing.standing())
    assert found[10, 50] == found[20, 50] == found[50, 50] == UPPER  # hair, face, t-shirt
    assert found[100, 50] == found[145, 50] == BOTTOM  # jeans, shoes
    assert found[90, 70] == OTHER  # the bag
    assert found[4, 50] == BACKGROUND


def test_long_garments_are_cut_at_the_hips():
    garments = clothing.standing()
    garments[26:120, 36:64] = clothing.NAMES.index("coat")
    found = parts(garments)
    hips = 8 + round(0.47 * 142)
    assert (found[26:hips, 50] == UPPER).all() and (found[hips:120, 50] == BOTTOM).all()
    garments[130:] = 0  # the feet are out of the picture: nothing tells where the hips are
    assert (parts(garments)[26:120, 50] == OTHER).all()


def test_skin_is_arm_leg_or_hand():
    garments, skin = clothing.standing(), clothing.NAMES.index("skin")
    garments[30:86, 64:68] = skin  # a bare arm that hangs below the hips
    garments[100:140, 40:60] = skin  # bare legs
    found = parts(garments)
    assert (found[30:86, 65] == UPPER).all() and (found[100:140, 50] == BOTTOM).all()
    garments = clothing.standing()
    garments[26:82, 64:68] = clothing.NAMES.index("t-shirt")  # a sleeve
    garments[82:92, 64:68] = skin  # its hand
    assert (parts(garments)[82:92, 65] == UPPER).all()


def test_photographs_are_read_at_a_height(photos):
    assert [photo.name for photo in photos] == ["0001", "0002", "0003", "0004"]
    assert photos[0].image.shape == (3, 160, 100) and photos[0].image.dtype == torch.uint8
    assert photos[0].labels.shape == (160, 100)


def test_a_folder_that_is_something_else(tmp_path):
    with pytest.raises(UserError, match="label_list"):
        read_photos(tmp_path, 160)
    clothing.folder(tmp_path / "ccp", 1)
    (tmp_path / "ccp" / "annotations/pixel-level/0001.mat").unlink()
    with pytest.raises(UserError, match=r"holds no annotations/pixel-level/\*\.mat"):
        read_photos(tmp_path / "ccp", 160)


def test_crops_depend_on_seed_and_number_alone(photos):
    crops = Crops(photos, [], (64, 32), 5)
    images, labels = crops.batch(0, 16)
    assert images.shape == (16, 3, 64, 32) and labels.shape == (16, 64, 32)
    assert (
        images.min() >= 0 and images.max() <= 255 and set(labels.unique().tolist()) <= {0, 1, 2, 3}
    )
    other = crops.batch(1, 16)
    again = Crops(photos, [], (64, 32), 5).batch(0, 16)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(images, other[0])


def test_unknown_halves_count_for_the_whole_alone():
    scores = torch.zeros((1, 3, 4, 2))
    labels = torch.full((1, 4, 2), OTHER, dtype=torch.uint8)
    upper, bottom, nobody = scores.clone(), scores.clone(), scores.clone()
    upper[:, UPPER], bottom[:, BOTTOM], nobody[:, BACKGROUND] = 9, 9, 9
    losses = [float(train.parsing_loss(one, labels)) for one in (upper, bottom, nobody)]
    assert losses[0] == losses[1] < 0.1 < losses[2]
    found = torch.full((4, 2), UPPER, dtype=torch.uint8)
    own = ious(found, labels[0])
    assert own["whole"] == 1.0 and math.isnan(own["upper"])


def test_a_short_training_gives_a_parser(tmp_path, capsys):
    ccp, out = clothing.folder(tmp_path / "ccp", 3), tmp_path / "parser.safetensors"
    words = ["--steps", "2", "--batch-size", "2", "--held-out", "1", "--generated-persons", "0"]
    train.main(["--ccp", str(ccp), "--out", str(out), *words])
    said = capsys.readouterr().out
    assert "parser of 2 photographs" in said and "IoU on 1 photographs held out: whole 0." in said
    labels = Parser(out).labels(torch.zeros((1, 3, 64, 32), dtype=torch.uint8))
    assert labels.shape == (1, 64, 32)


def test_the_encoder_takes_the_published_names(tmp_path):
    network = ParserNetwork()
    own = network.state_dict()
    names = encoder_names(own)
    assert names["stages.2.1.expand.conv.weight"] == "_blocks.4._expand_conv.weight"
    assert names["stages.5.2.project.norm.bias"] == "_blocks.13._bn2.bias"
    state = {theirs: torch.full_like(own[mine], 2) for mine, theirs in names.items()}
    torch.save({**state, "_fc.weight": torch.zeros(3, 3)}, tmp_path / "lite0.pth")
    network.load_encoder(tmp_path / "lite0.pth")
    assert torch.all(network.stem.conv.weight == 2)
    del state["_conv_stem.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"--encoder .*other\.pth does not fit; expected EfficientNe"
    ):
        network.load_encoder(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "x.pth"], "--out must end in .safetensors"),
        (["--out", "x.safetensors", "--steps", "0"], "--steps must be at least 1"),
        (["--out", "no/x.safetensors"], "--out no/x.safetensors: no is no folder to write to"),
    ],
)
def test_bad_options(words, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--ccp", "nowhere", *words])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err
