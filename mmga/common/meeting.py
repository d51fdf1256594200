"""Find the other processes of a run, and notice one that ends before all have met.

Each process says in the run's store that it is there, and says it again every second until it is
connected with all others. Each listens to the next one that was there, and looks at it where it is
on the same machine. What ends one of them is written into the store, where all look. Processes that
were never there are waited for.
"""

import contextlib
import datetime
import itertools
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from mmga.common.errors import PeerError, UserError, first_line, say_error
from mmga.common.watch import GRACE, told

START = "MMGA_JOIN_TIMEOUT"
"""Environment variable: seconds between the start of the first process and that of the last."""
_START = 300.0
STORE = datetime.timedelta(seconds=10)
"""Time in which torchrun's store, which is there before the processes, answers."""
BEAT = 1.0
"""Seconds between two words of a process."""
SILENT = 6
"""Words of one's own, so many after the last one of a process elsewhere, by which it has ended."""
LATE = 8.0
"""Seconds in which processes that have yet to come still find what ended the run."""
_MET = "-1"
_numbers = itertools.count()
_came = False


@contextlib.contextmanager
def meet(rank: int, world: int, verb: str | None) -> Iterator[Store]:
    """Yield the run's store once all processes are there, to a block that connects them.

    Args:
        rank: number of this process.
        world: number of processes.
        verb: name of a command, whose process is its to end; None raises errors alone.

    Raises:
        UserError: one of the processes has ended, or was not there in the time of `START`; a
            PeerError in those that need not tell it.
    """
    global _came
    patience = _patience()
    _came = True
    meeting = _Meeting(rank, world, verb, patience)
    try:
        meeting.wait()
        yield meeting.store
    except RuntimeError as error:  # torch.distributed's are of this kind
        reason = meeting.reason(error)
        meeting.leave(reason)
        raise reason from error
    except BaseException as error:
        meeting.leave(error)
        raise
    meeting.close()


def refuse(error: Exception) -> Exception:
    """Tell the others of an error that ends this process before it has met them.

    Returns:
        The error, or a PeerError where another process tells the same one.
    """
    world, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    if _came or dist.is_initialized() or not (world.isdecimal() and rank.isdecimal()):
        return error
    try:
        return _Meeting(int(rank), int(world), None, STORE).refuse(error)
    except (UserError, RuntimeError, KeyError):  # nobody is there, or could be
        return error


def _patience() -> datetime.timedelta:
    """Return how long processes are waited for that were not heard of.

    Raises:
        UserError: the environment says something else than seconds.
    """
    given = os.environ.get(START, "")
    try:
        seconds = float(given or _START)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise UserError(
            f"{START}: expected seconds from 1 to 86400, found {given!r}; it says how long to wait "
            "for processes that have not started"
        )
    return datetime.timedelta(seconds=seconds)


def _whereabouts(pid: int) -> list[str]:
    """Return the machine and the beginning of a process on it, empty if it has ended.

    A machine, or container, that does not tell is that of no other process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return []
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [machine, ""]
    return [machine, "" if state in "ZX" else fields[18]]  # Z and X: nobody has waited for it yet


def _has_ended(pid: int, where: list[str]) -> bool | None:
    """Return whether a process has ended, given what its `_whereabouts` were; None: who knows."""
    now = _whereabouts(pid)
    return None if not now or now[:1] != where[:1] else now != where


class _Meeting:
    """The processes of a run until all are connected.

    Attributes:
        store: of the run.
    """

    def __init__(
        self, rank: int, world: int, verb: str | None, patience: datetime.timedelta
    ) -> None:
        self._rank, self._world, self._verb, self._patience = rank, world, verb, patience
        self._verdict: UserError | None = None
        self._telling, self._met = threading.Lock(), threading.Event()
        self._tells_of_store = False
        self._thread = threading.Thread(target=self._listen, name="meeting", daemon=True)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._place = f"{host}:{port}"
        of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._hosts = rank == 0 and not of_torchrun
        now = {"wait_for_workers": False}  # unlike `rendezvous`, which then hears nothing
        self.store: Store
        try:
            if of_torchrun:
                self.store, *_ = next(iter(rendezvous("env://", timeout=STORE)))
            else:
                self.store = TCPStore(
                    host, port, world, self._hosts, patience, multi_tenant=True, **now
                )
            words = TCPStore(host, port, world, False, STORE, **now)
        except RuntimeError as error:
            raise self._apart(error) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._words = PrefixStore(f"mmga/{attempt}/{next(_numbers)}", words)

    def wait(self) -> None:
        """Return once all processes are there; errors are those of `meet`."""
        own = os.getpid()
        self._words.set(f"seat {self._rank}", json.dumps([own, _whereabouts(own)]))
        self._words.add(f"beat {self._rank}", 1)
        if self._rank:  # the first one on each machine
            machine = os.environ.get("GROUP_RANK", platform.node())
            self._tells_of_store = self._words.add(f"others of {machine}", 1) == 1
        self._words.add("there", 1)
        self._thread.start()
        patience = self._patience.total_seconds()
        end, pause = time.monotonic() + patience, 0.01
        while not self._hears() and self._count("there") < self._world:
            if time.monotonic() > end:
                absent = [r for r in range(self._world) if not self._count(f"beat {r}")]
                self._tell(
                    2,
                    f"process {absent[0] if absent else 0} of the {self._world} of the run did not "
                    f"meet the others at {self._place} within {patience:.0f} s; start all of "
                    f"them, with one address and a free port ({START} sets another time)",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        if self._verdict is not None:
            self._part()
            raise self._verdict

    def close(self) -> None:
        """Say no more: this process is connected with all others."""
        with contextlib.suppress(RuntimeError):  # the store has ended with its process
            self._words.set(f"beat {self._rank}", _MET)
        self._met.set()
        self._thread.join(BEAT)

    def leave(self, error: BaseException) -> None:
        """Say no more: this process ends, and with it all others."""
        with contextlib.suppress(RuntimeError):
            self._is_first(*told(error))
            self._count_heard(self._rank)
        self._met.set()

    def reason(self, error: RuntimeError) -> UserError:
        """Return why this process found no connection."""
        end = time.monotonic() + (SILENT + 2) * BEAT
        while self._verdict is None and time.monotonic() < end:
            time.sleep(0.1)
        return self._verdict or self._apart(error)

    def refuse(self, error: Exception) -> Exception:
        """Tell the others that this process will not come; see the function `refuse`."""
        self._words.add("refusing", 1)
        code, sentence = told(error)
        first = self._is_first(code, sentence)
        self._wait_for_late_ones()
        self._until(lambda: self._count("heard") >= self._count("there"), GRACE)
        return error if first or not self._hears() else self._verdict or error

    def _apart(self, error: RuntimeError) -> UserError:
        return UserError(
            f"the {self._world} processes of the run did not meet at {self._place} "
            f"({first_line(error)[:160]}); start all of them, with one address and a free port"
        )

    def _count(self, key: str) -> int:
        return int(self._words.add(key, 0))

    def _listen(self) -> None:
        """Say again and again that this process is there, and listen to the next one."""
        last, silent = (self._rank, 0), 0
        while not self._met.wait(BEAT):
            try:
                self._words.add(f"beat {self._rank}", 1)
                said = self._next()
                silent = silent + 1 if said == last and said[1] > 0 else 0
                last = said
                if silent and self._has_ended(said[0], silent):
                    self._count_heard(said[0])
                    self._tell(
                        1,
                        f"process {said[0]} of the {self._world} of the run ended before all had "
                        "met: it was killed, or its machine is gone; start all of them again",
                    )
                if not self._hears():
                    continue
            except RuntimeError:
                self._lose_store()
            if self._verb is not None and not self._met.wait(BEAT):  # it waits for a connection
                self._part()
                sys.stderr.flush()
                os._exit(told(self._verdict or UserError())[0])
            return

    def _has_ended(self, rank: int, silent: int) -> bool:
        """Return whether a process has ended that said nothing while this one spoke so often."""
        ended = _has_ended(*json.loads(self._words.get(f"seat {rank}")))
        return silent >= SILENT if ended is None else ended

    def _next(self) -> tuple[int, int]:
        """Return the next process that was ever there, and how often it said so."""
        for step in range(1, self._world):
            rank = (self._rank + step) % self._world
            if count := self._count(f"beat {rank}"):
                return rank, count
        return self._rank, 0

    def _hears(self) -> bool:
        """Return whether something ends the run; it is then known."""
        if self._verdict is None and self._words.check(["verdict"]):
            _, code, sentence = json.loads(self._words.get("verdict"))
            self._verdict = self._verdict or PeerError(sentence, code)
        return self._verdict is not None

    def _is_first(self, code: int, sentence: str) -> bool:
        """Write what ends the run into the store, and return whether nothing else was there."""
        mine = json.dumps([self._rank, code, sentence])
        return bool(self._words.compare_set("verdict", "", mine).decode() == mine)

    def _tell(self, code: int, sentence: str) -> None:
        """Tell what ends the run, unless another process does."""
        with self._telling:
            if self._verdict is None and self._is_first(code, sentence):
                self._say(code, sentence)

    def _say(self, code: int, sentence: str) -> None:
        if self._verb is None:
            self._verdict = UserError(sentence)
            return
        self._verdict = PeerError(sentence, code)
        say_error(self._verb, sentence)

    def _lose_store(self) -> None:
        """Take the end of the store, which is that of its process; one on each machine tells it."""
        with self._telling:
            if self._verdict is not None or self._met.is_set():
                return
            sentence = (
                f"process 0 of the {self._world} of the run, or torchrun on its machine, ended "
                f"before all had met: nothing answers at {self._place}; start all of them again"
            )
            if self._tells_of_store:
                self._say(1, sentence)
            else:
                self._verdict = PeerError(sentence, 1)

    def _part(self) -> None:
        """Wait until all who are there know what ends the run: the store may end with this one."""
        with contextlib.suppress(RuntimeError):
            self._count_heard(self._rank)
            self._wait_for_late_ones()
            self._until(lambda: self._count("heard") >= self._count("there"), GRACE)

    def _count_heard(self, rank: int) -> None:
        """Count, once, a process that knows what ends the run or needs not to: it has ended."""
        if self._words.add(f"heard {rank}", 1) == 1:
            self._words.add("heard", 1)

    def _wait_for_late_ones(self) -> None:
        """Where the store ends with this process, let those find it who have yet to come."""
        if self._hosts:
            self._until(lambda: self._count("heard") + self._count("refusing") >= self._world, LATE)

    def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.05)
