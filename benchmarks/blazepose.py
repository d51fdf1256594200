"""Bodies and hips of photographs by MediaPipe's BlazePose, to compare the parser with.

    pip install mediapipe==0.10.21
    python benchmarks/blazepose.py DIR [DIR ...] --every 4 --out viper.npz

Runs by itself, without mmga: MediaPipe asks for an older NumPy. Its models are in its package
(BlazePose, Bazarevsky et al., CV4ARVR 2020; Apache-2.0). The file holds `paths`, `hips` (x, y in
pixels, visibility; mean of both, and the lesser visibility) and one body `m0`, `m1`, ... for each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import mediapipe
import numpy as np

HEIGHT, BORDER = 512, 64
"""Pixels to which photographs are enlarged, and that are added round them: its network looks for
whole persons in whole pictures."""

HIPS = [23, 24]
"""Left and right hip of the 33 landmarks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    files = [file for folder in options.folders for file in sorted(folder.rglob("*.*"))]
    solution = mediapipe.solutions.pose.Pose(
        static_image_mode=True,
        model_complexity=1,
        enable_segmentation=True,
        min_detection_confidence=0.3,
    )
    looked, begun = 0, time.process_time()
    paths, hips, bodies = [], [], {}
    with solution as pose:
        for file in files[:: options.every]:
            picture = cv2.imread(str(file))
            if picture is None:
                continue
            looked += 1
            found = person(pose, picture)
            if found is not None:
                bodies[f"m{len(paths)}"] = found[0]
                paths.append(str(file))
                hips.append(found[1])
    seconds = time.process_time() - begun
    print(f"{len(paths)} persons in {looked} photographs, {1e3 * seconds / looked:.1f} ms each")
    np.savez_compressed(options.out, paths=np.array(paths), hips=np.array(hips), **bodies)


def person(pose: mediapipe.solutions.pose.Pose, picture: np.ndarray) -> tuple | None:
    """Return the body, bool [H, W], and the hips of a picture [H, W, 3]; None without a person."""
    height, width = picture.shape[:2]
    scale = HEIGHT / height
    large = cv2.resize(picture, (round(width * scale), HEIGHT), interpolation=cv2.INTER_CUBIC)
    side = HEIGHT + 2 * BORDER
    left = (side - large.shape[1]) // 2
    right = side - large.shape[1] - left
    square = cv2.copyMakeBorder(large, BORDER, BORDER, left, right, cv2.BORDER_REPLICATE)
    found = pose.process(cv2.cvtColor(square, cv2.COLOR_BGR2RGB))
    if found.pose_landmarks is None:
        return None
    own = found.segmentation_mask[BORDER:-BORDER, left : left + large.shape[1]]
    body = cv2.resize(own, (width, height), interpolation=cv2.INTER_AREA) > 0.5
    both = [found.pose_landmarks.landmark[place] for place in HIPS]
    x, y = (np.mean([getattr(one, axis) for one in both]) * side for axis in "xy")
    seen = min(one.visibility for one in both)
    return body, ((x - left) / scale, (y - BORDER) / scale, seen)


if __name__ == "__main__":
    main()
