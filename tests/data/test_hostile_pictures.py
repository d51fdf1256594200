"""Damaged and misnamed pictures and masks: each ends in a result or in one sentence.

The damage is drawn by a generator, in a process of its own, so that a decoder that ends the process
is found and does not end the tests.
"""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from paths import REPOSITORY
from PIL import Image

FORMATS = ("jpg", "png", "webp", "bmp", "tif", "gif")
KINDS = ("image", "labels", "body", "fields")


def _whole(suffix, kind):
    """Return the bytes of a sound file."""
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    if suffix == "npy":
        np.save(buffer, random.random((36, 8, 4), np.float32))
        return buffer.getvalue()
    pixels = random.integers(0, 256, (32, 16, 3), np.uint8)
    if kind != "image":
        pixels = np.where(pixels[..., 0] > 99, 0, pixels[..., 1] % 3).astype(np.uint8)
    picture = Image.fromarray(pixels)
    name = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    options = {"compression": "tiff_lzw"} if suffix == "tif" and kind == "image" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix in ("jpg", "png", "webp"):
        options["exif"] = exif
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def _damaged(whole, random):
    """Yield kinds of damage and the damaged bytes of a file."""
    size = len(whole)
    yield "empty", b""
    yield "zeros", bytes(size)
    yield "text", b"<html>404</html>"
    for share in (0.02, 0.1, 0.5, 0.9, 0.99):
        yield "truncated", whole[: int(size * share)]
    for place in range(24):
        flipped = bytearray(whole)
        # Half of them in the header, where sizes and types stand.
        end = min(size, 64) if place % 2 else size
        for _ in range(1 + place % 4):
            flipped[random.integers(end)] ^= 1 << random.integers(8)
        yield "flipped", bytes(flipped)
    for number in (0xFF, 0x7F):
        for start in (4, 8, 16, 18, 24):
            huge = bytearray(whole)
            huge[start : start + 4] = bytes([number] * len(huge[start : start + 4]))
            yield "huge", bytes(huge)
    yield "doubled", whole * 2
    yield "shifted", whole[7:]


def write_all(folder):
    """Write the files; return path, kind of file and kind of damage of each."""
    written = []
    for kind in KINDS:
        for suffix in ("npy",) if kind == "fields" else FORMATS:
            whole = _whole(suffix, kind)
            cases = list(_damaged(whole, np.random.default_rng(len(written))))
            others = [other for other in (*FORMATS, "npy") if other != suffix]
            cases += [("wrong suffix", _whole(other, kind)) for other in others]
            for place, (damage, content) in enumerate(cases):
                file = folder / f"{kind}_{place}.{suffix}"
                file.write_bytes(content)
                written.append((str(file), kind, damage))
            (folder / f"{kind}_folder.{suffix}").mkdir()
            written.append((str(folder / f"{kind}_folder.{suffix}"), kind, "folder"))
            written.append((str(folder / f"{kind}_gone.{suffix}"), kind, "missing"))
    return written


CHILD = """
import json, resource, sys
from pathlib import Path
from mmga.bodyparts.importers import read_confidence_fields
from mmga.common.errors import UserError
from mmga.data.dataset import read_image
from mmga.data.masks import read_body, read_mask

# A file of a few hundred bytes that takes more than this fails as out of memory, not in silence.
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

def fields(path):
    file = Path(path)
    return read_confidence_fields(file.parent, file.name.replace(".npy", ".jpg"), lambda: (32, 16))

READ = {"image": read_image, "labels": read_mask, "body": read_body, "fields": fields}
for line in sys.stdin:
    path, kind = json.loads(line)
    try:
        READ[kind](path)
        end = "result"
    except UserError as error:
        end = str(error)
    except BaseException as error:
        end = f"TRACEBACK {type(error).__name__}: {error}"
    print(json.dumps([path, end]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the child limits its memory")
def test_every_hostile_file_ends_in_a_result_or_one_sentence(tmp_path):
    written = write_all(tmp_path)
    assert len(written) > 900
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(json.dumps([path, kind]) + "\n" for path, kind, _ in written),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=300,
    )
    ends = dict(json.loads(line) for line in child.stdout.splitlines())
    unread = [one for one in written if one[0] not in ends]
    assert not unread, f"the process ended over {unread[0]} with {child.returncode}"
    # Decoders in C print lines of their own; Python's warnings and tracebacks would be ours.
    assert "Warning" not in child.stderr and "Traceback" not in child.stderr
    bad = []
    counted = Counter()
    for path, kind, damage in written:
        end = ends[path]
        counted[kind, "result" if end == "result" else "sentence"] += 1
        sentence = "\n" not in end and Path(path).stem in end and not end.startswith("TRACEBACK")
        gone = kind == "fields" and damage in ("folder", "missing")  # no file: no mask
        if end != "result" and not sentence:
            bad.append((damage, path, end))
        if end == "result" and not gone and damage in ("empty", "zeros", "text", "folder"):
            bad.append((damage, path, end))
    assert not bad, bad[:5]
    # Damage to colours is no damage to a file: both ends occur, for every kind of file.
    assert all(counted[kind, end] > 5 for kind in KINDS for end in ("result", "sentence")), counted
