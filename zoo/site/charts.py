"""Charts as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

COLOURS = 8  # as many as the style sheet has; further lines are dashed
LETTER, LINE = 6.6, 15.0  # about the width and height of a label's letter


class Point(NamedTuple):
    """A point of a scatter plot with the bounds of its y, and whether it is a baseline."""

    label: str
    x: float
    y: float
    low: float
    high: float
    hollow: bool
    link: str


class Line(NamedTuple):
    """A line of a chart over steps."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass
class _Frame:
    """A plot's area with linear axes; the margins hold ticks and labels."""

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = 620
    height: int = 360
    right: int = 16
    group: bool = False  # has parts that can be reached by themselves
    left, top, bottom = 62, 14, 48

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def draw(self, content: Iterable[str]) -> str:
        """The whole SVG."""
        end, floor = self.width - self.right, self.height - self.bottom
        parts = []
        for value in ticks(*self.y_range):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick end" x="{self.left - 8}" y="{y + 4:.1f}">{_number(value)}</text>')
        for value in ticks(*self.x_range, 6 if self.width > 400 else 4):
            parts.append(
                f'<line class="axis" x1="{self.x(value):.1f}" x2="{self.x(value):.1f}" y1="{floor}" y2="{floor + 4}"/>'
            )
            parts.append(f'<text class="tick mid" x="{self.x(value):.1f}" y="{floor + 18}">{_number(value)}</text>')
        middle_x, middle_y = (self.left + end) / 2, (self.top + floor) / 2
        parts.append(f'<line class="axis" x1="{self.left}" x2="{end}" y1="{floor}" y2="{floor}"/>')
        parts.append(f'<text class="name mid" x="{middle_x:.0f}" y="{self.height - 8}">{escape(self.x_label)}</text>')
        turned = f'transform="translate(14 {middle_y:.0f}) rotate(-90)"'
        parts.append(f'<text class="name mid" {turned}>{escape(self.y_label)}</text>')
        role = "group" if self.group else "img"
        head = f'<svg viewBox="0 0 {self.width} {self.height}" role="{role}" aria-label="{escape(self.title)}">'
        return "".join([head, *parts, *content, "</svg>"])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in a range."""
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = unit * next(n for n in (1, 2, 5, 10) if n * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.4g}".replace("-", "−") if abs(value) < 1e5 else f"{value:.2g}"


def _range(values: Iterable[float], margin: float = 0.06, floor: float | None = None) -> tuple[float, float]:
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found), max(found)
    pad = (high - low) * margin or abs(high) * 0.05 or 1.0
    return (max(low - pad, floor) if floor is not None else low - pad), high + pad


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """Quality over cost; every point is a link, and labels that would overlap others are left to hovering."""
    frame = _Frame(
        title,
        x_label,
        y_label,
        _range((p.x for p in points), 0.12, 0.0),
        _range(v for p in points for v in (p.y, p.low, p.high)),
        group=True,
    )
    taken = [(frame.x(p.x) - 6, frame.y(p.y) - 6, frame.x(p.x) + 6, frame.y(p.y) + 6) for p in points]
    drawn = []
    for p in points:
        x, y = frame.x(p.x), frame.y(p.y)
        width = len(p.label) * LETTER
        places = [(x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y - 11), (x - width / 2, y + 20)]
        label = ""
        for left, base in places:
            box = (left, base - LINE + 4, left + width, base + 3)
            inside = (
                frame.left < box[0]
                and box[2] < frame.width
                and frame.top < box[1]
                and box[3] < frame.height - frame.bottom
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                label = f'<text class="label" x="{left:.1f}" y="{base:.1f}">{escape(p.label)}</text>'
                break
        bar = ""
        if math.isfinite(p.low) and math.isfinite(p.high):
            bar = f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(p.low):.1f}" y2="{frame.y(p.high):.1f}"/>'
        kind = "dot hollow" if p.hollow else "dot"
        half = f" ± {(p.high - p.low) / 2:.4f}" if bar else ""
        text = f"{p.label}: {y_label} {p.y:.4f}{half}, {x_label} {p.x:,.4g}"
        drawn.append(
            f'<a href="{escape(p.link)}" aria-label="{escape(text)}"><title>{escape(text)}</title>{bar}'
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>{label}</a>'
        )
    return frame.draw(drawn)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(lines: Sequence[Line], title: str, y_label: str, x_label: str = "training steps") -> str:
    """Lines over steps, each with its name at its end."""
    numbers = {line.label: number for number, line in enumerate(lines)}
    lines = sorted((line for line in lines if len(line.points) > 1), key=lambda line: line.points[-1][1])
    if not lines:
        return ""
    everything = [point for line in lines for point in line.points]
    longest = max(len(line.label) for line in lines)
    frame = _Frame(
        title,
        x_label,
        y_label,
        _range((x for x, _ in everything), 0.02, 0.0),
        _range(y for _, y in everything),
        right=int(longest * LETTER) + 24,
        height=max(360, round(len(lines) * LINE) + 62),
    )
    ends = _spread([frame.y(line.points[-1][1]) for line in lines][::-1], frame.top + 4, frame.height - frame.bottom)[
        ::-1
    ]
    drawn = []
    for line, end in zip(lines, ends, strict=True):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        x, y = frame.x(line.points[-1][0]), frame.y(line.points[-1][1])
        number = numbers[line.label]
        kind = f"line s{number % COLOURS} d{number // COLOURS % 3}"
        text = f"{line.label}: {line.points[-1][1]:.4g} at step {line.points[-1][0]:.0f}"
        edge = frame.width - frame.right
        drawn.append(
            f'<g class="{kind}"><title>{escape(text)}</title><polyline points="{path}"/>'
            f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{edge + 12}" y2="{end:.1f}"/>'
            f'<text class="label" x="{edge + 15}" y="{end + 4:.1f}">{escape(line.label)}</text></g>'
        )
    return frame.draw(drawn)


def _spread(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending places moved apart by a line's height, within bounds as far as they suffice."""
    found: list[float] = []
    for place in places:
        found.append(max(place, top if not found else found[-1] + LINE))
    over = bottom
    for i in range(len(found) - 1, -1, -1):
        found[i] = min(found[i], over)
        over = found[i] - LINE
    return found


def histogram(edges: Sequence[float], positives: Sequence[float], negatives: Sequence[float], title: str) -> str:
    """Shares of positive scores (filled) and of negative ones (dashed outline)."""
    seen = [i for i, (p, n) in enumerate(zip(positives, negatives, strict=True)) if p + n > 1e-4]
    if not seen:
        return ""
    first, last = seen[0], seen[-1]
    top = max(*positives, *negatives)
    frame = _Frame(title, "score", "share", (edges[first], edges[last + 1]), (0.0, top * 1.05), width=340, height=230)
    drawn = []
    for kind, shares in (("negatives", negatives), ("positives", positives)):
        steps = [f"{frame.x(edges[first]):.1f},{frame.y(0):.1f}"]
        for i in range(first, last + 1):
            y = frame.y(shares[i])
            steps += [f"{frame.x(edges[i]):.1f},{y:.1f}", f"{frame.x(edges[i + 1]):.1f},{y:.1f}"]
        steps.append(f"{frame.x(edges[last + 1]):.1f},{frame.y(0):.1f}")
        centres = [(edges[i] + edges[i + 1]) / 2 for i in range(len(shares))]
        mean = sum(c * s for c, s in zip(centres, shares, strict=True))
        drawn.append(
            f'<polygon class="{kind}" points="{" ".join(steps)}"><title>{kind}: mean {mean:.3f}</title></polygon>'
        )
    return frame.draw(drawn)
