"""A picture of compositional cases."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.callbacks.composition import CompositionEvaluation
from zoo.callbacks.pictures import log_picture, new_figure
from zoo.callbacks.retrieval_panel import RIGHT, WRONG
from zoo.composition import UNSEEN, CompositionCases
from zoo.data.collections import fetch
from zoo.errors import ZooError


class CompositionPanel(pl.Callback):
    """`composition_panel.png`: images with their captions and hard negatives, and the scores that the test gave both.

    One row per kind of case, from the worst margin between the two to the best, evenly spread over all images. Shows
    what each `CompositionEvaluation` has scored; one must be among the trainer's callbacks. The run folder and W&B get
    it.

    Args:
        columns: images of each kind.
        rows: kinds shown at most; the data set's own come first, and those named `_unseen` last.
    """

    def __init__(self, columns: int = 4, rows: int = 9) -> None:
        self.columns, self.rows = columns, rows

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if not _evaluations(trainer):  # rather before than after training
            raise ZooError(
                "CompositionPanel shows what CompositionEvaluation has scored: add that to trainer.callbacks too"
            )

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        tested = {name: case for evaluation in _evaluations(trainer) for name, case in evaluation.tested.items()}
        if not trainer.is_global_zero or not tested:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = draw_composition_panel(tested, folder / "composition_panel.png", self.columns, self.rows)
        log_picture(trainer, "test/composition_panel", path)


def _evaluations(trainer: Any) -> list[CompositionEvaluation]:
    return [callback for callback in trainer.callbacks if isinstance(callback, CompositionEvaluation)]


def choose_images(scores: Float[Tensor, "C K L"], truths: Int[np.ndarray, " K"], n: int) -> list[tuple[int, int, int]]:
    """(case, image, hardest false caption) from the worst margin to the best, evenly spread over all images.

    Args:
        scores: of the cases.
        truths: place of the true caption of each image.
        n: how many, if there are so many.
    """
    k = scores.shape[1]
    at = (slice(None), range(k), truths.tolist())
    wrong = scores.clone()
    wrong[at] = -torch.inf
    best, place = wrong.max(2)
    margins = (scores[at] - best).flatten()
    order = margins.argsort(stable=True)
    spread = np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(np.int64)
    return [(int(i) // k, int(i) % k, int(place.flatten()[i])) for i in order[torch.from_numpy(spread)]]


def draw_composition_panel(
    tested: dict[str, tuple[CompositionCases, Tensor]], path: Path, columns: int = 4, rows: int = 9
) -> Path:
    """Draws cases of each kind, green where the true caption has the higher score and red elsewhere.

    Args:
        tested: cases and their scores `[C, K, L]` by name.
        path: PNG file to write.
        columns: images of each kind.
        rows: kinds shown at most, those named `_unseen` last.
    """
    shown = sorted(tested.items(), key=lambda kind: kind[0].endswith(UNSEEN))[:rows]
    figure = new_figure(3 * columns, 3 * len(shown))
    parts = np.atleast_1d(figure.subfigures(len(shown), 1))
    for part, (name, (cases, scores)) in zip(parts, shown, strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=11, fontweight="bold")
        chosen = choose_images(scores, cases.truths(), columns)
        images = fetch(cases.images, [int(cases.image_of[case, k]) for case, k, _ in chosen])
        axes = part.subplots(1, columns, squeeze=False)[0]
        for axis in axes:
            axis.axis("off")
        for axis, image, (case, k, false) in zip(axes, images, chosen, strict=False):
            places = int(cases.truths()[k]), false
            captions = [cases.captions[cases.caption_of[case, place]] for place in places]
            _draw_case(axis, image, captions, [float(scores[case, k, place]) for place in places])
    figure.savefig(path, dpi=120)
    return path


def _draw_case(axis: Any, image: Tensor, captions: list[str], scores: list[float]) -> None:
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    axis.imshow(image.permute(1, 2, 0).numpy())
    colour = RIGHT if scores[0] > scores[1] else WRONG
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)
    lines = [
        textwrap.fill(f"{sign} {score:+.3f}  {textwrap.shorten(caption, 120, placeholder=' …')}", 46)
        for sign, score, caption in zip(("✓", "✗"), scores, captions, strict=True)
    ]
    axis.set_xlabel("\n".join(lines), fontsize=7, loc="left", color=colour, parse_math=False)
