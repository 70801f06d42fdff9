"""Supervised classification, for methods that change the batch or the encoder and not the objective."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from zoo.data.pairs import PairBatch, labels_of
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.methods.base import ContrastiveMethod
from zoo.methods.encoders import ImageEncoder


class Classifier(ContrastiveMethod):
    """Cross entropy of one view: the scores are an encoder's logits, one per class, and other classes are negatives.

    The loss is `InfoNCE` at a temperature of 1. An encoder that reads a view in several ways (`BatchFormerEncoder`)
    classifies each reading, all with the same labels. Args as in `ContrastiveMethod`; the encoder's `dim` is the number
    of classes.

    Raises:
        ZooError: in training, when the data has no labels or more classes than the encoder.
    """

    def setup(self, stage: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        labels = labels_of(data.train_pairs.columns)
        if labels is None or labels.min() < 0:
            raise ZooError("the classifier needs labels, and this data set has none: choose another --data.source")
        if labels.max() >= self.encoder.dim:  # type: ignore[operator]
            raise ZooError(
                f"the data has {labels.max() + 1} classes and the encoder {self.encoder.dim}: raise "
                "--model.encoder.init_args.dim"
            )

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        logits = self.encode_views([batch.anchor])[0]
        labels = batch.group.repeat(self.readings)  # type: ignore[union-attr]
        with torch.autocast(logits.device.type, enabled=False):
            others = torch.arange(logits.shape[1], device=logits.device) != labels[:, None]
            scores = (logits.gather(1, labels[:, None]), logits, others)
            return self.report(self.loss(*scores), normalize(logits), scores)

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        features, encoder = self.features(batch.anchor), cast(ImageEncoder, self.encoder)
        return {"features": features.float(), "predicted": encoder.head(features).argmax(1)}
