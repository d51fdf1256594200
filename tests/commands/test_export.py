"""Exported graphs give what the network gives, for any batch, without this package."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_run import SIZE, write_run

from mmga import export
from mmga.models import export as graph
from mmga.models import load

MAPS = ["whole0", "whole", "upper", "bottom"]


def call(*words):
    export.main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def traced_once(monkeypatch, memo={}):  # noqa: B006
    """Tracing takes seconds: networks of `run` are traced the first time alone."""
    real = graph.trace

    def trace(network, size):
        if "program" not in memo:
            memo["program"] = real(network, size)
        return memo["program"]

    monkeypatch.setattr(graph, "trace", trace)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def randomised(network):
    """Give batch normalisation something to do, and attention maps something to show."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(network.attention1.spatial.conv3.weight)
    return network


def test_a_program_needs_nothing_of_the_package(run, capsys, traced_once):
    call("--run", run)
    said = capsys.readouterr().out
    assert "to features, whole0, whole, upper, bottom; differs from the network by at most" in said
    about = {"mmga.json": ""}
    program = torch.export.load(run / "network.pt2", extra_files=about)
    assert json.loads(about["mmga.json"])["outputs"] == ["features", *MAPS]
    assert operators(program)
    assert not [name for name in operators(program) if "mmga" in name]
    images = torch.randn(5, 3, *SIZE)
    features, *maps = program.module()(images)
    network = load(run)
    with torch.inference_mode():
        torch.testing.assert_close(features, network(images), rtol=0, atol=1e-5)
        for found, expected in zip(maps, network.attention(images).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_stripes_and_residual_attention_are_written_out(tmp_path):
    model = {"heads": 8, "combine": "residual", "branches": "shared", "neck": "bnneck"}
    network = randomised(load(write_run(tmp_path, **model)))
    program = graph.trace(network, SIZE)
    assert not [name for name in operators(program) if "mmga" in name]
    names = graph.output_names(network, SIZE)
    assert graph._compare(network, SIZE, names, program.module()) < 1e-5


def test_onnx_equals_the_network(run, capsys, traced_once):
    onnx = pytest.importorskip("onnx", reason="ONNX is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    call("--run", run, "--format", "onnx")
    assert "differs from the network by at most" in capsys.readouterr().out
    session = runtime.InferenceSession(str(run / "network.onnx"))
    assert [output.name for output in session.get_outputs()] == ["features", *MAPS]
    assert session.get_inputs()[0].shape == ["batch", 3, *SIZE]
    assert {output.shape[0] for output in session.get_outputs()} == {"batch"}
    images = torch.randn(4, 3, *SIZE)
    features, *maps = session.run(None, {"images": images.numpy()})
    network = load(run)
    with torch.inference_mode():
        torch.testing.assert_close(torch.tensor(features), network(images), rtol=0, atol=1e-4)
        for found, expected in zip(maps, network.attention(images).values(), strict=True):
            torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)
    model = onnx.load(str(run / "network.onnx"))
    inner = {d.dim_param for v in model.graph.value_info for d in v.type.tensor_type.shape.dim}
    assert inner <= {"", "batch"}
    about = json.loads({p.key: p.value for p in model.metadata_props}["mmga"])
    assert about["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


class Masking(torch.nn.Module):
    """A network that assigns a number to a part of its features, as Swin does to its masks."""

    dim, head_names = 4, ("whole",)

    def outputs(self, images):
        features = images.flatten(1)[:, : self.dim].clone()
        features[:, :2] = 1
        return SimpleNamespace(features={"whole": features}, attention={})

    def attention(self, images):
        return {}


def test_copies_have_the_shape_of_their_target():
    program = graph.trace(Masking(), SIZE)
    assert "aten.copy.default" not in operators(program), "written without its broadcast"
    names = graph.output_names(Masking(), SIZE)
    assert graph._compare(Masking(), SIZE, names, program.module()) < 1e-6


def test_onnx_holds_assigned_numbers(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert graph.write_onnx(tmp_path / "network.onnx", Masking(), SIZE) < 1e-6


def test_a_graph_that_differs_is_not_written(run, tmp_path, traced_once):
    other = load(run)
    other.layer1[0].conv1.weight.data.neg_()
    graph.trace(load(run), SIZE)
    with pytest.raises(RuntimeError, match="of the graph differs from the network's by"):
        graph.write_program(tmp_path / "x.pt2", other, SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--format", "onnx", "--out", "x.pt2"), "--out must end in .onnx for onnx"),
        (("--format", "caffe"), "caffe"),
    ],
)
def test_what_cannot_be_exported(run, capsys, words, sentence):
    with pytest.raises(SystemExit) as leave:
        call("--run", run, *words)
    assert leave.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_package_is_named(run, tmp_path, monkeypatch, capsys):
    real = graph.importlib.util.find_spec
    monkeypatch.setattr(
        graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name)
    )
    with pytest.raises(SystemExit):
        call("--run", run, "--format", "onnx", "--out", tmp_path / "x.onnx")
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
