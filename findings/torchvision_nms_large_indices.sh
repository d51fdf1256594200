#!/bin/sh
# batched_nms of torchvision 0.29.1 separates categories by moving each box by its index times the
# largest coordinate, in the boxes' float32. Where the index is the number of a frame, so that boxes of
# all frames are sorted out in one call, boxes lose their places and sizes to rounding:
# - From 100,000 on (66 minutes at 25 frames per second) some duplicates of a person are kept; of
#   numbers such as 20,260,001 all are: a moved box has no area, and an overlap of NaN suppresses none.
# - With more than 1,000 boxes in the call (CPU; CUDA: 25,000) the function works by another rule, and
#   is right: whether a duplicate stays depends on boxes of other frames.
# Its documentation asks for "indices of the categories", without a bound, and says nothing of the
# rounding; that float16 boxes overflow so is known. Numbers from 0, as by
# torch.unique(frames, return_inverse=True), or boxes of float64 give the right ones here.
#
# Fails if one of this changes. Needs python3 with venv, and 6 GB of disk where torch has CUDA.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchvision==0.29.1 torch==2.14.1 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import torch
import torchvision
from torchvision.ops import batched_nms

PERSONS, FRAMES = 8, 50
random = torch.Generator().manual_seed(0)
column = 220 * torch.arange(PERSONS).repeat(FRAMES)
corner = torch.stack([column, torch.full_like(column, 300)], dim=1).float()
corner += 20 * torch.rand(len(corner), 2, generator=random)
boxes = torch.cat([corner, corner + torch.tensor([60.0, 160.0])], dim=1)
boxes = torch.cat([boxes, boxes + 2])  # a second detection of each person, two pixels off
scores = torch.rand(len(boxes), generator=random)
frames = torch.arange(FRAMES).repeat_interleave(PERSONS).repeat(2)


def kept(boxes, frames, scores=scores):
    extra = len(batched_nms(boxes, scores.to(boxes), frames, 0.7)) - len(boxes) // 2
    if extra == 0:
        return "no duplicate"
    return "all duplicates" if extra == len(boxes) // 2 else "some duplicates"


print(f"torchvision {torchvision.__version__.split('+')[0]}, {len(boxes)} boxes")
for first in (0, 10_000, 100_000, 1_000_000, 20_260_001):
    numbers = first + frames
    renumbered = torch.unique(numbers, return_inverse=True)[1]
    twice = torch.cat([boxes, boxes])
    twice_numbers = torch.cat([numbers, numbers + FRAMES])
    twice_kept = kept(twice, twice_numbers, torch.cat([scores, scores]))
    print(f"frames from {first:,}: {kept(boxes, numbers)} kept")
    print(f"  float64: {kept(boxes.double(), numbers)}; renumbered: {kept(boxes, renumbered)}")
    print(f"  {len(twice):,} boxes of twice the frames: {twice_kept}")
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
torchvision 0.29.1, 800 boxes
frames from 0: no duplicate kept
  float64: no duplicate; renumbered: no duplicate
  1,600 boxes of twice the frames: no duplicate
frames from 10,000: no duplicate kept
  float64: no duplicate; renumbered: no duplicate
  1,600 boxes of twice the frames: no duplicate
frames from 100,000: some duplicates kept
  float64: no duplicate; renumbered: no duplicate
  1,600 boxes of twice the frames: no duplicate
frames from 1,000,000: some duplicates kept
  float64: no duplicate; renumbered: no duplicate
  1,600 boxes of twice the frames: no duplicate
frames from 20,260,001: all duplicates kept
  float64: no duplicate; renumbered: no duplicate
  1,600 boxes of twice the frames: no duplicate
TEXT
diff "$folder/expected" "$folder/seen"
