"""Kill processes of commands at random moments, and start the commands again.

python tests/support/kills.py KILLS [SEED] [VERB ...] counts so many kills of each command.
"""

import contextlib
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import failing
import numpy as np
import shared_cases
from PIL import Image
from small_run import SIZE, write_run

MEASURED = ("seconds", "peak_memory_bytes", "process_peak_bytes")
IMAGES = 24
SIDES = "--query {0}/query.npz --gallery {0}/shard-*.npz"
SILHOUETTES = "--from silhouette --source {0}/silhouettes --preview 4 --batch-size 2"
WORDS = {
    "eval": f"{SIDES} --json {{1}}/r.json --per-query {{1}}/r.csv",
    "eval in a grid": f"{SIDES} --query-shares 2 --json {{1}}/r.json --per-query {{1}}/r.csv",
    "search": f"{SIDES} --topk 12 --out {{1}}/r.csv",
    "extract": "--run {0}/run --images {0}/images --batch-size 2 --out {1}/r.json",
    "masks": f"--data csv --root {{0}}/t.csv {SILHOUETTES} --device cpu --out {{1}}/r",
}
"""Commands whose results lie below the second folder; `write_inputs` fills the first one."""
STARTED = {"eval in a grid": 4}
"""Processes of which one is killed, where they are not three."""
AGAIN = {"eval in a grid": (2, 4)}
"""Numbers of processes of a second start, where these are not from one to four."""


def write_inputs(root: Path) -> None:
    """Write features in shards, a run, images, and silhouettes of more than 400 bytes each."""
    query, gallery = shared_cases.sides("names")
    query.save(root / "query.npz")
    for number, (first, last) in enumerate([(0, 100), (100, 350), (350, 701)]):
        gallery.cut(first, last).save(root / f"shard-{number}.npz")
    write_run(root / "run")
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "silhouettes" / "images").mkdir(parents=True)
    lines = ["path,pid,camid,split"]
    for index in range(IMAGES):
        name = f"images/{index // 4:04d}_c{index % 3 + 1}s1_{index:06d}.png"
        pixels = draw.integers(0, 256, (4 * SIZE[0], 4 * SIZE[1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
        body = draw.integers(0, 2, pixels.shape[:2], dtype=np.uint8) * 255
        Image.fromarray(body).save(root / "silhouettes" / name)
        lines.append(f"{name},{index // 4},{index % 3},train")
    (root / "t.csv").write_text("\n".join(lines))


def words(verb: str, inputs: Path, out: Path) -> list[str]:
    """Return a command and its words."""
    return [verb.split()[0], *(word.format(inputs, out) for word in WORDS[verb].split())]


def results(out: Path) -> dict[str, object]:
    """Return what lies in a folder but for the streams of processes and what is measured."""
    found: dict[str, object] = {}
    for file in out.rglob("*"):
        name = file.relative_to(out).as_posix()
        if file.is_file() and not name.startswith(("out-", "err-", "there-", "done-")):
            data = file.read_bytes()
            found[name] = data
            if b'"mAP"' in data and name == "r.json":
                report = json.loads(data)
                found[name] = {key: report[key] for key in report if key not in MEASURED}
    return found


def errors_of(said: str) -> list[str]:
    """Return the lines of what was said that tell of errors."""
    return [line for line in said.splitlines() if ": error: " in line or "Traceback" in line]


@dataclasses.dataclass(frozen=True)
class Kill:
    """What followed a kill.

    Attributes:
        verb: the command.
        moment: seconds from the moment when all were there.
        seconds: until all others had ended.
        codes: exit codes.
        errors: lines that tell of errors.
    """

    verb: str
    moment: float
    seconds: float
    codes: list[int | None]
    errors: list[str]


class _Clock:
    """Seconds in which this process was not stopped."""

    def __init__(self) -> None:
        self.seconds, self.last = 0.0, time.monotonic()

    def sleep(self, seconds: float = 0.005) -> float:
        time.sleep(seconds)
        now = time.monotonic()
        self.seconds, self.last = self.seconds + min(now - self.last, 0.5), now
        return self.seconds


class Killing:
    """Commands, what they write if they are let alone, and how long they take."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        write_inputs(self.inputs)
        self.expected: dict[str, dict[str, object]] = {}
        self.duration: dict[str, float] = {}

    def undisturbed(self, verb: str) -> dict[str, object]:
        """Return what a command writes; its first start here says how long it takes."""
        if verb not in self.expected:
            out = self.folder / f"{verb}-alone"
            out.mkdir()
            with self._started(verb, out) as (running, clock):
                while len(list(out.glob("done-*"))) < len(running):
                    clock.sleep()
                self.duration[verb] = clock.seconds
                for process in running:
                    process.join()
                assert not any(process.exitcode for process in running)
            self.expected[verb] = results(out)
        return self.expected[verb]

    def kill(self, verb: str) -> Kill:
        """Kill one of the processes while they run, and start the command again.

        Raises:
            AssertionError: something is half-written, or the second start does not finish.
        """
        expected = self.undisturbed(verb)
        out = Path(tempfile.mkdtemp(dir=self.folder))
        done = None
        while done is None:
            done = self._killed(verb, out, self.random.uniform(0, self.duration[verb]))
        for name in results(out):  # what has its name is whole
            if name in expected and not name.endswith(("manifest.json", "without_person.txt")):
                assert results(out)[name] == expected[name], name
        world = self.random.choice(AGAIN.get(verb, (1, 2, 3, 4)))
        codes, said = failing.run("nothing", words(verb, self.inputs, out), out, world)
        assert codes == [0] * world and not errors_of(said), said
        assert results(out) == expected
        return done

    def _killed(self, verb: str, out: Path, moment: float) -> Kill | None:
        """Kill a process after so many seconds; None where it has ended before."""
        world = STARTED.get(verb, 3)
        which = self.random.randrange(world)
        with self._started(verb, out) as (running, clock):
            while clock.seconds < moment:
                clock.sleep()
            running[which].kill()
            start = clock.seconds
            while any(process.exitcode is None for process in running):
                assert clock.sleep() < start + 60, "a process goes on"
            codes = [process.exitcode for process in running]
            if codes[which] != -9:
                return None
            said = "".join((out / f"err-{rank}").read_text() for rank in range(world))
            return Kill(verb, moment, clock.seconds - start, codes, errors_of(said))

    @contextlib.contextmanager
    def _started(self, verb: str, out: Path) -> Iterator[tuple[list, _Clock]]:
        """Yield processes once all are there, and a clock that begins then."""
        for file in (*out.glob("there-*"), *out.glob("done-*")):
            file.unlink()
        world = STARTED.get(verb, 3)
        running = failing.begin("watched", words(verb, self.inputs, out), out, world)
        try:
            while len(list(out.glob("there-*"))) < world:
                assert not any(process.exitcode for process in running)
                time.sleep(0.002)
            yield running, _Clock()
        finally:
            for process in running:
                process.kill()
                process.join()


def main(kills: int, seed: int, verbs: list[str]) -> None:
    """Print a line for each command: kills, sentences, and the longest time until all ended."""
    with tempfile.TemporaryDirectory() as folder:
        killing = Killing(Path(folder), seed)
        for verb in verbs:
            done = [killing.kill(verb) for _ in range(kills)]
            told = [len(one.errors) for one in done]
            longest = max(one.seconds for one in done)
            print(
                f"{verb}: {kills} kills, {told.count(1)} told in one sentence, {told.count(0)} "
                f"of processes that were done, {len(told) - told.count(0) - told.count(1)} in "
                f"several; all had ended after at most {longest:.1f} s; every second start finished"
            )
            for one in done:
                print(f"  {one.moment:.2f} s: {one.seconds:.2f} s, {one.codes} {one.errors}")


if __name__ == "__main__":
    count, *more = sys.argv[1:]
    main(int(count), int(more[0]) if more else 0, more[1:] or list(WORDS))
