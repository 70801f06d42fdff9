"""`zoo list`: all recipes."""

from __future__ import annotations

from collections.abc import Sequence

from zoo import recipes
from zoo.commands.options import Options, console


def main(args: Sequence[str]) -> int:
    """Print name, family, title, paper, year, baseline, claim and arena of every recipe."""
    parser = Options("zoo list [--format table|json]", "All recipes.")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    wanted = parser.read(args).format
    cards = recipes.load_cards(recipes.names())
    if wanted == "json":
        import json

        keys = ("name", "family", "title", "paper", "year", "baseline", "arena")
        rows = [{k: getattr(c, k) for k in keys} | {"claim": [vars(part) for part in c.claim]} for c in cards]
        print(json.dumps(rows, indent=1))
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "family", "paper", "year", "baseline", "arena", "idea"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for c in cards:
        table.add_row(c.name, c.family, c.paper, str(c.year or ""), c.baseline or "", c.arena, c.idea)
    console().print(table)
    return 0
