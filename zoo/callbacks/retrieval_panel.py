"""Pictures of a test: what was retrieved, and where it failed."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zoo.callbacks.pictures import log_picture, new_figure
from zoo.callbacks.recall import CollectsRetrieval
from zoo.data.collections import RetrievalSet, fetch
from zoo.ranking import positive_ranks
from zoo.search import top_k

RIGHT, WRONG, NEITHER = "#1b7f3b", "#b3261e", "#c98a00"


class _TestPicture(CollectsRetrieval):
    """Draws each retrieval set as a test ends; the run folder and W&B get the picture."""

    name: str

    def draw(self, data: RetrievalSet, queries: Tensor, documents: Tensor) -> Any:
        """A figure, or None where there is nothing to draw."""
        raise NotImplementedError

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        sides = self._sides(trainer, "test")
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (data, queries, documents) in sides.items():
            figure = self.draw(data, queries, documents)
            if figure is None:
                continue
            stem = f"{self.name}_{name}" if name else self.name
            figure.savefig(folder / f"{stem}.png", dpi=120)
            log_picture(trainer, f"test/{stem}", folder / f"{stem}.png")


class RetrievalPanel(_TestPicture):
    """`retrieval_panel.png`: a few test queries with their right document and what was found.

    Half of the rows, if there are so many, are failures at rank 1, spread evenly from the mildest to the worst; the
    others are successes. Frames are green around relevant documents, red around wrong ones, amber around ignored ones.

    Args:
        rows: queries shown.
        k: documents shown for each.
    """

    name = "retrieval_panel"

    def __init__(self, rows: int = 8, k: int = 5) -> None:
        super().__init__()
        self.rows, self.k = rows, k

    def draw(self, data: RetrievalSet, queries: Tensor, documents: Tensor) -> Any:
        ranks = positive_ranks(queries, documents, data.relevance).cpu().numpy()
        chosen = choose_rows(ranks, self.rows)
        if not len(chosen):
            return None
        found = top_k(queries[chosen], documents, min(self.k, len(documents)))[1].cpu().numpy()
        right = [_best(data.relevance[q], queries[q], documents) for q in chosen.tolist()]
        shown = np.column_stack([right, found])
        asked, answers = fetch(data.queries, chosen), fetch(data.documents, shown[0])
        tall = max(_proportion(asked[0]), _proportion(answers[0]))
        figure = new_figure(1.9 * (1 + shown.shape[1]), (1.6 * tall + 0.3) * len(chosen))
        axes = figure.subplots(len(chosen), 1 + shown.shape[1], squeeze=False)
        for row, q in enumerate(chosen.tolist()):
            _show(axes[row, 0], asked[row], f"query {q}")
            for column, (document, item) in enumerate(zip(shown[row], fetch(data.documents, shown[row]), strict=True)):
                title = f"right: rank {ranks[q] + 1}" if column == 0 else f"{column}: {document}"
                _show(axes[row, 1 + column], item, title, _colour(data, q, int(document)))
        return figure


def choose_rows(ranks: np.ndarray, rows: int) -> np.ndarray:
    """Numbers of queries for a panel: failures from the mildest to the worst, then successes, evenly spread.

    Args:
        ranks: from `positive_ranks`; queries without a relevant document, -1, are not chosen.
        rows: how many; more successes where failures lack, and the other way round.
    """
    failures = np.flatnonzero(ranks > 0)
    failures = failures[np.argsort(ranks[failures], kind="stable")]
    successes = np.flatnonzero(ranks == 0)
    n_failures = min(len(failures), max(rows // 2, rows - len(successes)))
    return np.concatenate([_spread(failures, n_failures), _spread(successes, min(len(successes), rows - n_failures))])


def _spread(numbers: np.ndarray, n: int) -> np.ndarray:
    return numbers[np.linspace(0, len(numbers) - 1, n).round().astype(np.int64)] if n else numbers[:0]


def _best(relevant: dict[int, int], query: Tensor, documents: Tensor) -> int:
    numbers = [document for document, grade in relevant.items() if grade > 0]
    return numbers[int((documents[numbers] @ query).argmax())]


def _colour(data: RetrievalSet, query: int, document: int) -> str:
    if data.relevance[query].get(document, 0) > 0:
        return RIGHT
    return NEITHER if data.ignored is not None and document in data.ignored[query] else WRONG


def _show(axis: Any, item: Any, title: str, colour: str | None = None) -> None:
    """An image or a text, framed in a colour."""
    axis.set_title(title, fontsize=8, color=colour or "black")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=colour is not None, color=colour, linewidth=2.5)
    if isinstance(item, Tensor):
        axis.imshow(item.permute(1, 2, 0).numpy())
    else:
        text = textwrap.fill(textwrap.shorten(str(item), 160, placeholder=" …"), 22)
        axis.text(0.5, 0.5, text, ha="center", va="center", fontsize=7, transform=axis.transAxes, parse_math=False)


class ErrorMap(_TestPicture):
    """`error_map.png`: where test queries were taken, and which failed at rank 1, coloured by the right document's rank.

    A line goes from each failure to the place that was found instead: the mean place of the queries to which that
    document is relevant, where there are any. Drawn for sets that know their queries' `coords`.

    Args:
        degrees: coordinates are latitude and longitude, not x and y in metres.
    """

    name = "error_map"

    def __init__(self, degrees: bool = False) -> None:
        super().__init__()
        self.degrees = degrees

    def draw(self, data: RetrievalSet, queries: Tensor, documents: Tensor) -> Any:
        if data.coords is None:
            return None
        ranks = positive_ranks(queries, documents, data.relevance).cpu().numpy()
        found = top_k(queries, documents, 1)[1][:, 0].cpu().numpy()
        at = np.asarray(data.coords, np.float64)
        at = at[:, ::-1] if self.degrees else at
        failed, judged = np.flatnonzero(ranks > 0), ranks >= 0
        figure = new_figure(7, 6)
        axis = figure.subplots()
        axis.scatter(*at[ranks == 0].T, s=9, color="#9aa0a6", linewidths=0)
        ends = _places_of(data, at, len(documents))[found[failed]]
        axis.plot(*_segments(at[failed], ends), color=WRONG, linewidth=0.5, alpha=0.25, zorder=1)
        if len(failed):
            from matplotlib.colors import LogNorm

            norm = LogNorm(2, max(3, int(ranks.max()) + 1))
            style = {"cmap": "plasma_r", "norm": norm, "edgecolors": "black", "linewidths": 0.3}
            marks = axis.scatter(*at[failed].T, s=16, c=ranks[failed] + 1, **style)
            bar = figure.colorbar(marks, ax=axis, label="rank of the right document")
            for ticks in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
                ticks("{x:.0f}")
        rate = len(failed) / max(int(judged.sum()), 1)
        axis.set_title(
            f"{len(failed)} of {judged.sum()} queries missed at rank 1 ({rate:.1%}); the others in grey", fontsize=10
        )
        axis.set(xlabel="longitude" if self.degrees else "x", ylabel="latitude" if self.degrees else "y")
        axis.set_aspect(1 / np.cos(np.radians(at[:, 1].mean())) if self.degrees else "equal", adjustable="datalim")
        return figure


def _places_of(data: RetrievalSet, at: np.ndarray, n_documents: int) -> np.ndarray:
    """Mean place of the queries to which each document is relevant, NaN where there are none."""
    pairs = [(q, d) for q, row in enumerate(data.relevance) for d, grade in row.items() if grade > 0]
    query, document = np.array(pairs, np.int64).reshape(-1, 2).T
    total, count = np.zeros((n_documents, 2)), np.bincount(document, minlength=n_documents)[:, None]
    np.add.at(total, document, at[query])
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _segments(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Coordinates of one broken line `[2, 3 n]` that goes from each start to its end."""
    return np.stack([starts, ends, np.full_like(starts, np.nan)], 1).reshape(-1, 2).T


def _proportion(item: Any) -> float:
    """Height over width of an image; texts take half of a square."""
    return item.shape[-2] / item.shape[-1] if isinstance(item, Tensor) else 0.5
