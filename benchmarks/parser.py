"""Quality and speed of the body-part parser on photographs.

    python benchmarks/parser.py --viper DIR --sdalf aleMasks_VIPeR.mat --ccp DIR
    python benchmarks/parser.py --market DIR --pose14 DIR --lists DIR
    python benchmarks/parser.py --blazepose viper=viper.npz pku=pku.npz
    python benchmarks/parser.py --sheet pku=DIR prid=DIR --sheets DIR --json FILE

Every folder is optional. VIPeR: IoU of the whole body with SDALF's silhouettes (Farenzena et al.,
CVPR 2010), beside the mean silhouette's and, with --detectors, torchvision's. CCP: IoU by part on
the photographs that training held out. Market-1501 (any of its crops, in folders named as its own):
where upper body ends and bottom body begins, against the hips of its 14 body points. BlazePose's
bodies and hips are benchmarks/blazepose.py's. Times are of
one thread's processor, so that other work on the machine counts little; for the wall time:

    time mmga masks --data viper --root DIR --splits train query gallery --preview 0 --out masks
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga import plots
from mmga.bodyparts import ccp
from mmga.bodyparts.detector import Detector, TorchvisionDetector
from mmga.bodyparts.parser import INPUT, WEIGHTS, Parser, resized
from mmga.bodyparts.quality import iou, photo_quality
from mmga.bodyparts.skeleton import from_points
from mmga.bodyparts.train import HEIGHT, HELD_OUT, hold_out
from mmga.common import memory
from mmga.data.masks import BOTTOM, UPPER, PartMask, read_mask, write_mask
from mmga.data.pictures import read_image
from mmga.data.readers.viper import read_silhouettes
from mmga.masks import BATCHES

SHEET = 40
"""Photographs on a sheet."""

SPEED = 256
"""Photographs that are timed."""

BATCH = BATCHES["parser"]

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
"""Market-1501's folders and the names of their splits."""

POINTS = 128
"""Height in pixels of the pictures that Market-1501's body points were found in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("viper", "sdalf", "ccp", "market", "pose14", "lists", "sheets", "json"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--detectors", type=Path, nargs=2, help="two files of weights")
    parser.add_argument("--blazepose", nargs="*", default=[], help="NAME=FILE.npz")
    parser.add_argument("--sheet", nargs="*", default=[], help="NAME=DIR: a sheet alone")
    options = parser.parse_args()
    memory.keep_freed()  # as the command does
    network = Parser(options.weights)
    figures: dict[str, Any] = {
        "parameters": sum(one.numel() for one in network.network.parameters()),
        "file_bytes": options.weights.stat().st_size,
        "input": list(INPUT),
    }
    if options.viper:
        figures["viper"] = viper(options, network)
    if options.ccp:
        photos = hold_out(ccp.read_photos(options.ccp, HEIGHT), HELD_OUT)[1]
        figures["ccp"] = {"photographs": len(photos), "nobody": nobody(photos, network)}
        for height in (128, 64):
            figures["ccp"][f"iou_at_{height}"] = photo_quality(network, photos, height)
        if options.sheets:
            draw(options.sheets / "ccp.png", network, [photo.image for photo in photos])
    if options.market and options.pose14 and options.lists:
        figures["market1501"] = market_hips(options, network)
    for name, file in (named.split("=", 1) for named in options.blazepose):
        figures.setdefault("blazepose", {})[name] = blazepose(Path(file), options.sdalf, network)
    for name, folder in (named.split("=", 1) for named in options.sheet):
        figures.setdefault("folders", {})[name] = anyone(
            Path(folder), name, options.sheets, network
        )
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


def viper(options: argparse.Namespace, network: Parser) -> dict[str, Any]:
    """Measure on VIPeR: times, and IoU with SDALF's silhouettes."""
    order = viper_order(options.viper)
    figures: dict[str, Any] = {"photographs": len(order), "milliseconds": times(order, network)}
    images = [read_image(file) for file in order]
    masks = in_batches(network, images)
    figures["without_person"] = sum(mask is None for mask in masks)
    if options.sheets:
        draw(options.sheets / "viper.png", network, images)
    if not options.sdalf:
        return figures
    find = read_silhouettes(options.sdalf, [str(file) for file in order])
    truth = [mask.labels > 0 for file in order if (mask := find(str(file))) is not None]
    found = [
        torch.zeros_like(theirs) if mask is None else mask.labels > 0
        for mask, theirs in zip(masks, truth, strict=True)
    ]
    own = np.array([iou(mine, theirs) for mine, theirs in zip(found, truth, strict=True)])
    figures["iou_silhouettes"] = {
        "mean": own.mean(),
        "percentiles_5_25_50_75_95": np.percentile(own, [5, 25, 50, 75, 95]).tolist(),
    }
    figures["iou_of_the_mean_silhouette"] = iou_of_the_mean(truth)
    if options.detectors:
        figures["detectors"] = detectors(TorchvisionDetector(options.detectors), images, truth)
    return figures


def iou_of_the_mean(truth: Sequence[torch.Tensor]) -> float:
    """Return the mean IoU of masks of one size with their mean at the best of some thresholds."""
    mean = torch.stack(list(truth)).float().mean(0)
    return max(
        float(np.mean([iou(mean > threshold, theirs) for theirs in truth]))
        for threshold in (0.3, 0.4, 0.5, 0.6)
    )


def viper_order(folder: Path) -> list[Path]:
    """Return VIPeR's photographs in the silhouettes' order."""
    files = [sorted((folder / camera).iterdir()) for camera in ("cam_a", "cam_b")]
    return [file for pair in zip(*files, strict=True) for file in pair]


def detectors(
    find: Detector, images: Sequence[torch.Tensor], truth: Sequence[torch.Tensor], every: int = 16
) -> dict[str, float]:
    """Measure torchvision's detectors on some of the photographs."""
    own, begun = [], time.process_time()
    for image, theirs in zip(images[::every], truth[::every], strict=True):
        person = find([image])[0]
        body = torch.zeros_like(theirs) if person is None else torch.from_numpy(person.body)
        own.append(iou(body, theirs))
    seconds = (time.process_time() - begun) / len(own)
    return {"photographs": len(own), "iou_silhouettes": float(np.mean(own)), "seconds": seconds}


def times(files: Sequence[Path], network: Parser) -> dict[str, float]:
    """Return milliseconds of one thread's processor for an image, step by step."""
    torch.set_num_threads(1)
    some = list(files[:SPEED])
    decode, images = timed(lambda: [read_image(file) for file in some])
    batches = [torch.stack(images[first : first + BATCH]) for first in range(0, len(some), BATCH)]
    label, labels = timed(lambda: [network.labels(batch) for batch in batches])
    small = [resized(batch.float(), INPUT) for batch in batches]
    small = [batch.contiguous(memory_format=torch.channels_last) for batch in small]
    with torch.inference_mode():
        forward, _ = timed(lambda: [network.network(batch) for batch in small])
    masks = [PartMask(one) for batch in labels for one in batch]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{place}.png" for place in range(len(masks))]
        write, _ = timed(lambda: [write_mask(p, m) for p, m in zip(places, masks, strict=True)])
        read, _ = timed(lambda: [read_mask(place) for place in places])
    steps = {"decode": decode, "parse": label, "write": write, "read_back": read}
    each = {name: 1e3 * seconds / len(some) for name, seconds in steps.items()}
    return {**each, "network_alone": 1e3 * forward / len(some), "sum": sum(each.values())}


def timed(work: Callable[[], list[Any]], rounds: int = 3) -> tuple[float, list[Any]]:
    """Return the fewest seconds of processor time that some work takes, and its result."""
    fewest = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        result = work()
        fewest = min(fewest, time.process_time() - begun)
    return fewest, result


def market_hips(options: argparse.Namespace, network: Parser) -> dict[str, Any]:
    """Compare where upper meets bottom body with the hips of Market-1501's body points."""
    images, rows, hips = [], [], []
    for folder, split in FOLDERS.items():
        files = sorted((options.market / folder).glob("*.jpg"))
        if not files:
            continue
        points = body_points(options, split)
        for file in files:
            if file.name not in points:
                continue
            image = read_image(file)
            images.append(image)
            skeleton = from_points(points[file.name])
            mask = network([image])[0]
            height = image.shape[-2]
            if skeleton.hips is None or mask is None:
                continue
            row = boundary(mask.labels)
            if row is not None:
                rows.append(row / height)
                hips.append(skeleton.hips[1] / POINTS)
    if options.sheets:
        draw(options.sheets / "market1501.png", network, images)
    return {"crops": len(images), **distances(rows, hips)}


def distances(rows: Sequence[float], hips: Sequence[float]) -> dict[str, float]:
    """Summarise how far boundaries are below hips, as shares of the images' heights.

    Crops show whole persons, so that hips are at much the same height in all: beside the parser
    stands the one row that is best for all of them.
    """
    errors, spread = np.subtract(rows, hips), np.abs(hips - np.median(hips))
    absolute = np.abs(errors)
    return {
        "with_hips_and_boundary": len(errors),
        "median_error": float(np.median(absolute)),
        "median_signed": float(np.median(errors)),
        "under_5_percent": float((absolute < 0.05).mean()),
        "median_error_of_one_row": float(np.median(spread)),
        "correlation": float(np.corrcoef(rows, hips)[0, 1]),
    }


def blazepose(file: Path, sdalf: Path | None, network: Parser) -> dict[str, Any]:
    """Compare bodies and hips with BlazePose's, where it saw a person and its hips."""
    found = np.load(file)
    masks = in_batches(network, [read_image(path) for path in found["paths"]])
    own, rows, hips, theirs = [], [], [], []
    for place, mask in enumerate(masks):
        body = torch.from_numpy(found[f"m{place}"])
        _, y, seen = found["hips"][place]
        labels = torch.zeros_like(body, dtype=torch.uint8) if mask is None else mask.labels
        own.append(iou(labels > 0, body))
        row = boundary(labels)
        if row is not None and seen > 0.5:
            rows.append(row / body.shape[0])
            hips.append(y / body.shape[0])
        theirs.append(body)
    figures = {"photographs": len(masks), "iou": float(np.mean(own)), "hips": distances(rows, hips)}
    if len({body.shape for body in theirs}) == 1:
        figures["iou_of_the_mean_body"] = iou_of_the_mean(theirs)
    if sdalf and "cam_a" in str(found["paths"][0]):
        paths = [Path(path) for path in found["paths"]]
        order = viper_order(paths[0].parent.parent)
        find = read_silhouettes(sdalf, [str(path) for path in order])
        truth = [mask.labels > 0 for path in paths if (mask := find(str(path))) is not None]
        pairs = [iou(*pair) for pair in zip(theirs, truth, strict=True)]
        figures["iou_of_blazepose_with_silhouettes"] = float(np.mean(pairs))
    return figures


def body_points(options: argparse.Namespace, split: str) -> dict[str, np.ndarray]:
    """Return the 14 body points of each crop of a split, float [14, 2], by the file's name."""
    import h5py

    with h5py.File(options.pose14 / f"market1501_14point_{split}.mat") as file:
        points = np.asarray(file["pp"][()], np.float64).reshape(-1, 2, 14).transpose(0, 2, 1) - 1
    test = (options.lists / "list_market_test.txt").read_text().splitlines()
    train = (options.lists / "list_market_train.txt").read_text().splitlines()
    folder = {"train": "", "query": "query/", "gallery": "bounding_box_test/"}[split]
    lines = train if split == "train" else [line for line in test if line.startswith(folder)]
    names = sorted(line.split()[0].removeprefix(folder) for line in lines)
    # Junk is not on the lists; its names come first.
    return dict(zip(names, points[len(points) - len(names) :], strict=True))


def boundary(labels: torch.Tensor) -> float | None:
    """Return the row that parts upper body above it from bottom body below it with fewest errors.

    Arms hang below the hips: columns without any bottom body do not count.
    """
    own = labels[:, (labels == BOTTOM).any(0)]
    upper, bottom = (own == UPPER).sum(1), (own == BOTTOM).sum(1)
    if not upper.any() or not bottom.any():
        return None
    above = torch.cat((torch.zeros(1), bottom.cumsum(0)))  # bottom body above each row
    below = upper.sum() - torch.cat((torch.zeros(1), upper.cumsum(0)))
    wrong = above + below
    best = (wrong == wrong.min()).nonzero()[:, 0]
    return float(best.float().mean())


def nobody(photos: Sequence[ccp.Photo], network: Parser) -> dict[str, Any]:
    """Parse the strips beside the persons: in how many is nobody seen (some show passers-by)?"""
    strips = []
    for photo in photos:
        columns = photo.labels.any(0).nonzero()[:, 0]
        for strip in (photo.image[:, :, : columns[0]], photo.image[:, :, columns[-1] + 1 :]):
            if strip.shape[2] >= strip.shape[1] // 5:
                strips.append(strip)
    seen = in_batches(network, strips)
    return {"strips": len(strips), "without_person": sum(mask is None for mask in seen)}


def anyone(folder: Path, name: str, sheets: Path | None, network: Parser) -> dict[str, Any]:
    """Parse the pictures of a folder: how many show nobody, and a sheet."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp")
    ]
    images = [read_image(file) for file in files]
    masks = in_batches(network, images)
    if sheets:
        draw(sheets / f"{name}.png", network, images)
    return {"photographs": len(images), "without_person": sum(mask is None for mask in masks)}


def in_batches(network: Parser, images: Sequence[torch.Tensor]) -> list[PartMask | None]:
    """Return the mask of each image."""
    batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
    return [mask for batch in batches for mask in network(batch)]


def draw(path: Path, network: Parser, images: Sequence[torch.Tensor]) -> None:
    """Draw evenly spaced photographs beside their masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = np.unique(np.linspace(0, len(images) - 1, SHEET).round().astype(int)).tolist()
    chosen = [images[place] for place in places]
    masks = in_batches(network, chosen)
    labels = [None if mask is None else mask.labels for mask in masks]
    sheet = plots.mask_sheet(chosen, labels, [str(place) for place in places], width=400)
    plots.save(sheet, path)


if __name__ == "__main__":
    main()
