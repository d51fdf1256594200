"""`python -m mmga.doctor`: active back ends, or the faults of a set of features.

    mmga doctor
    mmga doctor --query q.npz --gallery g.npz
    mmga doctor --features pytorch_result.mat --protocol market1501-matlab

With the inputs of `mmga eval` it checks features before anything is computed and prints what would
spoil an evaluation, the fix, and what was checked; the exit code is 2 if none is possible.
"""

import dataclasses
import platform
import sys
from dataclasses import dataclass

from mmga.common import cli
from mmga.common.version import __version__
from mmga.eval import Inputs, load, rules_of, with_protocol


@dataclass(frozen=True, slots=True)
class Options(Inputs):
    """Print the active back ends of this machine, or the faults of a set of features."""


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
    if cli.changed(options, *(field.name for field in dataclasses.fields(options))):
        return _check_features(options)
    for name, value in environment().items():
        print(cli.wrapped(f"{name:<11} {value}", 12))
    return 0


def _check_features(options: Options) -> int:
    from mmga.retrieval.protocols.preflight import check, checked

    options = with_protocol(options)
    query, gallery = load(options)
    rules = rules_of(options)
    findings = check(query, gallery, rules, options.metric)
    for finding in findings:
        print(cli.wrapped(str(finding), 2))
    for line in checked(query, gallery, rules.name, options.metric, findings):
        print(cli.wrapped(line, 2))
    stopping = sum(finding.stops for finding in findings)
    if stopping:
        verdict = "no evaluation is possible as it is"
    elif findings:
        verdict = "an evaluation is possible"
    else:
        verdict = "nothing found that would spoil an evaluation"
    print(f"summary: findings: {len(findings)}; {verdict}")
    return 2 if stopping else 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("doctor", Options, body, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
