"""Retrieval evaluation, and embeddings of whole data sets in the middle of training."""

import contextlib
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests.data.test_text import QUERIES, Letters, Source
from zoo.callbacks import encoding
from zoo.callbacks.encoding import encode, undisturbed
from zoo.callbacks.retrieval import RetrievalEvaluation
from zoo.data.collections import OneSide, RetrievalSet
from zoo.data.datamodule import NegativesDataModule
from zoo.data.text import TextPairs
from zoo.losses import InfoNCE
from zoo.losses.regression import EmbeddingRegression
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder
from zoo.methods.leaf import EmbeddingDistillation
from zoo.methods.text_encoders import TextTransformer, TokenBag
from zoo.retrieval import bm25_run, retrieval_metrics

WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown", "lime", "teal", "navy", "gold"]
COLLECTION = [f"{a} {b}" for a in WORDS for b in WORDS if a < b]
ASKED = [f"some {WORDS[i]} and {WORDS[i + 1]}" for i in range(8)]
RELEVANCE = [
    {n: 1 for n, text in enumerate(COLLECTION) if set(text.split()) == {WORDS[i], WORDS[i + 1]}} for i in range(8)
]


class Colours(Source):
    def split(self, split, root):
        return TextPairs(ASKED, COLLECTION, np.arange(8), np.array([min(row) for row in RELEVANCE]))

    def retrieval(self, split, root):
        n = 8 if split == "test" else 5
        return RetrievalSet(ASKED[:n], COLLECTION, RELEVANCE[:n])


def data(**kwargs):
    return NegativesDataModule(Colours(), tokenizer=Letters(), batch_size=2, eval_batch_size=7, seed=0, **kwargs)


def trainer(folder, *callbacks, **kwargs):
    return pl.Trainer(
        **{"max_epochs": 2, **kwargs}, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip


def results_of(tester, module):
    tester.test(module, data(), verbose=False)
    return {name: value.item() for name, value in tester.callback_metrics.items()}


def dual(dim=16):
    torch.manual_seed(0)
    return DualEncoder(TokenBag(128, dim), InfoNCE(0.1), optimizer=partial(torch.optim.SGD, lr=1.0))


def embedded(module, texts, side):
    with torch.no_grad():
        return module.embed(Letters()(texts, side), side)


def mrr(queries, documents, relevance):
    """By hand: the rank of the first relevant document, its score from the same matrix as the others."""
    total = 0.0
    for row, relevant in zip((queries @ documents.T).tolist(), relevance, strict=True):
        rank = min(1 + sum(s > row[d] for s in row) for d in relevant)
        total += 1 / rank if rank <= 10 else 0.0
    return total / len(relevance)


def test_metrics_of_validation_test_and_references(tmp_path):
    module, callback = dual(), RetrievalEvaluation(ks=(1, 5), truncate=(4,), binary=True)
    sides = [embedded(module, t, s) for t, s in ((ASKED, "query"), (COLLECTION, "document"))]
    untrained = mrr(*sides, RELEVANCE)
    fitter = trainer(tmp_path, callback)
    fitter.fit(module, data())
    queries, documents = (embedded(module, t, s) for t, s in ((ASKED, "query"), (COLLECTION, "document")))
    assert fitter.callback_metrics["eval/mrr@10"] == pytest.approx(mrr(queries[:5], documents, RELEVANCE[:5]))
    found = results_of(fitter, module)
    assert found["test/mrr@10"] == pytest.approx(mrr(queries, documents, RELEVANCE))
    assert found["test/mrr@10_random"] == pytest.approx(untrained) != found["test/mrr@10"]
    lexical = retrieval_metrics(torch.as_tensor(bm25_run(ASKED, COLLECTION, 10)[0]), RELEVANCE, (1, 5))
    assert lexical["mrr@10"] == found["test/mrr@10_bm25"] == 1.0
    short = [normalize(x[:, :4]) for x in (queries, documents)]
    assert found["test/mrr@10_dim4"] == pytest.approx(mrr(*short, RELEVANCE))
    signs = [(x > 0).float() * 2 - 1 for x in (queries, documents)]
    _, ids = (signs[0] @ signs[1].T).sort(dim=1, descending=True, stable=True)
    assert found["test/mrr@10_binary"] == pytest.approx(retrieval_metrics(ids[:, :10], RELEVANCE)["mrr@10"])
    assert {"test/recall@1", "test/recall@5", "test/ndcg@10", "test/recall@5_bm25", "test/ndcg@10_random"} <= set(found)


def test_mrr_looks_ten_deep_however_shallow_recall_is(tmp_path):
    values = []
    for ks in ((1,), (1, 50)):
        found = results_of(trainer(tmp_path, RetrievalEvaluation(ks, references=False)), dual())
        values.append((found["test/mrr@10"], found["test/ndcg@10"]))
        assert not any(name.endswith(("random", "bm25")) for name in found)
    assert values[0] == values[1]
    module = dual()
    sides = [embedded(module, t, s) for t, s in ((ASKED, "query"), (COLLECTION, "document"))]
    ranks = [min((row > row[d]).sum() for d in r) for row, r in zip(sides[0] @ sides[1].T, RELEVANCE, strict=True)]
    assert any(0 < rank < 10 for rank in ranks)


def test_a_resumed_run_keeps_the_untrained_encoder_s_reference(tmp_path):
    module, callback = dual(), RetrievalEvaluation()
    fitter = trainer(tmp_path, callback, max_epochs=1)
    fitter.fit(module, data())
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    again = RetrievalEvaluation()
    trainer(tmp_path, again, max_epochs=2).fit(dual(), data(), ckpt_path=tmp_path / "last.ckpt")
    assert again.baselines == callback.baselines and "test/mrr@10_random" in again.baselines


def test_the_teacher_and_the_asymmetric_pair(tmp_path):
    torch.manual_seed(0)
    module = EmbeddingDistillation(TokenBag(128, 4), InfoNCE(0.1), TokenBag(128, 16), EmbeddingRegression())
    found = results_of(trainer(tmp_path, RetrievalEvaluation()), module)
    queries = embedded(module, ASKED, "query")
    with torch.no_grad():
        teacher = [module.embed_teacher(Letters()(t, s)) for t, s in ((ASKED, "query"), (COLLECTION, "document"))]
    assert found["test/mrr@10_teacher"] == pytest.approx(mrr(*teacher, RELEVANCE))
    assert found["test/mrr@10_asymmetric"] == pytest.approx(mrr(queries, teacher[1], RELEVANCE))
    assert len({found[f"test/mrr@10{name}"] for name in ("", "_teacher", "_asymmetric")}) == 3


def test_the_sanity_check_is_not_evaluated_but_forgotten(tmp_path):
    callback, seen = RetrievalEvaluation(references=False), []

    def evaluate(trainer, split):
        seen.append((trainer.sanity_checking, sum(map(len, callback._parts["features", 0]))))
        return {"mrr@10": 0.0}

    callback._evaluate = evaluate
    trainer(tmp_path, callback, num_sanity_val_steps=1, max_epochs=1).fit(dual(), data())
    assert seen == [(False, len(COLLECTION))]


def stub(module):
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    datamodule = data()
    datamodule.setup("fit")
    return SimpleNamespace(precision_plugin=plugin, datamodule=datamodule)


@pytest.mark.parametrize("side", ["query", "document"])
def test_encode_returns_every_text_in_order(side):
    module, texts = dual(), COLLECTION if side == "document" else ASKED
    found = encode(stub(module), module, OneSide(texts, side))
    torch.testing.assert_close(found, embedded(module, texts, side))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert encode(stub(module), module, OneSide(["one"], side)).shape == (1, 16)


@pytest.mark.parametrize("ranks", [2, 3, 30])
def test_every_rank_encodes_its_share_and_has_everything(ranks, monkeypatch):
    module, sent, on = dual(), [], stub(dual())
    monkeypatch.setattr(encoding, "world_size", lambda: ranks)
    monkeypatch.setattr(encoding, "gather", lambda x: sent.append(x) or torch.cat([x] * ranks))
    for number in range(ranks):
        monkeypatch.setattr(encoding, "rank", lambda number=number: number)
        encode(on, module, OneSide(COLLECTION, "document"))
    assert len({x.shape for x in sent}) <= 1  # or processes would wait for each other
    monkeypatch.setattr(encoding, "gather", lambda _: torch.cat(sent))
    found = encode(on, module, OneSide(COLLECTION, "document"))
    torch.testing.assert_close(found, embedded(module, COLLECTION, "document"))
    assert len(sent) == (ranks if ranks <= 10 else 0)  # 66 texts are 10 batches


def test_encoding_disturbs_nothing():
    module = DualEncoder(TextTransformer(128, 8, 1, 2, dropout=0.5), InfoNCE(0.1))
    module.train()
    module.encoder.layers.eval()  # a part that somebody froze
    modes = [m.training for m in module.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (encode(stub(module), module, OneSide(QUERIES, "query")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in module.modules()] == modes
    with undisturbed(module):
        assert not any(m.training for m in module.modules()) and not torch.is_grad_enabled()
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
