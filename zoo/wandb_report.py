"""The leaderboard in W&B: a table of its rows, and a report on the runs behind them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from zoo import results, wandb_runs
from zoo.commands import leaderboard
from zoo.commands.leaderboard import Board
from zoo.errors import ZooError, first_line
from zoo.results import Result

TITLE = "zoo leaderboard"
TABLE = "leaderboard"  # key of the table, and job type of the run that holds it
SCORES = ("train/loss", "scores/positive", "scores/negative", "negatives/effective")
PICTURES = {"geo": ["test/retrieval_panel", "test/error_map"], "clip": ["test/composition_panel"]}
COLUMNS: list[Any] = [
    "family", "arena", "budget", "variant", "recipe", "part", "metric", "mean", "ci95_low", "ci95_high", "seeds",
    "statement", "baseline", "delta", "delta_ci95_low", "delta_ci95_high", "verdict", "wall_time_s",
    "peak_memory_bytes",
]  # fmt: skip


def publish(destination: str, found: Sequence[Result]) -> str:
    """Log the table in a run of its own, and save the report, over an earlier one of the same project.

    Args:
        destination: `PROJECT` or `ENTITY/PROJECT`.
        found: results; the numbers of table and report are theirs, the curves and pictures those of the project's runs.

    Returns:
        Address of the report.

    Raises:
        ZooError: wandb-workspaces is missing, not logged in, or no answer.
    """
    entity, project = wandb_runs.split(destination)
    if find_spec("wandb_workspaces") is None:
        raise ZooError("a report needs wandb-workspaces: pip install negatives-zoo[report]")
    wandb_runs.require_service()
    os.environ["WANDB_SILENT"] = "true"  # before wandb is imported
    wandb_runs.silence()
    with _one_line():
        run = _log_table(entity, project, table(found))
    report = build(run.entity, project, found, run.id)
    with _one_line():
        report.id = _saved(run.entity, project)
        report.save()
    return report.url


def table(found: Sequence[Result]) -> list[list[Any]]:
    """Rows of the leaderboard in the order of `COLUMNS`."""
    lines = []
    for row in leaderboard.rows(found):
        for key in ("ci95", "delta_ci95"):
            row[f"{key}_low"], row[f"{key}_high"] = row[key] or (None, None)
        lines.append([row[column] for column in COLUMNS])
    return lines


def build(entity: str, project: str, found: Sequence[Result], run: str) -> Any:
    """The report, not yet saved: for every family and arena the tables, curves and pictures of what can be compared.

    Args:
        entity: owner of the project.
        project: name of the project.
        found: results.
        run: identifier of the run that holds the table.
    """
    wr: Any = import_module("wandb_workspaces.reports.v2")
    where = {"entity": entity, "project": project}
    newest = wr.Runset(**where, name=TABLE, filters=f"Metric('ID') == {run!r}")
    blocks: list[Any] = [
        wr.TableOfContents(),
        wr.P("Means over seeds and their 95 % confidence intervals, from each run's result.json."),
        wr.PanelGrid(
            runsets=[newest], panels=[wr.WeavePanelSummaryTable(table_name=TABLE, layout=wr.Layout(w=24, h=12))]
        ),
    ]
    section = None
    by_family = sorted(leaderboard.boards(found), key=lambda board: (_sample(board).family, board.arena))
    for board, rows in zip(by_family, leaderboard.rows_by_board(by_family), strict=True):
        heading = f"{_sample(board).family}: {board.arena}"
        if heading != section:
            blocks.append(wr.H1(heading))
            section = heading
        grid = wr.PanelGrid(runsets=[_runset(wr, where, board)], panels=_panels(wr, board))
        blocks += [wr.H2(board.title), wr.MarkdownBlock(leaderboard.markdown(rows)), grid]
    return wr.Report(**where, title=TITLE, blocks=blocks, width="fluid")


def _sample(board: Board) -> Result:
    return next(iter(next(iter(board.runs.values())).values()))


def _runset(wr: Any, where: dict[str, str], board: Board) -> Any:
    """The runs of a board, found by what tells configurations apart."""
    prints = sorted({run.fingerprint for runs in board.runs.values() for run in runs.values()})
    conditions = [
        f"Config('family') == {_sample(board).family!r}",
        f"Config('arena') == {board.arena!r}",
        f"Config('budget') == {board.budget!r}",
        f"Config('fingerprint') in {prints!r}",
    ]
    return wr.Runset(**where, name=board.title, filters=" and ".join(conditions), groupby=["config.method"])


def _panels(wr: Any, board: Board) -> list[Any]:
    runs = [run for by_seed in board.runs.values() for run in by_seed.values()]
    by_recipe = {"groupby": wr.Config("method"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    bars = [
        wr.BarPlot(title=name, metrics=[wr.SummaryMetric(name)], layout=wr.Layout(w=12, h=8), **by_recipe)
        for name in sorted({run.primary for run in runs})
    ]
    shared = set.intersection(*(set(run.metrics) for run in runs))
    curves = [
        *sorted(name for name in shared if name.startswith("eval/")),
        *(name for name in SCORES if name in shared),
    ]
    lines = [wr.LinePlot(title=name, x="trainer/global_step", y=[name], **by_recipe) for name in curves]
    wide = {"layout": wr.Layout(w=24, h=10)}
    media = [wr.MediaBrowser(title="scores over training", media_keys=["scores/histogram"], num_columns=3, **wide)]
    if keys := PICTURES.get(runs[0].family):
        media.append(wr.MediaBrowser(title="test", media_keys=keys, num_columns=2, **wide))
    return [*bars, *lines, *media]


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # wandb has one for each way in which a server can refuse, not all of them public
        raise ZooError(f"W&B did not take the leaderboard: {first_line(error)}") from error


def _log_table(entity: str, project: str, rows: list[Any]) -> Any:
    """The finished run that holds the table."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        options = {"silent": True, "console": "off", "init_timeout": 60, "disable_git": True}
        run = wandb.init(
            entity=entity or None,
            project=project,
            job_type=TABLE,
            name=TABLE,
            mode="online",
            dir=folder,
            config={"versions": results.versions(), "git_revision": results.git_revision()},
            settings=wandb.Settings(**options),
        )
        try:
            run.log({TABLE: wandb.Table(columns=COLUMNS, data=rows)})
        finally:
            run.finish()
    return run


def _saved(entity: str, project: str) -> str:
    """Identifier of the report that was saved before, or an empty one."""
    import wandb

    reports = wandb.Api().reports(f"{entity}/{project}")
    return next((report.id for report in reports if report.display_name == TITLE), "")
