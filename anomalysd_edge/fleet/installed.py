"""What a box has installed: versions side by side, and a link that says which one counts.

    BOX/NAME                       -> .versions/NAME/VERSION; give this path to `sd-edge serve`
    BOX/.versions/NAME/VERSION/    a whole bundle
    BOX/.versions/NAME/switches    a line a switch, the newest last: where a rollback goes

A switch replaces the link, which file systems do in one step: whoever opens BOX/NAME sees the old bundle or the new.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomalysd_edge.core.locks import exclusive_lock
from anomalysd_edge.errors import InputError
from anomalysd_edge.fleet.registry import check_name


class Installed:
    """The versions of one bundle on a box."""

    def __init__(self, box: Path, name: str) -> None:
        """Raises InputError where BOX/NAME is something that a pull did not make."""
        self.link = box / check_name(name)
        self.versions = box / ".versions" / name
        if self.link.exists() and not self.link.is_symlink():
            raise InputError(f"{self.link} is not a link that 'sd-edge pull' made; move it away first")

    def folder(self, version: str) -> Path:
        """Where a version lies, or would."""
        return self.versions / version

    @property
    def current(self) -> str | None:
        """The version that counts."""
        return self.link.readlink().name if self.link.is_symlink() else None

    @property
    def previous(self) -> str | None:
        """The version that counted before; None where there is none."""
        past, current = self._switches(), self.current
        if current in past:  # a switch that was noted and then did not happen stands after it
            past = past[: len(past) - past[::-1].index(current)]
        before = [version for version in past if version != current and self.folder(version).is_dir()]
        return before[-1] if before else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One pull or rollback at a time. Raises InputError while another one runs."""
        self.versions.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(
            self.versions / ".lock",
            InputError,
            lambda holder: f"another pull or rollback of {self.link} is running ({holder}); wait for its end",
        ):
            yield

    def switch(self, version: str) -> None:
        """Let `version`, which is whole, count from now on."""
        with (self.versions / "switches").open("a", encoding="ascii") as file:
            file.write(f"{version}\n")
            file.flush()
            os.fsync(file.fileno())
        aside = self.link.with_name(f".{self.link.name}-{secrets.token_hex(4)}.aside")
        aside.symlink_to(self.folder(version).relative_to(self.link.parent))
        aside.replace(self.link)
        folder = os.open(self.link.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rollback(self) -> str:
        """Back to the version before; which one that is. A second rollback goes forward again. Raises InputError."""
        version = self.previous
        if version is None:
            raise InputError(f"{self.link} has no earlier version to go back to")
        self.switch(version)
        return version

    def sweep(self, keep: int) -> list[str]:
        """Remove all but the current and the last used `keep` - 1 others, and transfers of other versions."""
        order = [version for version in dict.fromkeys(reversed(self._switches())) if version != self.current]
        kept = {self.current, *order[: max(0, keep - 1)]}
        kept |= {f"{version}.versions" for version in kept}  # what it was before it was taught (bundle/versions.py)
        gone = [entry for entry in self.versions.iterdir() if entry.is_dir() and entry.name not in kept]
        for entry in gone:
            shutil.rmtree(entry)
        return sorted(entry.name for entry in gone)

    def _switches(self) -> list[str]:
        file = self.versions / "switches"
        return file.read_text(encoding="ascii").split() if file.is_file() else []
