"""CoCoSoDa: queues of both modalities and of their augmented views."""

import pytest
import torch
from torch import nn

from tests.data.test_tokenizers import CODE, Source
from tests.methods.test_dual import attach, batch_of
from zoo.data.text import Tokens
from zoo.data.tokenizers import CodeBPE
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.scores import normalize
from zoo.methods.dual import Encoded
from zoo.methods.momentum_dual import MomentumDualEncoder, SoftAugment, Views, contrasts
from zoo.methods.text_encoders import TextTransformer, TokenBag

B, K = 4, 8
ORDER = [
    ("document", "query"),
    ("document", "augmented_query"),
    ("query", "document"),
    ("query", "augmented_document"),
    ("document", "augmented_document"),
    ("query", "augmented_query"),
]


class Shift(nn.Module):
    """An augmentation that is easy to follow: every token becomes the next one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, tokens, step, side):
        self.seen.append((step, side))
        return Tokens(torch.where(tokens.mask, tokens.ids % 49 + 1, 0), tokens.mask, tokens.pool)


def build(intra=True, momentum=0.5, encoder=None, **kwargs):
    torch.manual_seed(0)
    encoder = encoder or TextTransformer(50, 8, 1, 2)
    module = MomentumDualEncoder(encoder, InfoNCE(0.2), Shift(), K, momentum, intra, **kwargs)
    return attach(module.double())


def pairs(step):
    """Pairs that occur once in a run."""
    batch = batch_of(B, 0, seed=step)
    keys = torch.arange(B) + B * step
    return batch.replace(anchor_key=keys, positive_key=keys + 1000, index=keys)


def train(module, steps, rate=0.1):
    """Steps of SGD; what the online and the momentum encoder said at each."""
    history = []
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], rate)
    for step in range(steps):
        module.trainer.global_step, batch = step, pairs(step)
        online = {"document": batch.positive, "query": batch.anchor}
        online = {name: module.embed(tokens, name).detach() for name, tokens in online.items()}
        optimizer.zero_grad()
        module.training_step(batch, step)["loss"].backward()
        views = {"document": batch.positive, "query": batch.anchor}
        for name, tokens in views.items():
            online[f"augmented_{name}"] = normalize(module.key_encoder(module.augment(tokens, -1, name))).detach()
        module.on_after_backward()
        optimizer.step()
        history.append(online)
    return history


def test_terms_are_in_the_official_order():
    assert contrasts(True) == ORDER and contrasts(False) == ORDER[:4]


@pytest.mark.parametrize("intra", [True, False])
def test_the_loss_by_hand(intra):
    module, batch = build(intra), pairs(0)
    queues = {name: queue.rows.clone() for name, queue in module.queues.items()}
    step = module.training_step(batch, 0)
    key = {"document": batch.positive, "query": batch.anchor}
    views = {name: module.embed(tokens, name) for name, tokens in key.items()}
    for name, tokens in key.items():
        views[f"augmented_{name}"] = normalize(module.key_encoder(module.augment(tokens, 0, name)))
    rows = []
    for anchor, other in ORDER if intra else ORDER[:4]:
        logits = torch.cat([views[anchor] @ views[other].T, views[anchor] @ queues[other].T], 1) / 0.2
        rows.append(nn.functional.cross_entropy(logits, torch.arange(B), reduction="none"))
    assert len(torch.cat(rows)) == (6 if intra else 4) * B
    torch.testing.assert_close(step["loss"], torch.cat(rows).mean())
    torch.testing.assert_close(step["positives"][:, 0], (views["query"] * views["document"]).sum(1))
    assert step["negatives"].shape == (B, B + K) and step["mask"].sum() == B * (B + K - 1)


def test_queues_hold_exactly_the_last_vectors_of_their_encoder():
    module = build()
    history = train(module, 5)  # K = 2 B
    for name, queue in module.queues.items():
        last = torch.cat([history[4][name], history[3][name]])  # the pointer has wrapped: 5 B = 2 K + B
        torch.testing.assert_close(queue.rows, last, rtol=0, atol=1e-12)
        keys = torch.cat([torch.arange(B) + B * step for step in (4, 3)])
        assert queue.keys.tolist() == (keys + 1000 if "document" in name else keys).tolist()
        assert queue.pointer == B
    assert list(module.queues) == list(Views._fields)
    for one, other in (("document", "query"), ("query", "augmented_query")):
        assert (module.queues[one].rows - module.queues[other].rows).abs().max() > 0.01


def test_queues_are_written_after_the_backward_pass_only():
    module = build()
    before = module.queues["query"].rows.clone()
    loss = module.training_step(pairs(0), 0)["loss"]
    assert torch.equal(module.queues["query"].rows, before)
    loss.backward()
    module.on_after_backward()
    changed = (module.queues["query"].rows != before).any(1)
    assert changed.tolist() == [True] * B + [False] * (K - B)
    module.on_after_backward()
    assert module.queues["query"].pointer == B


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_momentum_encoder_moves_before_it_encodes(momentum):
    module = build(momentum=momentum)
    start = [p.clone() for p in module.key_encoder.parameters()]
    train(module, 1, rate=1.0)
    online = [p.clone() for p in module.encoder.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(start, online, strict=True))
    module.training_step(pairs(1), 1)
    for first, now, key in zip(start, online, module.key_encoder.parameters(), strict=True):
        torch.testing.assert_close(key.data, momentum * first + (1 - momentum) * now)
        assert not key.requires_grad and key.grad is None
    found = {name: view for name, view, _ in module._pending}
    torch.testing.assert_close(
        found["augmented_query"], normalize(module.key_encoder(module.augment(pairs(1).anchor, 1, "query")))
    )


def test_gradient_reaches_both_online_sides_but_no_constants():
    module = build(intra=False)
    batch = pairs(0)
    encoded = [
        module.embed(t, s).detach().requires_grad_() for t, s in ((batch.anchor, "query"), (batch.positive, "document"))
    ]
    module.encode = lambda _: Encoded(*encoded, None)
    module.training_step(batch, 0)["loss"].backward()
    assert all(x.grad.abs().sum() > 0 for x in encoded)
    assert all(p.grad is None for p in module.parameters())
    assert not any(queue.rows.requires_grad for queue in module.queues.values())


def test_views_follow_the_scores_normalisation():
    module = build(normalize=False, encoder=TokenBag(50, 8))
    module.training_step(pairs(0), 0)
    found = {name: view for name, view, _ in module._pending}
    torch.testing.assert_close(
        found["augmented_document"], module.key_encoder(module.augment(pairs(0).positive, 0, "document"))
    )
    assert found["augmented_document"].dtype == torch.float64


def test_known_positives_are_masked_in_the_batch_and_in_the_queues():
    module = build()
    # Queries 0 and 1 are the same one, with documents 10 and 11; query 3 has document 12 as query 2 does, and 13.
    anchor_key, positive_key = torch.tensor([0, 0, 2, 3]), torch.tensor([10, 11, 12, 13])
    batch = pairs(0).replace(anchor_key=anchor_key, positive_key=positive_key)
    known = torch.tensor([[10, 11], [10, 11], [12, -1], [12, 13]])
    queued = torch.tensor([11, 2, -1, 0])
    found = {pair: module._mask(batch, known, queued, *pair).int().tolist() for pair in ORDER}
    documents = [[1, 0, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1]]
    of_document = [
        [1, 0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
    of_query = [[1, 0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1]]
    for anchor, key in ORDER:
        expected = documents if key.endswith("document") else of_document if anchor == "document" else of_query
        assert found[anchor, key] == expected, (anchor, key)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    tokenizer = CodeBPE(vocab_size=300)
    tokenizer.prepare(Source(), tmp_path_factory.mktemp("bpe"))
    return tokenizer


@pytest.mark.parametrize("step", range(4))
def test_soft_augmentation_leaves_padding_and_special_tokens(bpe, step):
    augment = SoftAugment(p=1.0)
    augment.bind(bpe)
    tokens = bpe([*CODE, ""], "document")
    tokens.ids[0, 2], tokens.ids[1, 1] = CodeBPE.MASK, CodeBPE.UNKNOWN
    special = tokens.ids < CodeBPE.FIRST
    kinds = dict.fromkeys(("document", "query"), 0)
    for seed in range(10):
        torch.manual_seed(seed)
        for side in kinds:
            view = augment(tokens, step, side)
            changed = view.ids != tokens.ids
            kinds[side] += int(changed.sum())
            assert not changed[special].any() and view.mask is tokens.mask and view.pool is tokens.pool
            if step == 1:  # a token becomes that of its own type
                expected = bpe.types()[tokens.ids] + CodeBPE.MASK + 1
                assert torch.equal(view.ids[changed], expected[changed])
    assert kinds["document"] > 50 and (kinds["query"] > 50) == (step == 0)
    augment.p = 0.0
    assert torch.equal(augment(tokens, step, "document").ids, tokens.ids)


def test_soft_augmentation_needs_types(bpe):
    module = attach(MomentumDualEncoder(TokenBag(300, 8), InfoNCE(0.2), SoftAugment(), K))
    module.trainer.datamodule = nn.Identity()
    module.trainer.datamodule.tokenizer = None
    with pytest.raises(ZooError, match="zoo.data.CodeBPE"):
        module.on_fit_start()
    module.trainer.datamodule.tokenizer = bpe
    module.on_fit_start()
    assert module.augment.types.shape == (300,)
