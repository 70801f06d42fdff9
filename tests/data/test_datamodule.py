"""The one datamodule: batches, explicit negatives, and exact resume in the middle of an epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.data import ImagePairs, NegativesDataModule, PairSource, RandomBatches
from zoo.errors import ZooError
from zoo.negatives import NegativeTable

N = 24


class Numbers(PairSource):
    """Image i is filled with i; pairs 0 and 1 are the same content."""

    name = "numbers"

    def prepare(self, root):
        pass

    def split(self, split, root):
        images = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 3, 2, 2)).copy()
        keys = np.arange(N)
        keys[1] = 0
        return ImagePairs(images, np.arange(N) % 3, {"anchor_key": keys, "positive_key": keys + 100})


def ready(**kwargs):
    module = NegativesDataModule(Numbers(), batch_size=4, seed=0, **kwargs)
    module.setup("fit")
    return module


def table(k=3):
    ids = (np.arange(N)[:, None] + np.arange(1, k + 1)) % N
    ids[5] = -1
    return NegativeTable(ids, np.zeros(ids.shape, np.float32), [{"miner": "next"}])


def test_batches_carry_keys_labels_and_content():
    for batch in ready().train_dataloader():
        assert torch.equal(batch.anchor[:, 0, 0, 0], batch.index.to(torch.uint8))
        assert torch.equal(batch.group, batch.index % 3)
        expected = torch.where(batch.index == 1, 0, batch.index)
        assert torch.equal(batch.anchor_key, expected) and torch.equal(batch.positive_key, expected + 100)


def test_an_unbound_sampler_may_be_passed():
    assert isinstance(ready(sampler=RandomBatches()).sampler, RandomBatches)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_explicit_negatives_come_from_the_table(workers):
    module = ready(table=table(), n_negatives=2, num_workers=workers)
    seen = 0
    for batch in module.train_dataloader():
        drawn = batch.negatives[:, 0, 0, 0].view(4, 2).long()
        for i, index in enumerate(batch.index.tolist()):
            if index == 5:
                assert not batch.negative_mask[i].any() and (batch.negative_key[i] == -1).all()
                continue
            assert batch.negative_mask[i].all() and len(set(drawn[i].tolist())) == 2
            assert set(drawn[i].tolist()) <= set(table().ids[index].tolist())
            assert batch.negative_key[i].tolist() == [100 if d == 1 else 100 + d for d in drawn[i].tolist()]
            seen += 1
    assert seen == N - 1


@pytest.mark.parametrize("balanced", [0, 4])
def test_a_teacher_s_scores_come_with_the_negatives_that_were_drawn(balanced):
    plain = table()
    scored = NegativeTable(plain.ids, np.where(plain.ids >= 0, plain.ids / 8, -np.inf), positives=np.arange(N) + 50.0)
    n = 1 if balanced else 2
    for batch in ready(table=scored, n_negatives=n, balanced=balanced).train_dataloader():
        drawn = batch.negatives[:, 0, 0, 0].view(4, n) / 8
        assert torch.equal(batch.teacher[:, 0], batch.index + 50.0)
        assert torch.equal(batch.teacher[:, 1:], drawn.masked_fill(~batch.negative_mask, -torch.inf))
    assert all(batch.teacher is None for batch in ready(table=plain, n_negatives=n).train_dataloader())


def test_negatives_differ_between_epochs_and_repeat_with_the_seed():
    def draws(module, epoch):
        loader = module.train_dataloader()
        module.sampler.set_epoch(epoch)
        return {int(i): b.negative_key[j].tolist() for b in loader for j, i in enumerate(b.index)}

    first = ready(table=table(), n_negatives=1)
    assert draws(first, 0) == draws(ready(table=table(), n_negatives=1), 0) != draws(first, 1)


def train(module, steps, epochs=1):
    """What a training loop would see: indices and a draw of the step's generator."""
    module.trainer = SimpleNamespace(training=True, global_rank=0, world_size=1)
    seen, loader = [], module.train_dataloader()
    for epoch in range(module._served[0], epochs):
        module.sampler.set_epoch(epoch)
        for batch in loader:
            batch = module.on_after_batch_transfer(batch, 0)
            seen.append((batch.epoch, batch.number, batch.index.tolist(), torch.rand(1).item()))
            if len(seen) == steps:
                return seen
    return seen


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 7, 11])
def test_a_resumed_run_sees_the_rest(stop):
    whole = train(ready(), 12, epochs=2)
    assert len(whole) == 12
    first = ready()
    before = train(first, stop, epochs=2)
    second = ready()
    second.load_state_dict(first.state_dict())
    assert before + train(second, 12, epochs=2) == whole


def test_resuming_with_another_table_is_refused():
    state = ready(table=table(), n_negatives=1).state_dict()
    with pytest.raises(ZooError, match="another negative table"):
        ready(table=table(2), n_negatives=1).load_state_dict(state)


def test_a_table_and_a_number_belong_together():
    with pytest.raises(ZooError, match=r"--data.n_negatives"):
        NegativesDataModule(Numbers(), table=table())


def test_shared_tensors_stay_shared_on_the_device():
    batch = next(iter(ready().train_dataloader())).to("cpu")
    assert batch.anchor is batch.positive
