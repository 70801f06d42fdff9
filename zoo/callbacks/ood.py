"""Out-of-distribution detection: which images are of none of the known classes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide, fetch
from zoo.data.pairs import PairBatch, Split
from zoo.errors import ZooError
from zoo.negatives.near_ood import as_collection
from zoo.ood import auroc, class_weights, cosine_logits, energy, fpr_at_tpr, max_logit, msp


class OODEvaluation(pl.Callback):
    """AUROC and FPR at 95 % TPR of telling known images from others: `test/auroc_near_msp`, `test/fpr95_far_atd`, ...

    The source's `ood_sets(split, root)` has images of known classes and by name sets of images of none; `near` and `far`
    are means over the sets with that beginning, and a test also has the single sets (`test/auroc_near_shape_msp`).
    Scores are `msp`, `maxlogit`, `energy`, and those of the method's own `ood_scores(images, classes)`.
    `test/accuracy` is the zero-shot accuracy on the known classes; a method with `class_logits` adds its own.
    Validation has the same means under `eval/`. Known is the positive class, and FPR is interpolated linearly.

    Args:
        templates: prompts of the classes; `{}` is the class.
        val_images: images of each set that validation reads; 0 leaves it out.
    """

    def __init__(self, templates: Sequence[str] = ("a photo of a {}.",), val_images: int = 300) -> None:
        self.templates, self.val_images = tuple(templates), val_images

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if not hasattr(trainer.datamodule.source, "ood_sets"):
            raise ZooError(
                "OODEvaluation needs a source with ood_sets, such as zoo.data.SceneSubjects: remove the callback"
            )

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and self.val_images:
            found = self._metrics(trainer, pl_module, "val", self.val_images)
            pl_module.log_dict({f"eval/{name}": value for name, value in found.items()})

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = self._metrics(trainer, pl_module, "test", None)
        pl_module.log_dict({f"test/{name}": value for name, value in found.items()})

    @torch.no_grad()
    def _metrics(self, trainer: Any, module: Any, split: Split, limit: int | None) -> dict[str, float]:
        data = trainer.datamodule
        sets = data.source.ood_sets(split, data.root)
        texts = [template.format(name) for template in self.templates for name in sets.classes]
        prompts = _features(trainer, module, OneSide(texts, "document"))
        shape = (len(self.templates), len(sets.classes), -1)
        classes = {name: class_weights(x.view(shape)) for name, x in prompts.items()}
        collections = {"": sets.images, **sets.outside}
        images = {name: _features(trainer, module, _first(x, limit)) for name, x in collections.items()}
        scores = {name: _scores(module, x, classes) for name, x in images.items()}
        known = scores.pop("")
        truth = torch.as_tensor(sets.labels[:limit])
        logits = {"accuracy": cosine_logits(images[""]["features"], classes["features"])}
        if hasattr(module, "class_logits"):
            own = module.class_logits(images[""], classes)
            logits |= {f"accuracy_{name}": x for name, x in own.items()}
        found = {name: float((x.argmax(1) == truth).double().mean()) for name, x in logits.items()}
        for metric, measure in (("auroc", auroc), ("fpr95", fpr_at_tpr)):
            for score, of_known in known.items():
                single = {name: measure(of_known, novel[score]) for name, novel in scores.items()}
                for kind in dict.fromkeys(name.partition("_")[0] for name in single):
                    values = [value for name, value in single.items() if name.partition("_")[0] == kind]
                    found[f"{metric}_{kind}_{score}"] = sum(values) / len(values)
                if limit is None:
                    found |= {f"{metric}_{name}_{score}": value for name, value in single.items()}
        return found


def _scores(module: Any, images: dict[str, Tensor], classes: dict[str, Tensor]) -> dict[str, Tensor]:
    yes = cosine_logits(images["features"], classes["features"], 1 / float(module.loss.temperature))
    found = {"msp": msp(yes), "maxlogit": max_logit(yes), "energy": energy(yes)}
    return found | (module.ood_scores(images, classes) if hasattr(module, "ood_scores") else {})


def _first(images: Any, limit: int | None) -> OneSide:
    collection = as_collection(images)
    return OneSide(collection if limit is None else _Head(collection, limit), "query")


class _Head:
    """The first items of a collection."""

    def __init__(self, items: Any, n: int) -> None:
        self.items, self.n = items, min(n, len(items))

    def __len__(self) -> int:
        return self.n

    def fetch(self, numbers: Any) -> Any:
        return fetch(self.items, numbers)


def _features(trainer: Any, module: Any, dataset: OneSide) -> dict[str, Tensor]:
    """What the method's `ood_features` gives, or its plain embeddings, of a whole data set."""
    seen = _SideBySide(module)
    everything = encode(trainer, seen, dataset)
    parts = everything.cpu().double().split(list(seen.widths.values()), dim=1)
    return dict(zip(seen.widths, parts, strict=True))


class _SideBySide:
    """A method whose validation step puts all features of an input into one row."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.widths: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def validation_step(self, batch: PairBatch, number: int) -> dict[str, Tensor]:
        own = hasattr(self.module, "ood_features")
        found = self.module.ood_features(batch) if own else self.module.validation_step(batch, number)
        self.widths = {name: x.shape[1] for name, x in found.items()}
        return {"features": torch.cat([x.float() for x in found.values()], 1)}
