"""A training that takes a second: its configuration, data and command."""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmga.config import Config, merged, recipe_config
from mmga.data.dataset import DataSet, ImageTensors, Subset
from mmga.data.masks import PartMask

SMALL = {
    "data": {"height": 32, "width": 16},
    "batch": {"p": 4, "k": 2},
    "run": {"epochs": 3, "log_every": 1, "threads": 1},
}


def small(**sections) -> Config:
    config = merged(recipe_config("synthetic"), SMALL, where="test")
    return merged(config, sections, where="test")


def data(persons: int = 6, images: int = 4) -> DataSet:
    random = np.random.default_rng(0)
    count = persons * images
    pictures = [
        torch.from_numpy(random.integers(0, 256, (3, 32, 16), dtype=np.uint8)) for _ in range(count)
    ]
    masks = [
        PartMask(torch.from_numpy(random.integers(0, 3, (32, 16), dtype=np.uint8)))
        for _ in range(count)
    ]
    pids, camids = np.arange(count) // images, np.arange(count) % 2
    whole = ImageTensors(pictures, pids, camids, masks=masks)
    return DataSet(
        "test",
        whole,
        Subset(whole, np.flatnonzero(camids == 0)[:6]),
        Subset(whole, np.flatnonzero(camids == 1)),
    )


def table(folder: Path, persons: int = 6, images: int = 4) -> Path:
    """Write a data set as PNG files and a CSV table."""
    random = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split"])
        for index in range(persons * images):
            name, pid = f"{index:03d}.png", index // images
            Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(
                folder / name
            )
            writer.writerow([name, pid, index % 2, "train"])
            writer.writerow([name, pid, index % 2, "gallery" if index % 2 else "query"])
    return folder / "table.csv"


def command(root: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "mmga.train", "--out", str(out)]
    if "--resume" in more:
        return [*words, *more]
    flags = {
        "recipe": "synthetic", "data": "csv", "root": root, "height": 32, "width": 16,
        "p": 4, "k": 2, "epochs": 12, "log-every": 1, "threads": 1,
    }  # fmt: skip
    return [*words, *(str(w) for name, v in flags.items() for w in (f"--{name}", v)), *more]
