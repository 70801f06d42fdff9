"""What a mutual information machine does: its terms during training, and what each of its features is good for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.callbacks.probes import FinalProbes
from zoo.callbacks.scores import _EpochMeans


class CodeStatistics(_EpochMeans):
    """Logs, as means over each epoch, the terms of the loss (`train/likelihood`, `train/match`, `train/posterior`,
    `train/prior`) and `train/scale`, the posterior's mean scale. (`scores/negative` is the mean cosine of two codes.)"""

    @torch.no_grad()
    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        terms = {f"train/{f.name}": getattr(outputs["terms"], f.name).mean() for f in fields(outputs["terms"])}
        return {**terms, "train/scale": outputs["scale"].mean()}


class CodeProbes(pl.Callback):
    """`test/knn` and `test/linear_fewshot` of every kind of feature (`..._mean`, `..._sample`, `..._decoder`), and the
    reconstruction error of test images, `test/reconstruction`, in nats per pixel.

    Args:
        k: as in `FinalProbes`.
        temperature: as in `FinalProbes`.
        shots: as in `FinalProbes`.
    """

    KINDS = ("mean", "sample", "decoder")

    def __init__(self, k: int = 20, temperature: float = 0.07, shots: int = 10) -> None:
        self.kinds = {kind: FinalProbes(k, temperature, shots, references=False) for kind in self.KINDS}

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        for probe in self.kinds.values():
            probe._start()
        self.errors: list[Tensor] = []

    @torch.no_grad()
    def on_test_batch_end(self, trainer, pl_module: Any, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        read = pl_module.read(batch.anchor, self.KINDS)
        for kind, probe in self.kinds.items():
            probe._collect({"features": read[kind].float()}, batch, dataloader_idx)
        if dataloader_idx == 1:
            self.errors.append(pl_module.reconstruction_error(batch.anchor))

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        for kind, probe in self.kinds.items():
            pl_module.log_dict({f"{name}_{kind}": value for name, value in probe._probe(*probe._sets()).items()})
        pl_module.log("test/reconstruction", torch.cat(self.errors).mean())
