"""The documentation in Markdown: a page for each method, an index, the glossary of metrics, and a reference."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import results
from zoo.commands.leaderboard import REFERENCES, Board, boards, rows_by_board
from zoo.errors import ZooError
from zoo.recipes import RecipeCard
from zoo.site import evidence
from zoo.site.docstrings import PACKAGES, Part, equations, markdown, public

MARK = "<!-- written by `python -m zoo docs`; change recipes, docstrings and results, not this page -->\n"
BEGIN, END = "<!-- results: written by `zoo docs --readme` -->", "<!-- /results -->"
SIGNS = {"confirmed": "✓", "refuted": "✗", "inconclusive": "○"}
Row = dict[str, Any]
Found = list[tuple[Board, list[Row]]]


def committed() -> Found:
    """Boards of the committed results with their rows."""
    found = boards(results.committed_results())
    return list(zip(found, rows_by_board(found), strict=True))


def pages() -> dict[str, str]:
    """All generated pages by their path below the documentation's folder."""
    found = committed()
    texts = {"index.md": _index(found), "metrics.md": _metrics()}
    texts |= {f"methods/{c.name}.md": method(c, found) for cards in evidence.families().values() for c in cards}
    texts |= {f"reference/{package.rpartition('.')[2]}.md": _reference(package) for package in PACKAGES}
    return {path: MARK + text.rstrip() + "\n" for path, text in texts.items()}


def write(folder: Path) -> int:
    """Write all pages and `results.png`, and remove the pages of methods that are no more.

    Returns:
        How many pages have changed.

    Raises:
        ZooError: a page that was written by hand stands in the way.
    """
    texts = pages()
    for path in texts:
        if (folder / path).exists() and not (folder / path).read_text().startswith(MARK):
            raise ZooError(f"{folder / path} was not written by `zoo docs`: move it away")
    for old in folder.glob("methods/*.md"):
        if f"methods/{old.name}" not in texts and old.read_text().startswith(MARK):
            old.unlink()
    changed = sum(_replace(folder / path, text.encode()) for path, text in texts.items())
    from zoo.site.picture import draw_differences

    draw_differences(headlines(committed()), folder / "results.png")
    return changed


def write_readme(path: Path) -> None:
    """Put the short table of results into a README, between its two marks.

    Raises:
        ZooError: it has no such marks.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ZooError(f"{path} has no place for the results: put these two lines into it: {BEGIN} and {END}")
    _replace(path, f"{before}{BEGIN}\n{summary(committed())}\n{END}{after}".encode())


def _replace(path: Path, content: bytes) -> bool:
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
    return True


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in a cell are escaped."""
    rows = [list(heads), ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main_rows(card: RecipeCard, found: Found) -> list[Row]:
    """A method's judged rows on one board: without overlays if there is such a board."""
    own = [
        (bool(board.variant), [row for row in rows if row["recipe"] == card.name and row["verdict"]])
        for board, rows in found
    ]
    return min(((variant, rows) for variant, rows in own if rows), key=lambda item: item[0], default=(False, []))[1]


def headlines(found: Found) -> dict[str, list[Row]]:
    """By family, for each method its first claim on quality against its baseline, on the primary metric if there is one."""
    chosen: dict[str, list[Row]] = {}
    for family, cards in evidence.families().items():
        for card in cards:
            rows = [x for x in main_rows(card, found) if x["part"] == "quality" and x["baseline"] == card.baseline]
            rows.sort(key=lambda row: row["metric"] != card.primary)
            if rows:
                chosen.setdefault(family, []).append(rows[0])
    return chosen


def summary(found: Found) -> str:
    """How many claims held, by family."""
    lines = []
    for family, cards in evidence.families().items():
        names = {card.name for card in cards}
        rows = [row for _, rows in found for row in rows if row["recipe"] in names and row["verdict"]]
        cells = []
        for part in ("mechanism", "quality"):
            counts = Counter(row["verdict"] for row in rows if row["part"] == part)
            cells.append(" / ".join(str(counts[verdict]) for verdict in SIGNS))
        measured = {row["recipe"] for row in rows}
        lines.append([evidence.FAMILIES.get(family, family), f"{len(measured)} of {len(cards)}", *cells])
    heads = ["Family", "Recipes measured", "Mechanism: ✓ / ✗ / ○", "Quality: ✓ / ✗ / ○"]
    return table(heads, lines) + "\n\n✓ confirmed, ✗ refuted, ○ inconclusive: claims at toy budgets, over five seeds."


# Pages


def _index(found: Found) -> str:
    parts = ["# Methods", "![Difference to the baseline, by method](results.png)"]
    for family, cards in evidence.families().items():
        lines = []
        for card in cards:
            verdicts = [f"{SIGNS[row['verdict']]} {row['part']}" for row in main_rows(card, found)]
            lines.append([f"[{card.title}](methods/{card.name}.md)", _paper(card), card.idea, ", ".join(verdicts)])
        parts += [f"## {evidence.FAMILIES.get(family, family)}", table(["method", "paper", "idea", "claims"], lines)]
    parts.append(
        "Claims: ✓ confirmed, ✗ refuted, ○ inconclusive, at the embedded data's budgets; none: not measured yet."
    )
    reference = ", ".join(f"[{p}](reference/{p.rpartition('.')[2]}.md)" for p in PACKAGES)
    parts += [
        "## How to",
        "[Your own data](howto/own_data.md), [your own method](howto/own_method.md), "
        "[negatives from your own embeddings](howto/mining.md), [many GPUs](howto/many_gpus.md), "
        "[W&B](howto/wandb.md).",
        "## Reference",
        f"{reference}; [what is logged](metrics.md).",
    ]
    return "\n\n".join(parts)


def _paper(card: RecipeCard) -> str:
    return f"[{evidence.paper(card)}]({card.link})" if card.link else evidence.paper(card)


def method(card: RecipeCard, found: Found) -> str:
    """The page of one recipe: overview, usage, what is logged, implementation details, results."""
    brought = evidence.parts(card)
    parts = [f"# {card.title or card.name}", "## Overview", f"{_sentence(card.idea)} Paper: {_paper(card)}."]
    if card.baseline:
        parts.append(f"Baseline: [{card.baseline}]({card.baseline}.md).")
    parts += [f"$${tex}$$" for tex in dict.fromkeys(tex for part in brought for _, tex in part.equations())]
    parts += ["## Usage", _usage(card), "## What is logged", _logged(card.name), "## Implementation details"]
    parts += [_part(part) for part in brought]
    parts += ["## Results", _results(card, found)]
    return "\n\n".join(part for part in parts if part)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _usage(card: RecipeCard) -> str:
    name = card.name
    commands = [
        (f"uv run python -m zoo fit {name}", "trains and tests"),
        (f"uv run python -m zoo verify {name} --seeds 5", "claims against runs"),
        (f"uv run python -m zoo show {name}", "card, difference from the baseline, configuration"),
    ]
    width = max(len(command) for command, _ in commands)
    code = "\n".join(f"{command.ljust(width)}  # {what}" for command, what in commands)
    lines = [[f"`fit {name} {overlay}`", text] for overlay, text in evidence.overlays(name).items()]
    return f"```bash\n{code}\n```\n\n" + table(["with an overlay", "what it changes"], lines)


def _logged(name: str) -> str:
    lines = [[f"`{x.name}`", x.text] for group in evidence.logged(name) for x in group.metrics]
    head = f"<details><summary>{len(lines)} metrics; <code>{{split}}</code> is eval or test, <code>{{k}}</code> a number</summary>"
    return f"{head}\n\n{table(['metric', 'what it is'], lines)}\n\n</details>\n\nEndings of names: [metrics](../metrics.md#endings)."


def _part(part: Part) -> str:
    docs = [f"### {part.name}", f"[`{part.path}`](../../{part.source.as_posix()})", part.module_doc, markdown(part.doc)]
    for node in part.sources():
        doc = ast.get_docstring(node) or ""
        if node is not part.node and equations(doc):
            docs += [f"#### {node.name}", markdown(doc)]
    return "\n\n".join(doc for doc in docs if doc)


def _results(card: RecipeCard, found: Found) -> str:
    parts = []
    for board, rows in found:
        own = [row for row in rows if row["recipe"] == card.name and row["part"] not in REFERENCES.values()]
        if own:
            sample = next(iter(board.runs[card.name].values()))
            words = " ".join([card.name, *sample.overlays, *sample.overrides])
            parts.append(f"`uv run python -m zoo verify {words} --seeds {own[0]['seeds']}`: {board.title}.")
            parts.append(results_table(own))
    if not parts:
        return f"None yet: `uv run python -m zoo verify {card.name} --seeds 5 --commit`"
    return "\n\n".join(parts)


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Claims with mean, difference and verdict."""
    lines = []
    for row in rows:
        half = f" ± {(row['ci95'][1] - row['ci95'][0]) / 2:.4f}" if row["ci95"] else ""
        delta = "" if row["delta"] is None else f"{row['delta']:+.4f}"
        if row["delta_ci95"]:
            delta += " [{:+.4f}, {:+.4f}]".format(*row["delta_ci95"])
        verdict = f"{SIGNS[row['verdict']]} {row['verdict']}" if row["verdict"] else ""
        claim = row["statement"] or "(primary metric)"
        against = f"`{row['baseline']}`" if row["baseline"] else ""
        cells = [f"`{row['metric']}`", f"{row['mean']:.4f}{half}", str(row["seeds"]), against, delta, verdict]
        lines.append([row["part"], claim, *cells])
    heads = ["part", "claim", "metric", "mean ± 95 %", "seeds", "against", "difference [95 %]", "verdict"]
    return table(heads, lines)


def _metrics() -> str:
    groups, endings = evidence.glossary()
    parts = [
        "# What is logged",
        "Names as in `metrics.csv`, `result.json` and W&B. `{split}` is `eval` (validation split, during training) or `test` (test "
        "split, after it), `{k}` a number, `{name}` a word.",
    ]
    for group in groups:
        by = ", ".join(name if name == "every run" else f"`{name}`" for name in group.by)
        parts += [f"## {by}", table(["metric", "what it is"], [[f"`{x.name}`", x.text] for x in group.metrics])]
    ends = [[f"`_{ending}`", text] for ending, text in endings.items()]
    return "\n\n".join([*parts, "## Endings", table(["ending", "the same"], ends)])


def _reference(package: str) -> str:
    parts = [f"# {package}"]
    for name, part in public(package).items():
        parts += [f"## {name}", f"[{part.source.as_posix()}](../../{part.source.as_posix()})"]
        parts += [f"```python\n{part.signature}\n```", markdown(part.doc)]
        methods = [f"- `{signature}`: {' '.join(doc.split())}" for signature, doc in part.methods()]
        if methods:
            parts.append("Methods:\n\n" + "\n".join(methods))
    return "\n\n".join(part for part in parts if part)
