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
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from mmga.common.errors import PeerError, UserError, first_line, say_error, set_number
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
_served: list[Store] = []
"""The store of process 0, for all its meetings: others may be at the next one already."""


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
    if _came or dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return error
    try:
        world = set_number("WORLD_SIZE", 2)
        return _Meeting(set_number("RANK", 0, world - 1), world, None, STORE).refuse(error)
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


def _answers(host: str, port: int) -> bool:
    """Return whether a process listens at an address."""
    try:
        with socket.create_connection((host, port), 5) as found:
            # A free port may become that of this very connection, which then meets itself.
            return bool(found.getsockname() != found.getpeername())
    except OSError:
        return False


def whereabouts(pid: int) -> list[str]:
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
    """Return whether a process has ended, given what its `whereabouts` were; None: who knows."""
    now = whereabouts(pid)
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
        host, port = os.environ["MASTER_ADDR"], set_number("MASTER_PORT", 1, 65_535)
        self._place = f"{host}:{port}"
        of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._hosts = rank == 0 and not of_torchrun
        now = {"wait_for_workers": False}  # unlike `rendezvous`, which then hears nothing
        if not self._hosts:
            self._reach(host, port, STORE if of_torchrun else patience)
        self._of_group: Store
        try:
            if of_torchrun:
                self._of_group, *_ = next(iter(rendezvous("env://", timeout=STORE)))
            else:
                self._of_group = TCPStore(
                    host, port, world, self._hosts, patience, multi_tenant=True, **now
                )
            self._of_all = TCPStore(host, port, world, False, STORE, **now)
        except RuntimeError as error:
            raise self._apart(error) from error
        if self._hosts:
            _served[:] = [self._of_group]
        self._number, self._starts = next(_numbers), -1
        self._machines = int(os.environ.get("GROUP_WORLD_SIZE", "1")) if of_torchrun else 0
        self._enter()

    def _reach(self, host: str, port: int, patience: datetime.timedelta) -> None:
        """Wait until something answers; torch would hear no Ctrl-C meanwhile, and tell in pages.

        Raises:
            UserError: nothing does; in one process of each machine, a PeerError in its others.
        """
        end = time.monotonic() + patience.total_seconds()
        while not _answers(host, port):
            if time.monotonic() > end:
                apart = str(self._apart(RuntimeError("nothing answers")))
                late = self._absent(0) if patience == self._patience else apart
                raise self._without_store(late)
            time.sleep(0.2)

    def _enter(self) -> None:
        """Begin the words of a start of all processes, where the store outlives them: torchrun's.

        Each machine counts those starts alone in which its own processes were the first to end.
        """
        own = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if self._machines else 0
        if self._machines > 1:
            counts = [f"starts of {machine}" for machine in range(self._machines)]
            mine = counts[int(os.environ["GROUP_RANK"])]
            if self._of_all.add(mine, 0) < own:
                self._of_all.set(mine, str(own))
            own = sum(self._of_all.add(count, 0) for count in counts)
        if own != self._starts:
            self._starts = own
            prefix = f"mmga/{self._world}/{own}/{self._number}"
            # Never the addresses of an earlier meeting, or of processes that have ended.
            self.store = PrefixStore(f"{prefix}/group", self._of_group)
            self._words = PrefixStore(prefix, self._of_all)

    def _sit(self, end: float) -> None:
        """Take the seat of this process, which no other one may have."""
        while self._words.add(f"sat {self._rank}", 1) > 1:  # in an earlier start, or now
            starts = self._starts
            while self._machines > 1 and self._starts == starts and time.monotonic() < end:
                time.sleep(0.1)
                self._enter()
            if self._starts == starts:
                self._tell(2, self._absent(0) if self._machines > 1 else self._twice())
                return
        own = os.getpid()
        self._words.set(f"seat {self._rank}", json.dumps([own, whereabouts(own)]))
        self._words.add(f"beat {self._rank}", 1)
        if self._rank:  # the first one on each machine
            machine = os.environ.get("GROUP_RANK", platform.node())
            self._tells_of_store = self._words.add(f"others of {machine}", 1) == 1
        self._words.add("there", 1)

    def wait(self) -> None:
        """Return once all processes are there; errors are those of `meet`."""
        end, pause = time.monotonic() + self._patience.total_seconds(), 0.01
        self._sit(end)
        self._thread.start()
        while not self._hears() and self._count("there") < self._world:
            if time.monotonic() > end:
                absent = [r for r in range(self._world) if not self._count(f"beat {r}")]
                self._tell(2, self._absent(absent[0] if absent else 0))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
            starts = self._starts
            self._enter()
            if self._starts != starts:
                self._sit(end)
        if self._verdict is not None:
            raise self._verdict

    def close(self) -> None:
        """Say no more: this process is connected with all others."""
        with contextlib.suppress(RuntimeError):  # the store has ended with its process
            self._words.set(f"beat {self._rank}", _MET)
        self._met.set()
        self._thread.join(BEAT)

    def leave(self, error: BaseException) -> None:
        """Say no more: this process ends, and with it all others."""
        self._met.set()
        with contextlib.suppress(RuntimeError):
            self._is_first(*told(error))
        self._part()
        if self._thread.is_alive():  # one that lives on may abort the process at its end
            self._thread.join(2 * BEAT)

    def reason(self, error: RuntimeError) -> UserError:
        """Return why this process found no connection."""
        end = time.monotonic() + (SILENT + 2) * BEAT
        while self._verdict is None and time.monotonic() < end:
            time.sleep(0.1)
        apart = self._apart(error)
        with contextlib.suppress(RuntimeError):  # all may have found none
            if self._verdict is None and not self._is_first(*told(apart)):
                self._hears()
        return self._verdict or apart

    def refuse(self, error: Exception) -> Exception:
        """Tell the others that this process will not come; see the function `refuse`."""
        told_by_another = not self._is_first(*told(error)) and self._hears()
        with contextlib.suppress(RuntimeError):  # once counted, this process needs no store
            self._words.add("refusing", 1)
            self._wait_for_late_ones()
            self._until(lambda: self._count("heard") >= self._count("there"), GRACE)
        return self._verdict or error if told_by_another else error

    def _apart(self, error: RuntimeError) -> UserError:
        return UserError(
            f"the {self._world} processes of the run did not meet at {self._place} "
            f"({first_line(error)[:160]}); start all of them, with one address and a free port"
        )

    def _absent(self, rank: int) -> str:
        return (
            f"process {rank} of the {self._world} of the run did not meet the others at "
            f"{self._place} within {self._patience.total_seconds():.0f} s; start all of them, "
            f"with one address and a free port ({START} sets another time)"
        )

    def _twice(self) -> str:
        return (
            f"two processes of the {self._world} of the run have the number {self._rank}; give "
            "each a RANK of its own, and each run a free port"
        )

    def _without_store(self, sentence: str) -> UserError:
        """Return an error that the first process on each machine tells, but for process 0."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        first = 1 if local == self._rank else 0
        return UserError(sentence) if local == first else PeerError(sentence)

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
            self._verdict.code = code
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
