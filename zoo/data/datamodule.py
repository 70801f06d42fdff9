"""The one datamodule of all families."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from zoo.data.pairs import PairBatch, PairDataset, PairSource, Split
from zoo.data.samplers import BatchPlan, BatchSampler, RandomBatches
from zoo.errors import ZooError
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
        sampler: which pairs share a batch.
        table: folder of a saved NegativeTable, or the table itself, from which explicit negatives are drawn.
        n_negatives: explicit negatives per anchor, drawn afresh each epoch.
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
        sampler: BatchSampler | None = None,
        table: Path | NegativeTable | None = None,
        n_negatives: int = 0,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if (table is None) != (n_negatives == 0):
            raise ZooError("explicit negatives take both --data.table and --data.n_negatives")
        self.source, self.root, self.batch_size, self.transform = source, root, batch_size, transform
        self.sampler = RandomBatches() if sampler is None else sampler  # an unbound sampler has no length
        self.table, self.n_negatives = table, n_negatives
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        self._served: tuple[int, int] = (0, 0)

    def prepare_data(self) -> None:
        self.source.prepare(self.root)

    def setup(self, stage: str) -> None:
        self._seed = self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        if isinstance(self.table, Path):
            self.table = NegativeTable.load(self.table)

    def train_dataloader(self) -> DataLoader:
        dataset = self.source.split("train", self.root)
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.sampler.bind(dataset, self.batch_size, self._seed, rank, world)
        self.sampler.epoch, self.sampler.start = self._served
        table = self.table if isinstance(self.table, NegativeTable) else None  # a path was loaded in `setup`
        return self._loader(_Fetcher(dataset, self._seed, table, self.n_negatives), self.sampler)

    def evaluation_dataloaders(self, split: Split) -> list[DataLoader]:
        """Loaders over what the source lists for the evaluation of `split`: the reference set, then the queries."""
        return [
            self._loader(_Fetcher(dataset, self._seed), _InOrder(len(dataset), self.eval_batch_size))
            for dataset in self.source.evaluation(split, self.root)
        ]

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
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)
        self._served = (batch.epoch, batch.number + 1)
        return batch if self.transform is None else self.transform(batch)

    def prepare_inputs(self, batch: PairBatch) -> PairBatch:
        """Evaluation's deterministic preprocessing of the anchors of a batch."""
        if self.transform is None:
            return batch
        return batch.replace(anchor=self.transform.evaluate(batch.anchor))  # type: ignore[operator]

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of the next training batch, and the identity of the table in use."""
        table = self.table.fingerprint if isinstance(self.table, NegativeTable) else None
        return {"next": list(self._served), "table": table}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._served = tuple(state_dict["next"])
        table = self.table.fingerprint if isinstance(self.table, NegativeTable) else None
        if state_dict["table"] != table:
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
        self, dataset: PairDataset, seed: int, table: NegativeTable | None = None, n_negatives: int = 0
    ) -> None:
        self.dataset, self.seed, self.table, self.n_negatives = dataset, seed, table, n_negatives

    def __getitem__(self, plan: BatchPlan) -> PairBatch:
        indices, dataset = plan.indices, self.dataset
        anchor, positive = dataset.fetch(indices)
        group = dataset.column("group", indices)
        batch = PairBatch(
            anchor=anchor,
            positive=positive,
            index=torch.as_tensor(indices),
            anchor_key=dataset.keys("anchor", indices),
            positive_key=dataset.keys("positive", indices),
            group=group if group is not None else dataset.column("label", indices),
            epoch=plan.epoch,
            number=plan.number,
        )
        if self.table is None:
            return batch
        rng = np.random.default_rng([self.seed, plan.epoch, plan.number, int(indices[0])])
        drawn = self.table.draw(indices, self.n_negatives, rng)
        mask = torch.as_tensor(drawn >= 0)
        stand_in = np.where(drawn >= 0, drawn, indices[:, None])  # padding is masked, but must be readable
        keys = dataset.keys("positive", stand_in.ravel()).view(drawn.shape)
        return batch.replace(
            negatives=dataset.fetch_positives(stand_in.ravel()),
            negative_key=keys.masked_fill(~mask, -1),
            negative_mask=mask,
        )


def _mix(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
