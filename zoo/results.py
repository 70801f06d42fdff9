"""Results of runs: result.json, where runs lie, and paired statistics. Imports no torch.

Every consumer (leaderboard, verify, show) reads what `write_result` wrote and nothing else. Committed results are
shipped in the package as `zoo/_results/<arena>/<recipe>.json`, each a list of run results.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from zoo.errors import ZooError
from zoo.recipes import Claim, RecipeCard

SCHEMA = 1
Verdict = Literal["confirmed", "refuted", "inconclusive"]


@dataclass
class RunInfo:
    """What identifies a run before it starts.

    Args:
        card: the recipe's card.
        family: family of the recipe.
        arena: data set and protocol.
        fingerprint: of recipe, overlays and overrides (`zoo.recipes.fingerprint`).
        overrides: command-line overrides that can change the result, `--key=value`.
        seed: of `seed_everything`.
        command: the command that repeats the run.
        run_dir: its folder.
        overlays: overlays in the order given.
    """

    card: RecipeCard
    family: str
    arena: str
    fingerprint: str
    overrides: list[str]
    seed: int
    command: str
    run_dir: Path
    overlays: list[str] = field(default_factory=list)


@dataclass
class Result:
    """One finished run; the content of result.json.

    `metrics` are finite numbers; `wall_time_s` is training time over all resumptions; `peak_memory_bytes` is device
    memory on CUDA and resident memory on CPU; `budget` reads `STEPS steps x BATCH`, with the batch over all devices.
    """

    recipe: str
    family: str
    arena: str
    seed: int
    budget: str
    fingerprint: str
    overrides: list[str]
    metrics: dict[str, float]
    primary: str
    wall_time_s: float
    peak_memory_bytes: int
    versions: dict[str, str]
    git_revision: str
    device: str
    command: str
    finished_at: str
    overlays: list[str] = field(default_factory=list)
    schema: int = SCHEMA


def runs_root() -> Path:
    """Folder of all runs: `$ZOO_RUNS`, by default `runs`."""
    return Path(os.environ.get("ZOO_RUNS") or "runs")


def write_result(
    run: RunInfo,
    metrics: Mapping[str, float],
    budget: str,
    wall_time_s: float,
    peak_memory_bytes: int,
    device: str,
) -> Path:
    """Write `result.json` into the run's folder, whole or not at all. Metrics that are not finite are left out."""
    result = Result(
        recipe=run.card.name,
        family=run.family,
        arena=run.arena,
        seed=run.seed,
        budget=budget,
        fingerprint=run.fingerprint,
        overrides=run.overrides,
        overlays=run.overlays,
        metrics={k: float(v) for k, v in sorted(metrics.items()) if math.isfinite(v)},
        primary=run.card.primary,
        wall_time_s=round(wall_time_s, 3),
        peak_memory_bytes=int(peak_memory_bytes),
        versions=versions(),
        git_revision=git_revision(),
        device=device,
        command=run.command,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return write_json(run.run_dir / "result.json", asdict(result))


def write_json(path: Path, content: Any) -> Path:
    """Write JSON through a temporary file in the same folder, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.replace(path)
    return path


def read_result(path: Path) -> Result:
    """Read one result.json.

    Raises:
        ZooError: unreadable, not JSON, of another schema, or with a field missing or of the wrong type.
    """
    return _parse(_read_json(path), path)


def find_runs(recipe: str | None = None) -> Iterator[Path]:
    """Run folders, newest first; of one recipe or of all."""
    folders = [p for p in runs_root().glob(f"{recipe or '*'}/*") if p.is_dir() and RUN_NAME.match(p.name)]
    return iter(sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True))


RUN_NAME = re.compile(r"(?P<fingerprint>[0-9a-f]{8})-s(?P<seed>\d+)(-\d+)?$")


def local_results(recipe: str | None = None) -> list[Result]:
    """Results of the finished local runs, oldest first; a malformed file is named on stderr and skipped."""
    results = _readable(read_result, [path for run in find_runs(recipe) if (path := run / "result.json").exists()])
    return sorted(results, key=lambda result: result.finished_at)


def committed_root() -> Path:
    """Folder of the committed results."""
    return Path(__file__).parent / "_results"


def committed_results(recipe: str | None = None) -> list[Result]:
    """Committed results; a malformed file is named on stderr and skipped."""
    paths = sorted(committed_root().glob(f"*/{recipe or '*'}.json"))
    return [result for results in _readable(read_committed, paths) for result in results]


def read_committed(path: Path) -> list[Result]:
    """Read one file of committed results.

    Raises:
        ZooError: as `read_result`.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise ZooError(f"{path}: expected a list of results")
    return [_parse(item, path) for item in content]


def commit(results: Sequence[Result]) -> list[Path]:
    """Merge results into the committed files; a run replaces the one with its fingerprint and seed."""
    written = []
    for arena, recipe in sorted({(r.arena, r.recipe) for r in results}):
        path = committed_root() / arena / f"{recipe}.json"
        known = read_committed(path) if path.exists() else []
        merged = {(r.fingerprint, r.seed): r for r in known}
        merged |= {(r.fingerprint, r.seed): r for r in results if (r.arena, r.recipe) == (arena, recipe)}
        ordered = sorted(merged.values(), key=lambda r: (r.budget, r.fingerprint, r.seed))
        written.append(write_json(path, [asdict(r) for r in ordered]))
    return written


@dataclass
class Comparison:
    """Mean of paired differences, its 95 % confidence interval, the number of pairs, and what follows for a claim."""

    mean: float
    low: float
    high: float
    pairs: int
    verdict: Verdict = "inconclusive"


def compare(
    method: Sequence[float],
    baseline: Sequence[float],
    direction: Literal["higher", "lower"] = "higher",
    margin: float = 0.0,
) -> Comparison:
    """Paired comparison: Student's t interval of method - baseline.

    Confirmed: the whole interval lies beyond `margin` in `direction`. Refuted: the whole interval falls short of it.
    Fewer than two pairs have no interval and decide nothing.

    Args:
        method: a metric of the method, by seed.
        baseline: the same for the baseline, same seeds in the same order.
        direction: where the claim says the difference goes.
        margin: difference in `direction` to be exceeded.
    """
    differences = [a - b for a, b in zip(method, baseline, strict=True)]
    mean, low, high = mean_interval(differences)
    if len(differences) < 2:
        return Comparison(mean, low, high, len(differences))
    best, worst = (high, low) if direction == "higher" else (-low, -high)
    verdict: Verdict = "confirmed" if worst > margin else "refuted" if best < margin else "inconclusive"
    return Comparison(mean, low, high, len(differences), verdict)


def judge(claim: Claim, method: Mapping[int, Result], baseline: Mapping[int, Result]) -> Comparison:
    """Hold a claim against runs.

    Args:
        claim: one part of the claim; with `against`, both numbers come from the method's own runs.
        method: runs of the method by seed.
        baseline: runs of the baseline by seed.
    """
    pairs = []
    for seed, run in sorted(method.items()):
        other = run if claim.against else baseline.get(seed)
        left, right = run.metrics.get(claim.metric), other and other.metrics.get(claim.against or claim.metric)
        if left is not None and right is not None:
            pairs.append((left, right))
    return compare([a for a, _ in pairs], [b for _, b in pairs], claim.direction, claim.margin)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the bounds of its 95 % confidence interval; infinite bounds for one value, NaN for none."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = fmean(values)
    if len(values) == 1:
        return mean, -math.inf, math.inf
    deviation = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    half = t_quantile(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


@lru_cache
def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t for p > 0.5 and whole degrees of freedom, by bisection of the closed form.

    Source: Abramowitz & Stegun 26.7.3-4. SciPy has it too, but takes half a second to import.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(64):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_central(angle, degrees) < 2 * p - 1 else (low, angle)
    return math.tan(low) * math.sqrt(degrees)


def _t_central(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle))."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(degrees // 2):
        total += term
        term *= square * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from importlib import metadata  # twice as long as the rest of this module

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("negatives-zoo", "torch", "lightning", "numpy", "torchvision", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str:
    """Commit of the checkout, with `-dirty` where files differ from it; "unknown" outside one."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ZooError(f"{path}: {error}") from None


_NUMBER = (int, float)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "recipe": str, "family": str, "arena": str, "seed": int, "budget": str, "fingerprint": str, "overrides": list,
    "metrics": dict, "primary": str, "wall_time_s": _NUMBER, "peak_memory_bytes": int, "versions": dict,
    "git_revision": str, "device": str, "command": str, "finished_at": str, "overlays": list, "schema": int,
}  # fmt: skip


def _parse(content: Any, path: Path) -> Result:
    if not isinstance(content, dict):
        raise ZooError(f"{path}: expected one mapping of fields")
    if content.get("schema") != SCHEMA:
        raise ZooError(f"{path}: schema is {content.get('schema')!r}, this version reads {SCHEMA}")
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise ZooError(f"{path}: field {name!r} is missing or of the wrong type")
    if not all(isinstance(v, _NUMBER) and math.isfinite(v) for v in content["metrics"].values()):
        raise ZooError(f"{path}: metrics must be finite numbers")
    return Result(**{name: content[name] for name in _FIELDS})


def _readable(read: Any, paths: Sequence[Path]) -> list[Any]:
    results = []
    for path in paths:
        try:
            results.append(read(path))
        except ZooError as error:
            print(f"zoo: warning: skipped {error}", file=sys.stderr)
    return results
