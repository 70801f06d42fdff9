"""The picture of the README: what methods change against their baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import recipes
from zoo.site import evidence

STYLE = {"confirmed": ("#1b7f3b", "o"), "refuted": ("#b3261e", "X"), "inconclusive": ("#8a6d00", "D")}


def draw_differences(headlines: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Draw each method's difference to its baseline with its 95 % interval, a panel for each family.

    Args:
        headlines: rows of the leaderboard by family, as `zoo.site.docs.headlines` chooses them.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    families = sorted(headlines, key=lambda family: -len(headlines[family]))
    if not families:
        return path
    left, right = families[:1], families[1:]
    rows = max(len(headlines[left[0]]) + 2, sum(len(headlines[f]) + 3 for f in right))
    figure = Figure(figsize=(11, 0.23 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 2, width_ratios=(3, 4)) if right else figure.add_gridspec(1, 1)
    cells: list[Any] = [grid[0]]
    if right:
        below = grid[1].subgridspec(len(right), 1, height_ratios=[len(headlines[f]) + 1.5 for f in right])
        cells += [below[i] for i in range(len(right))]
    for family, cell in zip(families, cells, strict=True):
        _panel(figure.add_subplot(cell), family, headlines[family])
    figure.suptitle("Difference to the baseline, mean over seeds with its 95 % interval", fontsize=11.5)
    keys = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in STYLE.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def _panel(axis: Any, family: str, rows: Sequence[Mapping[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda row: row["delta"])
    axis.axvline(0, color="0.6", linewidth=0.8)
    for place, row in enumerate(ordered):
        colour, marker = STYLE[row["verdict"]]
        if row["delta_ci95"]:
            axis.plot(row["delta_ci95"], [place, place], color=colour, linewidth=1.6)
        axis.plot(row["delta"], place, marker, color=colour, markersize=6)
    names = [f"{recipes.load_card(row['recipe']).title}  ({row['metric'].removeprefix('test/')})" for row in ordered]
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.tick_params(axis="x", labelsize=8.5)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.set_title(evidence.FAMILIES.get(family, family), fontsize=10.5, loc="left")
