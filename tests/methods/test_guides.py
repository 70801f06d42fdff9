"""Guides and teachers, against the same things counted by hand."""

import math
from collections import Counter

import lightning.pytorch as pl
import pytest
import torch

from tests.data.test_text import Letters, Source
from tests.methods.test_dual import attach, batch_of
from zoo.data.datamodule import NegativesDataModule
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder
from zoo.methods.guides import Bm25Teacher, EncoderGuide, LexicalGuide, QueryLikelihood
from zoo.methods.text_encoders import TextTransformer, TokenBag

VOCAB = 12


def bag(tokens, row):
    return Counter(tokens.ids[row][tokens.pool[row]].tolist())


@pytest.fixture
def batches():
    """Small vocabulary, so that tokens recur; the first token of each text is not pooled."""
    found = []
    for seed in range(3):
        batch = batch_of(5, 2, seed)
        for side in (batch.anchor, batch.positive, batch.negatives):
            side.ids = torch.where(side.mask, side.ids % (VOCAB - 3) + 3, 0)
            side.pool = side.mask & ((torch.arange(6) > 0) | (side.mask.sum(1, keepdim=True) == 1))
        found.append(batch)
    return found


def corpus(batches):
    return [bag(batch.positive, i) for batch in batches for i in range(len(batch))]


def idf(bags, token):
    return math.log((1 + len(bags)) / (1 + sum(token in b for b in bags)))


def bm25(bags, query, document, k1, b):
    mean = sum(d.total() for d in bags) / len(bags)
    norm = k1 * (1 - b + b * document.total() / mean)
    return sum(idf(bags, t) * document[t] * (k1 + 1) / (document[t] + norm) for t in query)


def scores(encoded):
    """Every query against its own list, and against all positives."""
    query, positive, negatives = encoded
    own = torch.cat([positive[:, None], negatives], 1)
    return torch.einsum("bd,bgd->bg", query, own), query @ positive.T


def expected_scores(batch, score):
    documents = [[bag(batch.positive, i), *(bag(batch.negatives, 2 * i + j) for j in range(2))] for i in range(5)]
    queries = [bag(batch.anchor, i) for i in range(5)]
    own = [[score(q, d) for d in row] for q, row in zip(queries, documents, strict=True)]
    return torch.tensor(own), torch.tensor([[score(q, row[0]) for row in documents] for q in queries])


def assert_scores(teacher, batch, score):
    for found, expected in zip(scores(teacher(batch)), expected_scores(batch, score), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.6, 0.0), (2.0, 1.0)])
def test_bm25_is_bm25(batches, k1, b):
    teacher, bags = Bm25Teacher(VOCAB, k1, b), corpus(batches)
    teacher.fit(iter(batches))
    assert_scores(teacher, batches[1], lambda q, d: bm25(bags, q, d, k1, b))


def test_bm25_agrees_with_bm25s_but_for_its_idf(batches):
    bm25s = pytest.importorskip("bm25s")
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index([[str(t) for t in b.elements()] for b in corpus(batches)], show_progress=False)
    teacher = Bm25Teacher(VOCAB)
    teacher.fit(batches)
    ours = torch.cat([teacher.weights(batch.positive) for batch in batches])
    for token in range(3, VOCAB):  # of a query of one token, shares do not depend on the idf
        theirs = torch.as_tensor(index.get_scores([str(token)]))
        assert theirs.max() > 0
        torch.testing.assert_close(ours[:, token] / ours[:, token].max(), theirs / theirs.max())


def test_lexical_guide_is_an_idf_cosine(batches):
    guide, bags = LexicalGuide(VOCAB), corpus(batches)
    guide.fit(batches)

    def cosine(q, d):
        q, d = ({t: n**0.5 * idf(bags, t) for t, n in x.items()} for x in (q, d))
        dot = sum(q[t] * d.get(t, 0) for t in q)
        return dot / math.prod(math.sqrt(sum(v * v for v in x.values())) for x in (q, d))

    assert_scores(guide, batches[2], cosine)


def test_query_likelihood_is_a_smoothed_unigram_model(batches):
    teacher, mu = QueryLikelihood(VOCAB, mu=7.0), 7.0
    teacher.fit(batches)
    total = sum(corpus(batches), Counter())
    background = {t: (1 + total[t]) / (VOCAB + total.total()) for t in range(VOCAB)}

    def likelihood(q, d):
        logs = [math.log((d[t] + mu * background[t]) / (d.total() + mu)) for t in q.elements()]
        return sum(logs) / len(logs)

    assert_scores(teacher, batches[0], likelihood)
    probabilities = teacher.weights(batches[0].positive).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


@pytest.mark.parametrize("kind", [LexicalGuide, Bm25Teacher, QueryLikelihood])
def test_counting_makes_no_parameters_and_comes_back_with_the_checkpoint(batches, kind):
    guide, other = kind(VOCAB), kind(VOCAB)
    assert not list(guide.parameters())
    guide.fit(batches)
    other.load_state_dict(guide.state_dict())
    for one, two in zip(scores(guide(batches[0])), scores(other(batches[0])), strict=True):
        assert torch.equal(one, two)
    alone = guide(batches[0].replace(negatives=None))
    assert alone.negatives is None


def test_guides_are_fitted_once_on_the_training_documents():
    class Whole(torch.nn.Module):
        def fit_pairs(self, pairs):
            self.seen = pairs

    data = NegativesDataModule(Source(), tokenizer=Letters(), eval_batch_size=2, seed=0)
    data.setup("fit")
    guide = LexicalGuide(128)
    method = attach(DualEncoder(TokenBag(128, 4), InfoNCE(0.1), guide=guide))
    method.trainer.datamodule = data
    method.on_fit_start()
    assert guide.idf[ord("d")] == 0 and guide.idf[ord("e")] == pytest.approx(math.log(5))  # 4 pairs, all have a d
    method.guide = Whole()
    method.on_fit_start()
    assert method.guide.seen is data.train_pairs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    method = DualEncoder(TokenBag(128, 8), InfoNCE(0.1))
    data = NegativesDataModule(Source(), tokenizer=Letters(), batch_size=2, seed=0)
    trainer = pl.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(method, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", method


def test_an_encoder_guide_is_the_run_of_its_checkpoint(checkpoint):
    path, method = checkpoint
    guide, batch = EncoderGuide(TokenBag(128, 8), path), batch_of(4, 2)
    found = guide(batch)
    torch.testing.assert_close(found.query, method.embed_queries(batch.anchor))
    torch.testing.assert_close(found.negatives.flatten(0, 1), normalize(method.encoder(batch.negatives)))
    assert found.negatives.shape == (4, 2, 8)


def test_an_encoder_guide_stays_in_evaluation_mode_and_frozen(checkpoint):
    path, _ = checkpoint
    guide = EncoderGuide(TokenBag(128, 8), path)
    method = DualEncoder(TextTransformer(50, 8, 1, 2), InfoNCE(0.1), guide=guide)
    method.train()
    assert method.encoder.training and not guide.training and not guide.encoder.training
    assert not any(p.requires_grad for p in guide.parameters())
    trained = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert not trained & {id(p) for p in guide.parameters()}


def test_a_wrong_checkpoint_is_named(checkpoint, tmp_path):
    path, _ = checkpoint
    with pytest.raises(ZooError, match="fit one first"):
        EncoderGuide(TokenBag(128, 8), tmp_path / "none.ckpt")
    for encoder in (TokenBag(128, 4), TextTransformer(128, 8, 1, 2)):
        with pytest.raises(ZooError, match="another encoder") as error:
            EncoderGuide(encoder, path)
        assert "\n" not in str(error.value)
