"""Blocks copied ahead: nothing is used before it is there, nor overwritten while it is used."""

from collections import deque

import pytest
import torch

from mmga.retrieval.features.transfer import BlockTransfer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class LateStreams:
    """Two queues that do nothing until somebody waits, as a device that lags behind may.

    Work is put in with `queue_work`. A copy runs when its mark is waited for by the host or by work
    that runs; work runs at the end or when a copy that runs waits for it.
    """

    pinned = False

    def __init__(self):
        self.queues = {"copy": deque(), "work": deque()}
        self.done = {"copy": 0, "work": 0}
        self.queued = {"copy": 0, "work": 0}

    def _put(self, queue, action):
        self.queues[queue].append(action)
        self.queued[queue] += 1
        return queue, self.queued[queue]

    def copy(self, target, source):
        return self._put("copy", lambda: target.copy_(source))

    def queue_work(self, action):
        self._put("work", action)

    def mark_work(self):
        return "work", self.queued["work"]

    def work_waits(self, mark):
        self._put("work", lambda: self.host_waits(mark))

    def copy_waits(self, mark):
        self._put("copy", lambda: self.host_waits(mark))

    def host_waits(self, mark):
        queue, until = mark
        while self.done[queue] < until:
            self.done[queue] += 1
            self.queues[queue].popleft()()


def reader(data, height, log=None):
    def read(number, out):
        block = data[number * height : (number + 1) * height]
        out.fill_(torch.nan)  # what a late copy of the block before would take
        out[: len(block)] = block
        if log is not None:
            log.append(number)
        return len(block)

    return read


@pytest.mark.parametrize("rows", [0, 1, 4, 9, 23])
def test_late_copies_and_late_work_see_their_own_block(rows):
    data = torch.arange(3.0 * rows).view(rows, 3)
    streams, seen = LateStreams(), []
    transfer = BlockTransfer((4, 3), torch.float32, "cpu", streams)
    count = -(-rows // 4)
    for block in transfer.blocks(reader(data, 4), count):
        streams.queue_work(lambda block=block: seen.append(block.clone()))
    streams.host_waits(streams.mark_work())
    assert torch.equal(torch.cat([torch.empty(0, 3), *seen]), data)
    # A second pass over the same buffers waits for the first.
    for block in transfer.blocks(reader(data, 4), count):
        streams.queue_work(lambda block=block: seen.append(block.clone()))
    streams.host_waits(streams.mark_work())
    assert torch.equal(torch.cat([torch.empty(0, 3), *seen]), torch.cat([data, data]))


@pytest.mark.parametrize("missing", ["work_waits", "copy_waits", "host_waits"])
def test_the_stub_shows_a_missing_wait(missing, monkeypatch):
    """Each of the three waits is needed, and the test above would fail without it."""
    data = torch.arange(60.0).view(20, 3)
    streams, seen = LateStreams(), []
    wait = streams.host_waits
    monkeypatch.setattr(streams, missing, lambda mark: None)
    if missing == "host_waits":  # which the queues use themselves
        monkeypatch.setattr(streams, "work_waits", lambda m: streams._put("work", lambda: wait(m)))
        monkeypatch.setattr(streams, "copy_waits", lambda m: streams._put("copy", lambda: wait(m)))
    transfer = BlockTransfer((4, 3), torch.float32, "cpu", streams)
    for block in transfer.blocks(reader(data, 4), 5):
        streams.queue_work(lambda block=block: seen.append(block.clone()))
    # The queue that runs ahead is the one that did not wait.
    for queue in ("work", "copy") if missing == "work_waits" else ("copy", "work"):
        wait((queue, streams.queued[queue]))
    assert not torch.equal(torch.cat(seen), data)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_blocks_of_a_device(device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    data = torch.randn(1000, 64).to(dtype)
    log = []
    transfer = BlockTransfer((128, 64), dtype, device)
    sums = []
    for number, block in enumerate(transfer.blocks(reader(data, 128, log), 8)):
        assert block.device.type == device and log == [*range(min(number + 2, 8))]
        sums.append(block.double().sum(1))
    expected = data.to(device).double().sum(1)
    assert torch.equal(torch.cat(sums), expected)


def test_blocks_are_widened_on_the_device():
    data = torch.arange(60.0).view(20, 3).half()
    transfer = BlockTransfer((4, 3), torch.float16, "cpu", wanted=torch.float32)
    blocks = [block.clone() for block in transfer.blocks(reader(data, 4), 5)]
    assert blocks[0].dtype == torch.float32 and torch.equal(torch.cat(blocks), data.float())


def test_no_copy_begins_before_the_work_that_used_the_memory():
    """An allocator hands out what was freed while work with it is still queued."""
    streams, log = LateStreams(), []
    streams.queue_work(lambda: log.append("work of another"))
    transfer = BlockTransfer((4, 3), torch.float32, "cpu", streams)
    next(transfer.blocks(reader(torch.ones(4, 3), 4), 1))
    streams.host_waits(("copy", 1))  # lets the copy run, alone if it does not wait
    assert log == ["work of another"]


def test_no_copy_outlives_a_pass_that_is_left():
    """The buffers' memory may belong to others after it."""
    streams = LateStreams()
    transfer = BlockTransfer((4, 3), torch.float32, "cpu", streams)
    blocks = transfer.blocks(reader(torch.ones(20, 3), 4), 5)
    next(blocks)
    blocks.close()
    streams.host_waits(streams.mark_work())
    assert streams.done["copy"] == streams.queued["copy"]
    assert not streams.queues["copy"]


def test_a_pass_may_be_left():
    data = torch.arange(60.0).view(20, 3)
    transfer = BlockTransfer((4, 3), torch.float32, "cpu")
    for block in transfer.blocks(reader(data, 4), 5):
        assert torch.equal(block, data[:4])
        break
    assert torch.equal(torch.cat([b.clone() for b in transfer.blocks(reader(data, 4), 5)]), data)
