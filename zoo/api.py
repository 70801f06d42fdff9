"""The commands as functions: `zoo.fit`, `zoo.load`, `zoo.verify`, `zoo.leaderboard`. Imports torch only to train or load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import recipes, results
from zoo.errors import ZooError
from zoo.runs import Run, find_run

_TOP = ("config", "ckpt_path", "seed_everything", "weights_only")


def fit(recipe: str, *overlays: str, seed: int | None = None, **options: Any) -> Run:
    """Train and test a recipe, as `python -m zoo fit` does.

    `zoo.fit("mochi", "smoke", seed=1, max_epochs=3, **{"model.loss.temperature": 0.2})`

    Args:
        recipe: its name.
        *overlays: names of overlays, in order.
        seed: of all random choices; None takes the recipe's.
        **options: those of the command line; names without a dot are the trainer's.

    Returns:
        The run, with `path`, `metrics`, `result`, `model`.

    Raises:
        ZooError: what the command line reports in one line.
    """
    from zoo import cli

    recipes.load_card(recipe, overlays)
    return Run(cli.run("fit", recipe, overlays, flags(seed_everything=seed, **options)).run_dir)


def load(run: str | Path) -> Run:
    """A finished run with its trained model: `zoo.load("runs/mochi/0123abcd-s0").embed(images)`.

    Args:
        run: its folder, or a recipe, whose newest run is meant.

    Raises:
        ZooError: no such run, or its model cannot be built or loaded.
    """
    found = Run(find_run(run))
    _ = found.model
    return found


def verify(recipe: str, *overlays: str, seeds: int = 5, jobs: int = 1, **options: Any) -> list[dict[str, Any]]:
    """Run what is missing, then hold each part of the recipe's claim against the runs, as `python -m zoo verify` does.

    Args:
        recipe: its name.
        *overlays: names of overlays, in order.
        seeds: seeds 0 to N - 1.
        jobs: runs at once.
        **options: as in `fit`, for method and baseline.

    Returns:
        For each part of the claim `part`, `statement`, `metric`, `against`, `mean` of the differences, `low` and `high` of
        their 95 % interval, `pairs`, `verdict`.

    Raises:
        ZooError: a run failed, or what the command line reports in one line.
    """
    from zoo.commands import verify as command

    found = command.compare(recipe, overlays, flags(**options), seeds, jobs)
    if found.failed:
        raise ZooError(f"{found.failed[0].name} failed; see {found.failed[0].log}")
    return [
        {"part": claim.part, "statement": claim.statement, "metric": claim.metric}
        | {"against": claim.against or found.card.baseline, **vars(comparison)}
        for claim, comparison in found.verdicts()
    ]


def leaderboard() -> Any:
    """The leaderboard of local and committed runs as a pandas frame: the rows of `python -m zoo leaderboard --format json`.

    Raises:
        ZooError: pandas is missing.
    """
    from zoo.commands import leaderboard as command

    try:
        import pandas as pd
    except ImportError:
        raise ZooError(
            "zoo.leaderboard returns a pandas frame: pip install pandas, or read `zoo leaderboard --format json`"
        ) from None
    return pd.DataFrame(command.rows([*results.committed_results(), *results.local_results()]))


def flags(**options: Any) -> list[str]:
    """Keyword arguments as options of the command line; a seed that is None is none."""
    words = []
    for key, value in options.items():
        if key == "seed_everything" and value is None:
            continue
        name = key if "." in key or key in _TOP else f"trainer.{key}"
        text = str(value) if isinstance(value, str | Path) else json.dumps(value)
        words.append(f"--{name}={text}")
    return words
