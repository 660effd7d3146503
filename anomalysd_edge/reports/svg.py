"""Small plots as SVG text: lines with error bars, and bars with errors. They need no library and no script.

Colours are Okabe and Ito's, told apart by colour-blind eyes too; series differ in their markers as well. Text and
ground follow the report's style sheet where there is one.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anomalysd_edge.errors import InputError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("circle", "square", "diamond", "triangle")
_INK, _QUIET, _GROUND = "var(--ink,#1a1d23)", "var(--line,#d9dde4)", "var(--card,#fff)"
_FONT = "font:12px system-ui,sans-serif"

Point = tuple[float, float]
"""Value and half the length of its error bar; NaN where there is none."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    """Above it."""
    x: tuple[str, ...]
    """Labels of the places along it, evenly spaced."""
    series: Mapping[str, Sequence[Point]]
    """By name, a point a place."""
    low: float = math.nan
    """Lowest value of the axis; from the data if NaN."""
    high: float = math.nan
    """Highest one."""


def line_plot(title: str, panels: Sequence[Panel], x_title: str = "", side_px: int = 300) -> str:
    """One SVG: panels side by side, lines with error bars, one legend. Raises InputError for unequal series."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    width, height = side_px * len(panels) + 10, side_px + 34 + 18 * math.ceil(len(names) / 4)
    parts = [_open(width, height, title), _text(10, 18, title, bold=True)]
    for number, panel in enumerate(panels):
        parts += _axes_and_lines(panel, names, number * side_px, 26, side_px, x_title)
    for i, name in enumerate(names):
        x, y = 16 + (i % 4) * (width - 20) / 4, side_px + 42 + 18 * (i // 4)
        parts += [_marker(i, x, y - 4), _text(x + 10, y, name)]
    return "\n".join([*parts, "</svg>"])


def bar_plot(title: str, bars: Sequence[tuple[str, float, float, bool]], unit: str = "", width_px: int = 620) -> str:
    """One SVG of horizontal bars around zero: (name, value, error, stands out). Raises InputError without bars."""
    if not bars:
        raise InputError(f"there is nothing to draw under {title!r}; give at least one bar")
    reach = max(abs(v) + (0 if math.isnan(e) else e) for _, v, e, _ in bars) or 1.0
    left, right, row = 230, width_px - 70, 22
    middle = (left + right) / 2
    scale = (right - left) / 2 / reach
    height = 34 + row * len(bars)
    parts = [_open(width_px, height, title), _text(10, 18, title, bold=True)]
    parts.append(f'<line x1="{middle}" x2="{middle}" y1="26" y2="{height - 4}" style="stroke:{_INK}"/>')
    for i, (name, value, error, loud) in enumerate(bars):
        y = 30 + row * i
        x, wide = min(middle, middle + value * scale), abs(value) * scale
        colour = COLOURS[1] if loud else COLOURS[0]
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{max(wide, 1):.1f}" height="14" fill="{colour}"/>')
        if not math.isnan(error):
            ends = (middle + (value - error) * scale, middle + (value + error) * scale)
            parts.append(
                f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 7}" y2="{y + 7}" style="stroke:{_INK}"/>'
            )
        parts += [_text(left - 8, y + 12, name, "end"), _text(width_px - 8, y + 12, f"{value:+.1f}{unit}", "end")]
    return "\n".join([*parts, "</svg>"])


def dot_plot(
    title: str, groups: Mapping[str, Sequence[float]], limit: float, unit: str = "", width_px: int = 620
) -> str:
    """One SVG: a row of dots for each group, a line at `limit`; dots at or above it stand out. Values are finite."""
    values = [v for group in groups.values() for v in group]
    if not values:
        raise InputError(f"there is nothing to draw under {title!r}; give at least one value")
    low, high = min(*values, limit, 0.0), max(*values, limit) * 1.05
    left, right, row = 150, width_px - 20, 30
    height = 64 + row * len(groups)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_open(width_px, height, title), _text(10, 18, title, bold=True)]
    for tick in _ticks(low, high):
        parts.append(_text(place(tick), height - 20, f"{tick:g}", "middle"))
    parts.append(_text((left + right) / 2, height - 5, unit, "middle"))
    ends = f'x1="{place(limit):.1f}" x2="{place(limit):.1f}" y1="26" y2="{height - 34}"'
    parts.append(f'<line {ends} style="stroke:{_INK}" stroke-dasharray="4 3"/>')
    for i, (name, group) in enumerate(groups.items()):
        y = 44 + row * i
        parts.append(_text(left - 10, y + 4, name, "end"))
        for number, value in enumerate(group):
            colour = COLOURS[1] if value >= limit else COLOURS[0]
            # A few levels, so that equal scores can be told apart.
            dot = f'cx="{place(value):.1f}" cy="{y + (number % 5 - 2) * 4}" r="3" fill="{colour}" fill-opacity="0.7"'
            parts.append(f"<circle {dot}/>")
    return "\n".join([*parts, "</svg>"])


def reliability_diagram(title: str, bins: Sequence[tuple[float, float, int]], side_px: int = 300) -> str:
    """One SVG of (stated, observed, count): a dot a bin, larger with its count; on the diagonal they agree."""
    if not bins:
        raise InputError(f"there is nothing to draw under {title!r}; give at least one bin")
    left, right, top, bottom = 58, side_px - 12, 34, side_px - 44
    most = max(count for _, _, count in bins)

    def across(share: float) -> float:
        return left + share * (right - left)

    def level(share: float) -> float:
        return bottom - share * (bottom - top)

    parts = [_open(side_px, side_px, title), _text(10, 18, title, bold=True)]
    for tick in _ticks(0.0, 1.0):
        y = level(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:{_QUIET}"/>')
        parts += [_text(left - 6, y + 4, f"{tick:g}", "end"), _text(across(tick), bottom + 16, f"{tick:g}", "middle")]
    ends = f'x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"'
    parts.append(f'<line {ends} style="stroke:{_INK}" stroke-dasharray="4 3"/>')
    for stated, observed, count in bins:
        place = f'cx="{across(stated):.1f}" cy="{level(observed):.1f}" r="{2 + 6 * math.sqrt(count / most):.1f}"'
        words = html.escape(f"stated {stated:.2f}, observed {observed:.2f}, {count} photos")
        parts.append(f'<circle {place} fill="{COLOURS[0]}" fill-opacity="0.8"><title>{words}</title></circle>')
    middle = (top + bottom) / 2
    parts.append(_text((left + right) / 2, bottom + 34, "stated", "middle"))
    turned = _text(14, middle, "observed", "middle").replace("<text", f'<text transform="rotate(-90 14 {middle:g})"')
    return "\n".join([*parts, turned, "</svg>"])


def _axes_and_lines(panel: Panel, names: list[str], x0: float, y0: float, side: float, x_title: str) -> list[str]:
    wrong = [name for name, points in panel.series.items() if len(points) != len(panel.x)]
    if wrong or not panel.x:
        raise InputError(f"the panel {panel.title!r} has {len(panel.x)} places; {wrong or 'its series'} have others")
    low, high = _range(panel)
    left, right, top, bottom = x0 + 46, x0 + side - 12, y0 + 24, y0 + side - 36

    def place(i: int) -> float:
        return (left + right) / 2 if len(panel.x) == 1 else left + 14 + i * (right - left - 28) / (len(panel.x) - 1)

    def level(value: float) -> float:
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top)

    parts = [_text((left + right) / 2, y0 + 14, panel.title, "middle")]
    for tick in _ticks(low, high):
        y = level(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:{_QUIET}"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:g}", "end"))
    parts += [_text(place(i), bottom + 16, label, "middle") for i, label in enumerate(panel.x)]
    parts.append(_text((left + right) / 2, bottom + 31, x_title, "middle"))
    for name, points in panel.series.items():
        i = names.index(name)
        colour = COLOURS[i % len(COLOURS)]
        # Series stand a little beside each other, so that their error bars can be told apart.
        beside = (i - (len(names) - 1) / 2) * 4
        drawn = [(place(j) + beside, level(v), j) for j, (v, _) in enumerate(points) if not math.isnan(v)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in drawn)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for x, y, j in drawn:
            value, error = points[j]
            if not math.isnan(error):
                a, b = level(value - error), level(value + error)
                parts.append(f'<path d="M{x:.1f} {a:.1f}V{b:.1f}" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(_marker(i, x, y))
    return parts


def _range(panel: Panel) -> tuple[float, float]:
    ends = [
        (v - (0 if math.isnan(e) else e), v + (0 if math.isnan(e) else e))
        for points in panel.series.values()
        for v, e in points
        if not math.isnan(v)
    ]
    low = panel.low if not math.isnan(panel.low) else min((a for a, _ in ends), default=0.0)
    high = panel.high if not math.isnan(panel.high) else max((b for _, b in ends), default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _marker(i: int, x: float, y: float) -> str:
    colour, kind = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (4.5, 4), (-4.5, 4)),
    }[kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{html.escape(title)}">'
        f'<rect width="100%" height="100%" style="fill:{_GROUND}"/>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ";font-weight:700" if bold else ""
    style = f"{_FONT};fill:{_INK}{weight}"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{html.escape(words)}</text>'
