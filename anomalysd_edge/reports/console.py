"""What a person sees of long work at a terminal: a bar with an estimate, tables, one clear sentence for an error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from anomalysd_edge.core.files import json_ready

Report = Callable[[str, int, int, str], None]
"""progress(phase, done, total, detail): how every long step tells where it is."""


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Report]:
    """A bar per phase on stderr, with the time left. Where stderr is no terminal: a line now and then."""
    if quiet:
        yield lambda _phase, _done, _total, _detail: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines() as report:
            yield report
        return
    columns = (
        TextColumn("[bold]{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[detail]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int, detail: str) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total, detail=detail)
            bars.update(tasks[phase], completed=done, total=total, detail=detail)

        yield report


@contextmanager
def _lines() -> Iterator[Report]:
    import time

    began: dict[str, float] = {}
    said: dict[str, float] = {}

    def report(phase: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        began.setdefault(phase, now)
        finished = done >= total
        if finished or now - said.get(phase, -1e9) > 15:
            said[phase] = now if not finished else 1e18
            spent = now - began[phase]
            left = f", about {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
            print(f"{phase:>12} {done}/{total} after {spent:.0f} s{left}  {detail}", file=sys.stderr, flush=True)  # noqa: T201

    yield report


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> None:
    """A table on stdout; floats with one decimal, None and NaN as a dash; a row that starts with 'mean' is set off."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        if str(row[0]).startswith("mean"):
            table.add_section()
        table.add_row(*(_cell(value) for value in row))
    # A pipe has no width of its own: tables stay whole there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def show_json(value: Any) -> None:
    """`value` on stdout as JSON; NaN becomes null."""
    print(json.dumps(json_ready(value), indent=2, allow_nan=False))  # noqa: T201


def say(sentence: str) -> None:
    """One line on stderr: stdout stays for results."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201
