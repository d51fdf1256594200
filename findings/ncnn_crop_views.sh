#!/bin/sh
# ncnn 1.0.20261020 reads NumPy arrays as their memory lies, whatever their strides, and raises
# nothing:
# - Mat.from_pixels and from_pixels_resize of a box cut out of a frame, frame[top:bottom, left:right],
#   take the pixels that follow the first one of the box in the frame: the rows of the crop are pieces
#   of the frame's rows, and its feature is that of another picture.
# - Mat of image.transpose(2, 0, 1) takes colours of neighbouring pixels for pixels of one channel.
# A copy (crop.copy(), np.ascontiguousarray) is read rightly; from_pixels_roi of the whole frame, or
# from_pixels with the frame's stride, need none. Neither the package's README nor a docstring says
# so; for Mat it is known (Tencent/ncnn, issue 3082, open since 2021). ONNX Runtime 1.32.0 and MNN
# 3.6.1 take such arrays for what they are.
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ncnn==1.0.20261020 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
from importlib.metadata import version

import ncnn
import numpy as np

RGB = ncnn.Mat.PixelType.PIXEL_RGB
frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
top, left, height, width = 8, 20, 32, 16
view = frame[top : top + height, left : left + width]
copy = view.copy()
upright = copy.transpose(2, 0, 1)
first = (top * frame.shape[1] + left) * 3
following = frame.ravel()[first : first + copy.size].reshape(copy.shape).transpose(2, 0, 1)


def what(mat):
    values = np.array(mat)
    if np.array_equal(values, upright):
        return "the crop"
    return "what follows in memory" if np.array_equal(values, following) else "another picture"


print(f"ncnn {version('ncnn')}")
for name, crop in (("view", view), ("copy", copy)):
    assert np.array_equal(crop, copy)
    print(f"from_pixels, {name}: {what(ncnn.Mat.from_pixels(crop, RGB, width, height))}")
print(
    "from_pixels, view and stride of the frame: "
    f"{what(ncnn.Mat.from_pixels(view, RGB, width, height, frame.strides[0]))}"
)
roi = ncnn.Mat.from_pixels_roi(frame, RGB, 64, 48, left, top, width, height)
print(f"from_pixels_roi, frame: {what(roi)}")
sizes = width, height, 2 * width, 2 * height
resized = [np.array(ncnn.Mat.from_pixels_resize(crop, RGB, *sizes)) for crop in (view, copy)]
print(f"from_pixels_resize: view as copy {np.array_equal(*resized)}")
floats = copy.astype(np.float32)
turned = floats.transpose(2, 0, 1)
print(f"Mat, transposed: {what(ncnn.Mat(turned))}")
contiguous = np.ascontiguousarray(turned)
print(f"Mat, transposed and contiguous: {what(ncnn.Mat(contiguous))}")
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
ncnn 1.0.20261020
from_pixels, view: what follows in memory
from_pixels, copy: the crop
from_pixels, view and stride of the frame: the crop
from_pixels_roi, frame: the crop
from_pixels_resize: view as copy False
Mat, transposed: another picture
Mat, transposed and contiguous: the crop
TEXT
diff "$folder/expected" "$folder/seen"
