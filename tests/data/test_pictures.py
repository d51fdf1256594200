import logging
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiffs import write_tiff

from mmga.common.errors import UserError
from mmga.data import pictures
from mmga.data.dataset import ImageFiles
from mmga.data.loader import Loading, eval_batches
from mmga.data.pictures import MAX_PIXELS, Notes, eight_bits, read_image, take_notes
from mmga.data.transforms import EvalTransform


def _ramp(low, high, dtype):
    return np.linspace(low, high, 32 * 16).reshape(32, 16).astype(dtype)


def _read(path):
    take_notes()
    image = read_image(path)
    return image[0].numpy(), [key for key, _ in take_notes()]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("low", "high"), [(0, 2000), (900, 1100), (29000, 31000)])
def test_deep_pictures_of_a_small_span_keep_their_contrast(suffix, low, high, tmp_path):
    Image.fromarray(_ramp(low, high, np.uint16)).save(tmp_path / f"a{suffix}")
    grey, notes = _read(tmp_path / f"a{suffix}")
    assert (grey.min(), grey.max()) == (0, 255)
    assert (np.diff(grey.ravel().astype(int)) >= 0).all()
    assert notes == ["stretched"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("orientation", "turn"), [(2, 0), (5, 5), (6, 2), (7, 6), (8, 4)])
def test_deep_pictures_are_turned_too(suffix, orientation, turn, tmp_path):
    values = _ramp(0, 65535, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(values).transpose(Image.Transpose(turn))
    stored.save(tmp_path / f"a{suffix}", exif=exif)
    grey, notes = _read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(grey, values >> 8)
    assert notes == ["turned"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_lose_the_lower_eight_in_every_format(suffix, tmp_path):
    values = _ramp(0, 65535, np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    grey, notes = _read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(grey, values >> 8)
    assert not notes


def test_deep_pictures_that_count_from_white_are_no_negatives(tmp_path):
    values = _ramp(0, 65535, np.uint16)
    write_tiff(tmp_path / "a.tif", values, 16, white_is_zero=True)
    np.testing.assert_array_equal(_read(tmp_path / "a.tif")[0], values >> 8)


@pytest.mark.parametrize(
    ("values", "expected", "stretched"),
    [
        (np.array([0.0, 0.5, 1.0]), [0, 128, 255], False),
        (np.array([0.0, 100.0, 250.0]), [0, 100, 250], False),
        (np.array([0, 200], np.uint16), [0, 200], False),
        (np.array([-10.0, 0.0, 10.0]), [0, 128, 255], True),
        (np.array([20.0, 30.0, np.nan, np.inf, 40.0]), [0, 128, 0, 0, 255], True),
        (np.array([0, 2**31 - 1], np.int32), [0, 255], True),
        (np.array([7, 7], np.uint16), [7, 7], False),
        (np.array([0.1, 0.2]), [0, 255], True),
    ],
)
def test_ranges(values, expected, stretched):
    found, was = eight_bits(values)
    assert found.dtype == np.uint8
    assert found.tolist() == expected
    assert was is stretched


def test_a_picture_without_a_finite_pixel_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif cannot be decoded \(none of its pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("F", "tif"),
        ("RGBA", "webp"),
        ("L", "jpg"),
    ],
)
def test_every_mode_is_read_by_its_colours(mode, suffix, tmp_path):
    """A bright half stays bright and a dark one dark; alpha and transparency are ignored."""
    pixels = np.zeros((16, 8, 3), np.uint8)
    pixels[:8] = 255
    picture = Image.fromarray(pixels).convert(mode)
    options = {"lossless": True} if suffix == "webp" else {}
    if mode == "P":
        options["transparency"] = picture.getpixel((0, 0))
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.new("L", picture.size, 7))
    options |= {"exact": True} if suffix == "webp" else {}
    picture.save(tmp_path / f"a.{suffix}", **options)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (3, 16, 8)
    assert image.dtype == torch.uint8
    assert image[:, :8].min() > 240
    assert image[:, 8:].max() < 15


@pytest.mark.parametrize("colours", [3, 16])
def test_packed_palettes_are_unpacked(colours, tmp_path):
    labels = (np.arange(12 * 8).reshape(12, 8) % colours).astype(np.uint8)
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette([value * 15 for value in range(16) for _ in range(3)])
    picture.save(tmp_path / "a.png", bits=4 if colours == 16 else 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[1].numpy(), labels * 15)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_pictures_the_first_is_taken_and_it_is_said(suffix, tmp_path):
    first, second = (Image.new("RGB", (8, 16), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    assert read_image(tmp_path / f"a.{suffix}")[0].min() > 200
    assert [key for key, _ in take_notes()] == ["several"]


def test_dark_colours_of_sixteen_bits_are_told(tmp_path):
    row = b"\0" + struct.pack(">12H", *range(0, 1200, 100))
    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row * 2)), (b"IEND", b"")
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    grey, notes = _read(tmp_path / "a.png")
    assert grey[0].tolist() == [0, 1, 2, 3]  # 0, 300, 600 and 900 divided by 256
    assert notes == ["upper bits"]


def _declared(width, height):
    """Return files that declare a size and hold next to nothing, by suffix."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    bmp += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x00;"
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 278: height, 279: 1}
    tif = b"II*\0" + struct.pack("<IH", 8, len(tags))
    tif += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return {"png": png, "bmp": bmp, "gif": gif, "tif": tif + struct.pack("<I", 0)}


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif"])
@pytest.mark.parametrize("side", [8000, 8193, 12000, 60000])
def test_huge_headers_cost_no_memory_and_get_one_sentence(suffix, side, tmp_path, capfd):
    (tmp_path / f"a.{suffix}").write_bytes(_declared(side, side)[suffix])
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(UserError) as said:
        read_image(tmp_path / f"a.{suffix}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (f"{MAX_PIXELS:,}" if side > 8192 else "8,000 x 8,000 pixels and has") in str(said.value)
    assert "\n" not in str(said.value)
    assert peak < 1e7
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert not capfd.readouterr().err


def test_what_was_done_is_said_once(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "abc":
        Image.new("RGB", (32, 16)).save(tmp_path / f"{name}.jpg", exif=exif if name != "c" else b"")
    Image.fromarray(_ramp(0, 2000, np.uint16)).save(tmp_path / "d.tif")
    paths = [file.name for file in sorted(tmp_path.iterdir())]
    images = ImageFiles(tmp_path, paths, [1] * 4, [1] * 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for workers in (0, 1):
                batches = eval_batches(images, EvalTransform(size=(32, 16)), Loading(workers))
                assert sum(len(batch) for batch in batches) == 4
    first, second = caplog.messages
    assert first.startswith("note: turned as the EXIF orientation says: 2 files, such as ")
    assert first.endswith("a.jpg")
    assert second.startswith("note: more than 8 bits, stretched")


def test_notes_of_other_readers_are_not_repeated(caplog):
    for _ in range(2):
        notes = Notes()
        notes.add([("turned", "only/here.jpg")])
        notes.say()
    assert len(caplog.messages) == 1


def test_torchvision_is_not_imported_for_what_pillow_decodes(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError("imported")

    monkeypatch.setattr(pictures, "_torchvision_jpeg", refuse)
    for suffix in ("bmp", "png"):
        Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}")[:, 0, 0].tolist() == [9, 8, 7]
