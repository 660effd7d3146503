"""The verb history: what a box recorded. Its functions import the record when they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.reports.console import percent, say, score_limits, show_json, show_table

if TYPE_CHECKING:
    from anomalysd_runtime.server.records.verdict_store import VerdictStore

history = typer.Typer(
    help="List and export recorded verdicts, inspect stored photos again, propose thresholds.\n\n"
    "Example: sd-edge history list record.sqlite --class bracket",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
RecordArgument = Annotated[
    Path, Argument(metavar="RECORD", help="SQLite file of serve --record.", exists=True, dir_okay=False)
]
ClassOf = Annotated[str | None, Option("--class", help="Verdicts of this class only.")]
VerdictOf = Annotated[
    str | None, Option("--verdict", help="These verdicts only: good, anomalous, uncertain or unknown.")
]
Corrected = Annotated[bool, Option("--corrected", help="Only verdicts that an operator corrected or confirmed.")]
Time = Annotated[str | None, Option(metavar="TIME", help="ISO 8601 time; UTC without a zone.")]


@history.command("list")
def list_verdicts(
    record: RecordArgument,
    class_name: ClassOf = None,
    verdict: VerdictOf = None,
    corrected: Corrected = False,
    since: Time = None,
    until: Time = None,
    limit: Annotated[int, Option(help="Most verdicts, the newest first.")] = 50,
) -> None:
    """Show recorded verdicts, the newest first."""
    from anomalysd_runtime.server.records import history as records

    with opened(record) as found:
        verdicts = records.find_verdicts(
            found, records.VerdictFilter(class_name, verdict, corrected, since, until, limit)
        )
    rows = [
        (v.uid, datetime.fromtimestamp(v.at).isoformat(" ", "seconds"), v.class_name, f"{v.pred_score:.4f}",
         score_limits(v.threshold, v.limits), v.verdict, percent(v.pred_probability), v.correction or "", v.photo)
        for v in verdicts
    ]  # fmt: skip
    columns = ("uid", "time", "class", "score", "threshold", "verdict", "defective", "said", "photo")
    show_table("Verdicts", columns, rows)


@history.command()
def export(
    record: RecordArgument,
    out: Annotated[Path, Option(help="File of JSON lines to write.")],
    class_name: ClassOf = None,
    verdict: VerdictOf = None,
    corrected: Corrected = False,
    since: Time = None,
    until: Time = None,
) -> None:
    """Write recorded verdicts to a file, one JSON object a line."""
    from anomalysd_edge.core.files import write_aside
    from anomalysd_runtime.server.records import history as records

    with opened(record) as found, write_aside(out) as aside, aside.open("w", encoding="utf-8") as file:
        lines = list(records.export_lines(found, records.VerdictFilter(class_name, verdict, corrected, since, until)))
        file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    say(f"{len(lines)} verdicts written: {out}")


@history.command(short_help="Inspect a stored photo again and compare the score.")
def again(
    record: RecordArgument,
    uid: Annotated[str, Argument(metavar="UID", help="Id of the verdict, as list shows it.")],
    bundle: Annotated[Path, Option(help="Bundle that gave the verdict, or one of its versions.")],
    backend: options.Backend = "cpu",
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Inspect a stored photo again; exit code 1 where the score is not the recorded one."""
    from anomalysd_runtime.server.records import history as records

    with opened(record) as found:
        repeated = records.reinspect(found, uid, bundle, backend, threads)
    if as_json:
        show_json(repeated)
    same = "the same" if repeated.same else f"another by {abs(repeated.found - repeated.recorded):.1e}"
    say(f"recorded {repeated.recorded:.8g}, now {repeated.found:.8g}: {same}")
    if not repeated.same:
        raise typer.Exit(1)


@history.command(short_help="Propose a threshold from operators' corrections.")
def propose(
    record: RecordArgument,
    class_name: Annotated[str, Option("--class", help="Class to propose a threshold for.")],
    missed_cost: options.MissedCost = 1.0,
    rest_is_right: Annotated[bool, Option("--rest-is-right", help="Count uncorrected verdicts as right.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Propose a threshold from operators' corrections; nothing is changed."""
    from anomalysd_runtime.server.records import history as records

    with opened(record) as found:
        proposed = records.propose(found, class_name, missed_cost, rest_is_right)
    if as_json:
        show_json(proposed)
        return
    rows = [
        (name, score_limits(value), proposed.missed[i], proposed.false_alarms[i])
        for i, (name, value) in enumerate((("now", proposed.current), ("proposed", proposed.proposed)))
    ]
    title = f"{class_name}, bundle {proposed.bundle_id}: {proposed.ok} photos OK, {proposed.ng} NG"
    show_table(title, ("", "threshold", "missed", "false alarms"), rows)


def propose_for_bundle(bundle: Path, file: Path, missed_cost: float, as_json: bool) -> None:
    """`calibrate --from-history`: what `history propose` shows, for every class of a bundle."""
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.bundle.versions import bundle_id
    from anomalysd_edge.errors import InputError
    from anomalysd_runtime.server.records import history as records

    if not file.is_file():
        raise InputError(f"there is no record {file}; name the file that 'sd-edge serve --record' writes")
    ident = bundle_id(bundle)
    proposed: list[dict[str, Any]] = []
    with opened(file) as found:
        for name in sorted(read_bundle(bundle, verify=False).manifest.classes):
            try:
                proposed.append(asdict(records.propose(found, name, missed_cost, bundle_id=ident)))
            except InputError as error:
                proposed.append({"class_name": name, "error": str(error)})
    if as_json:
        show_json(proposed)
        return
    rows = [
        (each["class_name"], "-", "-", "", "", each["error"])
        if "error" in each
        else (
            each["class_name"], score_limits(each["current"]), f"{each['proposed']:.4f}",
            " -> ".join(map(str, each["missed"])), " -> ".join(map(str, each["false_alarms"])),
            f"{each['ok']} OK, {each['ng']} NG",
        )
        for each in proposed
    ]  # fmt: skip
    show_table(
        f"Thresholds by operators' corrections, bundle {ident}",
        ("class", "now", "proposed", "missed", "false alarms", "judged"), rows,
    )  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[VerdictStore]:
    """The record at `path`, closed at the end."""
    from anomalysd_runtime.server.records.verdict_store import VerdictStore

    record = VerdictStore(path)
    try:
        yield record
    finally:
        record.close()
