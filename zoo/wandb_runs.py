"""What a run says about itself in W&B, and the upload of runs that were recorded offline. Imports no wandb at the top."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from zoo import results
from zoo.errors import ZooError
from zoo.recipes import RecipeCard
from zoo.results import Result, RunInfo

TAG_LENGTH = 64  # W&B takes no longer tags
QUIET_S = 120  # wandb writes system statistics every few seconds for as long as a run lasts


def tags(card: RecipeCard, arena: str) -> list[str]:
    """Family, method, arena, and `baseline:NAME` where the card names one."""
    names = [card.family, card.name, arena, f"baseline:{card.baseline}" if card.baseline else ""]
    return list(dict.fromkeys(name[:TAG_LENGTH] for name in names if name))


def identity(run: RunInfo) -> dict[str, Any]:
    """Config of a run before it starts: its card, and what tells runs apart by names that W&B can filter and group by.

    `variant` is the leaderboard's: overlays and overrides.
    """
    return {
        "recipe": asdict(run.card),
        "family": run.family,
        "method": run.card.name,
        "arena": run.arena,
        "baseline": run.card.baseline,
        "fingerprint": run.fingerprint,
        "seed": run.seed,
        "overlays": run.overlays,
        "overrides": run.overrides,
        "variant": " ".join([*run.overlays, *run.overrides]),
        "command": run.command,
    }


def start(logged: Any, run: RunInfo, configuration: Mapping[str, Any]) -> None:
    """Tell a W&B run, as training starts, what is known only now.

    Args:
        logged: the run.
        run: with the arena as the source has read it: a source of files may be another than the card says.
        configuration: all of the resolved configuration, as in config.yaml.
    """
    card = {**asdict(run.card), "arena": run.arena}
    logged.config.update({**configuration, "recipe": card, "arena": run.arena}, allow_val_change=True)
    if run.arena != run.card.arena:
        kept = [tag for tag in logged.tags or () if tag != run.card.arena[:TAG_LENGTH]]
        logged.tags = tuple(dict.fromkeys([*kept, *tags(run.card, run.arena)]))


def summarise(logged: Any, result: Result) -> None:
    """The content of result.json in a W&B run: metrics in the summary under their own names, the budget in the config."""
    logged.summary.update(
        {**result.metrics, "wall_time_s": result.wall_time_s, "peak_memory_bytes": result.peak_memory_bytes}
    )
    names = ("arena", "budget", "versions", "git_revision", "device")
    logged.config.update({name: getattr(result, name) for name in names}, allow_val_change=True)


def logged_in() -> bool:
    """Is there a key, in the environment or in the file where `wandb login` puts it? Found out without the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = base_url().split("//")[-1].split("/")[0].split(":")[0]
    try:
        return f"machine {host}" in Path(os.environ.get("NETRC") or "~/.netrc").expanduser().read_text()
    except OSError:
        return False


def base_url() -> str:
    """Address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def require_service() -> None:
    """Without a key or a server, wandb would ask or try again for many minutes.

    Raises:
        ZooError: not logged in, or the server does not answer.
    """
    if not logged_in():
        raise ZooError("not logged in to W&B: run `wandb login`, or set WANDB_API_KEY")
    try:
        urllib.request.urlopen(base_url(), timeout=10).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ZooError(f"no answer from W&B at {base_url()} ({reason}): offline runs stay where they are") from None


def silence() -> None:
    """WANDB_SILENT, at once: wandb reads it too late for what is said before its first run."""
    import wandb
    from wandb.errors import term

    term.termsetup(wandb.Settings(silent=True), None)


def sync(destination: str | None = None) -> None:
    """Upload the offline runs under the runs folder that have not been uploaded; one line for each.

    A run is kept, and not marked as uploaded, unless wandb says that all of it has arrived.

    Args:
        destination: `PROJECT` or `ENTITY/PROJECT`; by default the project that each was recorded for.

    Raises:
        ZooError: no key, no server, or at least one run failed.
    """
    files = sorted(results.runs_root().glob("**/wandb/offline-run-*/*.wandb"))
    waiting = [path for path in files if not _marker(path).exists()]
    if waiting:
        require_service()
    failed = running = 0
    for path in waiting:
        if _is_written(path):
            running += 1
            print(f"running   {_name(path)}: still being recorded")
            continue
        reason = _upload(path, destination)
        failed += reason is not None
        print(f"failed    {_name(path)}: {reason}" if reason else f"uploaded  {_name(path)}", flush=True)
    if failed:
        raise ZooError(f"{failed} of {len(waiting)} offline runs were not uploaded; they are kept: --sync tries again")
    print(
        f"{len(waiting) - running} uploaded, {running} still running, {len(files) - len(waiting)} were uploaded before"
    )


def _marker(path: Path) -> Path:
    """What `wandb sync` leaves beside a file that has arrived; its exit status is 0 either way."""
    return path.with_name(f"{path.name}.synced")


def _name(path: Path) -> str:
    """Run folder, and W&B's own name of the recording; a resumed run has several."""
    folder = path.parent.parent.parent
    root = results.runs_root()
    return f"{folder.relative_to(root) if folder != root else folder.name} ({path.stem.removeprefix('run-')})"


def _is_written(path: Path) -> bool:
    """May a process still add to the file? Once uploaded, the rest of it would be lost."""
    if time.time() - path.stat().st_mtime > QUIET_S:
        return False
    result = path.parent.parent.parent / "result.json"
    try:
        started = datetime.strptime(path.parent.name.split("-")[2], "%Y%m%d_%H%M%S").timestamp()
        return result.stat().st_mtime < started
    except (OSError, ValueError, IndexError):
        return True


def _upload(path: Path, destination: str | None) -> str | None:
    """Upload one run; the reason if that failed."""
    entity, project = split(destination) if destination else ("", "")
    command = [sys.executable, "-m", "wandb", "sync", str(path.parent.resolve())]
    command += [f"--project={project}"] * bool(project) + [f"--entity={entity}"] * bool(entity)
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    with tempfile.TemporaryDirectory() as folder:  # wandb's own logs
        environment["WANDB_DIR"] = folder
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if _marker(path).exists():
        return None
    lines = [line.removeprefix("wandb: ").strip() for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "detailed error logs" not in line]
    return (errors or lines or [f"wandb sync ended with status {done.returncode}"])[-1]


def split(destination: str) -> tuple[str, str]:
    """Entity, which may be empty, and project.

    Raises:
        ZooError: neither `PROJECT` nor `ENTITY/PROJECT`.
    """
    entity, slash, project = destination.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise ZooError(f"--wandb takes PROJECT or ENTITY/PROJECT, not {destination!r}")
    return entity, project
