"""Export networks as graphs that need nothing of this package: torch.export programs and ONNX.

Legend: `B` images, `D` features.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmga.common.errors import UserError
from mmga.common.files import atomic_path, steady_file
from mmga.data.transforms import MEAN, STD
from mmga.models import MMGA
from mmga.ops.attention import decompositions

TOLERANCE = 1e-4
"""Largest difference to the network in any feature or map that is accepted."""

BATCHES = (1, 3)
"""Numbers of images that a written graph is tested with; it was traced with another."""


class FeaturesAndMaps(nn.Module):
    """A network in evaluation mode whose attention maps are further outputs.

    Args:
        network: the network.
    """

    def __init__(self, network: MMGA) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return L2-normalised features [B, D] and the maps [B, 1, h, w], in `names`' order.

        Args:
            images: normalised [B, 3, H, W].
        """
        output = self.network.outputs(images)
        rows = torch.cat(list(output.features.values()), dim=1)
        return nn.functional.normalize(rows), *output.attention.values()


def trace(network: MMGA, size: tuple[int, int]) -> ExportedProgram:
    """Return the graph of `FeaturesAndMaps` for any B, attention operators written out.

    Args:
        network: in evaluation mode, on the CPU.
        size: height and width of the images.
    """
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(
        FeaturesAndMaps(network).eval(),
        (torch.zeros(2, 3, *size, dtype=torch.float32, device="cpu"),),
        dynamic_shapes=dynamic,
    )
    table = torch.export.default_decompositions()
    table.update(decompositions())
    table[torch.ops.aten.copy.default] = _copied
    return program.run_decompositions(table)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Return a copy in the target's shape, which the ONNX exporter does not give it by itself.

    See `findings/onnxscript_copy_broadcast.sh`; Swin's masks are copies of scalars.
    """
    return source.to(target.dtype).expand(target.shape)


def output_names(network: MMGA, size: tuple[int, int]) -> list[str]:
    """Return the names of a graph's outputs: `features`, then one for each attention map."""
    with torch.inference_mode():
        return [
            "features",
            *network.attention(torch.zeros(1, 3, *size, dtype=torch.float32, device="cpu")),
        ]


def facts(network: MMGA, size: tuple[int, int], names: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of a graph: input, normalisation and outputs."""
    return {
        "input": f"images [B, 3, {size[0]}, {size[1]}], RGB / 255, minus mean, divided by std",
        "mean": list(MEAN),
        "std": list(STD),
        "outputs": list(names),
        "features": f"L2-normalised, {network.dim} values: {', '.join(network.head_names)}",
    }


def write_program(path: Path, network: MMGA, size: tuple[int, int]) -> float:
    """Write a .pt2 file for `torch.export.load` and return its largest difference to the network.

    Raises:
        UserError: the file cannot be written.
        RuntimeError: the graph differs from the network by more than TOLERANCE.
    """
    program = trace(network, size)
    names = output_names(network, size)
    about = json.dumps(facts(network, size, names))
    with atomic_path(path) as temporary:
        with steady_file(temporary) as file:
            torch.export.save(program, file, extra_files={"mmga.json": about})
        loaded = torch.export.load(temporary).module()
        return _compare(network, size, names, loaded)


def write_onnx(path: Path, network: MMGA, size: tuple[int, int]) -> float | None:
    """Write an ONNX file and return its largest difference to the network.

    Returns:
        None where ONNX Runtime is not installed, so that nothing was compared.

    Raises:
        UserError: a package that writes ONNX is missing, or the file cannot be written.
        RuntimeError: the graph differs from the network by more than TOLERANCE.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"--format onnx needs {package}: pip install onnx onnxscript onnxruntime"
            )
    names = output_names(network, size)
    with _quiet():
        written = torch.onnx.export(
            trace(network, size),
            (),
            input_names=["images"],
            output_names=names,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert written is not None  # it is where dynamo is asked for
    _name_batch(written.model.graph)
    written.model.metadata_props["mmga"] = json.dumps(facts(network, size, names))
    with atomic_path(path) as temporary:
        written.save(temporary, external_data=False)
        if importlib.util.find_spec("onnxruntime") is None:
            return None
        import onnxruntime

        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(images: Tensor) -> list[Tensor]:
            found = session.run(names, {"images": images.numpy()})
            return [torch.from_numpy(value) for value in found]

        return _compare(network, size, names, run)


def _name_batch(graph: Any) -> None:
    """Call the axis of any size `batch`, which the exporter calls by a number of its own."""
    own = str(graph.inputs[0].shape[0])
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[axis] = str(size).replace(own, "batch")


def _compare(network: MMGA, size: tuple[int, int], names: Sequence[str], run: Any) -> float:
    """Return the largest difference of a graph's outputs to the network's own."""
    eager = FeaturesAndMaps(network).eval()
    random = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in BATCHES:
        images = torch.randn(count, 3, *size, generator=random, dtype=torch.float32, device="cpu")
        with torch.inference_mode():
            expected, found = eager(images), run(images)
        for name, one, other in zip(names, expected, found, strict=True):
            if one.shape != other.shape:
                raise RuntimeError(
                    f"output {name} of the graph is {list(other.shape)} for {count} images, "
                    f"the network's {list(one.shape)}"
                )
            difference = (one - other).abs().max().item()
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"output {name} of the graph differs from the network's by {difference:g}, "
                    f"more than {TOLERANCE:g}"
                )
            largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from printing and warning about itself."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
