"""The model card of an export."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from zoo import results
from zoo.runs import Run


def write_card(run: Run, to: str, usage: Any, path: Path) -> None:
    """Write what was trained, on what, with what result, and how to load it.

    Args:
        run: the run.
        to: the format.
        usage: a `zoo.export.common.Usage`.
        path: the file.
    """
    card, result = run.card, run.result
    title = card.get("title") or card.get("name")
    head = {"library_name": to, "tags": ["zoo", *(str(card[k]) for k in ("family", "arena", "name") if card.get(k))]}
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {title}", ""]
    if card.get("idea"):
        lines += [f"{card['idea'][0].upper()}{card['idea'][1:]}.", ""]
    lines += ["## Use", "", "```python", usage.code, "```", "", *(f"- {note}" for note in usage.notes), ""]
    lines += ["## Training", "", *_training(run), ""]
    if card.get("paper") or card.get("link"):
        lines += ["## Citation", "", *_citation(card, str(title)), ""]
    lines += ["## Results", ""]
    if result is None:
        lines += ["The run has not been tested."]
    else:
        lines += ["| metric | value |", "| --- | ---: |", *(f"| {k} | {v:.4g} |" for k, v in result.metrics.items())]
    exported = results.versions() | {name: metadata.version(name) for name in usage.packages}
    lines += ["", "## Versions", "", f"- exported with {_versions(exported)}"]
    if result is not None:
        lines += [f"- trained with {_versions(result.versions)}; revision {result.git_revision}"]
    path.write_text("\n".join(lines) + "\n")


def _training(run: Run) -> list[str]:
    card, result = run.card, run.result
    source = run.config["data"].get("source") or {}
    lines = [
        f"- recipe: `{card.get('name')}` of the zoo of negatives, run `{run.path.name}`",
        f"- data: `{source.get('class_path')}` {json.dumps(source.get('init_args') or {})}, arena {card.get('arena')}",
        f"- method: `{run.config['model'].get('class_path')}`",
        f"- seed: {run.config.get('seed_everything')}",
    ]
    if result is not None:
        lines += [
            f"- overlays: {', '.join(result.overlays) or 'none'}",
            f"- overrides: {' '.join(f'`{o}`' for o in result.overrides) or 'none'}",
            f"- budget: {result.budget}, {result.wall_time_s:.0f} s on {result.device}",
            f"- command: `{result.command}`",
        ]
    return lines


def _citation(card: dict[str, Any], title: str) -> list[str]:
    paper, arxiv = str(card.get("paper") or ""), "arXiv " if "/" not in str(card.get("paper")) else "doi:"
    what = ", ".join(x for x in (title, str(card.get("year") or ""), paper and arxiv + paper) if x)
    return [f"The method is that of {what}. {card.get('link') or ''}".strip(), "Cite the paper, not this folder."]


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
