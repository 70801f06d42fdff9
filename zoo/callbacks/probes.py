"""Probes of frozen features: nearest neighbours, and logistic regression with all or with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import ZooError
from zoo.losses.scores import normalize


def knn_predict(
    queries: Float[Tensor, "Q F"],
    references: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> Int[Tensor, " Q"]:
    """Weighted nearest-neighbour classes: k cosine neighbours vote with exp(similarity / temperature).

    Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4. Queries are scored in chunks, so that memory stays O(chunk * N).
    """
    references = normalize(references)
    n_classes = int(labels.max()) + 1
    predicted = []
    for part in normalize(queries).split(chunk):
        similarity, nearest = (part @ references.T).topk(min(k, len(references)), dim=1)
        votes = torch.zeros(len(part), n_classes, device=part.device, dtype=similarity.dtype)
        votes.scatter_add_(1, labels[nearest], ((similarity - 1) / temperature).exp())
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def linear_accuracy(
    train: tuple[Float[Tensor, "N F"], Int[Tensor, " N"]],
    test: tuple[Float[Tensor, "Q F"], Int[Tensor, " Q"]],
) -> float:
    """Accuracy of multinomial logistic regression (scikit-learn, L2 with C = 1) on standardised features."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    x, queries = (((f - mean) / scale).double().cpu() for f in (train[0], test[0]))
    if len(x) < x.shape[1]:
        # The weights lie in the span of the examples: in its coordinates the problem is the same, and smaller.
        basis = torch.linalg.qr(x.T).Q
        x, queries = x @ basis, queries @ basis
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations settle the accuracy, if not the weights
        model = LogisticRegression(max_iter=100).fit(x.numpy(), train[1].cpu().numpy())
    return float(model.score(queries.numpy(), test[1].cpu().numpy()))


def few_shot_accuracy(
    train: tuple[Float[Tensor, "N F"], Int[Tensor, " N"]],
    test: tuple[Float[Tensor, "Q F"], Int[Tensor, " Q"]],
    shots: int = 10,
    draws: int = 5,
) -> float:
    """Mean `linear_accuracy` over draws of `shots` labelled examples per class; the draws are the same for all runs."""
    labels = train[1].cpu().numpy()
    scores = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        classes = np.unique(labels)
        few = torch.as_tensor(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]))
        few = few.to(train[0].device)
        scores.append(linear_accuracy((train[0][few], train[1][few]), test))
    return float(np.mean(scores))


class _Collector(pl.Callback):
    """Collects features and labels of the evaluation loaders: first the reference set, then the queries."""

    def __init__(self) -> None:
        self._parts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def _start(self) -> None:
        self._parts = {0: [], 1: []}

    def _collect(self, outputs: dict[str, Tensor], batch: Any, loader: int) -> None:
        if batch.group is None:
            raise ZooError("probes need labels, and this data set has none: remove the probe callbacks")
        self._parts[loader].append((outputs["features"], batch.group))

    def _sets(self) -> list[tuple[Tensor, Tensor]]:
        sets = [tuple(torch.cat(x) for x in zip(*self._parts[i], strict=True)) for i in (0, 1)]
        self._start()
        return sets  # type: ignore[return-value]


class SplitProbe(_Collector):
    """Measures features of the validation split, `eval/...`, and of the test split, `test/...`, alike."""

    def metrics(self, trainer: Any, split: Literal["val", "test"]) -> Mapping[str, float | Tensor]:
        """What to log of the collected sets, without the prefix."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._start()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(outputs, batch, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            pl_module.log_dict({f"eval/{name}": value for name, value in self.metrics(trainer, "val").items()})

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log_dict({f"test/{name}": value for name, value in self.metrics(trainer, "test").items()})


class KNNProbe(_Collector):
    """Online kNN accuracy of the features, `eval/knn`, on the validation split with the training split's labels.

    Args:
        k: neighbours; 200 on CIFAR and ImageNet, fewer where classes have few examples.
        temperature: of the votes.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        super().__init__()
        self.k, self.temperature = k, temperature

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._start()

    def on_validation_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking:
            return self._start()
        (references, labels), (queries, truth) = self._sets()
        predicted = knn_predict(queries, references, labels, self.k, self.temperature)
        pl_module.log("eval/knn", (predicted == truth).float().mean(), prog_bar=True)
        return None


class FinalProbes(_Collector):
    """Probes of the final features on the test split, beside those of an untrained encoder and of raw pixels.

    Logs `test/knn`, `test/linear` (all labels), `test/linear_fewshot` (`shots` labels per class); and knn and
    linear_fewshot as `..._random` (this run's encoder before training) and `..._pixels`.

    Args:
        k: neighbours of the kNN probe.
        temperature: of its votes.
        shots: labels per class of the few-shot probe.
        references: also measure the untrained encoder and raw pixels.
        limit: a reference set of more images (ImageNet) has no such references, and `test/linear` is fitted to a fixed
            random subset of this size.
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 0.07,
        shots: int = 10,
        references: bool = True,
        limit: int = 100_000,
    ) -> None:
        super().__init__()
        self.k, self.temperature, self.shots, self.references, self.limit = k, temperature, shots, references, limit
        self.baselines: dict[str, float] = {}

    @torch.no_grad()
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # A resumed run has them from its checkpoint, as its encoder is no longer untrained.
        if not self.references or self.baselines or trainer.fast_dev_run:
            return
        datamodule = trainer.datamodule
        if len(datamodule.source.evaluation("test", datamodule.root)[0]) > self.limit:
            return
        sets: list[tuple[Tensor, Tensor, Tensor]] = []
        pl_module.eval()
        for loader in datamodule.evaluation_dataloaders("test"):
            parts = []
            for batch in loader:
                batch = datamodule.prepare_inputs(batch.to(pl_module.device))
                parts.append((pl_module.features(batch.anchor), batch.anchor.flatten(1), batch.group))
            sets.append(tuple(torch.cat(x) for x in zip(*parts, strict=True)))  # type: ignore[arg-type]
        pl_module.train()
        for position, name in enumerate(("random", "pixels")):
            train, test = (((s[position] - sets[0][position].mean(0)), s[2]) for s in sets)
            self.baselines |= {f"{key}_{name}": value for key, value in self._probe(train, test).items()}

    def _probe(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, float]:
        predicted = knn_predict(test[0], *train, self.k, self.temperature)
        return {
            "test/knn": (predicted == test[1]).float().mean().item(),
            "test/linear_fewshot": few_shot_accuracy(train, test, self.shots),
        }

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._start()

    def on_test_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        train, test = self._sets()
        few = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))[: self.limit]
        few = few.sort().values.to(train[1].device)
        linear = linear_accuracy((train[0][few], train[1][few]), test)
        metrics = {**self._probe(train, test), "test/linear": linear, **self.baselines}
        pl_module.log_dict(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"baselines": self.baselines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.baselines = state_dict["baselines"]
