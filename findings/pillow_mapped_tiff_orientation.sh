#!/bin/sh
# Pillow 13.0.0 turns a TIFF as its EXIF orientation says when it is loaded, but not where the file
# is memory-mapped: uncompressed L, RGBA and I;16 pictures that are opened by path stay as they are
# stored, and lose the orientation tag, so that ImageOps.exif_transpose does not turn them either.
# The same files opened as file objects are turned, and so are RGB and F in both ways. Crops read by
# path and by file object then differ, with exit code 0 and no warning.
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import sys

import numpy as np
import PIL
from PIL import Image, ImageOps

ORIENTATION, TURNED_RIGHT = 0x0112, 6
kinds = {"L": ("uint8", ()), "RGBA": ("uint8", (4,)), "I;16": ("uint16", ()),
         "RGB": ("uint8", (3,)), "F": ("float32", ())}
lines = [f"Pillow {PIL.__version__}"]
for mode, (dtype, channels) in kinds.items():
    stored = np.arange(24 * int(np.prod(channels))).astype(dtype).reshape(6, 4, *channels)
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED_RIGHT
    path = f"{sys.argv[1]}/{mode.replace(';', '')}.tif"
    Image.fromarray(stored).save(path, exif=exif)

    def state(image):
        upright = np.array_equal(np.asarray(ImageOps.exif_transpose(image)), np.rot90(stored, -1))
        return f"{'turned' if upright else 'as stored'}, tag {image.getexif().get(ORIENTATION)}"

    by_path = Image.open(path)
    by_path.load()
    with open(path, "rb") as file:
        by_object = Image.open(file)
        by_object.load()
        lines.append(f"{mode}: by path {state(by_path)}; by file object {state(by_object)}")
print("\n".join(lines))
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
Pillow 13.0.0
L: by path as stored, tag None; by file object turned, tag None
RGBA: by path as stored, tag None; by file object turned, tag None
I;16: by path as stored, tag None; by file object turned, tag None
RGB: by path turned, tag None; by file object turned, tag None
F: by path turned, tag None; by file object turned, tag None
TEXT
diff "$folder/expected" "$folder/seen"
