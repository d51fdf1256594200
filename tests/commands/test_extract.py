"""Features of any images by any network: resumable, mirrored, by part."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SIZE, write_run
from small_training import table

import mmga
from mmga import eval as evaluation
from mmga import extract, search
from mmga.common.ids import UNKNOWN
from mmga.data.readers.image_list import read_images
from mmga.extraction import resumable
from mmga.extraction.embedder import visibility
from mmga.extraction.of_run import embedder_of_run
from mmga.models import load

READING = resumable.Reading(batch_size=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(tmp_path):
    """Ten images named as Market-1501's, two folders deep."""
    random = np.random.default_rng(0)
    for index in range(10):
        file = tmp_path / "images" / "sub" / f"{index // 2:04d}_c{index % 3 + 1}s1_{index:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


def normalised(images):
    from mmga.data.dataset import read_image
    from mmga.data.transforms import normalise

    files = sorted(images.rglob("*.png"))
    return normalise(torch.stack([read_image(file) for file in files]))


def call(*words):
    extract.main([str(word) for word in words])


def fails(capsys, *words):
    with pytest.raises(SystemExit) as leave:
        call(*words)
    assert leave.value.code == 2
    said = capsys.readouterr().err.splitlines()  # where time runs, progress comes first
    assert [line for line in said if "error" in line] == said[-1:], said
    return said[-1]


@pytest.mark.parametrize(
    ("flags", "flip"), [((), True), (("--flip-test",), True), (("--no-flip-test",), False)]
)
def test_a_folder_of_images(run, images, tmp_path, flags, flip):
    out = tmp_path / "g.npz"
    call("--run", run, "--images", images, "--out", out, *flags)
    features = mmga.load_features(out)
    network = load(run)
    with torch.inference_mode():
        expected = network.embed(normalised(images))
        if flip:
            expected = expected + network.embed(normalised(images).flip(-1))
    expected = torch.nn.functional.normalize(expected)
    torch.testing.assert_close(features.features, expected, rtol=1e-5, atol=1e-6)
    assert features.pids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert features.camids.tolist() == [1, 2, 1, 3, 2, 3, 1, 2, 1, 3]
    assert features.paths[0] == "sub/0000_c1s1_000000.png"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_name_that_says_nothing(run, images, tmp_path, capsys):
    (images / "sub" / "0000_c1s1_000000.png").rename(images / "me.png")
    call("--run", run, "--images", images, "--out", tmp_path / "g.npz")
    features = mmga.load_features(tmp_path / "g.npz")
    assert features.paths[0] == "me.png"
    assert features.pids.tolist() == [UNKNOWN, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert features.camids.tolist() == [UNKNOWN, 2, 1, 3, 2, 3, 1, 2, 1, 3]
    said = capsys.readouterr().err
    assert "9 of 10 names were read by Market-1501's pattern 0002_c1" in said
    assert "sub/0000_c2s1_000001.png as pid 0000, camid 2" in said
    assert "1 do not fit and are unknown, the first is me.png" in said


def test_names_by_a_pattern(run, images, tmp_path, capsys):
    for file in list(images.rglob("*.png")):
        pid, rest = file.name.split("_", 1)
        target = images / f"person{int(pid)}" / f"{rest[1]}-{rest[4:]}"
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    words = ("--run", run, "--images", images, "--out", tmp_path / "g.npz")
    call(*words)
    features = mmga.load_features(tmp_path / "g.npz")
    assert set(features.pids) == set(features.camids) == {UNKNOWN}
    assert "no name fits Market-1501's pattern" in capsys.readouterr().err
    call(*words, "--pattern", r"(?P<pid>[^/]+)/(?P<camid>\d)-_?(?P<frame>\d+)")
    features = mmga.load_features(tmp_path / "g.npz")
    assert features.pid_names.tolist() == [f"person{i}" for i in range(5)]
    assert features.camids.tolist() == [1, 2, 1, 3, 2, 3, 1, 2, 1, 3]
    assert features.columns["frame"].tolist()[:2] == ["000000", "000001"]
    for pattern, sentence in (
        ("(", "--pattern ( is no regular expression"),
        (r"\d+", "has no group pid and no group camid"),
        ("(?P<pid>x)", "fits none of the 10 paths"),
        ("(?P<pid>p)(?P<paths>e)", "a group cannot be called paths"),
    ):
        assert sentence in fails(capsys, *words, "--pattern", pattern)
    assert "--pattern needs --images" in fails(capsys, "--run", run, "--pattern", "(?P<pid>x)")


def test_a_table_of_images(run, images, tmp_path):
    names = [f"sub/{file.name}" for file in sorted(images.rglob("*.png"))]
    (images / "t.csv").write_text(
        f"pid;img_path\n7.0;{names[2]}\n8;{names[0]}\n;{names[1]}\n-1.0;{names[3]}\n"
    )
    call("--run", run, "--images", images / "t.csv", "--out", tmp_path / "g.safetensors")
    features = mmga.load_features(tmp_path / "g.safetensors")
    assert features.pids.tolist() == [7, 8, UNKNOWN, -1]
    assert features.camids.tolist() == [UNKNOWN] * 4
    assert features.paths.tolist() == [names[2], names[0], names[1], names[3]]


def test_own_photographs_are_extracted_found_and_not_evaluated(run, images, tmp_path, capsys):
    for number, file in enumerate(sorted(images.rglob("*.png"))):
        file.rename(images / f"IMG_{number}.png")
    call("--run", run, "--images", images, "--out", tmp_path / "g.npz")
    words = [f"--query={tmp_path}/g.npz", f"--gallery={tmp_path}/g.npz"]
    for more in ((), ("--rerank", "--k1=3", "--k2=2")):
        search.main([*words, *more, "--topk=3", f"--out={tmp_path}/r.csv"])
        rows = list(csv.DictReader((tmp_path / "r.csv").open()))
        assert len(rows) == 30
        assert [row["gallery_path"] for row in rows[::3]] == [
            row["query_path"] for row in rows[::3]
        ]
        assert {row["gallery_pid"] for row in rows} == {""}
    with pytest.raises(SystemExit) as leave:
        evaluation.main(words)
    assert leave.value.code == 2
    assert "query: all 10 pids are unknown" in capsys.readouterr().err.splitlines()[-1]
    names = "\n".join(f"IMG_{i}.png,{i % 5},{i % 3}" for i in reversed(range(10)))
    (tmp_path / "t.csv").write_text(f"path,pid,camid\n{names}\n")
    tables = [f"--{side}-columns={tmp_path}/t.csv" for side in ("query", "gallery")]
    evaluation.main([*words, *tables])
    assert "10 queries" in capsys.readouterr().out


def test_a_stopped_extraction_goes_on(run, images, tmp_path, monkeypatch, capsys):
    call("--run", run, "--images", images, "--out", tmp_path / "through.npz", "--batch-size", 2)
    monkeypatch.setattr(resumable, "SHARD", 4)
    embedder = embedder_of_run(run, flip=True, parts=False)

    def stop(phase, done, total):
        assert (phase, total) == ("extract", 10)
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumable.extract_to(
            tmp_path / "g.npz", embedder, read_images(images), READING, progress=stop
        )
    assert not (tmp_path / "g.npz").exists()
    # Another network, or another image, is not mixed in.
    said = fails(
        capsys, "--run", run, "--images", images, "--out", tmp_path / "g.npz", "--no-flip-test"
    )
    assert "beginning of another extraction (it differs in flip)" in said
    told = []
    resumable.extract_to(
        tmp_path / "g.npz",
        embedder,
        read_images(images),
        READING,
        progress=lambda phase, done, total: told.append(done),
    )
    assert told == [4, 6, 8, 10]  # the first shard was there
    one, two = (mmga.load_features(tmp_path / f"{name}.npz") for name in ("through", "g"))
    assert torch.equal(one.features, two.features)
    assert one.paths.tolist() == two.paths.tolist()
    assert not (tmp_path / "g.npz.partial").exists()


@pytest.mark.parametrize("heads", [3, 8])
def test_features_of_parts(images, tmp_path, heads):
    run = write_run(tmp_path / "run", heads=heads)
    out = tmp_path / "p.npz"
    call("--run", run, "--images", images, "--out", out, "--parts", "--no-flip-test")
    features = mmga.load_features(out)
    network = load(run)
    with torch.inference_mode():
        output = network.outputs(normalised(images))
    for index, name in enumerate(network.head_names):
        row = torch.nn.functional.normalize(output.features[name])
        torch.testing.assert_close(features.parts[:, index], row, rtol=1e-5, atol=1e-6)
        seen = visibility(output.attention[name.split("_")[0]])
        torch.testing.assert_close(features.visibility[:, index], seen)
    assert features.parts.shape == (10, heads, 256)
    assert 0 < features.visibility.min() < features.visibility.max() < 1


def test_visibility_is_the_mean_of_the_highest_tenth():
    maps = torch.linspace(0, 1, 40).reshape(1, 1, 8, 5)
    assert visibility(maps).item() == pytest.approx(torch.linspace(0, 1, 40)[-4:].mean().item())
    assert visibility(torch.full((2, 1, 1, 3), 0.25)).tolist() == [0.25, 0.25]


class Classifying(torch.nn.Module):
    """Like timm's networks: a classifier that can be taken off."""

    def __init__(self, classes=4):
        super().__init__()
        self.body = torch.nn.Linear(3, 6)
        self.head = torch.nn.Linear(6, classes)

    def reset_classifier(self, classes):
        self.head = torch.nn.Identity()

    def forward(self, x):
        return self.head(self.body(x.mean((2, 3))))


def test_any_network(images, tmp_path):
    torch.manual_seed(1)
    network = Classifying(classes=9)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    name = f"{__name__}:Classifying"
    arguments = '{"classes": 9}'
    words = ("--model-weights", tmp_path / "w.pth", "--model-arguments", arguments)
    out = tmp_path / "g.npz"
    size = ("--height", SIZE[0], "--width", SIZE[1])
    call("--model", name, *words, *size, "--images", images, "--out", out, "--no-flip-test")
    network.reset_classifier(0)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(network(normalised(images)))
    torch.testing.assert_close(mmga.load_features(out).features, expected)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model", "torch.nn:Flattn"), "has no attribute 'Flattn'); check the name"),
        (("--model", "nowhere.at:all"), "named 'nowhere'); install nowhere, or check the name"),
        (("--model", "torch.nowhere:all"), "named 'torch.nowhere'); check the name"),
        (("--model", "torch"), "--model must be package:callable"),
        (("--model", "torch.nn:Linear"), "could not be called with {} (TypeError"),
        (
            ("--model", "torch:zeros", "--model-arguments", '{"size": [2]}'),
            "return a torch.nn.Module",
        ),
        (("--model", "torch.nn:Identity"), "must return features [10, D] for 10 images, found [10"),
        (("--model", "torch.nn:Flatten", "--model-arguments", "[]"), "must be a JSON object"),
        (("--model", "torch.nn:Flatten", "--parts"), "--parts needs attention maps"),
        ((), "either --run or --model"),
        (("--model", "torch.nn:Flatten", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("--model", "torch.nn:Flatten", "--workers", "1000000"), "--workers must be at most 1024"),
        (("--model", "torch.nn:Flatten", "--workers", "-1"), "--workers must not be negative"),
    ],
)
def test_networks_that_do_not_fit(capsys, images, tmp_path, words, sentence):
    said = fails(capsys, "--images", images, "--out", tmp_path / "g.npz", *words)
    assert sentence in said
    assert not (tmp_path / "g.npz").exists()


def test_images_that_do_not_fit(capsys, run, images, tmp_path):
    out = ("--out", tmp_path / "g.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("photo,pid\na.png,1\n")
    (tmp_path / "u.csv").write_text("path,pid\na.png,me\na.png,you\n")
    for name, sentence in (
        ("empty", "no image file there"),
        ("nowhere", "expected a folder or a .csv table"),
        ("t.csv", "lacks the column path"),
        ("u.csv", "lines 2 and 3 say pid 'me' and 'you' of one path, a.png"),
    ):
        assert sentence in fails(capsys, "--run", run, "--images", tmp_path / name, *out)
    said = fails(capsys, "--run", run, "--images", images, "--out", tmp_path / "g.csv")
    assert "--out must end in" in said
    assert "--out is missing" in fails(capsys, "--run", run, "--images", images)
    assert "--parts needs --images" in fails(capsys, "--run", run, "--parts")
    assert "--run is missing" in fails(capsys)


def test_every_picture_of_a_folder_is_extracted(run, tmp_path):
    folder = tmp_path / "mixed"
    (folder / ".thumbnails").mkdir(parents=True)
    (folder / "album.jpg").mkdir()
    wanted = ["a.JPG", "album.jpg/b.jfif", "c.gif", "d.pgm", "e.avif"]
    for name in (*wanted, ".thumbnails/a.png", "._a.jpg"):
        Image.new("RGB", SIZE[::-1]).save(folder / name, format="PNG")
    call("--run", run, "--images", folder, "--out", tmp_path / "g.npz")
    assert mmga.load_features(tmp_path / "g.npz").paths.tolist() == wanted


def test_names_that_are_no_text_are_refused(run, tmp_path, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    try:
        Image.new("RGB", (4, 4)).save(folder / "caf\udce9.png")  # as an old camera wrote it
    except OSError:
        pytest.skip("this file system holds UTF-8 names alone")
    said = fails(capsys, "--run", run, "--images", folder, "--out", tmp_path / "g.npz")
    assert "is not UTF-8" in said
    assert not list(tmp_path.glob("g.npz*"))


def test_an_extraction_goes_on_with_its_own_images_and_weights_alone(tmp_path, monkeypatch, capsys):
    """Equal names in another folder, or other weights in the same file, are refused."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for index in range(4):
            Image.new("RGB", (4, 8), (index, 0, 0)).save(tmp_path / folder / f"{index}.png")
    weights = tmp_path / "w.pt"
    words = ("--model", "torch.nn:Conv2d", "--model-weights", weights, "--out", tmp_path / "g.npz")
    arguments = '{"in_channels": 3, "out_channels": 5, "kernel_size": 8}'
    size = ("--model-arguments", arguments, "--height", "8", "--width", "8")
    network = torch.nn.Conv2d(3, 5, 8)
    torch.save(network.state_dict(), weights)
    with pytest.raises(SystemExit):  # [B, 5, 1, 1] are no features; the attempt has begun
        call(*words, *size, "--images", tmp_path / "one")
    capsys.readouterr()
    said = fails(capsys, *words, *size, "--images", tmp_path / "two")
    assert "beginning of another extraction (it differs in images)" in said
    os.utime(weights, (1, 1))
    said = fails(capsys, *words, *size, "--images", tmp_path / "one")
    assert "beginning of another extraction (it differs in network)" in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data": {"data": "cuhk03-classic"}}, "cuhk03-single-shot"),
        ({"data": {"data": "csv"}}, "market1501"),
        ({"data": {"data": "market1501", "test": ("cuhk03-classic",)}}, "cuhk03-single-shot"),
        ({"data": {"data": "csv"}, "run": {"protocol": "no-camera"}}, "no-camera"),
    ],
)
def test_a_run_is_evaluated_by_the_protocol_that_its_training_used(settings, expected, tmp_path):
    run = write_run(tmp_path, **settings)
    assert evaluation.with_protocol(evaluation.Options(run=run)).protocol == expected


def test_the_next_command_names_the_protocol(tmp_path, capsys):
    run = write_run(tmp_path, run={"protocol": "no-camera"})
    call("--run", run, "--data", "csv", "--root", table(tmp_path), "--device", "cpu")
    assert "gallery.npz --protocol no-camera" in capsys.readouterr().out


def test_a_data_set_without_more_images_of_its_queries_says_so(tmp_path, capsys, caplog):
    words = ("--model", "torch.nn:Flatten", "--height", "8", "--width", "4", "--device", "cpu")
    call(*words, "--data", "csv", "--root", table(tmp_path), "--out", tmp_path, "--multi-query")
    assert "note: --multi-query: table has no further images of its queries" in caplog.text


class Scaled(torch.nn.Flatten):
    """A network whose features are `factor` times what they are for the second image of a batch."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        rows = super().forward(images)
        return torch.cat((rows[:1], rows[1:] * self.factor))


@pytest.mark.parametrize("factor", ["1e30", "1e-30", "Infinity", "NaN"])
def test_features_of_any_scale_are_normalised_and_others_refused(factor, images, tmp_path, capsys):
    words = ("--model", f"{__name__}:Scaled", "--images", images, "--height", "4", "--width", "2")
    call(*words, "--out", tmp_path / "one.npz")
    other = ("--model-arguments", f'{{"factor": {factor}}}', "--out", tmp_path / "two.npz")
    if factor in ("Infinity", "NaN"):
        said = fails(capsys, *words, *other)
        assert "makes features that are not finite, of sub/0000_c2s1_000001.png first" in said
        assert not (tmp_path / "two.npz").exists()
        return
    call(*words, *other)
    one, two = (mmga.load_features(tmp_path / f"{name}.npz").features for name in ("one", "two"))
    assert torch.allclose(one, two, atol=1e-6)


def test_broken_images(capsys, run, images, tmp_path):
    (images / "sub" / "0001_c3s1_000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ("--run", run, "--images", images, "--out", tmp_path / "g.npz")
    assert "0001_c3s1_000002.png" in fails(capsys, *words)
    call(*words, "--skip-broken")
    assert len(mmga.load_features(tmp_path / "g.npz")) == 9


def test_a_run_without_parts(capsys, images, tmp_path):
    run = write_run(tmp_path / "run", attention="first")
    words = ("--run", run, "--images", images, "--out", tmp_path / "g.npz", "--parts")
    assert "--parts needs attention maps of the parts" in fails(capsys, *words)


def test_load_takes_a_run_or_a_file(run, tmp_path):
    from mmga.common.errors import UserError

    images = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        first, second = (load(path)(images) for path in (run, run / "last.safetensors"))
    assert torch.equal(first, second)
    assert first.shape == (2, 768)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))
    with pytest.raises(UserError, match="no checkpoint"):
        load(tmp_path)


def test_turned_and_stretched_images_are_counted_once(run, tmp_path, monkeypatch, caplog):
    """Whatever the number of shards; a picture stored upright and one stored turned are equal."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 16, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.png")
    for name in "bcd":
        turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
        turned.save(folder / f"{name}.png", exif=exif)
    thermal = np.linspace(0, 2000, 48 * 16).reshape(48, 16).round()
    Image.fromarray(thermal.astype(np.uint16)).save(folder / "e.tif")
    Image.fromarray(thermal.astype(np.float32)).save(folder / "f.tif")
    monkeypatch.setattr(resumable, "SHARD", 2)
    call("--run", run, "--images", folder, "--out", tmp_path / "g.npz")
    rows = mmga.load_features(tmp_path / "g.npz").features
    for place in (1, 2, 3):
        torch.testing.assert_close(rows[place], rows[0])
    torch.testing.assert_close(rows[4], rows[5])
    turned, stretched = (line for line in caplog.messages if line.startswith("note:"))
    assert "EXIF orientation says: 3 files" in turned
    assert "stretched from the lowest value to the highest: 2 files" in stretched


def test_a_container_that_cannot_hold_them_is_refused_before_the_first_image(
    capsys, run, images, tmp_path, monkeypatch
):
    from mmga.common import mat
    from mmga.retrieval.features import containers

    monkeypatch.setattr(mat, "LIMIT", 4096 + 100)
    monkeypatch.setattr(containers, "_SAFETENSORS_HEADER", 100)
    for file in images.rglob("*.png"):
        file.write_bytes(b"never read")
    said = fails(capsys, "--run", run, "--images", images, "--out", tmp_path / "g.mat")
    assert "g.mat: features takes" in said and "less than 4 GiB" in said
    said = fails(capsys, "--run", run, "--images", images, "--out", tmp_path / "g.safetensors")
    assert "g.safetensors: the strings" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_another_network_extracts_the_split_of_a_data_set(tmp_path, capsys):
    """The same rows as from the images themselves, with the data set's labels."""
    root = table(tmp_path)
    size = ("--height", "8", "--width", "4", "--no-flip", "--device", "cpu")
    words = ("--model", "torch.nn:Flatten", *size)
    call(*words, "--data", "csv", "--root", root, "--out", tmp_path / "split")
    assert "12 queries and 12 gallery items" in capsys.readouterr().out
    query = mmga.load_features(tmp_path / "split" / "query.npz")
    call(*words, "--images", root, "--out", tmp_path / "all.npz")
    whole = mmga.load_features(tmp_path / "all.npz")
    assert query.pids.tolist() == [pid for pid in range(6) for _ in range(2)]
    assert set(query.camids.tolist()) == {0}
    place = whole.paths.tolist().index(query.paths[3])
    assert np.array_equal(query.rows.whole()[3], whole.rows.whole()[place])
    for extra, sentence in (
        (("--out", tmp_path / "x"), "--model needs images"),
        (("--data", "csv", "--root", root), "--out is missing"),
    ):
        with pytest.raises(SystemExit):
            call(*words, *extra)
        assert sentence in capsys.readouterr().err
