"""ADORE: queries learn against an index that never moves."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from tests.methods.test_dual import tokens
from zoo.data.pairs import PairBatch
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder
from zoo.methods.dynamic import DynamicNegatives
from zoo.methods.text_encoders import TextTransformer

N, B = 12, 4


class Data:
    """Documents by number, whose tokens the encoder reads."""

    def __init__(self):
        self.documents = tokens(np.random.default_rng(0), N)
        self.train_pairs = SimpleNamespace(documents=[str(i) for i in range(N)])
        self.loads = 0

    def prepare_inputs(self, batch):
        return batch

    def encode_loader(self, dataset):
        self.loads += 1
        for rows in torch.tensor([int(text) for text in dataset.items]).split(5):
            yield PairBatch(None, self.documents[rows], rows, rows, rows)

    def batch(self, seed=0):
        draw = torch.Generator().manual_seed(seed)
        keys = torch.randperm(N, generator=draw)[:B]
        known = torch.stack([keys, (keys + 1) % N], 1)
        known[0, 1] = -1
        return PairBatch(
            tokens(np.random.default_rng(seed + 1), B), self.documents[keys], keys, keys + 100, keys, known=known
        )


def build(start_epoch=1, epoch=0, dropout=0.0, **kwargs):
    torch.manual_seed(0)
    module = DynamicNegatives(
        TextTransformer(50, 8, 1, 2, dropout=dropout), InfoNCE(0.2), start_epoch, depth=kwargs.pop("depth", 5), **kwargs
    )
    data = Data()
    iterate = data.encode_loader
    data.encode_loader = lambda dataset: list(iterate(dataset))
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    module._trainer = SimpleNamespace(
        datamodule=data, precision_plugin=plugin, current_epoch=epoch, global_step=0, log_every_n_steps=10
    )
    return module


def fit(module, steps):
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 0.01)
    for step in range(steps):
        optimizer.zero_grad()
        module.training_step(module.trainer.datamodule.batch(step), step)["loss"].backward()
        optimizer.step()


def bits(module):
    """The documents, bit for bit, as evaluation sees them."""
    with torch.no_grad():
        return hash(module.embed_documents(module.trainer.datamodule.documents).numpy().tobytes())


def test_before_its_start_it_is_a_shared_dual_encoder():
    module = build()
    torch.manual_seed(0)
    plain = DualEncoder(TextTransformer(50, 8, 1, 2), InfoNCE(0.2))
    plain._trainer = module._trainer
    for step in range(3):
        batch = module.trainer.datamodule.batch(step)
        torch.testing.assert_close(module.training_step(batch, 0)["loss"], plain.training_step(batch, 0)["loss"])
        assert torch.equal(module.embed_documents(batch.anchor), module.embed_queries(batch.anchor))
        fit(module, 1), fit(plain, 1)
    before = bits(module)
    fit(module, 1)
    assert bits(module) != before and not module.frozen


def test_from_its_start_only_queries_move():
    module = build(dropout=0.5)
    module.train()
    fit(module, 3)
    module.trainer.current_epoch = 1
    module.eval()
    documents, queries = bits(module), module.embed_queries(module.trainer.datamodule.batch().anchor)
    module.train()
    fit(module, 3)
    module.eval()
    assert bits(module) == documents and module.frozen
    assert not torch.allclose(module.embed_queries(module.trainer.datamodule.batch().anchor), queries)
    with torch.no_grad():
        assert torch.equal(module._index, module.embed_documents(module.trainer.datamodule.documents))
    assert all(p.grad is None and not p.requires_grad for p in module.document_encoder.parameters())
    assert module.trainer.datamodule.loads == 1


@pytest.mark.parametrize(("depth", "cut"), [(5, None), (2, None), (50, 3)])
def test_the_loss_by_hand(depth, cut):
    module = build(epoch=1, depth=depth, metric_cut=cut)
    batch = module.trainer.datamodule.batch()
    step = module.training_step(batch, 0)
    query, index = module.embed_queries(batch.anchor), module._index
    total, appended = 0.0, 0
    for row in range(B):
        relevant = set(batch.known[row].tolist()) - {-1}
        ranked = (index @ query[row]).argsort(descending=True)[:depth].tolist()
        if not relevant & set(ranked):
            ranked += [d for d in batch.known[row].tolist() if d >= 0]
            appended += 1
        weight = {d: 1 / r if cut is None or r <= cut else 0.0 for r, d in enumerate(ranked, 1)}
        positives, negatives = [d for d in ranked if d in relevant], [d for d in ranked if d not in relevant]
        for p in positives:
            for n in negatives:
                gap = softplus((index[n] - index[p]) @ query[row] / 0.2)
                total += abs(weight[p] - weight[n]) * gap / len(positives) / len(negatives) / B
    torch.testing.assert_close(step["loss"], total)
    assert (appended > 0) == (depth < N)
    assert step["mask"].sum() == sum(
        len(set((index @ q).argsort(descending=True)[:depth].tolist()) - set(known.tolist()))
        for q, known in zip(query, batch.known, strict=True)
    )


def test_a_resumed_run_finds_the_same_index():
    module = build(start_epoch=0)
    fit(module, 3)
    other = build(start_epoch=0, epoch=0)
    other.load_state_dict(module.state_dict())
    fit_loss = [m.training_step(m.trainer.datamodule.batch(7), 0)["loss"] for m in (module, other)]
    assert torch.equal(module._index, other._index) and torch.equal(*fit_loss)
    assert bits(other) == bits(module)


def test_the_learning_rate_drops_at_the_start():
    module = build(start_epoch=2, rate=0.1, schedule="constant")
    assert [module.rate(epoch, 4) for epoch in (0.0, 1.9, 2.0, 3.5)] == [1.0, 1.0, 0.1, 0.1]
