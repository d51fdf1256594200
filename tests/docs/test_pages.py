"""The pages of the documentation that teach: all their blocks, in order, at a size of seconds."""

import re
import shlex
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pages
import pytest
import torch
from paths import REPOSITORY
from PIL import Image

import mmga
from mmga import eval, extract, masks, train
from mmga.common import cli
from mmga.data.synthetic import synthetic

DOCS = REPOSITORY / "docs"
PERSONS = ("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal")
CAMERAS = ("hall", "yard")
SMALL = "--backbone tiny --weights none --height 48 --width 16 --p 4 --k 2 --pad 1 --threads 1"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sides():
    """Rows around one centre for each person, pids, camids and paths of queries and gallery."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(6, 16))
    found = {}
    for side, count in (("query", 20), ("gallery", 80)):
        pids = random.integers(0, 6, count)
        rows = centres[pids] + 0.4 * random.normal(size=(count, 16))
        paths = np.array([f"{side}/{i}.jpg" for i in range(count)])
        found[side] = rows.astype(np.float32), pids, random.integers(0, 4, count), paths
    return found


def batches(columns):
    """What a loader gives: eight rows at a time, as tensors."""
    tensors = [torch.from_numpy(column) for column in columns[:3]]
    return zip(*(tensor.split(8) for tensor in tensors), strict=True)


def stand_ins(found, monkeypatch):
    """The variables of own-features.md; other packages' functions return what theirs return."""
    names = {
        f"{side}_{name}": column
        for side, columns in found.items()
        for name, column in zip(("features", "pids", "camids", "paths"), columns, strict=True)
    }
    rows, pids, camids, paths = map(np.concatenate, zip(*found.values(), strict=True))
    loaders = {
        side: [dict(zip(("img", "pid", "camid"), batch, strict=True)) for batch in batches(columns)]
        for side, columns in found.items()
    }
    names["datamanager"] = SimpleNamespace(test_loader={"market1501": loaders})
    names["model"] = lambda images: images.clone().requires_grad_()

    def run_on_loader(loader):
        for features, *labels in batches((rows, pids, camids)):
            yield features, *(column.numpy() for column in labels)

    names["demo"] = SimpleNamespace(run_on_loader=run_on_loader)
    names |= {"test_loader": None, "num_query": 20, "extractor": None}
    names["dataset"] = SimpleNamespace(
        df={"path": paths},
        get_labels=lambda: pids,
        get_query_ids=lambda: torch.arange(20, dtype=torch.int64, device="cpu"),
        get_gallery_ids=lambda: torch.arange(20, 100, dtype=torch.int64, device="cpu"),
    )

    class Validator:
        def __init__(self, config):
            assert config == ("osnet.pt", "market1501", "data")

        def setup(self):
            self.found = {
                f"{side[0]}_{name}": column
                for side, columns in found.items()
                for name, column in zip(("feats", "pids", "camids"), columns[:3], strict=True)
            }

        def predict(self):
            return SimpleNamespace(**self.found)

    modules = {
        "oml.inference": {"inference": lambda model, data, batch_size: torch.from_numpy(rows)},
        "boxmot.reid.evaluation.runner": {
            "ReIDValidator": Validator,
            "ReIDEvaluationConfig": lambda *words: words,
        },
    }
    for name, contents in modules.items():
        for end in (found.start() for found in re.finditer(r"\.|$", name)):
            monkeypatch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
        vars(sys.modules[name]).update(contents)
    return names


def test_own_features(folder, monkeypatch):
    from scipy.io import savemat

    found = sides()
    names = stand_ins(found, monkeypatch)
    layumi = {
        f"{side}_{short}": columns[i]
        for side, columns in found.items()
        for i, short in enumerate(("f", "label", "cam"))
    }
    savemat("pytorch_result.mat", layumi)
    reports, table = [], mmga.Report.table
    monkeypatch.setattr(
        mmga.Report, "table", lambda self, *more: reports.append(self) or table(self, *more)
    )
    pages.run("own-features", names, {})
    rules = [(report.protocol, report.metric) for report in reports]
    assert rules == [
        ("market1501", "cosine"),  # NumPy
        ("market1501", "cosine"),  # the same by command
        ("market1501", "euclidean"),  # torchreid
        ("market1501", "cosine"),  # fast-reid
        ("market1501-matlab", "cosine"),  # layumi
        ("no-camera", "euclidean"),  # OML
        ("market1501", "cosine"),  # boxmot
    ]
    plain = {
        report.figures.mAP for report, rule in zip(reports, rules, strict=True) if rule == rules[0]
    }
    assert len(plain) == 1 and reports[5].excluded["same_camera"] == 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of generated persons, photos/<person>/<camera>_<number>.jpg, and label maps."""
    folder = tmp_path_factory.mktemp("photographs")
    shown = synthetic(num_train=8, num_test=0, images_per_camera=2, cameras=2).train
    for i in range(len(shown)):
        name = f"{PERSONS[shown.pids[i] - 1]}/{CAMERAS[shown.camids[i] - 1]}_{i:04d}"
        for path, mode in ((f"photos/{name}.jpg", "RGB"), (f"parsing/photos/{name}.png", "L")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = shown.images[i].permute(1, 2, 0) if mode == "RGB" else shown.labels[i] * 5
            Image.fromarray(pixels.numpy(), mode).save(folder / path)
    return folder


@pytest.fixture
def in_photos(photos, folder):
    for name in ("photos", "parsing"):
        shutil.copytree(photos / name, name)


def test_own_photographs(in_photos):
    smaller = {
        "--epochs 60": f"{SMALL} --epochs 2",
        "--val-ids 20 --eval-every 10": "--val-ids 2 --eval-every 1",
        '"backbone": "resnet50", "weights": "IMAGENET1K_V1", "stripes": 6': '"backbone": "tiny"',
    }
    pages.run("own-photographs", {}, smaller)
    lines = [line.split(",") for line in Path("mine.csv").read_text().splitlines()[1:]]
    tested = {pid for _, pid, _, split in lines if split != "train"}
    assert tested == {"ann", "eve"} and not tested & {x[1] for x in lines if x[3] == "train"}
    assert len(Path("nearest.csv").read_text().splitlines()) == 1 + 5 * len(lines)


def test_make_masks(in_photos):
    paths = sorted(Path("photos").rglob("*.jpg"))
    rows = [f"{path},{path.parent.name},hall,train" for path in paths]
    Path("mine.csv").write_text("\n".join(["path,pid,camid,split", *rows, ""]))
    names = {}
    pages.run("make-masks", names, {})
    assert names["mask"].labels.shape == (128, 64)
    assert len(list(Path("from-lip/photos").rglob("*.png"))) == len(rows)


def test_tutorial(folder):
    smaller = {
        "--persons 96 --test-persons 32": f"--persons 8 --test-persons 5 {SMALL}",
        "--epochs 20": "--epochs 1",
        "--persons 6": "--persons 2",
        "--rows 6": "--rows 2",
    }
    pages.run("tutorial", {}, smaller)
    made = ("persons.png", "nearest.csv", "runs/first/attention.png", "runs/first/queries.csv")
    assert all(Path(name).is_file() for name in made)


@pytest.mark.parametrize("page", ["protocols", "faq"])
def test_on_feature_files(page, folder):
    for side, columns in sides().items():
        mmga.Features(*columns).save(f"{side}.npz")
    pages.run(page, {}, {})


@pytest.mark.parametrize(
    "line", [line for block in pages.blocks("results") for line in pages.lines(block)]
)
def test_commands_of_the_results_are_understood(line):
    """They take minutes to hours on data that is not here."""
    words = shlex.split(line.removeprefix("time "))
    assert words[:2] == ["python", "-m"]
    command = {"mmga.train": train, "mmga.extract": extract, "mmga.eval": eval, "mmga.masks": masks}
    module = command[words[2]]
    start = (module.starting_point(words[3:]),) if module is train else ()
    cli.parse(words[2].removeprefix("mmga."), module.Options, words[3:], *start)


def test_every_page_with_code_is_run():
    """By a test here or by one of its own."""
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for page in DOCS.glob("*.md"):
        if re.search(r"^```(sh|python)$", page.read_text(), re.MULTILINE):
            assert f'"{page.stem}"' in tests or f'"{page.name}"' in tests, page.name
