"""What holds on an NVIDIA GPU: claims, measured one by one, in twenty-five minutes; docs/gpu-kit.md says how.

    python -m benchmarks.gpu all [--out benchmarks/results]
    python -m benchmarks.gpu facts ceiling primitives train       # these need torch with CUDA alone
    python -m benchmarks.gpu all --dry-run                        # every claim, what is expected, the time planned
    python -m benchmarks.gpu prepare --device cpu --work DIR      # beforehand, where there is no GPU
    python -m benchmarks.gpu all --device cpu                     # a rehearsal with small networks

Each subcommand runs in a process of its own, prints a JSON line {claim, says, expected, measured, holds} for each of
its claims, and is killed at its time limit. What could not be measured has holds = null and says why: it counts as not
shown. Results, with device, driver, versions and commit, go to OUT/gpu-DEVICE.json; OUT is benchmarks/results, and WORK
for a rehearsal and where there is no GPU. Exit code: 0 all claims hold, 1 one does not, 3 none fails but some were not
shown, 2 a wrong call.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from benchmarks import harness
from benchmarks.gpu import judging, large, machine, prepared, primitives, soak, speed, training
from benchmarks.gpu.claims import Kit, Part
from benchmarks.gpu.runner import commit_here, exit_code, in_own_process, in_this_process, keep, results_of, summary

PARTS = (
    *machine.PARTS, *primitives.PARTS, *prepared.PARTS, *judging.PARTS, *speed.PARTS, *large.PARTS, *training.PARTS,
    *soak.PARTS,
)  # fmt: skip
"""The subcommands, in the order of `all`."""


def plan(parts: list[Part]) -> str:
    """Every claim, its expected value, and the time planned."""
    told = []
    for part in parts:
        needs = ", ".join(part.needs) or "nothing"
        told.append(f"{part.name}: {part.says}; at most {part.limit_s} s; needs {needs}")
        told += [f"  {claim.name}: {claim.says}; expected: {claim.expected}" for claim in part.claims]
    claims, seconds = sum(len(part.claims) for part in parts), sum(part.limit_s for part in parts)
    return "\n".join([*told, f"{len(parts)} subcommands, {claims} claims, at most {seconds / 60:.1f} minutes"])


def _end(number: int, _frame: object) -> None:
    """Leave in order, so that the runner kills what it started; a second signal does not interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Run the subcommands; see the module's text."""
    known = {part.name: part for part in PARTS}
    parser = harness.parser_of(__doc__)
    parser.add_argument("subcommand", nargs="+", choices=(*known, "all"), metavar="SUBCOMMAND", help=", ".join(known))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--work", type=Path, default=Path("out/gpu"), help="models and graphs; kept and used again")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results file; see above")
    parser.add_argument("--limit", type=float, default=None, help="seconds for each subcommand, in place of its own")
    parser.add_argument("--commit", default=None, help="what is measured, where there is no git to say it")
    parser.add_argument("--dry-run", action="store_true", help="list the claims; measure nothing")
    parser.add_argument(
        "--here", action="store_true", help="measure in this process, without a limit or a results file"
    )
    asked = parser.parse_args()
    parts = list(PARTS) if "all" in asked.subcommand else [known[name] for name in dict.fromkeys(asked.subcommand)]
    if asked.dry_run:
        print(plan(parts))
        return
    kit = Kit(asked.device, asked.work.absolute())
    if asked.here:
        lines = [line for p in parts for line in in_this_process(p, kit, kit.work / f"{p.name}.jsonl").written.values()]
        sys.exit(exit_code(lines))
    signal.signal(signal.SIGTERM, _end)
    results = results_of(kit, asked.commit or commit_here())
    shows = results["device"] and not kit.rehearsal
    out = asked.out or (Path("benchmarks/results") if shows else kit.work)
    file = None
    for part in parts:
        results["parts"][part.name] = in_own_process(part, kit, asked.limit or part.limit_s)
        file = keep(out, results)  # after each: what is known is on the disk
    lines = [line for part in results["parts"].values() for line in part["lines"]]
    for line in lines:
        if line["holds"] is not True:
            word = "NOT SHOWN" if line["holds"] is None else "FAILS"
            why = line.get("because") or f"{line['measured']}, expected {line['expected']}"
            print(f"{word} {line['claim']}: {line['says']} ({why})", file=sys.stderr)
    print(f"{summary(lines)}; results: {file}", file=sys.stderr)
    sys.exit(exit_code(lines))


if __name__ == "__main__":
    main()
