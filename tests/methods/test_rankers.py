"""A ranker beside the retriever, and two models that weight each other."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.test_dual import attach, batch_of, tokens
from zoo.data.text import Tokens
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.adversarial import AdversarialRetrieverLoss
from zoo.losses.coupled import CoupledPairLoss
from zoo.losses.scores import normalize
from zoo.methods.rankers import CoupledEstimation, KernelRanker, RetrieverRanker, list_scores, lists
from zoo.methods.text_encoders import TextTransformer, TokenBag

VOCAB = 50


def lengthened(x, by=3, ids=0):
    ids = nn.functional.pad(x.ids, (0, by), value=ids)
    return Tokens(ids, *(nn.functional.pad(y, (0, by)) for y in (x.mask, x.pool)))


def test_kernel_ranker_counts_similar_tokens():
    torch.manual_seed(0)
    batch = batch_of(3, 1)
    ranker = KernelRanker(VOCAB, 8, kernels=4)
    documents, _ = lists(batch)
    found = ranker(batch.anchor, documents)
    unit = normalize(ranker.embedding.weight)
    for i in range(3):
        for j in range(2):
            features = []
            for center, width in zip([1, -0.75, -0.25, 0.25, 0.75], [1e-3, *[0.25] * 4], strict=True):
                total = 0.0
                for q in batch.anchor.ids[i][batch.anchor.mask[i]]:
                    soft = sum(
                        (-((unit[q] @ unit[d] - center) ** 2) / (2 * width**2)).exp()
                        for d in documents.ids[2 * i + j][documents.mask[2 * i + j]]
                    )
                    total += 0.1 * soft.clamp_min(1e-10).log()
                features.append(total)
            expected = ranker.score(ranker.norm(torch.stack(features)))[0]
            torch.testing.assert_close(found[i, j], expected, rtol=1e-3, atol=1e-4)


def test_a_duet_adds_the_cosine_of_bags_and_weighs_query_tokens():
    torch.manual_seed(0)
    batch, ranker = batch_of(3, 1), KernelRanker(VOCAB, 8, duet=True)
    documents, _ = lists(batch)
    plain = KernelRanker(VOCAB, 8)
    plain.load_state_dict(ranker.state_dict(), strict=False)

    def bag(tokens):
        return normalize(
            torch.stack([ranker.embedding(i[m]).mean(0) for i, m in zip(tokens.ids, tokens.mask, strict=True)])
        )

    cosine = torch.einsum("bd,bgd->bg", bag(batch.anchor), bag(documents).view(3, 2, 8))
    found = ranker(batch.anchor, documents)
    torch.testing.assert_close(found, plain(batch.anchor, documents) + 10 * cosine)
    with torch.no_grad():
        ranker.gate.weight[batch.anchor.ids[0, 0]] = -50  # this token no longer counts over kernels
        rest = Tokens(
            batch.anchor.ids, batch.anchor.mask & (batch.anchor.ids != batch.anchor.ids[0, 0]), batch.anchor.pool
        )
        expected = plain(rest, documents) + 10 * cosine
    torch.testing.assert_close(ranker(batch.anchor, documents), expected)


@pytest.mark.parametrize("duet", [False, True])
@pytest.mark.parametrize("ids", [0, 7])
def test_kernel_ranker_ignores_padding(ids, duet):
    torch.manual_seed(0)
    batch, ranker = batch_of(4, 2), KernelRanker(VOCAB, 8, duet=duet)
    documents, _ = lists(batch)
    expected = ranker(batch.anchor, documents)
    assert expected.std() > 0.01
    torch.testing.assert_close(ranker(lengthened(batch.anchor, ids=ids), documents), expected)
    torch.testing.assert_close(ranker(batch.anchor, lengthened(documents, ids=ids)), expected)


def test_kernel_ranker_learns_from_an_empty_text_without_nan():
    ranker, batch = KernelRanker(VOCAB, 8), batch_of(2, 1)
    documents, _ = lists(batch)
    documents.ids[0] = 0
    documents.mask[0] = torch.arange(6) < 1
    ranker(batch.anchor, documents).sum().backward()
    assert all(p.grad.isfinite().all() for p in ranker.parameters())
    assert ranker.embedding.weight.grad[0].abs().sum() == 0


def test_lists_hold_the_positive_first():
    batch = batch_of(3, 2)
    wide = tokens(np.random.default_rng(5), 3, length=9)
    documents, present = lists(
        batch.replace(positive=wide, negative_mask=batch.negative_mask & torch.tensor([1, 0]) > 0)
    )
    assert len(documents) == 9 and present.tolist() == [[True, True, False]] * 3
    for i in range(3):
        assert torch.equal(documents.ids[3 * i], wide.ids[i])
        for j in range(2):
            assert torch.equal(documents.ids[3 * i + 1 + j, :6], batch.negatives.ids[2 * i + j])
            assert not documents.mask[3 * i + 1 + j, 6:].any()
    with pytest.raises(ZooError, match="--data.n_negatives"):
        lists(batch_of(3, 0))


class Judge(nn.Module):
    """A ranker with dropout, which says in which mode it judged."""

    def __init__(self):
        super().__init__()
        self.inner, self.dropout, self.modes = KernelRanker(VOCAB, 8), nn.Dropout(0.5), []

    def forward(self, query, documents):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.dropout(self.inner(query, documents))


def retriever_ranker(**kwargs):
    torch.manual_seed(0)
    return attach(
        RetrieverRanker(
            TextTransformer(VOCAB, 8, 1, 2), InfoNCE(0.2), Judge(), AdversarialRetrieverLoss(),
            round_steps=5, ranker_steps=2, optimizer=torch.optim.AdamW, **kwargs,
        )
    )  # fmt: skip


def trained(module):
    """Which of a module's parts have gradient."""
    return {
        name
        for name in ("encoder", "ranker", "selection", "teacher", "project")
        if hasattr(module, name) and any(p.grad is not None for p in getattr(module, name).parameters())
    }


def test_steps_alternate_and_neither_model_moves_the_other():
    module = retriever_ranker(warmup_steps=3)
    module.train()
    logged = set()
    module.log = lambda name, value, **_: logged.add(name)
    module.log_dict = lambda values, **_: logged.update(values)
    optimizer = module.configure_optimizers()
    for step in range(13):
        module.trainer.global_step = step
        before = {k: v.clone() for k, v in module.state_dict().items()}
        optimizer.zero_grad()
        module.training_step(batch_of(4, 2, step), step)["loss"].backward()
        expected = {"encoder", "ranker"} if step < 3 else {"ranker"} if (step - 3) % 5 < 2 else {"encoder"}
        assert trained(module) == expected, step
        optimizer.step()  # whose weight decay and moments leave the resting model alone, too
        moved = {k.split(".")[0] for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == expected, step
        assert module.ranker.modes[-1] == (("ranker" in expected,) * 2)
    assert module.ranker.training
    assert logged == {"train/loss", "train/ranker_accuracy"}  # of step 9 alone, which was the ranker's


def test_losses_of_the_two_steps():
    module, batch = retriever_ranker(), batch_of(4, 2)
    module.ranker.dropout.p = 0.0
    documents, present = lists(batch)
    judged = module.ranker(batch.anchor, documents)
    step = module.training_step(batch, 0)
    torch.testing.assert_close(step["loss"], nn.functional.cross_entropy(judged, torch.zeros(4, dtype=torch.long)))
    module.trainer.global_step = 2
    step = module.training_step(batch, 0)
    scores = list_scores(module.encode(batch))
    expected = module.adversarial(scores / 0.2, judged.detach(), present).total
    torch.testing.assert_close(step["loss"], expected)
    torch.testing.assert_close(torch.cat([step["positives"], step["negatives"]], 1), scores)


def test_the_warmup_is_both_models_own_loss():
    module, batch = retriever_ranker(warmup_steps=1), batch_of(4, 2)
    module.ranker.dropout.p = 0.0
    judged = module.ranker(batch.anchor, lists(batch)[0])
    ranker = nn.functional.cross_entropy(judged, torch.zeros(4, dtype=torch.long))
    query, positive, negatives = module.encode(batch)
    logits = query @ torch.cat([positive, negatives.transpose(0, 1).flatten(0, 1)]).T / 0.2
    torch.testing.assert_close(
        module.training_step(batch, 0)["loss"], ranker + nn.functional.cross_entropy(logits, torch.arange(4))
    )


def coupled(encoder=None, **kwargs):
    torch.manual_seed(0)
    encoder = TextTransformer(VOCAB, 8, 1, 2) if encoder is None else encoder
    return attach(CoupledEstimation(encoder, InfoNCE(0.2), CoupledPairLoss(3.0), **kwargs))


def test_selection_starts_different_from_relevance():
    module, batch = coupled(), batch_of(16, 2)
    with torch.no_grad():
        r, s = (module._scores(e, batch)[:, 1:].flatten() for e in (module.encoder, module.selection))
    assert abs(torch.corrcoef(torch.stack([r, s]))[0, 1]) < 0.6
    for one, two in zip(module.encoder.parameters(), module.selection.parameters(), strict=True):
        torch.testing.assert_close(one.flatten().sort().values, two.flatten().sort().values)
    own = TokenBag(VOCAB, 4)
    assert coupled(selection=own).selection is own


def test_the_two_models_weight_but_do_not_train_each_other():
    module, batch = coupled(), batch_of(4, 2)
    loss = module.training_step(batch, 0)["loss"]
    assert trained(module) == set()
    with torch.no_grad():
        r, s = (module._scores(e, batch)[:, 1:] for e in (module.encoder, module.selection))
    found = torch.autograd.grad(loss, list(module.encoder.parameters()) + list(module.selection.parameters()))
    expected, total = [], 0.0
    for encoder, other in ((module.encoder, s), (module.selection, r)):
        scores = module._scores(encoder, batch)
        alone = ((1 + (other / 3).exp()) * nn.functional.softplus(scores[:, 1:] - scores[:, :1])).mean()
        expected += torch.autograd.grad(alone, list(encoder.parameters()))
        total += alone.detach()
    torch.testing.assert_close(loss.detach(), total)
    assert sum(g.abs().sum() for g in expected) > 0
    torch.testing.assert_close(found, tuple(expected), rtol=1e-4, atol=1e-6)


def test_weights_come_from_evaluation_mode_and_training_resumes():
    module, batch = coupled(TextTransformer(VOCAB, 8, 1, 2, dropout=0.5)), batch_of(4, 2)
    module.train()
    seen = []
    module.coupled.forward = lambda p, n, other, mask: seen.append((n, other)) or n.sum()
    module.training_step(batch, 0)
    assert module.encoder.training and module.selection.training
    with torch.no_grad():
        module.eval()
        r, s = (module._scores(e, batch)[:, 1:] for e in (module.encoder, module.selection))
    (of_relevance, weight_s), (of_selection, weight_r) = seen
    torch.testing.assert_close((weight_s, weight_r), (s, r))
    assert of_relevance.requires_grad and of_selection.requires_grad
    assert not torch.allclose(of_relevance, r) and not torch.allclose(of_selection, s)  # dropout was on


def test_masked_negatives_take_no_part():
    module, batch = coupled(), batch_of(4, 2)
    mask = torch.tensor([[True, False]] * 4)
    loss = module.training_step(batch.replace(negative_mask=mask), 0)["loss"]
    other = batch.negatives.ids.clone().view(4, 2, -1)
    other[:, 1] = 9
    changed = Tokens(other.flatten(0, 1), batch.negatives.mask, batch.negatives.pool)
    torch.testing.assert_close(
        module.training_step(batch.replace(negative_mask=mask, negatives=changed), 0)["loss"], loss
    )
    with pytest.raises(ZooError, match="--data.n_negatives"):
        module.training_step(batch_of(4, 0), 0)


def test_each_model_is_clipped_by_itself():
    method = CoupledEstimation(TokenBag(VOCAB, 4), InfoNCE(), CoupledPairLoss())
    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    next(method.selection.parameters()).grad.mul_(10)
    method.configure_gradient_clipping(torch.optim.SGD(method.parameters()), 1.0, "norm")
    for model in (method.encoder, method.selection):
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
        assert norm == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"blocks": ["qd", "qq"]}, {"cache_chunk": 4}, {"symmetric": True}])
def test_what_coupled_estimation_cannot_do_is_said(wrong):
    (name,) = wrong
    with pytest.raises(ZooError, match=f"remove --model.{name}"):
        CoupledEstimation(TokenBag(VOCAB, 4), InfoNCE(), CoupledPairLoss(), **wrong)


def test_submodules_have_rates_of_their_own():
    parts = (TokenBag(VOCAB, 4), InfoNCE(), KernelRanker(VOCAB, 4), AdversarialRetrieverLoss())

    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=0.5)

    method = RetrieverRanker(*parts, optimizer=adamw, rates={"ranker": 0.1}, exclude_from_decay=True)
    optimizer = method.configure_optimizers()
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(method.parameters()))
    for name, parameter in method.named_parameters():
        expected = 0.05 if name.startswith("ranker.") else 0.5
        assert rate[id(parameter)] == (pytest.approx(expected), 0.0 if parameter.ndim < 2 else 0.01)
    with pytest.raises(ZooError, match=r"'rankr'.*it has encoder"):
        RetrieverRanker(*parts, optimizer=adamw, rates={"rankr": 0.1}).configure_optimizers()
