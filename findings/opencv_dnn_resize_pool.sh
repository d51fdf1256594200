#!/bin/sh
# cv2.dnn of opencv-python-headless 5.0.0.93 reads ONNX graphs otherwise than ONNX Runtime 1.32.0 where
# they resize or pool, and raises nothing:
# - Resize with antialias=1, as torch.onnx.export writes torchvision's Resize, is computed without. A
#   network that takes crops of any size and makes them smaller itself sees what lies between its
#   samples no more: stripes of 0 and 9 become 0 and 9 at a third of the width, in place of 4 and 5.
# - AveragePool with ceil_mode=1 and count_include_pad=1, as AvgPool2d(2, ceil_mode=True) is written,
#   divides what the last window has by the size of a whole one, though no padding is there to be
#   counted: the map fades at its border. With padding, as by AvgPool2d(3, 2, 1, ceil_mode=True), the
#   columns beyond it are counted too. ENGINE_CLASSIC has the former right, and leaves padding out.
# OpenVINO 2026.4.1 ignores antialias too (openvinotoolkit/openvino, issue 35893, open since May 2026,
# says so of cubic), and counts what lies beyond the padding. Of OpenCV no page or issue that we found
# says so.
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 openvino==2026.4.1 \
    onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import sys
from importlib.metadata import version

import cv2
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper, numpy_helper, save

FILE = f"{sys.argv[1]}/model.onnx"


def write(operator, shape, *constants, **attributes):
    inputs = ["x"] + [name for name, _ in constants]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw"))],
        [numpy_helper.from_array(value, name) for name, value in constants if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model)
    save(model, FILE)


def onnx_runtime(x):
    session = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def open_vino(x):
    return openvino.Core().compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x])[0]


def open_cv(engine):
    def run(x):
        network = cv2.dnn.readNetFromONNX(FILE, engine)
        network.setInput(x)
        return network.forward()

    return run


def look(name, row, columns):
    x = np.broadcast_to(np.float32(row), (1, 1, 6, len(row))).copy()
    print(name)
    for runtime, run in runtimes.items():
        middle = run(x)[0, 0, 1, columns]
        print(f"  {runtime}: {' '.join(f'{value:.3g}' for value in middle)}")


runtimes = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": open_vino,
    "OpenCV": open_cv(cv2.dnn.ENGINE_AUTO),
    "OpenCV, ENGINE_CLASSIC": open_cv(cv2.dnn.ENGINE_CLASSIC),
}
onnxruntime.set_default_logger_severity(3)
packages = "opencv-python-headless", "openvino", "onnxruntime"
print(", ".join(f"{name} {version(name)}" for name in packages))
stripes = [0, 9] * 12
for antialias in (0, 1):
    sizes = ("sizes", np.array([1, 1, 6, 8]))
    options = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    write("Resize", [1, 1, 6, 24], ("", None), ("", None), sizes, antialias=antialias, **options)
    look(f"Resize of stripes to a third, antialias={antialias}", stripes, slice(1, 7))
window = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
for count in (0, 1):
    write("AveragePool", [1, 1, 6, 5], count_include_pad=count, **window)
    look(f"AveragePool, ceil_mode=1, count_include_pad={count}", [2, 2, 2, 2, 6], slice(3))
window = {"kernel_shape": [1, 3], "strides": [1, 2], "pads": [0, 1, 0, 1], "ceil_mode": 1}
write("AveragePool", [1, 1, 6, 6], count_include_pad=1, **window)
look("AveragePool, ceil_mode=1, count_include_pad=1, pads of 1", [6] * 6, slice(4))
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" 2>"$folder/errors" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
opencv-python-headless 5.0.0.93, openvino 2026.4.1, onnxruntime 1.32.0
Resize of stripes to a third, antialias=0
  ONNX Runtime: 0 9 0 9 0 9
  OpenVINO: 0 9 0 9 0 9
  OpenCV: 0 9 0 9 0 9
  OpenCV, ENGINE_CLASSIC: 0 9 0 9 0 9
Resize of stripes to a third, antialias=1
  ONNX Runtime: 4 5 4 5 4 5
  OpenVINO: 0 9 0 9 0 9
  OpenCV: 0 9 0 9 0 9
  OpenCV, ENGINE_CLASSIC: 0 9 0 9 0 9
AveragePool, ceil_mode=1, count_include_pad=0
  ONNX Runtime: 2 2 6
  OpenVINO: 2 2 6
  OpenCV: 2 2 6
  OpenCV, ENGINE_CLASSIC: 2 2 6
AveragePool, ceil_mode=1, count_include_pad=1
  ONNX Runtime: 2 2 6
  OpenVINO: 2 2 6
  OpenCV: 2 2 3
  OpenCV, ENGINE_CLASSIC: 2 2 6
AveragePool, ceil_mode=1, count_include_pad=1, pads of 1
  ONNX Runtime: 4 6 6 3
  OpenVINO: 4 6 6 2
  OpenCV: 4 6 6 2
  OpenCV, ENGINE_CLASSIC: 6 6 6 6
TEXT
diff "$folder/expected" "$folder/seen"
