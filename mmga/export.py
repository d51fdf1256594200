"""`python -m mmga.export`: a trained network as one file, by torch.export or as ONNX.

    mmga export --run runs/x --format onnx
    mmga export --run runs/x --format torchexport --out network.pt2

The graph takes normalised images [B, 3, H, W] of any B and gives the L2-normalised features [B, D]
and the attention maps, each under its name; it makes no mirror image. Its metadata (`mmga`, or
`mmga.json` in a .pt2) says how images are to be normalised.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmga.common import cli
from mmga.common.errors import UserError

FORMATS = {"torchexport": (".pt2", "write_program"), "onnx": (".onnx", "write_onnx")}
"""Format -> suffix, and the function of `mmga.models.export` that writes it."""


@dataclass(frozen=True, slots=True)
class Options:
    """Export a trained network, and compare the file with the network."""

    run: Path
    """Folder of a run, or one of its checkpoints."""
    format: Literal["torchexport", "onnx"] = "torchexport"
    """torchexport: a .pt2 file for torch.export.load; onnx: for ONNX Runtime and others."""
    out: Path | None = None
    """File, .pt2 or .onnx; by default network.pt2 or network.onnx in the run's folder."""


def body(options: Options) -> int:
    """Export and compare."""
    suffix, writer = FORMATS[options.format]
    if options.out is not None and options.out.suffix != suffix:
        raise UserError(f"--out must end in {suffix} for {options.format}, got {options.out}")

    from mmga.models import export as graph
    from mmga.models.loading import load_run

    run = load_run(options.run)
    out = options.out or run.folder / f"network{suffix}"
    size = (run.config.data.height, run.config.data.width)
    difference = getattr(graph, writer)(out, run.network, size)
    if difference is None:
        checked = "not compared with the network: pip install onnxruntime"
    else:
        checked = f"differs from the network by at most {difference:.1e}"
    outputs = ", ".join(graph.output_names(run.network, size))
    print(f"{out}: images [B, 3, {size[0]}, {size[1]}] to {outputs}; {checked}")
    return 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("export", Options, body, argv)


if __name__ == "__main__":
    main()
