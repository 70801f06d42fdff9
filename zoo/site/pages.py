"""The leaderboard as a folder of pages that need nothing else: styles, script and charts stand in them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from zoo import results
from zoo.commands.leaderboard import REFERENCES, Board, boards, rows_by_board
from zoo.commands.show import difference
from zoo.errors import ZooError
from zoo.recipes import RecipeCard
from zoo.results import Result
from zoo.site import charts, evidence
from zoo.site.evidence import Run

HERE = Path(__file__).parent
MARK = '<meta name="generator" content="zoo leaderboard">'
SIGNS = {"confirmed": "✓", "refuted": "✗", "inconclusive": "○"}
Local = Mapping[tuple[str, str, int], Run]


def write(folder: Path) -> Path:
    """Write `index.html`, `recipes/*.html` and `pictures/`, and remove such pages and pictures of before.

    Returns:
        The page to open.

    Raises:
        ZooError: the folder holds something else.
    """
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        raise ZooError(f"{folder} is no folder: --html takes a new or empty one, or one that it has written")
    ours = index.is_file() and MARK in index.read_text(errors="replace")
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise ZooError(f"{folder} holds other files: --html takes a new or empty folder, or one that it has written")
    found = boards([*results.committed_results(), *results.local_results()])
    tables = rows_by_board(found)
    local = evidence.local_runs()
    cards = {card.name: card for cards in evidence.families().values() for card in cards}
    written = set()
    for name in sorted(cards.keys() | {recipe for board in found for recipe in board.runs}):
        card = cards.get(name) or RecipeCard(name=name, title=name, idea="a recipe that is no longer there")
        written.add(folder / "recipes" / f"{name}.html")
        body, pictures = _recipe(card, name in cards, found, tables, local)
        for target, source in pictures.items():
            written.add(folder / target)
            _replace(folder / target, source.read_bytes())
        _page(folder / "recipes" / f"{name}.html", f"{card.title or name} · zoo", body, up="../")
    _page(index, "zoo leaderboard", _index(found, tables, local, cards), up="")
    for old in (*folder.glob("recipes/*.html"), *folder.glob("pictures/*/*.png")):
        if old not in written:
            old.unlink()
    return index


def _page(path: Path, title: str, body: str, up: str) -> None:
    style, script, page = ((HERE / name).read_text() for name in ("style.css", "script.js", "page.html"))
    nav = f'<strong><a href="{up}index.html">zoo leaderboard</a></strong>'
    nav += "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in re.findall(r'<h2 id="(.+?)">(.+?)</h2>', body))
    footer = "Written by <code>python -m zoo leaderboard --html</code> from committed results and local runs."
    content = Template(page).substitute(
        title=escape(title), style=style, script=script, nav=nav, body=body, footer=footer
    )
    _replace(path, content.encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# The leaderboard


def _index(found: Sequence[Board], tables: Sequence[list[dict]], local: Local, cards: Mapping[str, RecipeCard]) -> str:
    verdicts = Counter(row["verdict"] for rows in tables for row in rows if row["verdict"])
    n_runs = sum(len(by_seed) for board in found for by_seed in board.runs.values())
    tally = [(str(len(cards)), "recipes"), (str(n_runs), "runs")]
    tally += [(str(verdicts[name]), f"{sign} {name}") for name, sign in SIGNS.items()]
    parts = [
        "<h1>Which negatives?</h1>",
        '<p class="lead">Papers of contrastive learning, each against its own baseline: same data, same budget, same seeds.</p>',
        "<p>Differences are paired over seeds. <em>Confirmed</em>: the whole 95 % interval lies on the side that the paper "
        "claims; <em>refuted</em>: on the other; <em>inconclusive</em>: it holds zero.</p>",
        '<ul class="tally">' + "".join(f"<li><b>{n}</b> {escape(text)}</li>" for n, text in tally) + "</ul>",
    ]
    if not found:
        parts.append("<p>No results yet: <code>python -m zoo verify RECIPE</code></p>")
    for number, (board, rows) in enumerate(zip(found, tables, strict=True)):
        if not number or found[number - 1].arena != board.arena:
            parts.append(f'<section><h2 id="{_slug(board.arena)}">{escape(board.arena)}</h2>')
        parts.append(_board(board, rows, local, cards))
        if number + 1 == len(found) or found[number + 1].arena != board.arena:
            parts.append("</section>")
    return "\n".join(parts)


def _budget(board: Board) -> str:
    return board.budget.replace(" x ", " × ") + (f", {board.variant}" if board.variant else "")


def _board(board: Board, rows: list[dict], local: Local, cards: Mapping[str, RecipeCard]) -> str:
    title = f"{board.arena}, {_budget(board)}"
    table = _table(rows, title, "recipes/")
    parts = [f"<h3>{escape(_budget(board))}</h3>", table]
    sample = next(iter(next(iter(board.runs.values())).values()))
    primary, points = sample.primary, {"training time, s": [], "peak memory, GB": []}
    for name, by_seed in board.runs.items():
        values = [r.metrics[primary] for r in by_seed.values() if primary in r.metrics]
        if not values:
            continue
        mean, low, high = results.mean_interval(values)
        card = cards.get(name)
        hollow = card is None or card.baseline is None
        costs = (
            sum(r.wall_time_s for r in by_seed.values()) / len(by_seed),
            max(r.peak_memory_bytes for r in by_seed.values()) / 1e9,
        )
        for axis, cost in zip(points, costs, strict=True):
            points[axis].append(charts.Point(name, cost, mean, low, high, hollow, f"recipes/{name}.html"))
    figures = [
        _figure(
            charts.scatter(found, f"{primary} over {axis}, {title}", axis, primary),
            f'<b>Quality over {axis.split(",")[0]}.</b> <span class="key dot"></span>method <span class="key hollow"></span>without '
            "a baseline; bars: 95 % intervals",
        )
        for axis, found in points.items()
        if len(found) > 1
    ]
    figures.append(_learning(board, local, primary, title))
    parts.append(f'<div class="charts">{"".join(figures)}</div>')
    parts.append(_histograms({n: evidence.runs_of(s, local)[:1] for n, s in board.runs.items()}))
    return "\n".join(part for part in parts if part)


def _table(rows: Iterable[dict], caption: str, folder: str | None = None) -> str:
    """Rows of a board, with a link to each recipe where `folder` says in which its page is."""
    heads = [("recipe", "")] * (folder is not None) + [
        ("measured", ""),
        ("mean ± 95 %", "n"),
        ("difference", "n"),
        ("verdict", ""),
    ]
    heads += [("seeds", "n"), ("time", "n"), ("memory", "n")]
    lines = []
    for row in rows:
        untrained = row["part"] in REFERENCES.values()
        half = f" ± {(row['ci95'][1] - row['ci95'][0]) / 2:.4f}" if row["ci95"] else ""
        if untrained:
            name = f'<th scope="row" class="reference">{row["part"]}</th>'
        else:
            name = f'<th scope="row"><a href="{folder}{row["recipe"]}.html">{escape(row["recipe"])}</a></th>'
        says = row["statement"] or ("primary metric" if row["part"] == "primary" else "")
        part = f"{row['part']}: " if says and row["part"] not in ("primary", *REFERENCES.values()) else ""
        lines.append([
            *([name] if folder is not None else []),
            f"<td><code>{escape(row['metric'])}</code><small>{escape(part + says)}</small></td>",
            _number_cell(row["mean"], f"{row['mean']:.4f}{half}".replace("-", "−")),
            _difference(row),
            f"<td>{_verdict(row['verdict'])}</td>",
            _number_cell(row["seeds"], str(row["seeds"])),
            _number_cell(row["wall_time_s"], f"{row['wall_time_s'] or 0:.0f} s"),
            _number_cell(row["peak_memory_bytes"], f"{(row['peak_memory_bytes'] or 0) / 1e9:.1f} GB"),
        ])  # fmt: skip
    return _html_table(heads, lines, caption)


def _html_table(heads: Sequence[tuple[str, str]], lines: Iterable[Sequence[str]], caption: str) -> str:
    cells = "".join(f'<th scope="col" class="{kind}">{escape(name)}</th>' for name, kind in heads)
    body = "".join(f"<tr>{''.join(line)}</tr>\n" for line in lines)
    table = f'<table class="sortable"><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table>'
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{table}</div>'


def _number_cell(value: float | None, text: str) -> str:
    return '<td class="n" data-sort=""></td>' if value is None else f'<td class="n" data-sort="{value}">{text}</td>'


def _difference(row: Mapping[str, Any]) -> str:
    if row["delta"] is None:
        return '<td class="n" data-sort=""></td>'
    interval = "[{:+.4f}, {:+.4f}]".format(*row["delta_ci95"]) if row["delta_ci95"] else ""
    numbers = f"{row['delta']:+.4f} <small>{interval}</small>".replace("-", "−")
    return f'<td class="n" data-sort="{row["delta"]}">{numbers}<small>to {escape(row["baseline"])}</small></td>'


def _verdict(verdict: str | None) -> str:
    return f'<span class="verdict {verdict}">{SIGNS[verdict]} {verdict}</span>' if verdict else ""


# Charts


def _figure(svg: str, caption: str) -> str:
    if not svg:
        return ""
    region = '<div class="scroll" role="region" tabindex="0" aria-label="chart">'
    return f"<figure><figcaption>{caption}</figcaption>{region}{svg}</div></figure>"


def _learning(board: Board, local: Local, primary: str, title: str) -> str:
    found = {name: [run.curves() for run in evidence.runs_of(by_seed, local)] for name, by_seed in board.runs.items()}
    metric = evidence.watched(primary, [c for curves in found.values() for c in curves if c])
    if metric is None:
        return ""
    lines = [
        charts.Line(name, evidence.mean_curve([c[metric] for c in curves if metric in c]))
        for name, curves in found.items()
    ]
    svg = charts.curves(lines, f"{metric} over training steps, {title}", metric)
    return _figure(svg, f"<b>Learning curves.</b> <code>{escape(metric)}</code>, mean over the runs at hand")


def _histograms(runs: Mapping[str, Sequence[Run]]) -> str:
    figures = []
    for label, found in runs.items():
        if found and (data := found[0].histogram()) and (svg := charts.histogram(*data, f"scores of {label}")):
            figures.append(f"<figure><figcaption><b>{escape(label)}</b></figcaption>{svg}</figure>")
    if not figures:
        return ""
    key = '<span class="key positives"></span>positives, <span class="key negatives"></span>negatives'
    head = f'<p class="note">As the loss saw them in the last epoch of one run. {key}</p>'
    return f'<details><summary>Score histograms</summary>{head}<div class="charts small">{"".join(figures)}</div></details>'


# A recipe


def _recipe(
    card: RecipeCard, known: bool, found: Sequence[Board], tables: Sequence[list[dict]], local: Local
) -> tuple[str, dict[str, Path]]:
    """The page's content, and the pictures that belong to it."""
    name, mine = card.name, [(b, rows) for b, rows in zip(found, tables, strict=True) if card.name in b.runs]
    title = escape(card.title or name)
    parts = [f"<h1>{title}</h1>", f'<p class="lead">{escape(card.idea)}</p>']
    if known:
        parts += [_card(card), _claims(card, mine), _equations(card), _diff(card)]
    parts.append(_curves_of_runs(mine, name, local))
    parts.append(_runs(mine, name))
    pictures = {}
    for board, _ in mine:
        for run in evidence.runs_of(board.runs[name], local)[:1]:
            pictures |= {f"pictures/{name}/{run.folder.name}-{p.name}": p for p in run.pictures()}
    if pictures:
        shown = "".join(
            f"<figure><figcaption>{escape(source.stem.replace('_', ' '))}, run {escape(source.parent.name)}</figcaption>"
            f'<img src="../{target}" alt="{escape(source.stem.replace("_", " "))} of {title}" loading="lazy"></figure>'
            for target, source in pictures.items()
        )
        parts.append(f'<h2 id="pictures">Pictures</h2><div class="pictures">{shown}</div>')
    return "\n".join(part for part in parts if part), pictures


def _card(card: RecipeCard) -> str:
    link = (
        f'<a href="{escape(card.link)}">{escape(evidence.paper(card))}</a>'
        if card.link
        else escape(evidence.paper(card))
    )
    baseline = f'<a href="{card.baseline}.html">{escape(card.baseline)}</a>' if card.baseline else "none"
    family = evidence.FAMILIES.get(card.family, card.family)
    facts = {
        "Paper": link,
        "Family": escape(family),
        "Arena": escape(card.arena),
        "Primary metric": f"<code>{escape(card.primary)}</code>",
        "Baseline": baseline,
        "Train": f"<code>python -m zoo fit {card.name}</code>",
        "Verify": f"<code>python -m zoo verify {card.name} --seeds 5</code>",
    }
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items()) + "</dl>"


def _claims(card: RecipeCard, mine: Sequence[tuple[Board, list[dict]]]) -> str:
    parts = ['<h2 id="claims">Claims</h2>']
    for board, rows in mine:
        title = f"{board.arena}, {_budget(board)}"
        own = [row for row in rows if row["recipe"] == card.name and row["part"] not in REFERENCES.values()]
        parts += [f"<h3>{escape(title)}</h3>", _table(own, f"claims on {title}")]
    if not mine:
        items = "".join(
            f"<li>{c.part}: {escape(c.statement)} (<code>{escape(c.metric)}</code>)</li>" for c in card.claim
        )
        parts.append(f"<ul>{items}</ul><p class=note>Not measured yet.</p>" if items else "<p class=note>None.</p>")
    return "\n".join(parts)


def _equations(card: RecipeCard) -> str:
    parts = []
    for part in evidence.parts(card):
        if found := part.equations():
            lines = "\n\n".join(tex for _, tex in found)
            names = ", ".join(f"<code>{escape(name)}</code>" for name in dict.fromkeys(name for name, _ in found))
            parts.append(
                f"<p class=note>{names} in <code>{part.source}</code></p><pre tabindex=0><code>{escape(lines)}</code></pre>"
            )
    return '<h2 id="equations">Equations</h2>' + "\n".join(parts) if parts else ""


def _diff(card: RecipeCard) -> str:
    lines = [
        f"<{tag}>{sign} {escape(f'{key}: {value}')}</{tag}>"
        for sign, key, value in difference(evidence.base_config(card), evidence.config(card.name))
        for tag in ("ins" if sign == "+" else "del",)
    ]
    base = card.baseline or f"the defaults of {card.family}"
    if not lines:
        return ""
    return f'<h2 id="difference">Difference from {escape(base)}</h2><pre tabindex=0><code>{"".join(lines)}</code></pre>'


def _curves_of_runs(mine: Sequence[tuple[Board, list[dict]]], name: str, local: Local) -> str:
    figures, histograms = [], {}
    for board, _ in mine:
        runs = evidence.runs_of(board.runs[name], local)
        found = {run.result.seed: run.curves() for run in runs}
        metric = evidence.watched(next(iter(board.runs[name].values())).primary, [c for c in found.values() if c])
        for shown in dict.fromkeys(m for m in (metric, "train/loss") if m):
            lines = [charts.Line(f"seed {seed}", c[shown]) for seed, c in found.items() if shown in c]
            svg = charts.curves(lines, f"{shown} of {name}, {_budget(board)}", shown)
            figures.append(_figure(svg, f"<b>{escape(shown)}</b>, {escape(_budget(board))}"))
        histograms |= {f"{_budget(board)}, seed {run.result.seed}": [run] for run in runs[:1]}
    if not any(figures):
        return ""
    return f'<h2 id="training">Training</h2><div class="charts">{"".join(figures)}</div>' + _histograms(histograms)


def _runs(mine: Sequence[tuple[Board, list[dict]]], name: str) -> str:
    parts = ['<h2 id="runs">Runs</h2>'] if mine else []
    for board, rows in mine:
        by_seed = board.runs[name]
        sample = next(iter(by_seed.values()))
        claimed = [row["metric"] for row in rows if row["recipe"] == name and row["part"] not in REFERENCES.values()]
        metrics = list(dict.fromkeys([sample.primary, *claimed]))
        title = f"{board.arena}, {_budget(board)}"
        heads = [
            ("seed", "n"),
            *((m, "n") for m in metrics),
            ("time", "n"),
            ("memory", "n"),
            ("device", ""),
            ("commit", ""),
        ]
        heads.append(("finished", ""))
        lines = [_run_line(result, metrics) for _, result in sorted(by_seed.items())]
        parts += [
            f"<h3>{escape(title)}</h3>",
            _html_table(heads, lines, f"runs on {title}"),
            _all_metrics(by_seed, title),
        ]
    return "\n".join(parts)


def _run_line(result: Result, metrics: Sequence[str]) -> list[str]:
    values = [(result.metrics.get(m), f"{result.metrics.get(m, 0):.4f}") for m in metrics]
    return [
        _number_cell(result.seed, str(result.seed)),
        *(_number_cell(value, text) for value, text in values),
        _number_cell(result.wall_time_s, f"{result.wall_time_s:.0f} s"),
        _number_cell(result.peak_memory_bytes, f"{result.peak_memory_bytes / 1e9:.1f} GB"),
        f'<td class="one">{escape(result.device)}</td>',
        f"<td><code>{escape(result.git_revision[:10])}</code></td>",
        f'<td class="one">{escape(result.finished_at[:16].replace("T", " "))}</td>',
    ]


def _all_metrics(by_seed: Mapping[int, Result], title: str) -> str:
    names = sorted({name for result in by_seed.values() for name in result.metrics})
    lines = []
    for name in names:
        mean, low, high = results.mean_interval([r.metrics[name] for r in by_seed.values() if name in r.metrics])
        half = f" ± {(high - low) / 2:.2g}" if len(by_seed) > 1 else ""
        lines.append([
            f'<th scope="row"><code>{escape(name)}</code></th>',
            _number_cell(mean, f"{mean:.4g}{half}"),
            f"<td>{escape(evidence.explain(name))}</td>",
        ])  # fmt: skip
    table = _html_table([("metric", ""), ("mean ± 95 %", "n"), ("what it is", "")], lines, f"all metrics on {title}")
    return f"<details><summary>All {len(names)} metrics</summary>{table}</details>"
