import collections

import numpy as np
import pytest
from paths import SHARED_DATA

from mmga.common.errors import UserError
from mmga.data.sampler import SAMPLERS, EveryIdentity, EveryImage

# Identities 0-9 with 4 to 13 images, 10 with two, 11 with one, and junk.
PIDS = np.concatenate([np.repeat(np.arange(10) * 7, np.arange(4, 14)), [100, 100], [200], [-1] * 5])
PIDS = np.random.default_rng(0).permutation(PIDS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_batch_holds_k_images_of_each_identity(name):
    sampler = SAMPLERS[name](PIDS, 4, 4)
    for batch in sampler.batches(3):
        groups = PIDS[batch].reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == len(groups)
        assert not {-1, 200} & set(groups[:, 0])
        for images, pids in zip(batch.reshape(-1, 4), groups, strict=True):
            assert len(set(images)) == (4 if pids[0] != 100 else 2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_epochs_differ_and_repeat(name):
    sampler, again = (SAMPLERS[name](PIDS, 4, 4, seed=5) for _ in range(2))
    one, two = sampler.batches(0), sampler.batches(1)
    assert not np.array_equal(np.concatenate(one), np.concatenate(two))
    again.batches(1)
    np.testing.assert_array_equal(np.concatenate(again.batches(0)), np.concatenate(one))
    other = SAMPLERS[name](PIDS, 4, 4, seed=6).batches(0)
    assert not np.array_equal(np.concatenate(other), np.concatenate(one))


def test_counts_and_labels():
    sampler = EveryIdentity(PIDS, 4, 4)
    assert sampler.singletons == 1
    assert sampler.short == 1
    assert sampler.classes.tolist() == [*(np.arange(10) * 7), 100]
    assert sampler.labels(np.array([0, 7, 100, 200, -1, 3, 999])).tolist() == [0, 1, 10, *[-1] * 4]


def test_mgn_takes_every_identity_once():
    batches = EveryIdentity(PIDS, 4, 4).batches(0)
    assert [len(batch) for batch in batches] == [16, 16, 12]
    counts = collections.Counter(PIDS[np.concatenate(batches)])
    assert set(counts.values()) == {4}
    assert len(counts) == 11


def test_bot_takes_chunks_until_too_few_identities_are_left():
    sampler = EveryImage(PIDS, 4, 4)
    batches = sampler.batches(0)
    images = np.concatenate(batches)
    twice = {i for i, n in collections.Counter(images.tolist()).items() if n > 1}
    assert set(PIDS[list(twice)]) <= {100}  # nobody else is short
    chunks = collections.Counter(PIDS[images].tolist())
    left = 0
    for pid, count in zip(*np.unique(PIDS, return_counts=True), strict=True):
        if pid in (-1, 200):
            continue
        whole = max(int(count) // 4, 1)
        assert chunks[pid] % 4 == 0
        assert chunks[pid] // 4 <= whole
        left += chunks[pid] // 4 < whole
    assert left < 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_processes_share_the_identities_of_each_batch(name):
    sampler = SAMPLERS[name](PIDS, 4, 4)
    whole = sampler.batches(2)
    shares = [sampler.batches(2, rank, 2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for batch, a, b in zip(whole, *shares, strict=True):
        assert len(a) == len(b)
        assert not set(PIDS[a]) & set(PIDS[b])
        # The last batch of mgn, of three identities, is filled up to four.
        assert set(batch) <= {*a, *b}
        assert len(a) + len(b) == -(-len(batch) // 8) * 8
    with pytest.raises(UserError, match="--p must be a multiple of the 3 processes"):
        sampler.batches(0, 0, 3)


def test_too_few_identities():
    with pytest.raises(UserError, match=r"has 11 identities .* \(1 have one\), a batch needs 12"):
        EveryIdentity(PIDS, 12, 4)
    with pytest.raises(UserError, match="has 0 identities"):
        EveryIdentity(np.array([], int), 2, 2)


def test_all_images_are_drawn_in_time():
    sampler = EveryIdentity(PIDS, 4, 4)
    seen = {int(i) for epoch in range(30) for batch in sampler.batches(epoch) for i in batch}
    assert seen == set(np.flatnonzero((PIDS >= 0) & (PIDS != 200)).tolist())


def test_steps_on_market1501():
    """The figures of the two recipes: 47 steps, and about 200."""
    data = SHARED_DATA
    names = data / "market1501-lists" / "list_market_train.txt"
    if not names.is_file():
        pytest.skip(f"{names} is absent")
    pids = np.array([int(line.split()[1]) for line in names.read_text().splitlines()])
    assert len(EveryIdentity(pids, 16, 4).batches(0)) == 47
    assert 170 <= len(EveryImage(pids, 16, 4).batches(0)) <= 200
