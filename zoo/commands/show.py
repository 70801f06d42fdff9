"""`zoo show RECIPE`: its card, what it changes against its baseline, its configuration, its last results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from zoo import recipes, results
from zoo.commands.options import Options, split_words
from zoo.errors import ZooError


def main(args: Sequence[str]) -> int:
    """Print what is known about one recipe with its overlays."""
    words, rest = split_words(args)
    parser = Options("zoo show RECIPE [OVERLAY...]", "Card, difference from the baseline, configuration, last results.")
    parser.read(rest)
    if not words:
        raise ZooError(f"which recipe? usage: {parser.usage}; see `python -m zoo list`")
    name, *overlays = words
    card = recipes.load_card(name, overlays)
    paths = recipes.layers(name, overlays)
    config = recipes.merge(paths)

    import yaml
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(card.title or name)}[/bold] ({card.paper}, {card.year})  {card.link}")
    console.print(escape(card.idea))
    console.print(
        f"family {card.family}, arena {card.arena}, primary metric {card.primary}, baseline {card.baseline or '-'}"
    )
    for part in card.claim:
        margin = f" by {part.margin:g}" if part.margin else ""
        against = part.against or f"that of {card.baseline}"
        console.print(
            f"claim ({part.part}): {escape(part.statement)} [{part.metric} {part.direction} than {against}{margin}]",
            markup=False,
        )
    if card.baseline:
        console.print(f"\n[bold]against {card.baseline}[/bold]")
        for sign, key, value in difference(recipes.merge(recipes.layers(card.baseline, overlays)), config):
            console.print(f"{sign} {key}: {value}", style="red" if sign == "-" else "green", markup=False)
    console.print("\n[bold]configuration[/bold] from " + ", ".join(str(path) for path in paths))
    console.print(yaml.safe_dump({k: v for k, v in config.items() if k != "recipe"}, sort_keys=False), markup=False)
    console.print("[bold]last results[/bold]")
    found = sorted([*results.committed_results(name), *results.local_results(name)], key=lambda r: r.finished_at)
    for result in found[-6:]:
        value = result.metrics.get(result.primary)
        shown = "-" if value is None else f"{value:.4f}"
        line = f"{result.finished_at}  seed {result.seed}  {result.budget}  {result.primary} {shown}"
        console.print(line, *result.overlays, *result.overrides, markup=False)
    if not found:
        console.print(f"none; python -m zoo fit {name}")
    return 0


def difference(base: dict[str, Any], top: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Lines `-`/`+` with key and value where two configurations differ, cards aside; lists item by item."""
    old, new = ({k: v for k, v in _flat(c) if not k.startswith("recipe")} for c in (base, top))
    for key in dict.fromkeys([*old, *new]):
        if key in old and old.get(key) != new.get(key):
            yield "-", key, old[key]
        if key in new and old.get(key) != new.get(key):
            yield "+", key, new[key]


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            if name != "init_args":
                yield from _flat(value, f"{key}.{name}" if key else name)
            else:
                yield from _flat(value, key)
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for item in node:
            label = item.get("class_path", "?").rpartition(".")[2] if isinstance(item, dict) else str(item)
            yield from _flat(item, f"{key}[{label}]")
    else:
        yield key.removesuffix(".class_path"), node
