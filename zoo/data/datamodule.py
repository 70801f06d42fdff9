"""The one datamodule of all families."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zoo.data.collections import Side
from zoo.data.composed import Composed
from zoo.data.pairs import PairBatch, PairDataset, PairSource, Split
from zoo.data.samplers import BatchPlan, BatchSampler, RandomBatches
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.negatives.generators import NegativeGenerator
from zoo.negatives.miners import Miner
from zoo.negatives.table import NegativeTable


class NegativesDataModule(pl.LightningDataModule):
    """Pairs, their composition into batches, and a supply of explicit hard negatives.

    Every random choice of a training step (explicit negatives, augmentation, and whatever the method draws afterwards)
    derives from seed, epoch, batch number and rank alone. A run that is resumed in the middle of an epoch therefore
    sees the very batches and draws that it would have seen.

    Args:
        source: the data set.
        root: folder of the data set on disk; embedded data needs none.
        batch_size: pairs per device and step.
        transform: runs on the training device: `forward(PairBatch) -> PairBatch` makes the views of a training batch,
            `evaluate(inputs)` prepares inputs for evaluation. None leaves batches as they are.
        tokenizer: makes tokens of texts, in the loader processes; None leaves them as they are.
        sampler: which pairs share a batch.
        table: folder of a saved NegativeTable, or the table itself, from which explicit negatives are drawn or a sampler
            composes batches. A teacher's scores in it (`NegativeTable.positives`) come along as `PairBatch.teacher`.
        miner: makes the table from the training pairs where none is given; a callback may replace it later.
        generator: makes explicit negatives, instead of a table.
        n_negatives: explicit negatives per anchor, drawn afresh each epoch.
        balanced: draw the one negative uniformly over so many bins of the miner's score instead of uniformly over the
            candidates (TAS-Balanced); 0 does not.
        eval_batch_size: inputs per step of evaluation.
        num_workers: loader processes; 0 suits data that lies in memory.
        seed: None takes that of `seed_everything`.
    """

    def __init__(
        self,
        source: PairSource,
        root: Path | None = None,
        batch_size: int = 128,
        transform: nn.Module | None = None,
        tokenizer: Tokenizer | None = None,
        sampler: BatchSampler | None = None,
        table: Path | NegativeTable | None = None,
        miner: Miner | None = None,
        generator: NegativeGenerator | None = None,
        n_negatives: int = 0,
        balanced: int = 0,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.sampler = RandomBatches() if sampler is None else sampler  # an unbound sampler has no length
        mined = table is not None or miner is not None
        if (n_negatives > 0 and not mined) or (mined and n_negatives == 0 and not self.sampler.reads_table):
            raise ZooError("explicit negatives take --data.n_negatives, and --data.table or --data.miner")
        if n_negatives and generator is not None:
            raise ZooError("explicit negatives come from a table or from a generator: remove one of the two")
        if balanced and n_negatives != 1:
            raise ZooError("--data.balanced draws one negative per anchor: set --data.n_negatives 1")
        self.source, self.root, self.batch_size, self.transform = source, root, batch_size, transform
        self.tokenizer = tokenizer
        self.generator = generator
        self.table, self.miner, self.n_negatives = table, miner, n_negatives
        self.balanced = balanced
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        self._served: tuple[int, int] = (0, 0)
        self._fetcher: _Fetcher | None = None
        self._given: str | None = None
        self._tokenizer_ready = False

    def prepare_data(self) -> None:
        self.source.prepare(self.root)
        self._prepare_tokenizer()

    def setup(self, stage: str) -> None:
        self._seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self._prepare_tokenizer()
        if isinstance(self.table, Path):
            self.table = NegativeTable.load(self.table)
        elif self.table is None and self.miner is not None and stage == "fit":
            self.table = self.miner.mine(self.train_pairs)
        self._given = self.table.fingerprint if isinstance(self.table, NegativeTable) else None
        if isinstance(self.table, NegativeTable):
            self.set_table(self.table)

    def _prepare_tokenizer(self) -> None:
        # Rank 0 comes here through `prepare_data` already, and every process once more for each stage.
        if self.tokenizer is not None and not self._tokenizer_ready:
            self.tokenizer.prepare(self.source, self.root)
            self._tokenizer_ready = True

    @cached_property
    def train_pairs(self) -> PairDataset:
        """The training split, read once: miners, samplers and loaders look at the same object."""
        return self.source.split("train", self.root)

    def set_table(self, table: NegativeTable) -> None:
        """Draw explicit negatives from another table, from the next batch on; compose batches from it from the next epoch."""
        self.table = table
        if self.sampler.reads_table:
            self.sampler.set_table(table)
        if self._fetcher is not None and self.n_negatives:
            self._fetcher.table = table

    def train_dataloader(self) -> DataLoader:
        dataset = self.train_pairs
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.sampler.bind(dataset, self.batch_size, self._seed, rank, world)
        self.sampler.epoch, self.sampler.start = self._served
        self._fetcher = _Fetcher(dataset, self._seed, self.tokenizer, self.n_negatives, self.balanced, self.generator)
        if self.n_negatives and isinstance(self.table, NegativeTable):  # a path was loaded in `setup`
            self._fetcher.table = self.table
        return self._loader(self._fetcher, self.sampler)

    def evaluation_dataloaders(self, split: Split) -> list[DataLoader]:
        """Loaders over what the source lists for the evaluation of `split`: the reference set, then the queries."""
        return [self.encode_loader(dataset) for dataset in self.source.evaluation(split, self.root)]

    def encode_loader(self, dataset: PairDataset) -> DataLoader:
        """A loader over a data set in its order, as evaluation reads it."""
        order = _InOrder(len(dataset), self.eval_batch_size)
        return self._loader(_Fetcher(dataset, self._seed, self.tokenizer), order)

    def val_dataloader(self) -> list[DataLoader]:
        return self.evaluation_dataloaders("val")

    def test_dataloader(self) -> list[DataLoader]:
        return self.evaluation_dataloaders("test")

    def predict_dataloader(self) -> DataLoader:
        return self.evaluation_dataloaders("test")[-1]

    def on_after_batch_transfer(self, batch: PairBatch, dataloader_idx: int) -> PairBatch:
        if self.trainer is None or not self.trainer.training:
            return self.prepare_inputs(batch)
        rank = self.trainer.global_rank
        seed = _mix(self._seed, batch.epoch, batch.number, rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed visits every backend, which takes a millisecond
        if torch.cuda.is_initialized():  # `is_available` asks the driver, half a millisecond each time
            torch.cuda.manual_seed(seed)
        self._served = (batch.epoch, batch.number + 1)
        if self.transform is None:
            return batch
        if isinstance(anchor := batch.anchor, Composed):  # transforms see images, whatever text comes with them
            made = self.transform(batch.replace(anchor=anchor.image))
            return made.replace(anchor=anchor.map(images=lambda _: made.anchor))
        return self.transform(batch)

    def prepare_inputs(self, batch: PairBatch) -> PairBatch:
        """Evaluation's deterministic preprocessing of the anchors of a batch, or of the positives where it has no anchors."""
        side = "positive" if batch.anchor is None else "anchor"
        transform: Any = self.transform
        if transform is None or not isinstance(inputs := getattr(batch, side), Tensor | Composed):
            return batch
        if isinstance(inputs, Composed):
            return batch.replace(anchor=inputs.map(images=transform.evaluate))
        return batch.replace(**{side: transform.evaluate(inputs)})

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of the next training batch, and the identity of the table that training started with."""
        return {"next": list(self._served), "table": self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._served = tuple(state_dict["next"])
        if state_dict["table"] != self._given:
            raise ZooError(
                "the checkpoint was trained with another negative table: pass the same --data.table to resume"
            )

    def _loader(self, fetcher: Dataset, plans: Any) -> DataLoader:
        # Batches are planned by the sampler and read whole, hence no automatic batching.
        return DataLoader(
            fetcher,
            batch_size=None,
            sampler=plans,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )


class _InOrder:
    def __init__(self, n: int, batch_size: int) -> None:
        self.n, self.batch_size = n, batch_size

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self):
        for number, start in enumerate(range(0, self.n, self.batch_size)):
            yield BatchPlan(0, number, np.arange(start, min(start + self.batch_size, self.n)))


class _Fetcher(Dataset):
    """Turns a plan into a PairBatch, in a loader process."""

    def __init__(
        self,
        dataset: PairDataset,
        seed: int,
        tokenizer: Tokenizer | None = None,
        n_negatives: int = 0,
        balanced: int = 0,
        generator: NegativeGenerator | None = None,
    ) -> None:
        self.dataset, self.seed, self.tokenizer, self.generator = dataset, seed, tokenizer, generator
        self.n_negatives, self.balanced = n_negatives, balanced
        self.table: NegativeTable | None = None

    def __getitem__(self, plan: BatchPlan) -> PairBatch:
        indices, dataset = plan.indices, self.dataset
        anchor, positive = dataset.fetch(indices)
        batch = PairBatch(
            anchor=self._tokens(anchor, "query"),
            positive=self._tokens(positive, "document"),
            index=torch.as_tensor(indices),
            anchor_key=dataset.keys("anchor", indices),
            positive_key=dataset.keys("positive", indices),
            known=dataset.column("known", indices),
            group=dataset.column("group" if "group" in dataset.columns else "label", indices),
            epoch=plan.epoch,
            number=plan.number,
        )
        rng = np.random.default_rng([self.seed, plan.epoch, plan.number, int(indices[0])])
        if self.generator is not None and plan.epoch >= self.generator.start_epoch:
            made = self.generator.generate(dataset, indices, rng)  # type: ignore[arg-type]
            return batch.replace(
                negatives=self._tokens(made.documents, "document"),
                negative_key=torch.as_tensor(made.keys),
                negative_mask=torch.as_tensor(made.mask),
            )
        if self.table is None:
            return batch
        if self.balanced:
            places = self.table.draw_balanced_places(indices, self.balanced, rng)
        else:
            places = self.table.draw_places(indices, self.n_negatives, rng)
        drawn, scores = self.table.at(indices, places)
        teacher = None
        if self.table.positives is not None:
            listed = np.concatenate([self.table.positives[indices][:, None], scores], 1)
            teacher = torch.as_tensor(listed, dtype=torch.float32)
        mask = torch.as_tensor(drawn >= 0)
        numbers = np.maximum(drawn, 0).ravel()  # padding is masked, but must be readable
        return batch.replace(
            negatives=self._tokens(dataset.fetch_documents(numbers), "document"),
            negative_key=dataset.document_keys(numbers).view(drawn.shape).masked_fill(~mask, -1),
            negative_mask=mask,
            teacher=teacher,
        )

    def _tokens(self, inputs: Any, side: Side) -> Any:
        if isinstance(inputs, Composed):
            return inputs.map(texts=lambda texts: self._tokens(texts, side))
        return inputs if self.tokenizer is None or not isinstance(inputs, list) else self.tokenizer(inputs, side)


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
