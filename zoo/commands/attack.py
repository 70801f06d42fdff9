"""`zoo attack RECIPE...`: does training on poisoned pairs open a backdoor?"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from zoo import recipes, results
from zoo.commands.options import SweepOptions, console
from zoo.commands.verify import finished, make_job, run_jobs
from zoo.results import Result

USAGE = (
    "zoo attack RECIPE [RECIPE...] [--rates R,R,...] [--seeds N] [--jobs N] [--format table|json] [--model.x VALUE ...]"
)
OVERLAY = "poisoned"
RATE = "--data.source.init_args.rate"
CHOSEN = {
    "--seed_everything": "--seeds N says how many seeds",
    "--ckpt_path": "it continues its own runs",
    RATE: "use --rates",
    RATE.replace("init_args.", ""): "use --rates",
}
METRICS = {
    "asr_clean": "attack/asr@10_clean",
    "asr_triggered": "attack/asr@10",
    "chance": "attack/chance@10",
    "mrr_clean": "test/mrr@10",
}

Runs = dict[tuple[str, float], dict[int, Result]]


def main(args: Sequence[str]) -> int:
    """Run what is missing, then print a table. Options that are not attack's own go to every run.

    Returns:
        0 whatever the attack achieves, 1 if a run failed.
    """
    about = (
        "Trains recipes on poisoned pairs (overlay `poisoned`) and searches for planted passages; runs what is missing."
    )
    parser = SweepOptions(USAGE, about, 3, CHOSEN)
    parser.add_argument("--rates", type=_rates, default=[0.0, 0.05, 0.2], help="poisoned shares (default 0,0.05,0.2)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    words, options, overrides = parser.read_sweep("attack", args)
    for name in words:
        recipes.load_card(name, [OVERLAY])
    settings = {(r, rate): [*overrides, RATE, f"{rate:g}"] for r in dict.fromkeys(words) for rate in options.rates}
    prints = {cell: recipes.fingerprint(cell[0], [OVERLAY], given) for cell, given in settings.items()}
    missing = [
        make_job(cell[0], [OVERLAY], given, prints[cell], seed)
        for cell, given in settings.items()
        for seed in sorted(set(range(options.seeds)) - finished(cell[0], prints[cell]).keys())
    ]
    failed = run_jobs(missing, options.jobs)
    runs: Runs = {c: {s: x for s, x in finished(c[0], f).items() if s < options.seeds} for c, f in prints.items()}
    if options.format == "json":
        print(json.dumps(rows(runs), indent=1))
    else:
        _print(runs, shlex.join(["python", "-m", "zoo", "attack", *args]))
    return int(bool(failed))


def rows(runs: Mapping[tuple[str, float], Mapping[int, Result]]) -> list[dict[str, Any]]:
    """One row per recipe and rate: means over seeds with their 95 % intervals.

    `asr_delta` and `mrr_delta` are differences of triggered ASR and clean MRR from the same seeds' at rate 0, where
    there are such runs: words with mistakes match each other to some extent without any poison.
    """
    table = []
    for (recipe, rate), by_seed in runs.items():
        clean = runs.get((recipe, 0.0), {}) if rate else {}
        found = {name: _statistics([*_by_seed(by_seed, metric).values()]) for name, metric in METRICS.items()}
        for name in ("asr_triggered", "mrr_clean"):
            ours, theirs = _by_seed(by_seed, METRICS[name]), _by_seed(clean, METRICS[name])
            found[f"{name[:3]}_delta"] = _statistics([x - theirs[seed] for seed, x in ours.items() if seed in theirs])
        table.append({"recipe": recipe, "rate": rate, "seeds": len(by_seed), **found})
    return table


def _by_seed(runs: Mapping[int, Result], metric: str) -> dict[int, float]:
    return {seed: run.metrics[metric] for seed, run in runs.items() if metric in run.metrics}


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        rates = [math.nan]
    if not all(0 <= rate <= 1 for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} must be shares from 0 to 1, such as 0,0.05,0.2")
    return rates


def _statistics(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean, low, high = results.mean_interval(values)
    return {"mean": mean, "ci95": [low, high] if len(values) > 1 else None}


def _cell(found: dict[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    half = f" ± {(found['ci95'][1] - found['ci95'][0]) / 2:.4f}" if found["ci95"] else ""
    return f"{found['mean']:{sign}.4f}{half}"


def _print(runs: Runs, command: str) -> None:
    from rich.table import Table

    terminal = console()
    everything = [r for by_seed in runs.values() for r in by_seed.values()]
    budgets, arenas = (", ".join(sorted({getattr(r, key) for r in everything})) for key in ("budget", "arena"))
    table = Table(title=f"backdoor on {arenas or 'nothing'}: {budgets or 'no runs'}", title_justify="left", box=None)
    header = ("recipe", "rate", "seeds", "ASR@10 clean", "ASR@10 triggered", "against rate 0", "chance")
    for column in (*header, "MRR@10 clean", "against rate 0"):
        table.add_column(column, overflow="fold", no_wrap=column in ("recipe", "rate"))
    for row in rows(runs):
        chance = f"{row['chance']['mean']:.4f}" if row["chance"] else "-"
        table.add_row(
            *(row["recipe"], f"{row['rate']:g}", str(row["seeds"]), _cell(row["asr_clean"])),
            *(_cell(row["asr_triggered"]), _cell(row["asr_delta"], "+"), chance),
            *(_cell(row["mrr_clean"]), _cell(row["mrr_delta"], "+")),
        )
    terminal.print(table)
    terminal.print(command, soft_wrap=True, markup=False)
