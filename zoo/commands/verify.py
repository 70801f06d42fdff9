"""`zoo verify RECIPE`: method against baseline over seeds. Does the claim hold here?"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zoo import recipes, results
from zoo.commands.options import SweepOptions, console
from zoo.errors import ZooError
from zoo.results import Result

USAGE = "zoo verify RECIPE [OVERLAY...] [--seeds N] [--jobs N] [--commit] [--model.x VALUE ...]"
CHOSEN: dict[str, str] = dict.fromkeys(("--seed_everything", "--ckpt_path"), "--seeds N says how many seeds")


@dataclass
class _Job:
    """A run that has to be made or finished."""

    recipe: str
    fingerprint: str
    seed: int
    command: list[str]
    log: Path
    process: subprocess.Popen | None = None
    output: IO | None = None

    @property
    def name(self) -> str:
        return f"{self.recipe} seed {self.seed}"


def main(args: Sequence[str]) -> int:
    """Run what is missing, then compare. Options that are not verify's own go to the method and to its baseline.

    Returns:
        0 whatever the verdict, 1 if a run failed.
    """
    about = "Method against baseline over seeds; runs what is missing and continues where it stopped."
    parser = SweepOptions(USAGE, about, 5, CHOSEN)
    parser.add_argument("--commit", action="store_true", help="write the results into zoo/_results")
    (name, *overlays), options, overrides = parser.read_sweep("verify", args)
    found = compare(name, overlays, overrides, options.seeds, options.jobs)
    _report(found, shlex.join(["python", "-m", "zoo", "verify", *args]))
    if options.commit:
        for path in results.commit([result for by_seed in found.runs.values() for result in by_seed.values()]):
            print(f"wrote {path}")
    return int(bool(found.failed))


@dataclass
class Verification:
    """Runs of a method and of its baseline, by recipe and seed, and the runs that failed."""

    card: recipes.RecipeCard
    runs: dict[str, dict[int, Result]]
    failed: list[_Job]

    def verdicts(self) -> list[tuple[recipes.Claim, results.Comparison]]:
        """Each part of the claim, and what the runs say about it."""
        method, baseline = self.runs[self.card.name], self.runs.get(self.card.baseline or "", {})
        return [(claim, results.judge(claim, method, baseline)) for claim in self.card.claim]


def compare(name: str, overlays: Sequence[str], overrides: Sequence[str], seeds: int, at_once: int = 1) -> Verification:
    """Run what is missing of a recipe and its baseline.

    Raises:
        ZooError: the recipe claims nothing.
    """
    card = recipes.load_card(name, overlays)
    if not card.claim:
        raise ZooError(f"{name} claims nothing: its card has no `claim`")
    needed = [name] + [card.baseline] * any(c.against is None for c in card.claim)
    prints = {r: recipes.fingerprint(r, overlays, overrides) for r in needed if r}
    done = {r: finished(r, f) for r, f in prints.items()}
    missing = [
        make_job(recipe, overlays, overrides, fingerprint, seed)
        for seed in range(seeds)
        for recipe, fingerprint in prints.items()
        if seed not in done[recipe]
    ]
    failed = run_jobs(missing, at_once)
    runs = {r: {s: x for s, x in finished(r, f).items() if s < seeds} for r, f in prints.items()}
    return Verification(card, runs, failed)


def finished(recipe: str, fingerprint: str) -> dict[int, Result]:
    """Finished runs of one configuration by seed, local ones before committed ones."""
    found = [*results.committed_results(recipe), *results.local_results(recipe)]
    return {r.seed: r for r in found if r.fingerprint == fingerprint}


def make_job(recipe: str, overlays: Sequence[str], overrides: Sequence[str], fingerprint: str, seed: int) -> _Job:
    """The command that makes a run, or continues the one that was interrupted."""
    command = [sys.executable, "-m", "zoo", "fit", recipe, *overlays, *overrides, "--seed_everything", str(seed)]
    command += ["--trainer.enable_progress_bar", "false"]
    stem = f"{fingerprint[:8]}-s{seed}"
    for folder in results.find_runs(recipe):
        checkpoint = folder / "checkpoints" / "last.ckpt"
        ours = folder.name == stem or folder.name.startswith(stem + "-")
        if ours and checkpoint.exists() and not (folder / "result.json").exists():
            command += ["--ckpt_path", str(checkpoint)]
            break
    return _Job(recipe, fingerprint, seed, command, results.runs_root() / recipe / f"{stem}.log")


def run_jobs(jobs: list[_Job], at_once: int) -> list[_Job]:
    """Run the jobs and return those that failed."""
    if not jobs:
        return []
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    threads = max(1, len(os.sched_getaffinity(0)) // at_once) if hasattr(os, "sched_getaffinity") else 1
    environment = {"WANDB_MODE": "disabled"} | os.environ | {"OMP_NUM_THREADS": str(threads)}
    waiting, running, failed = list(jobs), [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(jobs))
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_start(waiting.pop(0), environment))
                    progress.update(task, description=", ".join(job.name for job in running))
                time.sleep(0.1)
                for job in [job for job in running if job.process and job.process.poll() is not None]:
                    running.remove(job)
                    _close(job)
                    progress.advance(task)
                    if job.seed not in finished(job.recipe, job.fingerprint):
                        failed.append(job)
                        progress.console.print(
                            f"{job.name} failed: {_last_line(job.log)}; see {job.log}", soft_wrap=True
                        )
        finally:
            for job in running:  # Ctrl-C reaches the runs too; they leave a checkpoint to continue from
                _stop(job)
    return failed


def _start(job: _Job, environment: dict[str, str]) -> _Job:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.output = job.log.open("a")
    job.output.write(f"$ {shlex.join(job.command)}\n")
    job.output.flush()
    job.process = subprocess.Popen(job.command, stdout=job.output, stderr=subprocess.STDOUT, env=environment)
    return job


def _stop(job: _Job) -> None:
    assert job.process is not None
    job.process.send_signal(signal.SIGINT)
    try:
        job.process.wait(20)
    except subprocess.TimeoutExpired:
        job.process.kill()
    _close(job)


def _close(job: _Job) -> None:
    if job.output:
        job.output.close()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200]


def _report(verified: Verification, command: str) -> None:
    from rich.table import Table

    terminal, card = console(), verified.card
    budgets = sorted({r.budget for by_seed in verified.runs.values() for r in by_seed.values()})
    table = Table(
        title=f"{card.title or card.name} on {card.arena}: {', '.join(budgets) or 'no runs'}",
        title_justify="left",
        box=None,
    )
    for column in ("claim", "statement", "metric", "against", "difference", "95 % interval", "pairs", "verdict"):
        table.add_column(column, overflow="fold", no_wrap=column in ("difference", "verdict"))
    for claim, found in verified.verdicts():
        interval = f"[{found.low:+.4f}, {found.high:+.4f}]" if found.pairs > 1 else "-"
        mean = f"{found.mean:+.4f}" if found.pairs else "-"
        against = claim.against or card.baseline or ""
        cells = (claim.part, claim.statement, claim.metric, against, mean, interval, str(found.pairs), found.verdict)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    terminal.print(table)
    if len(budgets) > 1:
        terminal.print("the runs differ in budget, so the comparison is not a fair one")
    terminal.print(command, soft_wrap=True, markup=False)
