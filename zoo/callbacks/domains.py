"""Whether embeddings tell domains (styles) apart, and classes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.callbacks.probes import SplitProbe
from zoo.errors import ZooError
from zoo.losses.scores import normalize


def nearest_others(features: Float[Tensor, "N F"], k: int, chunk: int = 4096) -> Int[Tensor, "N K"]:
    """Numbers of the K = min(k, N - 1) nearest other rows by cosine, in chunks of queries."""
    unit, found = normalize(features), []
    for rows in torch.arange(len(unit), device=unit.device).split(chunk):
        similarity = (unit[rows] @ unit.T).scatter_(1, rows[:, None], -torch.inf)
        found.append(similarity.topk(min(k, len(unit) - 1), dim=1).indices)
    return torch.cat(found)


def purity(neighbours: Int[Tensor, "N K"], groups: Int[Tensor, " N"]) -> float:
    """Mean share of a row's neighbours that are of its own group."""
    return float((groups[neighbours] == groups[:, None]).double().mean())


def domain_gap(
    features: Float[Tensor, "N F"], domains: Int[Tensor, " N"], labels: Int[Tensor, " N"], chunk: int = 4096
) -> float:
    """Mean cosine of negatives (images of other classes) of one's own domain, less that of negatives of other domains.

    Zero says that no negative is told apart by its domain; NaN, that there are none of one of the two kinds.
    """
    unit = normalize(features)
    total, count = (torch.zeros(2, dtype=torch.float64, device=unit.device) for _ in range(2))
    for rows in torch.arange(len(unit), device=unit.device).split(chunk):
        similarity = (unit[rows] @ unit.T).double()
        negative = labels[rows, None] != labels
        same = domains[rows, None] == domains
        for i, kind in enumerate((negative & same, negative & ~same)):
            total[i] += (similarity * kind).sum()
            count[i] += kind.sum()
    own, other = (total / count).tolist()
    return own - other


def balanced_rows(domains: Int[Tensor, " N"], per_domain: int) -> Int[Tensor, " M"]:
    """Equally many rows of each domain, drawn alike in every run: all of the rarest, and at most `per_domain`."""
    order = torch.randperm(len(domains), generator=torch.Generator().manual_seed(0)).to(domains.device)
    kinds, counts = domains.unique(return_counts=True)
    n = min(per_domain, int(counts.min()))
    return torch.cat([order[domains[order] == kind][:n] for kind in kinds]).sort().values


class DomainPurity(SplitProbe):
    """How far features are sorted by domain: `eval/domain_purity`, `eval/class_purity`, `eval/domain_gap`; on the test
    split under `test/`.

    The purities are the shares of an image's nearest neighbours that are of its own domain or class (1 divided by the
    number of domains is what a feature that knows no domain has); for the gap see `domain_gap`. Neighbours are sought
    among the images of reference set and queries, seen and unseen domains, equally many of each.

    Source: Scalbert et al., ICLR 2024 (arXiv 2303.06088). Needs a source whose data sets have a column `domain`.

    Args:
        k: neighbours.
        per_domain: images of each domain, at most.
    """

    def __init__(self, k: int = 20, per_domain: int = 1000) -> None:
        super().__init__()
        self.k, self.per_domain = k, per_domain

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        data = trainer.datamodule
        if stage != "predict" and "domain" not in data.source.split("train", data.root).columns:
            raise ZooError(
                f"DomainPurity needs to know the domain of each image, and {data.source.name} does not: "
                "remove the callback"
            )

    def _start(self) -> None:
        super()._start()
        self._numbers: dict[int, list[Tensor]] = {0: [], 1: []}

    def _collect(self, outputs: dict[str, Tensor], batch: Any, loader: int) -> None:
        super()._collect(outputs, batch, loader)
        self._numbers[loader].append(batch.index)

    def metrics(self, trainer: Any, split: Literal["val", "test"]) -> dict[str, float]:
        data = trainer.datamodule
        numbers = [torch.cat(self._numbers[i]) for i in (0, 1)]
        sets = data.source.evaluation(split, data.root)
        columns = [s.column("domain", n.cpu().numpy()).to(n.device) for s, n in zip(sets, numbers, strict=True)]
        features, labels = (torch.cat(x) for x in zip(*self._sets(), strict=True))
        rows = balanced_rows(torch.cat(columns), self.per_domain)
        features, labels, domains = features[rows], labels[rows], torch.cat(columns)[rows]
        neighbours = nearest_others(features, self.k)
        return {
            "domain_purity": purity(neighbours, domains),
            "class_purity": purity(neighbours, labels),
            "domain_gap": domain_gap(features, domains, labels),
        }
