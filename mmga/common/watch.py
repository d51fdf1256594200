"""End a process soon after another one of its run fails or is killed, whatever it is doing.

Each process watches the next one: a thread waits for its message over a connection of its own. A
failure travels the ring against that direction. A process that is killed closes its connections,
which the one before it notices at once, without heartbeats or polling.
"""

import datetime
import os
import sys
import threading

import torch
import torch.distributed as dist

from mmga.common.errors import PeerError

GRACE = 2.0
"""Seconds in which a process that is told of a failure may leave by itself."""
_FOREVER = datetime.timedelta(days=365)
_DONE = -1
_Message = tuple[int, int, str]
"""Rank of the process that failed, its exit code and sentence; `_DONE` of one that did not."""


class Watch:
    """Watch over the processes of the default process group.

    Attributes:
        control: group of the same processes for what concerns their end.
        verdict: the failure of another process, once it is known.
        shared: an error of this process that all know of, or None.
    """

    def __init__(self, rank: int, world: int) -> None:
        """Start the thread; all processes call it."""
        self._rank, self._world = rank, world
        control = dist.new_group(backend="gloo", timeout=_FOREVER)
        assert isinstance(control, dist.ProcessGroup)
        self.control = control
        self.verdict: PeerError | None = None
        self.shared: BaseException | None = None
        self._left, self._quiet = threading.Event(), False
        self._sending, self._sent = threading.Lock(), False
        self._thread = threading.Thread(target=self._wait, name="watch", daemon=True)
        self._thread.start()

    def announce(self, code: int, sentence: str) -> None:
        """Tell all others that this process fails."""
        self._quiet = True
        self._send((self._rank, code, sentence))

    def leave(self, error: BaseException) -> PeerError | None:
        """Return the failure that this process ends by, if it is not its own error.

        Args:
            error: that this process ends with.
        """
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if lost and not isinstance(error, PeerError):
            self._thread.join(2 * GRACE)  # which is told who has ended
        self._quiet = True
        self._left.set()
        return None if isinstance(error, PeerError) else self.verdict

    def close(self) -> None:
        """End the watch once all others are done.

        Raises:
            PeerError: one of them has failed.
        """
        self._left.set()
        self._send((_DONE, 0, ""))
        self._thread.join()
        if self.verdict is not None:
            raise self.verdict

    def end(self) -> None:
        """Release the thread of the process before this one, and wait a little for one's own."""
        self._quiet = True
        self._left.set()
        self._send((_DONE, 0, ""))
        self._thread.join(2 * GRACE)

    def _send(self, message: _Message) -> None:
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
            dist.send(head, before, group=self.control)
            if len(text):
                dist.send(text, before, group=self.control)
        except RuntimeError:
            pass  # it has ended

    def _receive(self) -> _Message | None:
        """Return the message of the next process, None where it ends without one."""
        following = (self._rank + 1) % self._world
        head = torch.zeros(3, dtype=torch.int64, device="cpu")
        try:
            dist.recv(head, following, group=self.control)
            rank, code, size = head.tolist()
            text = torch.zeros(size, dtype=torch.uint8, device="cpu")
            if size:
                dist.recv(text, following, group=self.control)
        except RuntimeError:
            return None
        return rank, code, bytes(text.tolist()).decode()

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
        if (self._rank - 1) % self._world != rank:
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
        print(f"mmga: error: {sentence}", file=sys.stderr, flush=True)
        return following, 1, sentence
