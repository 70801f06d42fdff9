"""What is known about recipes: the parts they bring, what is logged, and what runs have left behind."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo import recipes, results
from zoo.errors import ZooError
from zoo.recipes import RecipeCard
from zoo.results import Result
from zoo.site.docstrings import Part, find

FAMILIES = {
    "ssl": "Images without labels",
    "text": "Text retrieval",
    "clip": "Images and text",
    "geo": "Street view and satellite",
}


def families() -> dict[str, list[RecipeCard]]:
    """Cards by family, in the order of `FAMILIES`, then any others."""
    cards = recipes.load_cards(recipes.names())
    order = [*FAMILIES, *sorted({c.family for c in cards} - set(FAMILIES))]
    grouped = {family: [c for c in cards if c.family == family] for family in order}
    return {family: found for family, found in grouped.items() if found}


def paper(card: RecipeCard) -> str:
    """How a text names the paper: `arXiv 2010.01028, 2020`."""
    name = f"arXiv {card.paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", card.paper) else card.paper
    return ", ".join(str(item) for item in (name, card.year) if item)


def config(name: str) -> dict[str, Any]:
    """The merged configuration of a recipe."""
    return recipes.merge(recipes.layers(name))


def base_config(card: RecipeCard) -> dict[str, Any]:
    """What a recipe is compared with: its baseline, or the defaults of its family."""
    return config(card.baseline) if card.baseline else recipes.merge(recipes.layers(card.name)[:-1])


def parts(card: RecipeCard) -> list[Part]:
    """The zoo's parts that a recipe names and its baseline does not; without any, those that it sets otherwise.

    A recipe without a baseline has its method and loss too.
    """
    ours, theirs = _settings(config(card.name)), _settings(base_config(card))
    names = [name for name in ours if name not in theirs]
    names = names or [name for name in ours if ours[name] != theirs[name]]
    if not card.baseline:
        model = config(card.name).get("model") or {}
        loss = (model.get("init_args") or {}).get("loss") or {}
        names += [name for name in (model.get("class_path"), loss.get("class_path")) if name]
    return [part for name in dict.fromkeys(names) if (part := find(name))]


def class_paths(content: Any) -> list[str]:
    """All classes that a configuration names."""
    return list(_settings(content))


def _settings(content: Any) -> dict[str, Any]:
    """The classes that a configuration names, of model, data, then trainer, and what it sets of each."""
    found: dict[str, Any] = {}

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get("class_path"), str):
                found.setdefault(node["class_path"], _own(node.get("init_args")))
            for key in sorted(node, key=lambda key: (key == "trainer", key == "data")):
                walk(node[key])
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(content)
    return found


def _own(node: Any) -> Any:
    """Settings, where a class stands in them its name alone."""
    if isinstance(node, Mapping):
        return node.get("class_path") or {key: _own(value) for key, value in node.items()}
    return [_own(item) for item in node] if isinstance(node, list) else node


def overlays(name: str) -> dict[str, str]:
    """Overlays of a recipe with the comment at the head of their file, or else with what they set."""
    names = recipes.overlay_names(name)
    files = recipes.layers(name, names)[len(recipes.layers(name)) :]
    found = {}
    for overlay in names:
        own = [path for path in files if overlay in (path.stem, path.parent.name)]
        settings = ", ".join(f"`{key}: {value}`" for key, value in recipes.flatten(recipes.merge(own)).items())
        found[overlay] = next((text for path in own if (text := _comment(path))), settings)
    return found


def _comment(path: Path) -> str:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


@dataclass
class Explanation:
    """A metric's name, maybe with placeholders, and what it is."""

    name: str
    text: str

    def matches(self, metric: str) -> bool:
        """Does this explain the metric of that name?"""
        pattern = re.escape(self.name).replace(r"\{split\}", "(eval|test)").replace(r"\{k\}", r"\d+%?")
        return re.fullmatch(pattern.replace(r"\{name\}", r"\w+"), metric) is not None


@dataclass
class Glossary:
    """The explanations of one callback or method.

    Args:
        by: classes that log these metrics, or a configuration's key that makes them be logged; `every run` for all.
        metrics: the explanations.
    """

    by: list[str]
    metrics: list[Explanation]


@cache
def glossary() -> tuple[list[Glossary], dict[str, str]]:
    """Explanations of all metrics, and of the endings that a name can have."""
    content = recipes.read_yaml(Path(__file__).with_name("metrics.yaml"))
    groups = [
        Glossary(group["by"], [Explanation(name, text) for name, text in group["metrics"].items()])
        for group in content["groups"]
    ]
    return groups, content["endings"]


def explain(metric: str) -> str:
    """What a metric is, its endings included; empty if nobody has said so."""
    groups, endings = glossary()
    for ending, text in endings.items():
        found = re.fullmatch(rf"(.+)_{ending.replace('{k}', '[0-9]+')}", metric)
        if found and (base := explain(found[1])):
            return f"{base}; {text}"
    return next((x.text for group in groups for x in group.metrics if x.matches(metric)), "")


def logged(name: str) -> list[Glossary]:
    """The metrics that a recipe logs."""
    content = config(name)
    known = {*class_paths(content), *(key.rpartition(".")[2] for key in recipes.flatten(content)), "every run"}
    return [group for group in glossary()[0] if known & set(group.by)]


@dataclass
class Run:
    """A local run that has finished."""

    folder: Path
    result: Result

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Metrics over steps, from `metrics.csv`; empty where there is none."""
        found: dict[str, dict[float, float]] = {}
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    for name, value in row.items():
                        if value and row.get("step") and name not in ("step", "epoch"):
                            found.setdefault(name, {})[float(row["step"])] = float(value)
        except (OSError, ValueError, csv.Error):
            return {}
        return {name: sorted(points.items()) for name, points in found.items()}

    def histogram(self) -> tuple[list[float], list[float], list[float]] | None:
        """Edges, and shares of positives and of negatives per bin, in the last epoch."""
        path = self.folder / "score_histogram.npz"
        if not path.is_file():
            return None
        import numpy as np

        try:
            with np.load(path) as data:
                counts = [data[side][-1] for side in ("positives", "negatives")]
                edges = data["edges"].tolist()
        except (OSError, ValueError, KeyError, IndexError):
            return None
        return edges, *((c / max(c.sum(), 1)).tolist() for c in counts)  # type: ignore[return-value]

    def pictures(self) -> list[Path]:
        """What the run has drawn."""
        return sorted(self.folder.glob("*.png"))


def local_runs() -> dict[tuple[str, str, int], Run]:
    """Finished local runs by recipe, fingerprint and seed; of several the newest."""
    found: dict[tuple[str, str, int], Run] = {}
    for folder in results.find_runs():
        path = folder / "result.json"
        if not path.exists():
            continue
        try:
            result = results.read_result(path)
        except ZooError:
            continue  # the leaderboard has named it
        found.setdefault((result.recipe, result.fingerprint, result.seed), Run(folder, result))
    return found


def runs_of(by_seed: Mapping[int, Result], local: Mapping[tuple[str, str, int], Run]) -> list[Run]:
    """Those of some results that are at hand, by seed."""
    keys = [(r.recipe, r.fingerprint, seed) for seed, r in sorted(by_seed.items())]
    return [local[key] for key in keys if key in local]


def watched(primary: str, curves: Sequence[Mapping[str, Any]]) -> str | None:
    """The validation metric that shows learning: the primary metric's twin, or else the first there is."""
    names = set.intersection(*(set(c) for c in curves)) if curves else set()
    twin = primary.replace("test/", "eval/")
    return twin if twin in names else min((n for n in names if n.startswith("eval/")), default=None)


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over runs, at the steps that all of them have."""
    by_step = [dict(curve) for curve in curves]
    steps: Iterator[float] = iter(sorted(set.intersection(*(set(c) for c in by_step)))) if by_step else iter(())
    return [(step, sum(c[step] for c in by_step) / len(by_step)) for step in steps]
