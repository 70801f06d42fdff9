"""What the scores do during training: statistics, histograms, effective negatives."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from zoo.callbacks.pictures import log_picture, new_figure, wandb_run
from zoo.losses.statistics import coupling, proxy_accuracy, score_statistics, uniformity


class _EpochMeans(pl.Callback):
    """Means over the observed steps of an epoch, logged as it ends; kept in the checkpoint, so that a resumed run agrees.

    Args:
        every_n_steps: observe one step in so many.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0

    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        """Scalars of one step."""
        raise NotImplementedError

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        if batch_idx % self.every_n_steps:
            return
        if batch_idx == 0:  # a run that goes on from an epoch's last batch has not seen that epoch end
            self._clear()
        scalars = self.observe(pl_module, outputs)
        values = torch.stack([v.double() for v in scalars.values()]).tolist()  # one synchronisation
        for name, value in zip(scalars, values, strict=True):
            self.sums[name] += value
        self.count += 1

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.count:
            pl_module.log_dict({name: total / self.count for name, total in self.sums.items()}, sync_dist=True)
        self._clear()

    def _clear(self) -> None:
        self.sums.clear()
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = defaultdict(float, state_dict["sums"])
        self.count = state_dict["count"]


class ScoreStatistics(_EpochMeans):
    """Logs, as means over each epoch, what the loss saw (sources in `zoo.losses.statistics`).

    `scores/positive`, `scores/negative`, `scores/negative_variance`, `scores/exp_positive`, `scores/exp_negative` (the
    five numbers of the feature-transformation paper), `scores/raw_positive` (before any transformation),
    `train/proxy_accuracy`, `train/coupling` and `train/coupling_cv` (mean of DCL's 1 - p(positive), and its coefficient
    of variation), `train/uniformity` of the queries, and `negatives/effective`: negatives per anchor that are not
    masked, over all devices.
    """

    @torch.no_grad()
    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        positives, negatives, mask = outputs["positives"], outputs["negatives"], outputs["mask"]
        temperature = module.loss.temperature
        means = score_statistics(positives, negatives, mask, temperature).mean(0)
        factor = coupling(positives, negatives, mask, temperature)
        effective = negatives.new_tensor(negatives.shape[1]) if mask is None else (mask > 0).sum(1).double().mean()
        return {
            "scores/negative": means[0],
            "scores/negative_variance": means[1],
            "scores/positive": means[2],
            "scores/exp_negative": means[3],
            "scores/exp_positive": means[4],
            "scores/raw_positive": outputs.get("raw_positives", positives).mean(),
            "train/proxy_accuracy": proxy_accuracy(positives, negatives, mask),
            "train/coupling": factor.mean(),
            "train/coupling_cv": factor.std() / factor.mean().clamp_min(1e-12),
            "train/uniformity": uniformity(outputs["query"]),
            "negatives/effective": effective,
        }


class ScoreHistogram(pl.Callback):
    """Histograms of positive and negative scores over training: the visualisation of Zhu et al. 2021 (arXiv 2108.02982).

    Each epoch gives one row of bins for positives and negatives as the loss saw them. The run folder gets
    `score_histogram.png` and `score_histogram.npz`; W&B gets the picture and each epoch's histograms.

    Args:
        bins: number of bins.
        low, high: outermost edges; scores beyond them (feature transformation makes some) fall into the last bin.
        every_n_steps: observe one step in so many.
    """

    def __init__(self, bins: int = 120, low: float = -1.5, high: float = 1.5, every_n_steps: int = 10) -> None:
        self.edges = np.linspace(low, high, bins + 1)
        self.bins, self.low, self.high, self.every_n_steps = bins, low, high, every_n_steps
        self.current: Tensor | None = None
        self.rows: list[Tensor] = []

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        if batch_idx % self.every_n_steps:
            return
        if batch_idx == 0:  # a run that goes on from an epoch's last batch has not seen that epoch end
            self.on_train_epoch_end(trainer, pl_module)
        negatives, mask = outputs["negatives"], outputs["mask"]
        counts = torch.stack(
            [self._count(outputs["positives"]), self._count(negatives if mask is None else negatives[mask > 0])]
        )
        self.current = counts if self.current is None else self.current.to(counts.device) + counts

    def _count(self, scores: Tensor) -> Tensor:
        clamped = scores.float().flatten().clamp(self.low, self.high)
        return clamped.histc(self.bins, self.low, self.high).double()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.current is None:
            return
        self.rows.append(self.current.cpu())
        self.current = None
        if (run := wandb_run(trainer)) is not None:
            import wandb

            for side, counts in zip(("positives", "negatives"), self.rows[-1].numpy(), strict=True):
                histogram = wandb.Histogram(np_histogram=(counts, self.edges))
                run.log({f"scores/histogram_{side}": histogram, "trainer/global_step": trainer.global_step})

    def on_fit_end(self, trainer, pl_module) -> None:
        if not self.rows or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rows = torch.stack(self.rows, 1).numpy()
        np.savez_compressed(folder / "score_histogram.npz", edges=self.edges, positives=rows[0], negatives=rows[1])
        picture = draw_score_histogram(self.edges, rows[0], rows[1], folder / "score_histogram.png")
        log_picture(trainer, "scores/histogram", picture)

    def state_dict(self) -> dict[str, Any]:
        return {"current": self.current, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.current, self.rows = state_dict["current"], state_dict["rows"]


def draw_score_histogram(edges: np.ndarray, positives: np.ndarray, negatives: np.ndarray, path: Path) -> Path:
    """Draw both histograms over epochs, with mean and one standard deviation.

    Args:
        edges: bin edges `[bins + 1]`.
        positives: counts `[epochs, bins]`.
        negatives: counts `[epochs, bins]`.
        path: PNG file to write.
    """
    figure = new_figure(9, 3.6)
    centres = (edges[1:] + edges[:-1]) / 2
    epochs = np.arange(1, len(positives) + 1)
    for axis, counts, title in zip(
        figure.subplots(1, 2, sharey=True), (positives, negatives), ("positives", "negatives"), strict=True
    ):
        density = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        mean = density @ centres
        deviation = np.sqrt(np.maximum(density @ centres**2 - mean**2, 0))
        extent = (0.5, len(counts) + 0.5, edges[0], edges[-1])
        shade = density.T / max(density.max(), 1e-12)
        axis.imshow(np.sqrt(shade), origin="lower", aspect="auto", extent=extent, cmap="Blues", interpolation="nearest")
        axis.plot(epochs, mean, color="#b3261e", label="mean")
        axis.plot(epochs, mean - deviation, color="#b3261e", linestyle=":", label="mean ± std")
        axis.plot(epochs, mean + deviation, color="#b3261e", linestyle=":")
        axis.set(title=f"{title}: last epoch {mean[-1]:.3f} ± {deviation[-1]:.3f}", xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("score")
    seen = np.flatnonzero((positives + negatives).sum(0))
    figure.axes[0].set_ylim(float(edges[max(seen[0] - 2, 0)]), float(edges[min(seen[-1] + 3, len(edges) - 1)]))
    figure.axes[1].legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)
    return path
