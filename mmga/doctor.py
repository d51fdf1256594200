"""`python -m mmga.doctor`: active back ends, or the faults of a set of features.

    mmga doctor
    mmga doctor --query q.npz --gallery g.npz
    mmga doctor --features pytorch_result.mat

With --query and --gallery (or --features) it checks feature files before anything is computed and
prints what would spoil an evaluation, and the fix; the exit code is 2 if none is possible.
"""

import platform
import sys
from dataclasses import dataclass

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import FeatureFile, FeatureFiles
from mmga.common.version import __version__


@dataclass(frozen=True, slots=True)
class Options:
    """Print the active back ends of this machine, or the faults of a set of features."""

    query: FeatureFiles = ()
    """Features of the queries: .npz, .safetensors, .mat, .h5, .pt, .npy or a folder of .npy files;
    several shards, or a pattern in quotes, which is read in natural order."""
    gallery: FeatureFiles = ()
    """Features of the gallery, in the same formats."""
    features: FeatureFile = None
    """One file that holds both sides."""


def environment() -> dict[str, str]:
    """Return versions, back ends and the facts of the build, in the order to be shown."""
    import torch

    from mmga.ops import backends
    from mmga.ops._extension import build_info

    info = build_info()
    lines = {
        "mmga": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} CPU threads",
    }
    lines |= backends()
    if info.get("kernels"):
        lines["built with"] = (
            f"{info['compiler']}; torch headers {info['torch_headers']}, "
            f"stable ABI of {info['torch_target']}; nvcc {info['nvcc'] or 'not used'}"
        )
    return lines


def body(options: Options) -> int:
    """Print the findings; 2 if no evaluation of these features is possible."""
    if options.query or options.gallery or options.features:
        return _check_features(options)
    for name, value in environment().items():
        print(cli.wrapped(f"{name:<11} {value}", 12))
    return 0


def _check_features(options: Options) -> int:
    from mmga.retrieval.features import load_features
    from mmga.retrieval.protocols.preflight import check

    if options.features:
        if options.query or options.gallery:
            raise UserError("--features holds both sides; leave out --query and --gallery")
        query = load_features(options.features, side="query")
        gallery = load_features(options.features, side="gallery")
    elif options.query and options.gallery:
        query, gallery = load_features(options.query), load_features(options.gallery)
    else:
        missing = "--gallery" if options.query else "--query"
        raise UserError(f"{missing} is missing: name the features of both sides")
    findings = check(query, gallery)
    for finding in findings:
        print(cli.wrapped(str(finding), 2))
    if not findings:
        print("nothing found that would spoil an evaluation")
    return 2 if any(finding.stops for finding in findings) else 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("doctor", Options, body, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
