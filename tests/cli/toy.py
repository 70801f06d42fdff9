"""A data set and a model that train in milliseconds, for tests of the command line."""

import os
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from zoo.data.pairs import PairDataset, PairSource
from zoo.errors import ZooError


class ToyPairs(PairDataset):
    def __init__(self, n: int) -> None:
        self.n = n
        self.columns = {"label": np.arange(n) % 2}

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        value = torch.tensor([float(index), 1.0])
        return value, value


class ToySource(PairSource):
    name = "toy"

    def prepare(self, root: Path | None) -> None:
        pass

    def split(self, split, root):
        return ToyPairs(32 if split == "train" else 8)

    def evaluation(self, split, root) -> list[PairDataset]:
        return [self.split(split, root)]


class Toy(pl.LightningModule):
    """Its test score is `bonus` plus noise that depends on the seed alone."""

    def __init__(
        self, bonus: float = 0.0, width: int = 2, temperature: float = 0.5, fail_at: int = -1, interrupt_at: int = -1
    ):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)
        self.bonus, self.temperature, self.fail_at, self.interrupt_at = bonus, temperature, fail_at, interrupt_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fail_at:
            raise ZooError("the loss is nan at step 0:\nlower the learning rate")
        if self.global_step == self.interrupt_at:
            raise KeyboardInterrupt
        loss = self.layer(batch.anchor / 32).square().mean()
        self.log("train/loss", loss, batch_size=1)
        self.log("train/nan", float("nan"), batch_size=1)
        return loss

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        noise = int(os.environ["PL_GLOBAL_SEED"]) % 7 * 0.01
        values = {"test/score": self.bonus + noise, "test/score_random": 0.2, "test/score_pixels": 0.1}
        self.log_dict(values, add_dataloader_idx=False, batch_size=1)

    validation_step = test_step

    def predict_step(self, batch, batch_idx):
        return {"index": batch.index, "features": self.layer(batch.anchor)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Other(pl.LightningModule):
    """Shares one option with `Toy`."""

    def __init__(self, temperature: float = 0.1, depth: int = 3):
        super().__init__()
        self.temperature, self.depth = temperature, depth
        self.layer = nn.Linear(3, 3)
