"""Files that are either whole or not there: digests, JSON, and writing aside with a rename at the end."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.exchange import exchange
from anomalysd_edge.errors import InputError, SDEdgeError

_CHUNK_BYTES = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")
_ASIDE = re.compile(r"\..*-[0-9a-f]{8}\.aside(\..*)?")
_LEFT_S = 3600.0
"""Age of a file aside from which nobody is writing it any more."""
_CONTROL = re.compile("[\x00-\x1f\x7f]")


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, read in pieces of 1 MiB. Raises InputError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
    return digest.hexdigest()


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path`; what is written there becomes `path` when the block ends well.

    The name keeps the suffix of `path`, and missing parent folders are made. Where `path` is a symbolic link, what it
    points to is written, and the link stays. On any error, Ctrl-C included, the
    file aside is removed and an older `path` stays as it was. A full disk or a refused write becomes an InputError.
    """
    target = _through_links(path)
    aside = _name_aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _flush_to_disk(aside)
        aside.replace(target)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        _raise_plainly(error, path)
        raise


@contextmanager
def folder_aside(path: Path, marker: str | None = None) -> Iterator[Path]:
    """Yield a new empty folder beside `path`; it becomes `path` when the block ends well.

    An older folder at `path` is swapped with the new one in one step, then removed. Where the file system cannot
    (exchange.py), it is moved away first, and comes back should the second move fail. With `marker`, a non-empty
    folder that does not hold a file of that name is not ours to replace and raises InputError. Where `path` is a
    symbolic link, the folder that it points to is written, and the link stays. On any error, Ctrl-C included, the
    folder aside is removed; what a process that was killed left goes first (`clear_asides`).
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, a folder is to be written there; remove it or choose another name")
    if marker is not None and path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(f"{path} is not empty and holds no {marker}, so it is not replaced; choose another folder")
    target = _through_links(path)
    aside, old = _name_aside(target), _name_aside(target)
    clear_asides(target)
    held = -1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        held = _hold(aside)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush_to_disk(file)
        if target.is_dir() and exchange(aside, target):
            shutil.rmtree(aside, ignore_errors=True)  # it is the old one now
        else:
            if target.is_dir():
                target.rename(old)
            aside.rename(target)
        with suppress(OSError):  # not every file system flushes folders; the rename itself is done
            _flush_to_disk(target.parent)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
        _raise_plainly(error, path)
        raise
    finally:
        if held >= 0:
            os.close(held)
        if old.exists() and target.exists():
            shutil.rmtree(old, ignore_errors=True)


def clear_asides(path: Path) -> None:
    """Remove what processes were writing when they were killed: folders beside the folder `path`, meant for it, and
    files in it, once they are an hour old.

    A folder that a living process writes is locked, and stays; so does everything where `path` itself is not there:
    after two renames of which the second never came, they are all that is left.
    """
    target = _through_links(path)
    if not target.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(target.stem)}-[0-9a-f]{{8}}\.aside{re.escape(target.suffix)}")
    try:
        beside = [f for f in target.parent.iterdir() if pattern.fullmatch(f.name) and f.is_dir()]
        files = [f for f in target.iterdir() if is_aside(f.name) and f.is_file()]
    except OSError:  # what cannot be listed cannot be written either: whoever writes there says so
        return
    for file in files:
        with suppress(OSError):  # its writer, or another process that clears, was faster
            if time.time() - file.stat().st_mtime > _LEFT_S:
                file.unlink()
    for left in beside:
        held = _hold(left)
        if held >= 0:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


def is_aside(name: str) -> bool:
    """Whether a file or folder of this name is one that is, or was, being written."""
    return _ASIDE.fullmatch(name) is not None


def _hold(folder: Path) -> int:
    """A descriptor that locks `folder` until it is closed; -1 where another process holds it, or there are no locks."""
    descriptor = -1
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor >= 0:
            os.close(descriptor)
        return -1
    return descriptor


def _through_links(path: Path) -> Path:
    """The absolute path that is written where `path` is asked for: of symbolic links on the way, what they point to.

    A link may point to what is still to be made. Raises InputError for links that go round in a circle.
    """
    try:
        return path.resolve() if path.is_symlink() else path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be written: its links go round in a circle; choose another place") from error


def read_json(path: Path) -> Any:
    """The value in a UTF-8 JSON file. Raises InputError if it is missing, unreadable or not JSON."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from error
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> Any:
    """The value in the UTF-8 JSON bytes of the file `path`. Raises InputError if they are not JSON."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, expected JSON; it may be damaged: make it again") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "it may be damaged: make it again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, aside and renamed.

    Takes what :func:`json_ready` takes. A number that JSON does not have (NaN, infinity) is written as null.
    """
    text = json_text(value) + "\n"
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON that every UTF-8 stream takes. File names that are not UTF-8 come back exactly.

    Python holds their bytes as lone surrogates (PEP 383), which UTF-8 has no form for; JSON has: the escape \\udcXX.
    """
    text = json.dumps(json_ready(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(text: str) -> str:
    """`text` for people, on one line: bytes of file names that are not UTF-8 as U+FFFD, control characters escaped.

    A file name may hold line breaks: written to a log as they are, they would forge a line.
    """
    shown = _SURROGATE.sub("\ufffd", text)
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), shown)


def json_ready(value: Any) -> Any:
    """`value` in JSON's own types: dataclasses, mappings, sequences, numpy arrays and scalars, paths; NaN as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.ndarray, np.generic)):
        return json_ready(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_ready(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if not isinstance(value, Path):
        raise TypeError(f"a {type(value).__name__} has no JSON form")
    return value.as_posix()


def _name_aside(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}.aside{path.suffix}")


def _flush_to_disk(path: Path) -> None:
    """Edge boxes lose power: a renamed file whose bytes were still in memory would be whole by name only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_plainly(error: BaseException, path: Path) -> None:
    """Raise InputError in place of an operating system's error about writing; return for any other error."""
    if isinstance(error, SDEdgeError) or not isinstance(error, Exception):
        return
    number = error.errno if isinstance(error, OSError) else None
    # Libraries with writers of their own (safetensors, onnx) pass the system's words on in their own error classes.
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        raise InputError(f"no space left on the disk while writing {path}; free some space and run again") from error
    refused = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
    if number is not None and number in refused:
        reason = os.strerror(number)
        raise InputError(f"{path} cannot be written ({reason}); choose another place or mend its rights") from error
