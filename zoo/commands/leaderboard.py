"""`zoo leaderboard`: every recipe's numbers beside its baseline's, by arena and budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from zoo import recipes, results
from zoo.commands.options import Options, console
from zoo.errors import ZooError
from zoo.recipes import Claim, RecipeCard
from zoo.results import Result

BEGIN, END = "<!-- leaderboard: written by `zoo leaderboard --readme`, from zoo/_results -->", "<!-- /leaderboard -->"
REFERENCES = {"_random": "untrained encoder", "_pixels": "raw pixels"}


def main(args: Sequence[str]) -> int:
    """Print the leaderboard, or write it into a README or as a web page."""
    usage = (
        "zoo leaderboard [--format table|markdown|json] [--readme README.md] [--html DIR] [--wandb PROJECT] [--sync]"
    )
    parser = Options(usage, "Results of local and committed runs; --readme takes the committed ones only.")
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--html", type=Path, metavar="DIR", help="a page of all, and one for each recipe")
    parser.add_argument("--wandb", metavar="PROJECT", help="publish a table and a report; also ENTITY/PROJECT")
    parser.add_argument(
        "--sync", action="store_true", help="upload the offline runs to W&B, into --wandb's project if given"
    )
    options = parser.read(args)
    if options.sync or options.wandb:
        return _to_wandb(options.wandb, options.sync)
    if options.readme:
        return _write_readme(options.readme)
    if options.html:
        from zoo.site import pages

        print(f"wrote {pages.write(options.html)}")
        return 0
    found = rows([*results.committed_results(), *results.local_results()])
    if options.format == "json":
        import json

        print(json.dumps(found, indent=1))
    elif options.format == "markdown":
        print(markdown(found))
    else:
        _print(found)
    return 0


@dataclass
class Board:
    """Runs that can be compared: arena, budget, overlays and overrides agree.

    Of a recipe that has changed between runs, the configuration that finished last counts.
    """

    arena: str
    budget: str
    variant: str
    runs: dict[str, dict[int, Result]]  # by recipe and seed

    @property
    def title(self) -> str:
        """Arena, budget, and overlays with overrides, if there are any."""
        return f"{self.arena}, {self.budget}" + (f", {self.variant}" if self.variant else "")


def boards(found: Iterable[Result]) -> list[Board]:
    """Results grouped by what makes them comparable."""
    groups: dict[tuple[str, str, str], dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in sorted(found, key=lambda r: r.finished_at):
        variant = " ".join([*result.overlays, *result.overrides])
        groups[result.arena, result.budget, variant][result.recipe].append(result)
    return [
        Board(*key, {recipe: _latest(items) for recipe, items in sorted(group.items())})
        for key, group in sorted(groups.items(), key=lambda item: _order(item[0]))
    ]


def rows(found: Iterable[Result]) -> list[dict[str, Any]]:
    """The rows of all boards."""
    return [row for table in rows_by_board(boards(found)) for row in table]


def rows_by_board(found: Sequence[Board]) -> list[list[dict[str, Any]]]:
    """Each board's: one row per part of a claim, per primary metric without one, and per reference without training."""
    wanted = recipes.index().keys() & {recipe for board in found for recipe in board.runs}
    cards = {card.name: card for card in recipes.load_cards(wanted)}
    return [_table(board, cards) for board in found]


def _table(board: Board, cards: Mapping[str, RecipeCard]) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    seen = set()
    for recipe, by_seed in board.runs.items():
        base = {"recipe": recipe, "arena": board.arena, "budget": board.budget, "variant": board.variant}
        for row in _recipe_rows(base, by_seed, cards.get(recipe), board.runs):
            identity = (row["part"], row["mean"]) if row["part"] in REFERENCES.values() else (recipe, len(table))
            if identity not in seen:
                seen.add(identity)
                table.append(row)
    return table


def _order(key: tuple[str, str, str]) -> tuple:
    steps = key[1].split()[0]
    return key[0], key[2], int(steps) if steps.isdigit() else 0, key[1]


def _latest(items: list[Result]) -> dict[int, Result]:
    fingerprint = items[-1].fingerprint
    return {r.seed: r for r in items if r.fingerprint == fingerprint}


def _recipe_rows(
    base: dict[str, Any], runs: dict[int, Result], card: RecipeCard | None, everything: dict[str, dict[int, Result]]
) -> list[dict[str, Any]]:
    sample = next(iter(runs.values()))
    claims = card.claim if card else []
    baseline = card.baseline if card else None
    lines: list[tuple[str, Claim]] = []
    if not any(c.metric == sample.primary and c.against is None for c in claims):
        lines.append(("primary", Claim("quality", sample.primary)))
    lines += [(c.part, c) for c in claims]
    base |= {
        "family": sample.family,
        "wall_time_s": fmean(r.wall_time_s for r in runs.values()),
        "peak_memory_bytes": max(r.peak_memory_bytes for r in runs.values()),
    }
    table = []
    for part, claim in lines:
        values = [r.metrics[claim.metric] for r in runs.values() if claim.metric in r.metrics]
        if not values:
            continue
        delta = results.judge(claim, runs, everything.get(baseline or "", {}))
        compared = delta.pairs > 0 and (claim.against is not None or baseline is not None)
        table.append(base | _statistics(part, claim.metric, values) | {
            "statement": claim.statement,
            "baseline": claim.against or baseline,
            "delta": delta.mean if compared else None,
            "delta_ci95": _bounds(delta.low, delta.high) if compared else None,
            "verdict": delta.verdict if part != "primary" and compared else None,
        })  # fmt: skip
    for suffix, part in REFERENCES.items():
        metric = sample.primary + suffix
        values = [r.metrics[metric] for r in runs.values() if metric in r.metrics]
        if values:
            none = dict.fromkeys(
                ("statement", "baseline", "delta", "delta_ci95", "verdict", "wall_time_s", "peak_memory_bytes")
            )
            table.append(base | _statistics(part, metric, values) | none)
    return table


def _statistics(part: str, metric: str, values: list[float]) -> dict[str, Any]:
    mean, low, high = results.mean_interval(values)
    return {"part": part, "metric": metric, "mean": mean, "ci95": _bounds(low, high), "seeds": len(values)}


def _bounds(low: float, high: float) -> list[float] | None:
    return [low, high] if math.isfinite(low) and math.isfinite(high) else None


def _cells(row: dict[str, Any]) -> list[str]:
    """Text of a row, for people."""
    half = f" ± {(row['ci95'][1] - row['ci95'][0]) / 2:.4f}" if row["ci95"] else ""
    delta = "" if row["delta"] is None else f"{row['delta']:+.4f}"
    if row["delta_ci95"]:
        delta += " [{:+.4f}, {:+.4f}]".format(*row["delta_ci95"])
    untrained = row["part"] in REFERENCES.values()
    return [
        "" if untrained else row["recipe"],
        row["part"],
        row["metric"],
        f"{row['mean']:.4f}{half}",
        str(row["seeds"]),
        row["baseline"] or "",
        delta,
        row["verdict"] or "",
        "" if untrained else f"{row['wall_time_s']:.0f} s",
        "" if untrained else f"{row['peak_memory_bytes'] / 1e9:.1f} GB",
    ]


HEADER = [
    "recipe",
    "part",
    "metric",
    "mean ± 95 %",
    "seeds",
    "baseline",
    "difference [95 %]",
    "verdict",
    "time",
    "memory",
]


def _tables(found: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    tables: dict[str, list[list[str]]] = defaultdict(list)
    for row in found:
        title = f"{row['arena']}, {row['budget']}" + (f", {row['variant']}" if row["variant"] else "")
        tables[title].append(_cells(row))
    return tables


def markdown(found: list[dict[str, Any]]) -> str:
    """The leaderboard as Markdown tables."""
    parts = []
    for title, lines in _tables(found).items():
        bar = ["---"] * len(HEADER)
        parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in [HEADER, bar, *lines]))
    return "\n\n".join(parts) or "No results yet."


def _print(found: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    terminal = console()
    if not found:
        terminal.print("no results yet; python -m zoo verify RECIPE")
    colours = {"confirmed": "green", "refuted": "red", "inconclusive": "yellow"}
    for title, lines in _tables(found).items():
        widths = [max(map(len, column)) for column in zip(HEADER, *lines, strict=True)]
        if sum(widths) + 2 * len(widths) <= terminal.width:  # as rich needs half a second for 300 rows
            padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in [HEADER, *lines])
            text = Text("\n".join([title, *padded]), no_wrap=True)
            for verdict, colour in colours.items():
                text.highlight_words([f"  {verdict}  "], colour)
            terminal.print(text)
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in HEADER:
            table.add_column(name, overflow="fold", no_wrap=name in ("recipe", "verdict", "seeds", "time"))
        for line in lines:
            verdict = f"[{colours[line[7]]}]{line[7]}[/]" if line[7] else ""
            table.add_row(*line[:7], verdict, *line[8:])
        terminal.print(table)


def _to_wandb(destination: str | None, sync: bool) -> int:
    if sync:
        from zoo import wandb_runs

        wandb_runs.sync(destination)
    if destination:
        from zoo import wandb_report

        print(
            f"published {wandb_report.publish(destination, [*results.committed_results(), *results.local_results()])}"
        )
    return 0


def _write_readme(path: Path) -> int:
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ZooError(f"{path} has no place for the leaderboard: put these two lines into it: {BEGIN} and {END}")
    new = f"{before}{BEGIN}\n{markdown(rows(results.committed_results()))}\n{END}{after}"
    if new != text:
        path.write_text(new)
    return 0
