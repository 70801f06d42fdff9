"""SynOOD: images at the boundary of the known classes tune a CLIP's negative labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.callbacks.encoding import encode, undisturbed
from zoo.data.collections import OneSide, fetch
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses.nce import info_nce
from zoo.losses.scores import at_least_float32, normalize
from zoo.methods.frozen_clip import FrozenClip
from zoo.negatives.near_ood import OutlierGenerator, as_collection
from zoo.ood import class_weights, cosine_logits, neg_label


class ResidualProjection(nn.Module):
    """f + ReLU(LayerNorm(Linear(f))), on image features that are not normalised.

    The residual adds directions, never takes any away, and is not zero at first, so that the accuracy on known classes
    drops before training.

    Args:
        dim: width D of the features.
        init_scale: initial weight of the LayerNorm, 1 in the paper; less starts nearer to the plain features. At 0 the
            ReLU would have no gradient.
    """

    def __init__(self, dim: int, init_scale: float = 1.0) -> None:
        super().__init__()
        if init_scale <= 0:
            raise ZooError(
                "a projection with init_scale 0 never learns: set --model.init_scale to a small positive number"
            )
        self.linear, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, init_scale)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return features + self.norm(self.linear(features)).relu()


def mine_negative_labels(
    candidates: Float[Tensor, "V D"], known: Float[Tensor, "C D"], keep: int, quantile: float = 0.05
) -> Int[Tensor, " M"]:
    """Numbers of the labels that are farthest from all known classes, farthest first.

    The distance of a label is that quantile of minus its cosines with the classes: a minimum that few classes cannot
    decide. Source: NegLabel (Jiang et al. 2024, arXiv 2403.20078).

    Args:
        candidates: unit-norm embeddings of labels.
        known: unit-norm embeddings of the known classes.
        keep: M.
        quantile: 0 takes the nearest class.
    """
    distance = torch.quantile(-(candidates @ known.T), quantile, dim=1)
    return distance.topk(keep).indices


class SynOOD(FrozenClip):
    """Fits a frozen CLIP to synthetic images of no known class, each of which has a negative label.

    Outliers are made once, from `per_class` training images of each class, and labelled with the most similar of the
    negative labels. Stage 1 trains a projection of image features to tell known images by class and outliers by label;
    stage 2 tunes the features of the labels on outliers alone, without the projection. Labels that no outlier has do not
    take part. An image is known as far as `zoo.ood.neg_label` prefers the known classes.

    The source's `ood_sets` gives the known classes and the class of each training image. Source: Li et al. 2025
    (arXiv 2507.10225).

    Args:
        encoder: the CLIP, with two towers and a width `dim`.
        loss: the CLIP's own, whose temperature stays the scale.
        generator: makes the outliers.
        vocabulary: labels, or a file with one in each line, from which the negative ones are mined.
        n_labels: number of negative labels M.
        further: make more outliers, which only stage 2 reads.
        per_class: training images of each class that outliers are made of.
        templates: prompts; `{}` is the label.
        projection_epochs: epochs of stage 1, after which stage 2 begins.
        label_optimizer: of stage 2; None takes that of stage 1.
        projection_optimizer: of stage 1; None takes the CLIP's.
        init_scale: as in `ResidualProjection`.
        groups: as in `zoo.ood.neg_label`.
        **kwargs: as in `FrozenClip`.
    """

    label_texts: Tensor
    used: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        generator: OutlierGenerator,
        vocabulary: list[str] | Path,
        n_labels: int,
        further: Sequence[OutlierGenerator] = (),
        per_class: int = 50,
        templates: Sequence[str] = ("a nice {}",),
        projection_epochs: int = 3,
        projection_optimizer: OptimizerCallable | None = None,
        label_optimizer: OptimizerCallable | None = None,
        init_scale: float = 1.0,
        groups: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        dim: int = encoder.dim  # type: ignore[assignment]
        self.generators, self.vocabulary, self.n_labels = (generator, *further), vocabulary, n_labels
        self.per_class, self.templates, self.groups = per_class, tuple(templates), groups
        self.projection_epochs = projection_epochs
        self.projection_optimizer = projection_optimizer
        self.label_optimizer = label_optimizer
        self.projection = ResidualProjection(dim, init_scale)
        self.labels = nn.Parameter(torch.zeros(n_labels, dim))
        self.register_buffer("label_texts", torch.zeros(n_labels, dim))
        self.register_buffer("used", torch.zeros(n_labels, dtype=torch.bool))
        self._outliers: _Outliers | None = None

    def starts(self) -> Sequence[int]:
        return self.clip_epochs, self.clip_epochs + self.projection_epochs

    def trained(self, stage: int) -> Iterable[nn.Parameter]:
        return self.projection.parameters() if stage == 1 else [self.labels]

    def stage_optimizer(self, stage: int) -> OptimizerCallable:
        chosen = self.optimizer
        for given in (self.projection_optimizer, self.label_optimizer)[:stage]:
            chosen = chosen if given is None else given
        return chosen

    # Outliers and labels

    def enter(self, stage: int) -> None:
        """Stage 1 mines the labels and makes the outliers; stage 2 starts from the labels' texts."""
        if stage == 1:
            self._mine_labels()
            self._outliers = self._make_outliers()
            self.used.zero_()[self._outliers.labels] = True
        else:
            self.labels.data.copy_(self.label_texts)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self._outliers is None and self.stage_of(self.current_epoch) > 0:  # a run that goes on from a checkpoint
            self._outliers = self._make_outliers()

    def _sets(self) -> Any:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data.source, "ood_sets") or data.transform is None:
            raise ZooError(
                "SynOOD needs a source with ood_sets, such as zoo.data.SceneSubjects, and a --data.transform"
            )
        sets = data.source.ood_sets("train", data.root)
        if len(sets.labels) != len(data.train_pairs):
            raise ZooError("SynOOD needs the class of every training pair, and ood_sets has another number of images")
        return sets

    def _embed_labels(self, labels: Sequence[str]) -> Float[Tensor, "L D"]:
        texts = [template.format(label) for template in self.templates for label in labels]
        found = encode(self.trainer, self, OneSide(texts, "document"))
        return class_weights(found.view(len(self.templates), len(labels), -1))

    def _mine_labels(self) -> None:
        vocabulary = self.vocabulary
        if isinstance(vocabulary, Path):
            try:
                vocabulary = vocabulary.read_text(encoding="utf-8").split("\n")
            except OSError as error:
                raise ZooError(f"cannot read the labels in {vocabulary}: {error.strerror}") from None
        classes = self._sets().classes
        known = {name.lower() for name in classes}
        candidates = list(
            dict.fromkeys(label.strip() for label in vocabulary if label.strip().lower() not in {*known, ""})
        )
        if len(candidates) < self.n_labels:
            raise ZooError(
                f"{self.n_labels} negative labels from {len(candidates)} candidates: lower --model.n_labels or add words"
            )
        embeddings = self._embed_labels(candidates)
        self.label_texts.copy_(embeddings[mine_negative_labels(embeddings, self._embed_labels(classes), self.n_labels)])

    def _make_outliers(self) -> _Outliers:
        sets = self._sets()
        transform = self.trainer.datamodule.transform  # type: ignore[attr-defined]
        known, images = self._embed_labels(sets.classes), as_collection(sets.images)
        shuffled = np.random.default_rng(0).permutation(len(sets.labels))
        of_class = [shuffled[sets.labels[shuffled] == c][: self.per_class] for c in range(len(sets.classes))]
        numbers = np.sort(np.concatenate(of_class))

        def features(pixels: Tensor) -> Tensor:
            # `evaluate` takes bytes and is affine: a mixture of what it makes of black and of white.
            black, white = (transform.evaluate(torch.full_like(pixels, x, dtype=torch.uint8)) for x in (0, 255))
            return self.raw_features(black + pixels * (white - black))

        def classify(pixels: Tensor) -> Tensor:
            return cosine_logits(features(pixels), known, self.scale)

        found: list[Tensor] = []
        with undisturbed(self), self.trainer.precision_plugin.forward_context():
            torch.manual_seed(0)
            for generator in self.generators:
                generator.bind(sets)
                for part in np.array_split(numbers, -(-len(numbers) // 256)):
                    pixels = fetch(images, part).to(self.device) / 255
                    found.append(features(generator.generate(pixels, part, classify)))
        outliers = torch.cat(found)
        nearest = (normalize(outliers) @ self.label_texts.T).argmax(1)
        return _Outliers(outliers, nearest, len(numbers), known, torch.as_tensor(sets.labels, device=self.device))

    # Training

    def raw_features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Image features before normalisation."""
        return at_least_float32(self.tower("query")(images))

    def stage_step(self, batch: PairBatch, stage: int) -> dict:
        outliers = self._outliers
        if outliers is None:
            raise RuntimeError("on_train_batch_start makes the outliers")
        n = len(batch)
        drawn = torch.randint(outliers.near if stage == 1 else len(outliers.labels), (n,), device=self.device)
        features, labels = outliers.features[drawn], outliers.labels[drawn]
        if stage == 2:
            return self._classification(features, self.labels, labels, self.used)
        with torch.no_grad():
            known = self.raw_features(batch.anchor)
        with torch.autocast(known.device.type, enabled=False):
            projected = self.projection(torch.cat([known, features]))
        classes = len(outliers.classes)
        return self._classification(
            projected,
            torch.cat([outliers.classes, self.label_texts]),
            torch.cat([outliers.class_of[batch.index], classes + labels]),
            torch.cat([self.used.new_ones(classes), self.used]),
        )

    def _classification(self, x: Tensor, labels: Tensor, target: Tensor, counted: Tensor) -> dict:
        """Cross entropy over the labels that count."""
        with torch.autocast(x.device.type, enabled=False):
            query = normalize(x)
            scores = cosine_logits(query, labels)
            positives = scores.gather(1, target[:, None])
            mask = counted & (torch.arange(len(labels), device=x.device) != target[:, None])
            loss = info_nce(positives, scores, mask, self.temperature)
            return self.report(loss, query, (positives, scores, mask))

    # Evaluation

    def ood_features(self, batch: PairBatch) -> dict[str, Tensor]:
        """Embeddings of images (unit-norm `features`, and `raw`), or of texts."""
        if batch.anchor is None:
            return {"features": self.embed_documents(batch.positive)}
        raw = self.raw_features(batch.anchor)
        return {"features": normalize(raw), "raw": raw}

    def ood_scores(self, images: dict[str, Tensor], classes: dict[str, Tensor]) -> dict[str, Float[Tensor, " N"]]:
        """Scores of images, given `ood_features` of images and classes.

        `neglabel` (the plain CLIP beside all negative labels), `projection`, `labels` (one stage's work alone) and
        `synood` (both); nothing before there are labels.
        """
        if not self.used.any():
            return {}
        known, plain = classes["features"], images["raw"]
        projected, everything, used = self._projected(plain), self.label_texts.to(plain), self.used.to(plain.device)
        texts = everything[used]
        tuned = self.labels.to(plain)[used] if self.stage > 1 else texts
        kinds = {
            "neglabel": (plain, everything),
            "projection": (projected, texts),
            "labels": (plain, tuned),
            "synood": (projected, tuned),
        }
        return {
            name: neg_label(cosine_logits(x, known, self.scale), cosine_logits(x, negative, self.scale), self.groups)
            for name, (x, negative) in kinds.items()
        }

    def _projected(self, raw: Tensor) -> Tensor:
        """Evaluation works in another precision, maybe elsewhere."""
        return self.projection(raw.to(self.labels)).to(raw)

    def class_logits(self, images: dict[str, Tensor], classes: dict[str, Tensor]) -> dict[str, Float[Tensor, "N C"]]:
        """Logits over the known classes by name: those of the projected features."""
        return {"synood": cosine_logits(self._projected(images["raw"]), classes["features"], self.scale)}


class _Outliers:
    """What the stages read.

    Attributes:
        features: raw image features of all outliers `[S, D]`.
        labels: their negative labels `[S]`.
        near: how many of them, in front, stage 1 reads.
        classes: embeddings of the known classes `[C, D]`.
        class_of: class of each training pair.
    """

    def __init__(self, features: Tensor, labels: Tensor, near: int, classes: Tensor, class_of: Tensor) -> None:
        self.features, self.labels, self.near, self.classes, self.class_of = features, labels, near, classes, class_of
