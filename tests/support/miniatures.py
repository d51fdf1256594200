"""Data sets in miniature: every folder and file name as published, a handful of tiny images."""

import numpy as np
from PIL import Image

from mmga.config import DataConfig
from mmga.data.dataset import DataSet
from mmga.data.readers import by_name

DUKE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_train/0001_c5_f0051341.jpg",
    "bounding_box_train/0007_c8_f0055000.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0002_c1_f0044158.jpg",
    "bounding_box_test/0005_c1_f0046305.jpg",
)
CUHK03_NP = (
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c2_6.png",
    "query/0768_c1_21.png",
    "bounding_box_test/0768_c2_7.png",
)
MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000776_01.jpg",
    "bounding_box_train/0007_c3s3_077419_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0001_c2s1_000301_01.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
)
MSMT17 = {
    "train": (
        "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "0001/0001_003_14_0302noon_0345_1.jpg 1",
    ),
    "val": ("0000/0000_010_05_0303morning_0520_2.jpg 0",),
    "query": ("0000/0000_001_06_0303noon_0100_0.jpg 0",),
    "gallery": (
        "0000/0000_002_15_0303noon_0200_1.jpg 0",
        "0002/0002_000_01_0303afternoon_0001_0.jpg 2",
    ),
}


def load(name, root=None, **switches) -> DataSet:
    """Read a data set by its name."""
    return by_name.load(DataConfig(data=name, root=root, **switches))


def images(root, paths, size=(16, 32)):
    """Write an image for each path below `root`, each of another colour."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, 40, 80)).save(root / path)


def msmt17(root, train="train", test="test"):
    """Write MSMT17's lists and images."""
    for split, lines in MSMT17.items():
        folder = train if split in ("train", "val") else test
        images(root / folder, [line.split()[0] for line in lines])
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def cuhk03_mat(path, persons=(3, 2, 1, 1), empty=((0, 1, 4),)):
    """Write a file laid out as MATLAB 7.3 writes CUHK03's, three of ten images a person."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        hidden = file.create_group("#refs#")

        def stored(value):
            name = f"r{len(hidden)}"
            hidden.create_dataset(name, data=value)
            return hidden[name].ref

        nothing = stored(np.zeros(2, np.uint64))
        for boxes, shade in (("detected", 0), ("labeled", 100)):
            pairs = np.empty((1, len(persons)), h5py.ref_dtype)
            for pair, count in enumerate(persons):
                cells = np.empty((10, count), h5py.ref_dtype)
                cells[:] = nothing
                for person in range(count):
                    for place in (0, 4, 7):
                        if (pair, person, place) in empty:
                            continue
                        pixels = np.zeros((3, 5, 8), np.uint8)  # MATLAB's 8 x 5 x 3
                        pixels[0] = shade + pair * 10 + person
                        pixels[1] = place
                        pixels[2] = np.arange(8)
                        cells[place, person] = stored(pixels)
                pairs[0, pair] = stored(cells)
            file.create_dataset(boxes, data=pairs)
        tests = np.empty((1, 2), h5py.ref_dtype)
        tests[0, 0] = stored(np.array([[1, 2], [1, 1]], float))  # persons (1, 1) and (2, 1)
        tests[0, 1] = stored(np.array([[1], [3]], float))
        file.create_dataset("testsets", data=tests)
    return path
