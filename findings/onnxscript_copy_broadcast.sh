#!/bin/sh
# torch.onnx.export(dynamo=True) of torch 2.14.1 with onnxscript 0.7.2 writes aten.copy as a cast of
# its source, without broadcasting it to the target:
# - y.copy_(row) of a target with more rows is a tensor of one row in the ONNX graph. ONNX Runtime
#   1.32.0 gives an output of another shape than the model, or of the same shape with other values
#   where a norm over the rows follows. Neither export nor onnx.checker complains. y[:] = row is
#   right, since torch expands the row before it copies.
# - y[:, :2] = 0 is right if the module is exported, but is a copy of a scalar if the program ran
#   run_decompositions(torch.export.default_decompositions()) before: ONNX Runtime does not load the
#   file. torchvision's Swin, which numbers the windows of its mask so, is such a model.
# A decomposition of aten.copy that expands the source makes both right.
#
# Fails if one of this changes. Needs python3 with venv, and 6 GB of disk where torch has CUDA.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 onnx==1.23.2 \
    onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import logging
import sys
import warnings

import onnx
import onnxruntime
import onnxscript
import torch
from torch import nn
from torchvision.models import swin_t


class Copy(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y.copy_(x.mean(0))
        return y


class Assign(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[:] = x.mean(0)
        return y


class Norm(nn.Module):
    def forward(self, x):
        return x / Copy()(x).norm(dim=0)


class Scalar(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[:, :2] = 0
        return y


def expanded(target, source, non_blocking=False):
    return source.to(target.dtype).expand(target.shape)


def answer(model, x, table):
    program = torch.export.export(model.eval(), (x,))
    if table is not None:
        program = program.run_decompositions(table)
    path = f"{sys.argv[1]}/model.onnx"
    with torch.no_grad():
        torch.onnx.export(program, (), dynamo=True, verbose=False).save(path)
        expected = model(x).numpy()
    onnx.checker.check_model(path)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception:
        return "not loaded"
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    if found.shape != expected.shape:
        return f"shape {found.shape} for {expected.shape}"
    return "right" if abs(found - expected).max() < 1e-4 else "other values"


warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(3)
print(f"torch {torch.__version__.split('+')[0]}, onnxscript {onnxscript.__version__}")
x = torch.arange(1.0, 17.0).reshape(4, 4)
default = torch.export.default_decompositions
repaired = default()
repaired[torch.ops.aten.copy.default] = expanded
models = {
    "y.copy_(row)": (Copy(), x),
    "its norm over rows": (Norm(), x),
    "y[:] = row": (Assign(), x),
    "y[:, :2] = 0": (Scalar(), x),
    "swin_t": (swin_t(weights=None), torch.rand(1, 3, 64, 64)),
}
for name, (model, images) in models.items():
    seen = [answer(model, images, table) for table in (None, default(), repaired)]
    print(f"{name}: {seen[0]}; after default decompositions {seen[1]}; with copy's {seen[2]}")
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" | grep -v "^\[torch.onnx\]" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
torch 2.14.1, onnxscript 0.7.2
y.copy_(row): shape (4,) for (4, 4); after default decompositions shape (4,) for (4, 4); with copy's right
its norm over rows: other values; after default decompositions other values; with copy's right
y[:] = row: right; after default decompositions right; with copy's right
y[:, :2] = 0: right; after default decompositions not loaded; with copy's right
swin_t: right; after default decompositions not loaded; with copy's right
TEXT
diff "$folder/expected" "$folder/seen"
