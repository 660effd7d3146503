"""The protocol's result for people: tables on the screen, one HTML page, a plot a class."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomalysd_edge.core.files import folder_aside, write_aside, write_json
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import ClassResult
from anomalysd_edge.method.result import MAPS
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.reports.html import facts, page, table
from anomalysd_edge.reports.svg import Panel, Point, line_plot


@dataclass(frozen=True)
class ProtocolReport:
    """What is shown of a protocol's result."""

    title: str
    """Of the page."""
    facts: Mapping[str, str]
    """Preset, backend, base and seeds in words."""
    class_names: Sequence[str]
    """In the order of the tables."""
    by_shots: Mapping[int, list[list[ClassResult]]]
    """By number of shots: a list a seed of the classes' results."""
    published: str | None = None
    """Title of the published protocol, where one was asked for."""
    notes: Sequence[str] = ()
    """Ways in which the photos are not the published ones."""


PLOTTED = {"image_auroc": "image AUROC, %", "pixel_auroc": "pixel AUROC, %", "aupro": "AUPRO, %"}
"""Figures that get a panel each."""


def show(found: ProtocolReport) -> None:
    """Two tables a number of shots: the fused map's figures, and the maps side by side."""
    for shots, seeds in found.by_shots.items():
        show_table(_caption(shots, seeds), aggregate.COLUMNS, aggregate.rows(seeds))
        title = f"{shots}-shot, each map alone: image / pixel AUROC"
        show_table(title, aggregate.map_columns(), aggregate.map_rows(seeds))


def write(found: ProtocolReport, values: Any, out: Path) -> None:
    """results.json with `values`, plots/class-NAME.svg and mean.svg and report.html under `out`."""
    names = [*found.class_names, aggregate.MEAN]
    plots = {name: plot(found.by_shots, name) for name in names}
    files = {name: f"class-{quote(name, safe=' ')}.svg" for name in found.class_names} | {aggregate.MEAN: "mean.svg"}
    with folder_aside(out / "plots", marker=files[aggregate.MEAN]) as folder:
        for name, drawn in plots.items():
            (folder / files[name]).write_text(drawn, encoding="utf-8")
    write_json(out / "results.json", values)
    text = _page(found, plots)
    with write_aside(out / "report.html") as aside:
        aside.write_text(text, encoding="utf-8")


def plot(by_shots: Mapping[int, list[list[ClassResult]]], name: str) -> str:
    """SVG of one class (or of the mean): three figures over the number of shots, a line a map."""
    panels = []
    for what, title in PLOTTED.items():
        series: dict[str, list[Point]] = {}
        for kind in MAPS:
            points = [aggregate.figure(seeds, name, kind, what) for seeds in by_shots.values()]
            if any(p.values for p in points):
                series[aggregate.MAP_NAMES[kind]] = [(100 * p.mean, 100 * p.spread) for p in points]
        panels.append(Panel(title, tuple(map(str, by_shots)), series, high=100))
    title = "mean over classes" if name == aggregate.MEAN else name
    return line_plot(f"{title}: mean and spread over seeds", panels, "good photos a class")


def _caption(shots: int, seeds: Sequence[object]) -> str:
    over = f"mean ± spread over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{shots}-shot, fused map, {over}, percent"


def _page(found: ProtocolReport, plots: dict[str, str]) -> str:
    parts = []
    if found.published:
        if found.notes:
            notes = "".join(f"<li>{html.escape(note)}</li>" for note in found.notes)
            words = "These are not the photos that published figures were measured on:"
            parts.append(f"<section style='margin-top:16px'><p class=meaning>{words}</p><ul>{notes}</ul></section>")
        else:
            words = f"All photos of {html.escape(found.published)}'s published split."
            parts.append(f"<p class=meaning style='margin-top:16px'>{words}</p>")
    for shots, seeds in found.by_shots.items():
        parts.append(f"<section><h2>{html.escape(_caption(shots, seeds))}</h2>")
        parts.append(table(aggregate.COLUMNS, aggregate.rows(seeds)))
        parts.append("<p class=meaning style='margin-top:12px'>Each map alone, image / pixel AUROC</p>")
        parts.append(table(aggregate.map_columns(), aggregate.map_rows(seeds)) + "</section>")
    parts.append("<section><h2>Over the number of shots</h2>")
    parts += [f"<div class=wide>{drawn}</div>" for drawn in plots.values()]
    parts.append("</section>")
    return page(found.title, parts, facts(found.facts.items()))
