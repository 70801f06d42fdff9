"""Dual encoders: candidates of a batch, masks, the gradient cache."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from zoo.data.pairs import PairBatch
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses import InfoNCE, info_nce
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder, Encoded, pair_embeddings
from zoo.methods.text_encoders import TextTransformer, TokenBag
from zoo.negatives import HardestNegatives
from zoo.negatives.blocks import GuideFilter, HardnessWeight, join, score_blocks


def tokens(rng, rows, vocab=50, length=6):
    lengths = torch.from_numpy(rng.integers(1, length + 1, rows))
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.from_numpy(rng.integers(3, vocab, (rows, length))).where(mask, 0)
    return Tokens(ids, mask, mask)


def batch_of(rows=6, negatives=2, seed=0):
    rng = np.random.default_rng(seed)
    keys = torch.arange(rows)
    return PairBatch(
        tokens(rng, rows),
        tokens(rng, rows),
        keys,
        keys,
        keys,
        negatives=tokens(rng, rows * negatives) if negatives else None,
        negative_key=torch.arange(rows, rows * (1 + negatives)).view(rows, -1) if negatives else None,
        negative_mask=torch.ones(rows, negatives, dtype=torch.bool) if negatives else None,
    )


def attach(method):
    """Just as much of a trainer as one step needs."""
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    trainer = SimpleNamespace(precision_plugin=plugin, global_step=0, log_every_n_steps=10, current_epoch=0)
    method._trainer = trainer
    method._fabric = None
    return method


def cached_step(method, batch):
    """One step's loss, with gradients left in the parameters."""
    attach(method)
    method.report = lambda loss, *scores, **raw: {"loss": loss}
    loss = method.training_step(batch, 0)["loss"]
    method.backward(loss)
    return loss.detach()


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_cache_equals_the_plain_step(chunk, dropout):
    torch.manual_seed(0)
    encoder = TextTransformer(50, 8, 2, 2, dropout=dropout).double()
    plain, cached = (
        DualEncoder(encoder, InfoNCE(0.1, learn_temperature=True).double(), cache_chunk=c) for c in (None, chunk)
    )
    cached.loss.load_state_dict(plain.loss.state_dict())
    batch = batch_of()
    if dropout:  # the plain step draws one mask for all rows: compare with the same chunks, with and without a cache
        plain.embed = lambda x, side, embed=plain.embed: torch.cat(
            [embed(x[i : i + chunk], side) for i in range(0, len(x), chunk)]
        )
    found = []
    for method in (plain, cached):
        method.zero_grad()
        torch.manual_seed(1)
        loss = cached_step(method, batch)
        found.append((loss, [p.grad.clone() for p in encoder.parameters()], method.loss.log_temperature.grad.clone()))
        encoder.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 2])
def test_the_lean_step_equals_the_plain_step(symmetric, negatives):
    batch = batch_of(negatives=negatives)
    batch = batch.replace(positive_key=torch.tensor([0, 1, 2, 3, 1, 5]))  # two pairs share a document
    if negatives:
        batch.negative_key[2, 1], batch.negative_mask[2, 1] = -1, False
    found = []
    for lean in (False, True):
        torch.manual_seed(0)
        loss = InfoNCE(0.2, learn_temperature=True, label_smoothing=0.1)
        method = DualEncoder(TokenBag(50, 8), loss, symmetric=symmetric, lean=lean).double()
        value = cached_step(method, batch)
        found.append([value, *(p.grad for p in method.parameters())])
    for plain, lean in zip(*found, strict=True):
        assert torch.allclose(plain, lean, atol=1e-10)


@pytest.mark.parametrize(
    "kwargs", [{"blocks": ("qd", "qq")}, {"vetting": [HardnessWeight()]}, {"negatives": [HardestNegatives(4)]}]
)
def test_what_lean_cannot_do_is_said(kwargs):
    with pytest.raises(ZooError, match="--model.lean"):
        DualEncoder(TokenBag(50, 8), InfoNCE(), lean=True, **kwargs)


class Towers(nn.Module):
    """One module for both sides, as open_clip's models are."""

    def __init__(self):
        super().__init__()
        self.query, self.document = TokenBag(50, 8), TokenBag(50, 8)

    def tower(self, side):
        return getattr(self, side)


def test_an_encoder_with_two_towers_has_one_for_each_side():
    method = DualEncoder(Towers(), InfoNCE(), shared=False)
    assert method.tower("query") is method.encoder.query and method.tower("document") is method.encoder.document
    assert method.document_encoder is None


def embeddings(batch, dim=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    b, k = len(batch), 0 if batch.negative_key is None else batch.negative_key.shape[1]
    q, p, n = (normalize(torch.randn(*s, dim, generator=rng, dtype=torch.float64)) for s in ((b,), (b,), (b, k)))
    return pair_embeddings(Encoded(q, p, n if k else None), batch)


def test_documents_stand_slot_by_slot():
    batch = batch_of(3, 2)
    x = embeddings(batch)
    assert x.document_key.tolist() == [0, 1, 2, 3, 5, 7, 4, 6, 8]
    assert x.own_columns().int().tolist() == [[1, 0, 0] * 3, [0, 1, 0] * 3, [0, 0, 1] * 3]
    assert torch.equal(x.documents[:3], x.positive)


def test_known_positives_are_masked_wherever_they_come_from():
    batch = batch_of(3, 1)
    batch = batch.replace(known=torch.tensor([[0, 4], [1, -1], [2, -1]]), negative_key=torch.tensor([[3], [4], [-1]]))
    weight = score_blocks(embeddings(batch))["qd"].weight.int().tolist()
    assert weight == [[0, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 0]]


def test_same_side_blocks_never_hold_the_row_itself():
    x = embeddings(batch_of(4, 1))
    blocks = score_blocks(x, ("qq", "dd", "pp", "dq"))
    for name in ("qq", "dd", "pp"):
        assert not blocks[name].weight[:, :4].diagonal().any()
    assert not blocks["dd"].weight[:, 4:].diagonal().any()  # nor its own explicit negatives
    assert blocks["dq"].weight.all()  # the pair counts twice in GTE's softmax
    loss_with, loss_without = DualEncoder.backward_scores(x)[1], blocks["dq"].weight
    assert not loss_with.diagonal().any() and loss_without.diagonal().all()


def test_duplicate_queries_are_no_negatives_of_each_other():
    batch = batch_of(4, 0).replace(
        anchor_key=torch.tensor([0, 0, 2, 3]), known=torch.tensor([[0, 1], [0, 1], [2, -1], [3, -1]])
    )
    blocks = score_blocks(embeddings(batch), ("qd", "qq", "dq"))
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert blocks["qd"].weight.int().tolist() == blocks["qq"].weight.int().tolist() == expected
    assert blocks["dq"].weight.int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_hardness_weight_is_importance_sampling():
    x = embeddings(batch_of(5, 1))
    blocks = score_blocks(x)
    for on in ("in_batch", "hard", "all"):
        same = HardnessWeight(0.0, on)(blocks, x, None)
        torch.testing.assert_close(same["qd"].weight, blocks["qd"].weight.double())
    weight = HardnessWeight(9.0, "hard")(blocks, x, None)["qd"].weight
    own = x.own_columns() & blocks["qd"].weight
    torch.testing.assert_close(weight[own], (9 * blocks["qd"].scores[own]).exp())
    assert (weight[~own & blocks["qd"].weight] == 1).all() and not weight.requires_grad


def guided(margin, relative=False, seed=1, blocks=("qd", "qq", "pp")):
    batch = batch_of(8, 1)
    x, guide = embeddings(batch), embeddings(batch, seed=seed)
    before = score_blocks(x, blocks)
    return x, before, GuideFilter(margin, relative)(before, x, guide)


def test_guide_that_is_the_student_leaves_the_positive_the_row_maximum():
    x, _, after = guided(0.0, seed=0)
    positive = (x.query * x.positive).sum(1, keepdim=True)
    scores, weight = join(after)
    assert (scores.masked_fill(~weight, -2) <= positive).all() and weight.any()


@pytest.mark.parametrize("relative", [False, True])
def test_a_larger_margin_removes_more(relative):
    kept = [join(guided(m, relative)[2])[1] for m in (0.0, 0.1, 0.3)]
    assert (kept[1] <= kept[0]).all() and (kept[2] <= kept[1]).all() and kept[2].sum() < kept[0].sum()
    torch.testing.assert_close(kept[0], join(guided(0.0)[2])[1])


def test_a_guide_that_knows_nothing_changes_nothing():
    batch = batch_of(6, 1)
    x = embeddings(batch)
    flat = x.replace(
        query=x.query * 0 + 1, positive=x.positive * 0 + 1, documents=x.documents * 0, queries=x.queries * 0
    )
    before = score_blocks(x, ("qd", "qq", "pp"))
    after = GuideFilter()(before, x, flat)
    assert all(torch.equal(after[name].weight, before[name].weight) for name in before)


def test_removed_columns_get_no_gradient():
    x, _, _ = guided(0.0)
    documents = x.documents.clone().requires_grad_()
    x = x.replace(documents=documents)
    block = score_blocks(x)["qd"]
    mask = block.weight.clone()
    mask[:, 3] = False
    info_nce((x.query * x.positive).sum(1, keepdim=True), block.scores, mask).backward()
    assert documents.grad[3].abs().sum() == 0 and documents.grad[4].abs().sum() > 0


def test_encoders_ignore_padding_and_unpooled_tokens():
    rng = np.random.default_rng(0)
    short = tokens(rng, 4, length=5)
    padded = Tokens(*(nn.functional.pad(x, (0, 3)) for x in (short.ids, short.mask, short.pool)))
    torch.manual_seed(0)
    for encoder in (TokenBag(50, 8), TextTransformer(50, 8, 2, 2), TextTransformer(50, 8, 2, 2, causal=True)):
        torch.testing.assert_close(encoder(short), encoder(padded))
        without = Tokens(
            short.ids, short.mask, short.pool & (torch.arange(5) > 0) | (short.mask.sum(1) == 1)[:, None] & short.mask
        )
        assert not torch.allclose(encoder(without), encoder(short))
