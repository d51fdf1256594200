"""The kernels' own threads: who has them, forks, several callers, subnormal numbers."""

import multiprocessing
import threading

import pytest
import torch

from mmga import nearest
from mmga.ops._extension import load
from mmga.ops.distance import squared_norms
from mmga.ops.kernel_threads import kernels_alone


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _features(seed=0, count=1500):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 48, generator=generator)


@pytest.mark.skipif(not load()["cpu"].loaded, reason="needs the CPU kernels")
def test_the_callers_torch_has_one_thread_while_kernels_have_all(two_threads):
    others = []
    with pytest.raises(ZeroDivisionError), kernels_alone(), kernels_alone():
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        other.start()
        other.join()
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    assert others == [2]


def test_results_are_the_same_with_and_without(two_threads):
    x = _features()
    plain = squared_norms(x)
    with kernels_alone():
        assert torch.equal(squared_norms(x), plain)


def test_callers_at_once_get_what_each_gets_alone(two_threads):
    sets = [_features(seed) for seed in range(4)]
    expected = [nearest(x, x, 7) for x in sets]
    found = [None] * len(sets)

    def search(i):
        for _ in range(3):
            found[i] = nearest(sets[i], sets[i], 7)

    threads = [threading.Thread(target=search, args=(i,)) for i in range(len(sets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (distances, index), (true_distances, true_index) in zip(found, expected, strict=True):
        assert torch.equal(index, true_index)
        assert torch.equal(distances, true_distances)


def _child(x, end):
    torch.set_num_threads(2)
    with kernels_alone():
        end.send(squared_norms(x).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own(two_threads):
    x = _features(count=20_000)
    with kernels_alone():
        expected = squared_norms(x)  # the parent's threads are there by now
    context = multiprocessing.get_context("fork")
    end, far_end = context.Pipe()
    child = context.Process(target=_child, args=(x, far_end), daemon=True)
    child.start()
    assert end.poll(60), "the child waits for threads that it does not have"
    assert end.recv() == expected.tolist()
    child.join(60)


def test_threads_keep_subnormal_numbers_or_not_as_their_caller(two_threads):
    x = torch.full((20_000, 48), 1e-24)  # squares of 1e-48, in float64
    subnormal = torch.full((20_000, 48), 1e-40)
    for flush in (False, True, False):
        torch.set_flush_denormal(flush)
        try:
            with kernels_alone():
                kept = bool((squared_norms(subnormal) > 0).all())
                some = bool((squared_norms(subnormal) > 0).any())
                assert bool((squared_norms(x) > 0).all())
        finally:
            torch.set_flush_denormal(False)
        assert kept == some, "threads of one call differ"
