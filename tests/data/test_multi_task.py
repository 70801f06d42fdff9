"""Several tasks as one source: instructions, the task column, mining task by task, evaluation by task."""

import sysconfig

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests.data.test_stdlib_code import MODULE
from tests.data.test_text import Letters
from zoo.callbacks.retrieval import RetrievalEvaluation
from zoo.data import MultiTask, NegativesDataModule, OneTaskBatches, StdlibTasks
from zoo.data.collections import RetrievalSet
from zoo.data.multi_task import JoinedTexts, Task
from zoo.data.text import TextPairs, TextSource
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods import DualEncoder, TokenBag
from zoo.negatives import Bm25Miner, EmbeddingMiner, RandomMiner, Rules
from zoo.retrieval import retrieval_metrics


class Toy(TextSource):
    """`n` pairs; the first query has a second relevant document, which is no pair."""

    def __init__(self, name, n):
        self.name, self.n, self.roots = name, n, []
        self.queries = [f"{name} question {i}" for i in range(n)]
        self.documents = [f"{name} text {i}" for i in range(n + 2)]

    def prepare(self, root):
        self.roots.append(root)

    def split(self, split, root):
        numbers = np.arange(self.n)
        return TextPairs(self.queries, self.documents, numbers, numbers[::-1], np.array([[0, self.n]]))

    def retrieval(self, split, root):
        return RetrievalSet(self.queries, self.documents, [{self.n - 1 - i: 1} for i in range(self.n)])


def tasks():
    return MultiTask([Task("a", Toy("red", 4), "find: ", "text: "), Task("b", Toy("blue", 6), "look: ")])


def test_pairs_carry_their_task_and_its_instructions(tmp_path):
    source = tasks()
    source.prepare(tmp_path)
    assert [t.source.roots for t in source.tasks] == [[tmp_path / "a"], [tmp_path / "b"]]
    pairs = source.split("train", None)
    expected = [(f"find: red question {i}", f"text: red text {3 - i}") for i in range(4)]
    expected += [(f"look: blue question {i}", f"blue text {5 - i}") for i in range(6)]
    assert [pairs[i] for i in range(len(pairs))] == expected
    assert pairs.columns["task"].tolist() == [0] * 4 + [1] * 6
    known = [{pairs.documents[d] for d in row if d >= 0} for row in pairs.columns["known"]]
    assert known[0] == {"text: red text 3", "text: red text 4"} and known[4] == {"blue text 5", "blue text 6"}
    assert [len(k) for k in known] == [2, 1, 1, 1, 2, 1, 1, 1, 1, 1]


def test_joined_texts_are_a_sequence():
    texts = JoinedTexts([["a"], [], ["b", "c"]], "x")
    assert list(texts) == ["xa", "xb", "xc"] == texts[:] and texts[1:2] == ["xb"] and len(texts) == 3
    with pytest.raises(IndexError):
        texts[3]


@pytest.mark.parametrize("miner", [RandomMiner(20), Bm25Miner(8), EmbeddingMiner(8, Rules(keep=3))])
def test_negatives_are_documents_of_the_query_s_task(miner):
    pairs, g = tasks().split("train", None), torch.Generator().manual_seed(0)
    sides = {
        s: torch.randn(len(t), 4, generator=g) for s, t in (("query", pairs.queries), ("document", pairs.documents))
    }
    table = miner.mine(pairs, sides.__getitem__)
    assert len(table) == 10
    for i, row in enumerate(table.ids):
        found = {pairs.documents[d] for d in row if d >= 0}
        assert found and all(("red" in text) == (i < 4) for text in found)
        assert not set(row) & {d for d in pairs.columns["known"][i] if d >= 0}
    first = miner.mine(pairs.parts[0], lambda s: sides[s][: 4 if s == "query" else 6])
    second = miner.mine(pairs.parts[1], lambda s: sides[s][4 if s == "query" else 6 :])
    assert [r.get("rejected") for r in table.provenance] == [
        None if "rejected" not in a else a["rejected"] + b["rejected"]
        for a, b in zip(first.provenance, second.provenance, strict=True)
    ]
    assert np.array_equal(np.maximum(table.ids[4:] - 6, -1)[:, : second.ids.shape[1]], second.ids)


def test_evaluation_is_of_all_and_of_each_task(tmp_path):
    source = tasks()
    sets = source.retrievals("test", None)
    assert list(sets) == ["", "a", "b"] and len(sets[""].queries) == 10 and len(sets[""].documents) == 14
    assert [sets[""].documents[d] for row in sets[""].relevance[3:5] for d in row] == [
        "text: red text 0",
        "blue text 5",
    ]
    module, callback = DualEncoder(TokenBag(128, 8), InfoNCE()), RetrievalEvaluation(ks=(1,))
    data = NegativesDataModule(source, tokenizer=Letters(), sampler=OneTaskBatches(), batch_size=2, seed=0)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    found = trainer.callback_metrics
    for name, retrieval in sets.items():
        with torch.no_grad():
            q, d = (
                module.embed(Letters()(list(texts), side), side)
                for texts, side in ((retrieval.queries, "query"), (retrieval.documents, "document"))
            )
        expected = retrieval_metrics(
            (q @ d.T).argsort(dim=1, descending=True, stable=True)[:, :10], retrieval.relevance
        )
        suffix = f"_{name}" if name else ""
        assert found[f"test/mrr@10{suffix}"].item() == pytest.approx(expected["mrr@10"])
    assert "test/mrr@10_random" in found and "test/mrr@10_a_random" not in found


def test_batches_of_the_standard_library_s_tasks(tmp_path, monkeypatch):
    for i in range(40):
        (tmp_path / f"module{i}.py").write_text(MODULE.replace("{i}", str(i)))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    source, plain = StdlibTasks(), StdlibTasks(instructions=False)
    data = NegativesDataModule(source, sampler=OneTaskBatches(), miner=Bm25Miner(5), n_negatives=1, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        starts = {text.partition(": ")[0] for text in batch.positive}
        assert len(starts) == 1 and len({text.partition(": ")[0] for text in batch.anchor}) == 1
        for text, there in zip(batch.negatives, batch.negative_mask[:, 0], strict=True):
            assert not there or text.partition(": ")[0] in starts
        seen |= starts
    assert seen == {"Code of a function", "Further documentation"}
    assert source.arena == plain.arena != StdlibTasks(limit=3).arena
    pairs, without = source.split("test", None), plain.split("test", None)
    assert len(pairs) == len(without) > 0
    assert all(long.endswith(f": {short}") for long, short in zip(pairs.queries, without.queries, strict=True))


def test_tasks_need_names_of_their_own():
    for names in ([], ["a", "a"], [""]):
        with pytest.raises(ZooError, match="needs a name of its own"):
            MultiTask([Task(name, Toy("x", 2)) for name in names])
