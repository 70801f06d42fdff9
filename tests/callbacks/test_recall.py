"""Recall in training and test: sets, directions, references, pictures."""

from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from zoo.callbacks.recall import RecallEvaluation
from zoo.callbacks.retrieval_panel import ErrorMap, RetrievalPanel, _colour, choose_rows
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.datamodule import NegativesDataModule
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder

RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (130, 3, 4, 4), np.uint8)
VIEWS = np.clip(TILES[np.arange(40) // 2] + RNG.normal(0, 90, (40, 3, 4, 4)), 0, 255).astype(np.uint8)  # two per tile
RELEVANCE = [{q // 2: 1} for q in range(40)]
IGNORED = [set(range(20, 30))] * 40
COORDS = RNG.uniform(0, 1, (40, 2))


class Places(RetrievalSource):
    name = "places"

    def prepare(self, root):
        pass

    def split(self, split, root):
        return CollectionPairs(ImageArray(VIEWS), ImageArray(TILES), np.arange(40), np.arange(40) // 2)

    def retrieval(self, split, root):
        n = 40 if split == "test" else 24
        return RetrievalSet(ImageArray(VIEWS[:n]), ImageArray(TILES), RELEVANCE[:n], coords=COORDS[:n])

    def retrievals(self, split, root):
        few = RetrievalSet(ImageArray(VIEWS[:6]), ImageArray(TILES[:30]), RELEVANCE[:6], IGNORED[:6])
        return {"": self.retrieval(split, root), "cross": few}


class Pixels(nn.Module):
    """Takes bytes, as no transform makes floats of them here."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 6)

    def forward(self, images):
        return self.head(images.flatten(1).float() / 255)


def data():
    return NegativesDataModule(Places(), batch_size=8, eval_batch_size=7, seed=0)


def method():
    torch.manual_seed(0)
    return DualEncoder(Pixels(), InfoNCE(0.1), optimizer=partial(torch.optim.SGD, lr=0.5), symmetric=True)


def trainer(folder, *callbacks, **kwargs):
    return pl.Trainer(
        **{"max_epochs": 2, **kwargs}, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip


def recalls(module, views, tiles, relevance, ks=(1, 5, 10), ignored=()):
    """From the whole matrix, query by query."""
    with torch.no_grad():
        scores = (
            module.embed_queries(torch.tensor(views)).double() @ module.embed_documents(torch.tensor(tiles)).double().T
        )
    ranks = []
    for row, right in zip(scores.tolist(), relevance, strict=True):
        if right:
            best = max(row[d] for d in right)
            ranks.append(sum(s > best for d, s in enumerate(row) if d not in ignored))
    return {k: np.mean([rank < k for rank in ranks]) for k in ks}


def results_of(tester, module):
    tester.test(module, data(), verbose=False)
    return {name: value.item() for name, value in tester.callback_metrics.items()}


def test_metrics_of_every_set_and_direction_beside_the_untrained_encoder(tmp_path):
    module, callback = method(), RecallEvaluation(ap=True, both_directions=True)
    untrained = recalls(module, VIEWS, TILES, RELEVANCE)
    fitter = trainer(tmp_path, callback)
    fitter.fit(module, data())
    evaluated = fitter.callback_metrics
    assert evaluated["eval/r@1"] == pytest.approx(recalls(module, VIEWS[:24], TILES, RELEVANCE[:24])[1])
    assert "eval/r@1" in fitter.progress_bar_metrics and "eval/r@5" not in fitter.progress_bar_metrics
    found = results_of(fitter, module)
    want = recalls(module, VIEWS, TILES, RELEVANCE)
    assert {k: found[f"test/r@{k}"] for k in want} == pytest.approx(want)
    assert found["test/r@1%"] == found["test/r@1"]  # floor(130 / 100) = 1
    assert found["test/r@1_random"] == pytest.approx(untrained[1]) and untrained[1] != want[1]

    captions = [{2 * t: 1, 2 * t + 1: 1} if t < 20 else {} for t in range(130)]  # either view will do
    back = recalls(module, TILES, VIEWS, captions)
    assert {k: found[f"test/r@{k}_reverse"] for k in back} == pytest.approx(back)

    assert found["test/r@1_cross"] == pytest.approx(recalls(module, VIEWS[:6], TILES[:30], RELEVANCE[:6])[1])
    hit = recalls(module, VIEWS[:6], TILES[:30], RELEVANCE[:6], ignored=IGNORED[0])[1]
    assert found["test/hit_rate_cross"] == pytest.approx(hit) and hit >= found["test/r@1_cross"]
    assert {"test/ap", "test/ap_reverse", "test/r@1_cross_reverse", "test/hit_rate_cross_reverse"} <= set(found)
    assert "test/hit_rate" not in found and "test/r@1%_cross" not in found  # nothing to ignore; 30 documents


def test_average_precision_of_one_right_document(tmp_path):
    module = method()
    found = results_of(trainer(tmp_path, RecallEvaluation(ap=True, references=False)), module)
    scores = module.embed_queries(torch.tensor(VIEWS)) @ module.embed_documents(torch.tensor(TILES)).T
    rank = (scores > scores[torch.arange(40), torch.arange(40) // 2][:, None]).sum(1).double()
    assert found["test/ap"] == pytest.approx(((1 / (rank + 1) + (rank == 0)) / 2).mean().item())
    assert not any(name.endswith(("random", "reverse")) for name in found)


def test_a_resumed_run_keeps_the_untrained_encoder_s_reference(tmp_path):
    callback = RecallEvaluation()
    fitter = trainer(tmp_path, callback, max_epochs=1)
    fitter.fit(method(), data())
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    again = RecallEvaluation()
    trainer(tmp_path, again, max_epochs=2).fit(method(), data(), ckpt_path=tmp_path / "last.ckpt")
    assert again.baselines == callback.baselines and {"test/r@1_random", "test/r@1_cross_random"} <= set(
        again.baselines
    )


def test_the_sanity_check_is_not_evaluated_but_forgotten(tmp_path):
    callback, seen = RecallEvaluation(references=False), []

    def metrics(sides):
        seen.append([len(documents) for _, _, documents in sides.values()])
        return {"r@1": 0.0}

    callback._metrics = metrics
    trainer(tmp_path, callback, num_sanity_val_steps=1, max_epochs=1).fit(method(), data())
    assert seen == [[130, 30]]


def test_pictures_lie_in_the_run_folder_and_go_to_wandb(tmp_path, monkeypatch):
    import wandb

    logged = []

    class WandbLogger(DummyLogger):
        experiment = SimpleNamespace(log=logged.append)

    tester = trainer(tmp_path / "run", RetrievalPanel(rows=2, k=1), ErrorMap(), RecallEvaluation(references=False))
    monkeypatch.setattr(wandb, "Image", str)
    tester.logger = WandbLogger()
    tester.test(method(), data(), verbose=False)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "retrieval_panel.png",
        "retrieval_panel_cross.png",
        "error_map.png",
    }  # the further set has no coords
    assert [key for entry in logged for key in entry if key != "trainer/global_step"] == [
        "test/retrieval_panel",
        "test/retrieval_panel_cross",
        "test/error_map",
    ]


def shown(figure):
    return [axis.get_title() for axis in figure.axes]


def test_a_panel_shows_failures_first_with_the_right_document_and_the_best_found():
    documents = torch.eye(6)
    queries = documents[[0, 3, 2]]  # query 1 finds document 3
    texts = RetrievalSet(["a", "b", "c"], list("uvwxyz"), [{0: 1}, {1: 1, 4: 0}, {2: 1}], [set(), {3}, set()])
    figure = RetrievalPanel(rows=2, k=2).draw(texts, queries, documents)
    assert shown(figure)[:3] == ["query 1", "right: rank 2", "1: 3"] and shown(figure)[4] == "query 0"
    assert [t.get_text() for axis in figure.axes[:3] for t in axis.texts] == ["b", "v", "x"]
    assert len({_colour(texts, 1, d) for d in (1, 3, 4)}) == 3 and _colour(texts, 1, 4) == _colour(texts, 0, 5)


def test_rows_of_a_panel():
    ranks = np.array([0, 7, 0, 1, 0, 30, 0, -1, 2])
    assert choose_rows(ranks, 4).tolist() == [3, 5, 0, 6]
    assert choose_rows(ranks, 100).tolist() == [3, 8, 1, 5, 0, 2, 4, 6]
    assert choose_rows(np.zeros(3, int), 2).tolist() == [0, 2] and not len(choose_rows(np.array([-1]), 2))
    assert choose_rows(np.array([4, 3, 2, 0]), 4).tolist() == [2, 1, 0, 3]


def test_a_map_has_a_point_for_each_query_and_a_line_to_where_it_was_taken_for():
    documents = torch.eye(4)
    coords = np.array([[46.0, 8.0], [46.5, 8.5], [47.0, 9.0]])
    places = RetrievalSet(["a", "b", "c"], list("wxyz"), [{0: 1}, {1: 1}, {2: 1}], coords=coords)
    queries = torch.stack([documents[0], documents[0], documents[3]])  # 1 is taken for 0, and 2 for a tile of nobody
    axis = ErrorMap(degrees=True).draw(places, queries, documents).axes[0]
    assert "2 of 3 queries" in axis.get_title() and axis.get_xlabel() == "longitude"
    np.testing.assert_allclose(axis.collections[0].get_offsets(), [[8.0, 46.0]])
    np.testing.assert_allclose(axis.collections[1].get_offsets(), [[8.5, 46.5], [9.0, 47.0]])
    line = axis.lines[0].get_xydata()
    np.testing.assert_allclose(line[:2], [[8.5, 46.5], [8.0, 46.0]])
    assert np.isnan(line[4]).all()
    assert ErrorMap().draw(RetrievalSet(["a"], ["w"], [{0: 1}]), documents[:1], documents[:1]) is None
