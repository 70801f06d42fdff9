"""RefreshNegatives in a real trainer: when it mines, what the next batch sees, and resume."""

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from zoo.callbacks.refresh import RefreshNegatives
from zoo.data.datamodule import NegativesDataModule
from zoo.data.neighbour_batches import NeighbourBatches
from zoo.data.samplers import RandomBatches
from zoo.data.text import TextPairs, TextSource
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder
from zoo.methods.text_encoders import TokenBag
from zoo.negatives.miners import EmbeddingMiner, RandomMiner, Rules, jaccard
from zoo.negatives.table import NegativeTable

N, BATCH = 24, 4  # six steps an epoch
STEPS = N // BATCH
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(num_workers|no `val_dataloader`|exists and is not empty|before the epoch ended)"
)


class Source(TextSource):
    name = "tiny"

    def prepare(self, root):
        pass

    def split(self, split, root):
        texts = ["".join(chr(97 + i) for i in np.random.default_rng(n).integers(0, 26, 6)) for n in range(2 * N)]
        return TextPairs(texts[:N], texts[N:], np.arange(N), np.arange(N))

    def retrieval(self, split, root):
        raise NotImplementedError


class Letters(Tokenizer):
    def prepare(self, source, root):
        pass

    def encode(self, texts, length):
        return [[ord(c) - 96 for c in text] for text in texts]


class Witness(pl.Callback):
    """Writes down which table served each batch, and the random state of each step."""

    def __init__(self):
        self.tables, self.random = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        table = trainer.datamodule.table
        drawn = batch.negative_key
        self.tables.append(table.fingerprint)
        self.random.append(torch.get_rng_state())
        self.last = bool((torch.as_tensor(table.ids[batch.index])[:, :, None] == drawn[:, None]).any(1).all())


class Dropout(TokenBag):
    def __init__(self):
        super().__init__(27, 8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, tokens):
        return self.dropout(super().forward(tokens))


def run(folder, refresh, epochs=3, callbacks=(), ckpt=None, workers=0, lr=5.0, sampler=None, **trainer):
    pl.seed_everything(0, verbose=False)
    data = NegativesDataModule(
        Source(),
        None,
        BATCH,
        tokenizer=Letters(),
        sampler=sampler,
        miner=RandomMiner(8),
        n_negatives=2 if sampler is None else 0,
        eval_batch_size=7,
        seed=0,
    )
    data.num_workers = workers
    module = DualEncoder(Dropout(), InfoNCE(0.1), optimizer=lambda p: torch.optim.SGD(p, lr=lr), schedule="constant")
    fit = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[*([refresh] if refresh else []), *callbacks],
        **trainer,
    )
    fit.fit(module, data, ckpt_path=ckpt)
    return fit, module


def miner(**rules):
    return EmbeddingMiner(10, Rules(**rules))


def steps(folder):
    return sorted(int(p.name) for p in (folder / "negatives").iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 6, 12]),
        ({"every_n_epochs": 2}, [0, 12]),
        ({"every_n_epochs": 0}, [0]),
        ({"start_epoch": 1}, [6, 12]),
        ({"start_epoch": 1, "every_n_epochs": 0}, [6]),
        ({"every_n_steps": 5}, [0, 5, 10, 15]),
        ({"every_n_steps": 5, "start_epoch": 1}, [6, 10, 15]),
    ],
)
def test_mines_when_it_is_due(tmp_path, options, expected):
    run(tmp_path, RefreshNegatives(miner(), **options))
    assert steps(tmp_path) == expected


@pytest.mark.parametrize("last", [3 * STEPS - 1, 3 * STEPS])
def test_a_run_that_is_limited_by_steps_refreshes_each_epoch(tmp_path, last):
    run(tmp_path, RefreshNegatives(miner()), epochs=None, max_steps=last)
    assert steps(tmp_path) == [0, 6, 12]


def test_the_next_batch_sees_the_new_table(tmp_path):
    seen = Witness()
    run(tmp_path, RefreshNegatives(miner(), start_epoch=1), callbacks=[seen])
    first, *later = (seen.tables[i * STEPS : (i + 1) * STEPS] for i in range(3))
    mined = [NegativeTable.load(tmp_path / "negatives" / str(step)).fingerprint for step in (6, 12)]
    assert [set(x) for x in later] == [{mined[0]}, {mined[1]}] and len({*first, *mined}) == 3
    assert seen.last


def test_table_is_what_the_encoder_finds_without_dropout(tmp_path):
    refresh = RefreshNegatives(miner(relative_margin=0.05), every_n_epochs=0)
    fit, module = run(tmp_path, refresh, lr=0.0)
    pairs = fit.datamodule.train_pairs
    module.eval()
    sides = {
        side: module.embed(Letters()(texts, side), side).detach()
        for side, texts in (("query", pairs.queries), ("document", pairs.documents))
    }
    table, want = NegativeTable.load(tmp_path / "negatives" / "0"), refresh.miner.mine(pairs, sides.__getitem__)
    assert np.array_equal(table.ids, want.ids)
    assert table.provenance[0] == {**want.provenance[0], "encoder": "DualEncoder", "step": 0}
    assert table.provenance[1:] == want.provenance[1:]
    text = (tmp_path / "negatives" / "0" / "summary.txt").read_text()
    assert text.startswith(f"{(want.ids >= 0).sum()} negatives of {N} pairs") and "relative 0.05" in text


def test_refreshing_disturbs_neither_modes_nor_random_draws(tmp_path):
    seen = [Witness(), Witness()]
    _, plain = run(tmp_path / "a", None, callbacks=[seen[0]])
    refresh = RefreshNegatives(RandomMiner(8), every_n_steps=4)  # the very table that the run has anyway
    _, other = run(tmp_path / "b", refresh, callbacks=[seen[1]])
    assert all(torch.equal(a, b) for a, b in zip(*(s.random for s in seen), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert other.encoder.dropout.training


@pytest.mark.parametrize(
    ("options", "at"),  # within epochs, and where they meet
    [({}, 4), ({}, 6), ({"start_epoch": 1}, 6), ({"every_n_steps": 4}, 4), ({"every_n_steps": 3}, 12)],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, options, at):
    def callbacks():
        saved = ModelCheckpoint(tmp_path / "ckpt", "{step}", save_top_k=-1, every_n_train_steps=at)
        return {"refresh": RefreshNegatives(miner(), **options), "callbacks": [saved]}

    _, whole = run(tmp_path, **callbacks())
    tables = {s: NegativeTable.load(tmp_path / "negatives" / str(s)).fingerprint for s in steps(tmp_path)}
    for step in [s for s in tables if s > at]:  # a killed run has not got there
        (tmp_path / "negatives" / str(step)).rename(tmp_path / f"was{step}")
    _, resumed = run(tmp_path, **callbacks(), ckpt=tmp_path / "ckpt" / f"step={at}.ckpt")
    assert {s: NegativeTable.load(tmp_path / "negatives" / str(s)).fingerprint for s in steps(tmp_path)} == tables
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("at", [6, 9, 12, 14])
def test_a_resumed_run_composes_the_batches_of_the_uninterrupted_one(tmp_path, at):
    class Batches(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(batch.index.tolist())

    def parts():
        saved = ModelCheckpoint(tmp_path / "ckpt", "{step}", save_top_k=-1, every_n_train_steps=at)
        refresh = RefreshNegatives(EmbeddingMiner(10), start_epoch=1)
        return {"refresh": refresh, "callbacks": [saved, Batches()], "sampler": NeighbourBatches(2, 4)}

    whole, resumed = parts(), parts()
    run(tmp_path, **whole)
    for step in [s for s in steps(tmp_path) if s > at]:  # a killed run has not got there
        (tmp_path / "negatives" / str(step)).rename(tmp_path / f"was{step}")
    run(tmp_path, **resumed, ckpt=tmp_path / "ckpt" / f"step={at}.ckpt")
    batches = whole["callbacks"][1].seen
    assert resumed["callbacks"][1].seen == batches[at:]
    assert sorted(map(sorted, batches[:6])) != sorted(map(sorted, batches[6:12])) != sorted(map(sorted, batches[12:]))


class Keeping(EmbeddingMiner):
    def search(self, pairs, embed):
        self.positive = (embed("query") * embed("document")).sum(1).mean().item()  # pair i is query i and document i
        return super().search(pairs, embed)


def test_a_prolonged_run_refreshes_where_the_first_had_no_need_to(tmp_path):
    save = {"dirpath": tmp_path / "ckpt", "save_last": True, "save_top_k": 0, "every_n_train_steps": 1}
    run(tmp_path, RefreshNegatives(miner()), epochs=1, callbacks=[ModelCheckpoint(**save)])
    assert steps(tmp_path) == [0]
    again = [ModelCheckpoint(**save)]
    run(tmp_path, RefreshNegatives(miner()), epochs=2, callbacks=again, ckpt=tmp_path / "ckpt" / "last.ckpt")
    assert steps(tmp_path) == [0, 6]


def test_logs_what_it_found(tmp_path):
    refresh = RefreshNegatives(Keeping(10), start_epoch=1)
    fit, _ = run(tmp_path, refresh)
    logged = {name: float(value) for name, value in fit.logged_metrics.items() if name.startswith("refresh/")}
    old, new = (NegativeTable.load(tmp_path / "negatives" / str(step)) for step in (6, 12))
    assert logged["refresh/jaccard"] == pytest.approx(jaccard(old, new)) and 0 < logged["refresh/jaccard"] < 1
    assert logged["refresh/negative"] == pytest.approx(new.scores[new.ids >= 0].mean())
    assert logged["refresh/rejected"] == pytest.approx(1 - new.counts.sum() / (N * 10))
    assert logged["refresh/positive"] == pytest.approx(refresh.miner.positive) and logged["refresh/seconds"] > 0


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ZooError, match="num_workers 0"):
        run(tmp_path, RefreshNegatives(miner(), every_n_steps=5), workers=1)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(n_negatives=0, sampler=RandomBatches()))
    with pytest.raises(ZooError, match=r"set --data\.n_negatives"):
        RefreshNegatives(miner()).on_fit_start(trainer, None)
