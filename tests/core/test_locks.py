"""One holder at a time, who is named; a holder that was killed holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalysd_edge.core.locks import exclusive_lock
from anomalysd_edge.errors import BundleError, InputError

HOLDER = """
import sys, time
from pathlib import Path
from anomalysd_edge.core.locks import exclusive_lock
from anomalysd_edge.errors import InputError
with exclusive_lock(Path(sys.argv[1]), InputError, str):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_holder_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BundleError, match=f"^busy: process {holder.pid}$"),
            exclusive_lock(file, BundleError, lambda who: f"busy: {who}"),
        ):
            raise AssertionError("two processes hold one lock")
        holder.kill()
    with exclusive_lock(file, BundleError, str):
        assert file.read_text() == f"process {os.getpid()}"
        with pytest.raises(InputError, match=f"process {os.getpid()}"), exclusive_lock(file, InputError, str):
            raise AssertionError("one process holds the lock twice")
    with exclusive_lock(file, BundleError, str):
        assert file.is_file()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="cannot be written"),
        exclusive_lock(tmp_path / "missing" / "lock", BundleError, str),
    ):
        raise AssertionError("a lock without a file")
