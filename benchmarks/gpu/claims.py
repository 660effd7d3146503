"""What the kit says before it measures, and what it writes afterwards: one JSON line a claim."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import json_text

REHEARSAL = "a rehearsal on the CPU"


@dataclass(frozen=True)
class Claim:
    """One sentence that a measurement shows or refutes."""

    name: str
    """Its subcommand and a word: primitives.capture."""
    says: str
    """The sentence."""
    expected: str
    """What the measurement must give for the sentence to hold."""
    gpu_only: bool = False
    """Whether a rehearsal on the CPU measures it and can say nothing by it."""


@dataclass(frozen=True)
class Kit:
    """What every subcommand is given."""

    device: str
    """cuda; or cpu to rehearse: the same code on small networks, which shows nothing of a GPU."""
    work: Path
    """Folder for models, bundles and graphs; what is there is used again."""

    @property
    def rehearsal(self) -> bool:
        """Whether this is the CPU in the GPU's place."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Part:
    """One subcommand."""

    name: str
    says: str
    """What it does, in a line."""
    limit_s: int
    """Seconds after which its process is killed; what it had not shown by then counts as not shown."""
    needs: tuple[str, ...]
    """What it cannot begin without: names of needs.NEEDS."""
    claims: tuple[Claim, ...]
    run: Callable[[Kit, Lines], None]


@dataclass
class Lines:
    """The lines of one subcommand. Each is written when it is known: a process that is killed has told what it saw."""

    claims: Sequence[Claim]
    file: Path | None = None
    """JSON lines are appended here and printed; None keeps them in `written` alone."""
    rehearsal: bool = False
    """Whether the CPU stands in for the GPU: what is gpu_only then counts as not shown, whatever was measured."""
    written: dict[str, dict[str, Any]] = field(default_factory=dict)

    def shown(self, name: str, measured: Any, holds: bool, **figures: Any) -> None:
        """The claim was measured. `measured` and `figures`: what files.json_ready takes."""
        found: dict[str, Any] = {
            "measured": measured,
            "holds": bool(holds),
            **({"figures": figures} if figures else {}),
        }
        if self.rehearsal and self._claim(name).gpu_only:
            found |= {"holds": None, "because": REHEARSAL}
        self._write(name, found)

    def not_shown(self, name: str, because: str) -> None:
        """The claim was not measured: it counts neither as held nor as refuted."""
        self._write(name, {"measured": None, "holds": None, "because": because})

    def not_shown_rest(self, because: str) -> None:
        """The same for every claim that has no line yet."""
        for claim in self.claims:
            if claim.name not in self.written:
                self.not_shown(claim.name, because)

    @contextmanager
    def showing(self, *names: str) -> Iterator[None]:
        """A block that measures these claims: an error in it costs no other claim, and is the reason in their lines."""
        try:
            yield
        except Exception as error:
            for name in names:
                if name not in self.written:
                    self.not_shown(name, reason(error))

    def _claim(self, name: str) -> Claim:
        return next(claim for claim in self.claims if claim.name == name)

    def _write(self, name: str, found: dict[str, Any]) -> None:
        claim = self._claim(name)
        line = {"claim": name, "says": claim.says, "expected": claim.expected, **found}
        text = json_text(line, indent=None)
        self.written[name] = json.loads(text)
        if self.file is not None:
            print(text, flush=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(text + "\n")


def reason(error: BaseException) -> str:
    """An error in one line."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0] if words else 'without words'}"


def read_lines(file: Path) -> dict[str, dict[str, Any]]:
    """Lines by claim that a process wrote before it ended; a last line that was cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                found[line["claim"]] = line
    return found
