"""End a process soon after another one of its run fails or is killed, whatever it is doing.

Each process watches the next one: a thread waits for its message over a connection of its own. A
failure travels the ring against that direction. A process that is killed closes its connections,
which the one before it notices at once, without heartbeats or polling.
"""

import datetime
import os
import sys
import threading
import traceback
from typing import TypeGuard

import torch
import torch.distributed as dist

from mmga.common.errors import PeerError, UserError, say_error

GRACE = 2.0
"""Seconds in which a process that is told of a failure may leave by itself."""
MEETING = datetime.timedelta(seconds=30)
"""Time in which processes connect once all are there, and in which the last words are exchanged."""
_FOREVER = datetime.timedelta(days=365)
_DONE = -1
_Message = tuple[int, int, str]
"""Rank of the process that failed, its exit code and sentence; `_DONE` of one that did not."""


class Watch:
    """Watch over the processes of the default process group.

    Attributes:
        control: group of the same processes for what concerns their end.
        verdict: the failure of another process, once it is known.
    """

    def __init__(self, rank: int, world: int, verb: str) -> None:
        """Start the thread; all processes call it.

        Args:
            rank: number of this process.
            world: number of processes.
            verb: name of the command, for messages.
        """
        self._rank, self._world, self._verb = rank, world, verb
        control = dist.new_group(backend="gloo", timeout=MEETING)
        assert isinstance(control, dist.ProcessGroup)
        self.control = control
        self.verdict: PeerError | None = None
        self._left, self._heard, self._quiet = threading.Event(), threading.Event(), False
        self._sending, self._sent = threading.Lock(), False
        self._thread = threading.Thread(target=self._wait, name="watch", daemon=True)
        self._thread.start()

    def announce(self, error: BaseException) -> None:
        """Tell all others that this process fails."""
        self._quiet = True
        self._send((self._rank, *told(error)))

    def report(self, error: Exception) -> PeerError:
        """Print an error of this process at once, and return what leaves with its code.

        Whoever started the processes may stop this one as soon as another one has left.
        """
        code, sentence = told(error)
        if isinstance(error, UserError) or _of_the_machine(error) or _out_of_memory(error):
            say_error(self._verb, sentence)
        else:
            traceback.print_exception(error)
            sys.stderr.flush()
        return PeerError(sentence, code)

    def leave(self, error: BaseException) -> PeerError | None:
        """Return the failure of another process by which this one lost its connections, if it did.

        Args:
            error: that this process ends with.
        """
        lost = is_lost(error)
        if lost:
            self._heard.wait(2 * GRACE)
        self._quiet = True
        self._left.set()
        if not lost:
            return None
        if self.verdict is not None:
            return self.verdict
        said = (
            "another process of the run ended without a word: it was killed, or its machine is gone"
        )
        say_error(self._verb, said)
        return PeerError(said, 1)

    def close(self) -> None:
        """End the watch once all others are done.

        Raises:
            PeerError: one of them has failed.
        """
        # Not left before it is sent: that may take its time where the process before has ended.
        self._send((_DONE, 0, ""))
        self._left.set()
        self._thread.join()
        if self.verdict is not None:
            raise self.verdict

    def end(self) -> None:
        """Release the thread of the process before this one, and wait a little for one's own."""
        self._quiet = True
        self._left.set()
        self._send((_DONE, 0, ""), datetime.timedelta(seconds=2 * GRACE))
        self._thread.join(2 * GRACE)

    def _send(self, message: _Message, patience: datetime.timedelta = MEETING) -> None:
        """Send the one message that the process before this one waits for."""
        with self._sending:
            if self._sent:
                return
            self._sent = True
        rank, code, sentence = message
        text = torch.tensor(list(sentence.encode()), dtype=torch.uint8, device="cpu")
        head = torch.tensor([rank, code, len(text)], dtype=torch.int64, device="cpu")
        before = (self._rank - 1) % self._world
        try:
            for part in (head, text) if len(text) else (head,):
                sent = dist.isend(part, before, group=self.control)
                assert sent is not None
                sent.wait(patience)
        except RuntimeError:
            pass  # it has ended

    def _receive(self) -> _Message | None:
        """Return the message of the next process, None where it ends without one."""
        following = (self._rank + 1) % self._world
        head = torch.zeros(3, dtype=torch.int64, device="cpu")
        try:
            self._receive_into(head, following)
            rank, code, size = head.tolist()
            text = torch.zeros(size, dtype=torch.uint8, device="cpu")
            if size:
                self._receive_into(text, following)
        except RuntimeError:
            return None
        return rank, code, bytes(text.tolist()).decode()

    def _receive_into(self, tensor: torch.Tensor, rank: int) -> None:
        received = dist.irecv(tensor, rank, group=self.control)
        assert received is not None
        received.wait(_FOREVER)

    def _wait(self) -> None:
        message = self._receive()
        if message is None:
            if self._quiet:
                return
            message = self._lost()
        rank, code, sentence = message
        if rank == _DONE:
            return
        self.verdict = PeerError(f"process {rank} of the run met an error: {sentence}", code)
        self._heard.set()
        if (self._rank - 1) % self._world == rank:
            self._sent = True  # nobody waits for a message: gloo may try to send it for long
        else:
            self._send(message)
        if not self._left.wait(GRACE):
            sys.stderr.flush()
            os._exit(code)

    def _lost(self) -> _Message:
        """Say that the next process has ended, and return what is said."""
        following = (self._rank + 1) % self._world
        sentence = (
            f"process {following} of the {self._world} of the run ended without a word: it was "
            "killed, perhaps because memory ran out; give it more, or start more processes"
        )
        say_error(self._verb, sentence)
        return following, 1, sentence


def told(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the sentence of an error."""
    if isinstance(error, UserError):
        return error.code, str(error)
    if _of_the_machine(error):
        return 2, ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    if _out_of_memory(error):
        said = " ".join(str(error).split())[:200]
        return 1, f"a process ran out of memory ({said}); give --memory, or start more processes"
    return 130 if isinstance(error, KeyboardInterrupt) else 1, str(error)


def is_lost(error: BaseException) -> bool:
    """Return whether it says that another process is gone, and nothing of this one."""
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return of_gloo or isinstance(error, dist.DistError)


def _of_the_machine(error: BaseException) -> TypeGuard[OSError]:
    """Return whether it is of the system's own: a full disk, a folder without rights."""
    return isinstance(error, OSError) and error.strerror is not None


def _out_of_memory(error: BaseException) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
