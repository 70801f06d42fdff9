"""Batch composition: every pair once an epoch, shared out over ranks, a pure function of seed and epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import ImagePairs, RandomBatches
from zoo.errors import ZooError


def pairs(n):
    return ImagePairs(np.zeros((n, 3, 1, 1), np.uint8), np.zeros(n))


def epoch(sampler, number):
    sampler.set_epoch(number)
    return [plan.indices.tolist() for plan in sampler]


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.integers(0, 5))
def test_ranks_partition_every_batch(n, batch_size, world, seed):
    if n < batch_size * world:
        with pytest.raises(ZooError, match=r"lower --data.batch_size"):
            RandomBatches().bind(pairs(n), batch_size, seed, 0, world)
        return
    ranks = [epoch(RandomBatches().bind(pairs(n), batch_size, seed, r, world), 3) for r in range(world)]
    assert {len(r) for r in ranks} == {n // (batch_size * world)}
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert len(seen) == len(set(seen)) == n // (batch_size * world) * batch_size * world
    assert set(seen) <= set(range(n))


def test_seed_and_epoch_alone_decide():
    first, same, other = (RandomBatches().bind(pairs(64), 8, seed) for seed in (1, 1, 2))
    assert epoch(first, 0) == epoch(same, 0) != epoch(other, 0)
    assert epoch(first, 1) != epoch(first, 0)
    assert epoch(first, 5) == epoch(same, 5)


def test_start_skips_what_was_served_in_one_epoch_only():
    sampler = RandomBatches().bind(pairs(40), 8, 0)
    whole = [epoch(sampler, number) for number in (0, 1)]
    sampler.epoch, sampler.start = 0, 3
    assert epoch(sampler, 0) == whole[0][3:]
    assert epoch(sampler, 1) == whole[1]
