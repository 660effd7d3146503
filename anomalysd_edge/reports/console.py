"""Output at a terminal: progress bars with an estimate of the time left, tables, JSON, sentences."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalysd_edge.core.types import Progress


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """A bar per phase on stderr, with the time left. Where stderr is no terminal: a line now and then."""
    if quiet:
        yield lambda _phase, _done, _total, _detail: None
        return
    # rich takes longer to import than a short command to run: only where it shows something.
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        with _lines() as report:
            yield report
        return
    from rich import progress

    columns = (
        progress.TextColumn("[bold]{task.description:>12}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
        progress.TextColumn("[dim]{task.fields[detail]}"),
    )  # fmt: skip
    with progress.Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int, detail: str) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total, detail=detail)
            bars.update(tasks[phase], completed=done, total=total, detail=detail)

        yield report


@contextmanager
def _lines() -> Iterator[Progress]:
    import time

    began: dict[str, tuple[float, int]] = {}
    said: dict[str, float] = {}

    def report(phase: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        start, first = began.setdefault(phase, (now, done))
        finished = done >= total
        if finished or now - said.get(phase, -1e9) > 15:
            said[phase] = now if not finished else 1e18
            spent = now - start
            # By the steps after the first report: how long those before it took is not known (a resumed training).
            left = f", about {spent / (done - first) * (total - done):.0f} s left" if first < done < total else ""
            print(f"{phase:>12} {done}/{total} after {spent:.0f} s{left}  {detail}", file=sys.stderr, flush=True)  # noqa: T201

    yield report


_WIDEST = 10_000
_PIPE_WIDTH = 160
"""Columns that a table may take where nobody says how many there are."""


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> None:
    """A table on stdout; floats with one decimal, None and NaN as a dash; a row that starts with 'mean' is set off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        if str(row[0]).startswith("mean"):
            table.add_section()
        table.add_row(*(_cell(value) for value in row))
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    wanted = Console(width=_WIDEST, height=25).measure(table).maximum
    if wanted <= console.width or not sys.stdout.isatty():
        # A pipe has no width of its own: tables stay whole there.
        Console(width=max(console.width, wanted), height=25).print(table)
        return
    # Too narrow for the table: a cut cell could be the verdict, so every row becomes a few lines.
    lines = [title]
    for first, *rest in rows:
        lines.append(f"{columns[0] or 'row'} {_cell(first)}")
        lines += [f"  {column}: {_cell(value)}" for column, value in zip(columns[1:], rest, strict=True)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _cell(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def score_limits(threshold: float | None, limits: Mapping[str, float] | None = None) -> str:
    """A class's threshold and, in brackets, the scores 'good' and 'anomalous' between which a verdict is uncertain.

    >>> score_limits(0.5, {"good": 0.4, "anomalous": 0.75})
    '0.5000 (0.4000 to 0.7500)'
    """
    if threshold is None:
        return "-"
    return f"{threshold:.4f}" + (f" ({limits['good']:.4f} to {limits['anomalous']:.4f})" if limits else "")


def percent(share: float | None) -> str:
    """'12 %' of 0.12; a dash of None."""
    return "-" if share is None else f"{100 * share:.0f} %"


def show_json(value: Any) -> None:
    """`value` on stdout as JSON; NaN becomes null."""
    from anomalysd_edge.core.files import json_ready

    print(json.dumps(json_ready(value), indent=2, allow_nan=False))  # noqa: T201


def say(sentence: str) -> None:
    """One line on stderr: stdout stays for results."""
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201
