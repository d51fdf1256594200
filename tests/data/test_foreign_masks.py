"""Mask files as other programs write them: what they hold is what is read, or it is said."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiffs import write_tiff

from mmga.bodyparts.importers import open_importer
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import DataSet, ImageTensors
from mmga.data.loader import eval_batches
from mmga.data.masks import (
    LABEL_SETS,
    MaskFolder,
    PartMask,
    mask_names,
    read_body,
    read_labels,
    read_mask,
    to_part_mask,
)
from mmga.data.pictures import take_notes
from mmga.data.readers.by_name import load
from mmga.data.transforms import EvalTransform

BODY = np.zeros((32, 16), np.uint8)
BODY[4:28, 4:12] = 1
PARSED = np.zeros((32, 16), np.uint8)
PARSED[4:16, 4:12], PARSED[16:28, 4:12] = 5, 9  # LIP's upper clothes and pants

VOC = [(0, 0, 0)] + [
    tuple(sum((n >> (c + 3 * b) & 1) << (7 - b) for b in range(3)) for c in range(3))
    for n in range(1, 20)
]


def _folder(root, values, count=3, mode=None, suffix=".png"):
    root.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        picture = Image.fromarray(np.asarray(values))
        (picture if mode is None else picture.convert(mode)).save(root / f"{place}{suffix}")
    return root


def _palette(path, labels, order, colours, **options):
    """Write a palette file whose index is the place of a label in `order`."""
    indices = np.zeros_like(labels)
    for index, label in enumerate(order):
        indices[labels == label] = index
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([value for label in order for value in colours[label]])
    picture.save(path, **options)


@pytest.mark.parametrize(
    ("label_set", "on"), [("parts", 1), ("parts", 2), ("parts", 3), ("lip", 1), ("atr", 1)]
)
def test_masks_of_one_label_are_silhouettes(on, label_set, tmp_path, caplog):
    """0 and 1 is not `all upper body`: the halves are unknown, and it is said."""
    folder = MaskFolder(_folder(tmp_path / "m", BODY * on), label_set)
    assert folder.count(["0.jpg", "1.jpg", "9.jpg"]) == 2
    assert f"hold 0 and {on} alone and are read as silhouettes" in caplog.text
    mask = folder("0.jpg")
    assert not mask.parts
    assert ((mask.labels.numpy() != 0) == (BODY != 0)).all()
    halved = MaskFolder(tmp_path / "m", label_set, split=0.5)("0.jpg")
    assert set(np.unique(halved.labels)) == {0, 1, 2}


@pytest.mark.parametrize("values", [BODY * 255, BODY.astype(bool), BODY.astype(np.uint16) * 65535])
def test_other_two_valued_masks_are_silhouettes(values, tmp_path):
    """Files of 8, 1 and 16 bits, to the end of a batch."""
    folder = MaskFolder(_folder(tmp_path / "m", values))
    image = np.zeros((3, 32, 16), np.uint8)
    images = ImageTensors([torch.from_numpy(image)], [1], [1], ["0.jpg"])
    images.mask = lambda index: folder("0.jpg")
    (batch,) = eval_batches(images, EvalTransform(size=(32, 16)))
    assert batch.has_mask.all()
    assert not batch.parts.any()
    assert ((batch.labels[0].numpy() != 0) == (BODY != 0)).all()
    assert not to_part_mask(BODY.astype(bool)).parts


def test_masks_of_parts_stay_masks_of_parts(tmp_path, caplog):
    root = _folder(tmp_path / "m", BODY)  # persons without legs ...
    both = BODY.copy()
    both[20:] *= 2
    Image.fromarray(both).save(root / "7.png")  # ... and one with
    assert MaskFolder(root)("0.jpg").parts
    assert not caplog.records


def test_a_folder_that_mmga_made_is_taken_at_its_word(tmp_path):
    root = _folder(tmp_path / "m", BODY)
    (root / "manifest.json").write_text('{"schema": 1, "origin": {"from": "lip"}}')
    assert MaskFolder(root)("0.jpg").parts


def test_a_manifest_of_others_says_nothing(tmp_path):
    root = _folder(tmp_path / "m", BODY)
    (root / "manifest.json").write_text('{"schema": 1, "files": []}')
    assert not MaskFolder(root)("0.jpg").parts


def test_masks_that_mmga_made_are_not_read_by_the_labels_of_their_source(tmp_path, caplog):
    both = BODY.copy()
    both[20:] *= 2
    root = _folder(tmp_path / "m", both)
    (root / "manifest.json").write_text('{"schema": 1, "origin": {"from": "lip"}}')
    folder = MaskFolder(root, "lip")
    np.testing.assert_array_equal(folder("0.jpg").labels, both)
    assert "and not by --label-set lip" in caplog.text
    assert not MaskFolder(root, "silhouette")("0.jpg").parts


def test_a_part_that_no_mask_holds_is_named(tmp_path, caplog):
    values = BODY * 5
    values[:8] = values[:8] // 5 * 2  # clothes and hair
    root = _folder(tmp_path / "m", values)
    with caplog.at_level(logging.WARNING):
        MaskFolder(root, "lip").count(["0.jpg"])
    assert "warning: bottom body occurs in none of the 3 masks" in caplog.text


def test_the_column_of_a_table_follows_the_same_rule(tmp_path, caplog):
    _folder(tmp_path / "m", BODY, 6)
    lines = ["path,pid,camid,split,mask"]
    for place, split in enumerate(("train", "query", "gallery") * 2):
        Image.new("RGB", (16, 32)).save(tmp_path / f"{place}.jpg")
        lines.append(f"{place}.jpg,1,{place},{split},m/{place}.png")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = load(DataConfig(data="csv", root=tmp_path / "t.csv"))
    assert not data.train.mask(0).parts
    assert "read as silhouettes" in caplog.text


@pytest.mark.parametrize("order", [[0, 5, 9], [9, 5, 0], [5, 0, 9]])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palettes_that_were_renumbered_are_read_by_colour(order, bits, tmp_path):
    _palette(tmp_path / "a.png", PARSED, order, VOC, bits=bits)
    take_notes()
    mask = read_mask(tmp_path / "a.png", "lip")
    assert (mask.labels[16:28, 4:12] == 2).all()
    assert (mask.labels[4:16, 4:12] == 1).all()
    assert (mask.labels.numpy() != 0).sum() == (PARSED != 0).sum()
    assert [key for key, _ in take_notes()] == ["palette"]


def test_the_colours_of_lip_are_known(tmp_path):
    colours = {0: (0, 0, 0), 5: (255, 85, 0), 9: (0, 85, 85)}
    _palette(tmp_path / "a.png", PARSED, [9, 0, 5], colours)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", "lip"), PARSED)


@pytest.mark.parametrize("colours", ["voc", "grey", "decoration"])
def test_palettes_in_order_keep_their_indices(colours, tmp_path):
    table = {
        "voc": VOC,
        "grey": [(n, n, n) for n in range(20)],
        "decoration": [((n * 37) % 256, (n * 91) % 256, 9) for n in range(20)],
    }[colours]
    _palette(tmp_path / "a.png", PARSED, range(20), table)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", "lip"), PARSED)


def test_colours_that_fit_two_palettes_are_refused(tmp_path):
    colours = {0: (0, 0, 0), 5: (128, 0, 0), 9: (0, 128, 0)}  # skirt or hair: LIP's or Pascal's
    _palette(tmp_path / "a.png", PARSED, [9, 0, 5], colours)
    with pytest.raises(UserError, match="fit several label sets"):
        read_labels(tmp_path / "a.png", "lip")


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_labels_of_few_bits_are_not_spread(bits, tmp_path):
    import struct
    import zlib

    labels = np.arange(32).reshape(4, 8) % 3
    per_byte = 8 // bits
    packed = np.zeros((4, bits), np.uint8)
    for place in range(8):
        shift = 8 - bits * (place % per_byte + 1)
        packed[:, place // per_byte] |= (labels[:, place] << shift).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", 8, 4, bits, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_labels_in_tiff_of_any_depth(bits, white_is_zero, tmp_path):
    labels = np.arange(32).reshape(4, 8) % 4
    write_tiff(tmp_path / "a.tif", labels, bits, white_is_zero)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


def test_labels_of_sixteen_bits(tmp_path):
    Image.fromarray(PARSED.astype(np.uint16)).save(tmp_path / "a.png")
    assert (read_mask(tmp_path / "a.png", "lip").labels[16:28, 4:12] == 2).all()
    with pytest.raises(UserError, match="holds label 9"):
        read_mask(tmp_path / "a.png", "parts")


def test_transparent_labels_are_background(tmp_path):
    alpha = (BODY * 255).astype(np.uint8)
    Image.fromarray(np.stack((np.full_like(BODY, 2), alpha), -1), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png").labels, BODY * 2)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_are_turned_as_their_images(orientation, suffix, tmp_path):
    turn = {3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270"}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(PARSED).transpose(getattr(Image.Transpose, turn))
    stored.save(tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}", "lip"), PARSED)
    np.testing.assert_array_equal(read_body(tmp_path / f"a{suffix}"), PARSED != 0)


def _cut_out(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 4), np.uint8)
    pixels[..., 3] = BODY * 255
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = picture.convert("RGB").quantize(15)
        indices = np.array(picture)
        indices[BODY == 0] = 15
        palette = [*picture.getpalette()[:45], 0, 0, 0]
        picture = Image.fromarray(indices).convert("P")
        picture.putpalette(palette)
        return picture, {"transparency": 15}
    return picture.convert(mode), {}


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".png"), ("LA", ".png"), ("P", ".png")])
def test_of_cut_outs_the_alpha_is_the_body(mode, suffix, tmp_path):
    picture, options = _cut_out(mode)
    picture.save(tmp_path / f"a{suffix}", **options)
    np.testing.assert_array_equal(read_body(tmp_path / f"a{suffix}"), BODY != 0)


@pytest.mark.parametrize("kind", ["L", "1", "RGB", "RGBA", "P", "16", "labels", "swapped", "jpg"])
def test_silhouettes_of_any_kind(kind, tmp_path):
    path = tmp_path / ("a.jpg" if kind == "jpg" else "a.png")
    white = Image.fromarray(BODY * 255)
    if kind == "16":
        Image.fromarray(BODY.astype(np.uint16) * 65535).save(path)
    elif kind == "labels":  # whose darkest label has a tenth of the brightness of the brightest
        _palette(path, PARSED, range(20), VOC)
    elif kind == "swapped":
        _palette(path, BODY, [1, 0], [(0, 0, 0), (255, 255, 255)])
    else:
        white.convert("L" if kind == "jpg" else kind).save(path)
    np.testing.assert_array_equal(read_body(path), BODY != 0)
    assert not read_mask(path, "silhouette").parts


def test_a_photograph_is_no_mask(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a coloured picture and no mask"):
        read_body(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_grey_photograph_is_no_mask(mode, tmp_path):
    grey = np.random.default_rng(0).normal(120, 40, (128, 64)).clip(0, 255).astype(np.uint8)
    deep = mode == "I;16"
    picture = Image.fromarray(grey * np.uint16(257)) if deep else Image.fromarray(grey)
    (picture if deep else picture.convert(mode)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a grey picture and no mask"):
        read_body(tmp_path / "a.png")


@pytest.mark.parametrize("how", ["resized", "jpg", "blurred"])
def test_a_silhouette_with_soft_edges_is_a_mask(how, tmp_path):
    from PIL import ImageFilter

    whole = Image.fromarray(BODY * 255)
    picture = whole.resize((64, 128), Image.Resampling.BICUBIC)
    if how == "blurred":
        picture = picture.filter(ImageFilter.GaussianBlur(3))
    path = tmp_path / ("a.jpg" if how == "jpg" else "a.png")
    picture.save(path)
    true = np.array(whole.resize((64, 128), Image.Resampling.NEAREST)) > 0
    assert (read_body(path) == true).mean() > 0.95


@pytest.mark.parametrize("name", ["a.png", "a.jpg.png", "a.PNG", "a.jpg.PNG", "a.bmp", "a.TIF"])
def test_names_of_mask_files(name, tmp_path):
    (tmp_path / "train").mkdir()
    values = PARSED // 4  # 1 and 2
    Image.fromarray(values).save(tmp_path / "train" / name)
    folder = MaskFolder(tmp_path)
    assert folder.count(["train/a.jpg", "train/b.jpg"]) == 1
    np.testing.assert_array_equal(folder("train/a.jpg").labels, values)
    assert folder("train/b.jpg") is None
    assert Path("train") / name in [Path(one) for one in mask_names("train/a.jpg")]


def _data(paths, size=(32, 16)):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    images = [ImageTensors([image] * len(paths), [1] * len(paths), [1] * len(paths), paths)] * 3
    return DataSet("csv", *images)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((32, 16), True),
        ((64, 32), True),
        ((33, 16), True),
        ((16, 8), True),
        ((32, 32), False),
        ((473, 473), False),
        ((16, 32), False),
        ((48, 16), False),
    ],
)
@pytest.mark.parametrize("kind", ["lip", "silhouette"])
def test_masks_of_another_shape_are_not_stretched(kind, shape, fits, tmp_path):
    values = np.zeros(shape, np.uint8)
    values[2:9, 2:5], values[9:, 2:5] = 5, 9
    Image.fromarray(values).save(tmp_path / "a.png")
    importer = open_importer(kind, tmp_path, _data(["a.jpg"]))
    if fits:
        assert importer("a.jpg", lambda: (32, 16)).labels.shape == (32, 16)
    else:
        expected = rf"{shape[0]} x {shape[1]} pixels .* and its image a\.jpg 32 x 16"
        with pytest.raises(UserError, match=expected):
            importer("a.jpg", lambda: (32, 16))


def test_silhouettes_are_no_label_maps(tmp_path):
    root = _folder(tmp_path / "m", BODY)
    with pytest.raises(UserError, match=r"hold 0 and 1 alone.*--from silhouette"):
        open_importer("lip", root, _data(["0.jpg", "1.jpg"]))


def test_other_depths_of_folders_are_shown(tmp_path):
    _folder(tmp_path / "m" / "deep", PARSED)
    with pytest.raises(UserError) as said:
        open_importer("lip", tmp_path / "m", _data(["img/0.jpg"]))
    assert "m/img/0.png" in str(said.value)
    assert "m/img/0.jpg.png" in str(said.value)
    assert "m/deep/0.png" in str(said.value)


def test_every_label_has_a_colour_of_its_own():
    for name in LABEL_SETS:
        values = np.arange(LABEL_SETS[name].labels, dtype=np.uint8)[None]
        assert isinstance(to_part_mask(values, name), PartMask)
