"""The tensors of the Open Inference Protocol v2: JSON and binary bodies to numpy arrays and back."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anomalysd_edge.core.types import Array
from anomalysd_runtime.server.errors import BadRequest

DTYPES: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32, "UINT8": np.uint8, "BOOL": np.bool_}
HEADER = "inference-header-content-length"


def read_request(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, Array | list[bytes]]]:
    """The JSON part, and the inputs by name: arrays, or for BYTES a flat list. Raises BadRequest."""
    if header_length is None:
        head, rest = body, b""
    else:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body)):
            raise BadRequest(
                f"Inference-Header-Content-Length is {header_length[:40]!r}; the body has {len(body)} bytes"
            )
        head, rest = body[: int(header_length)], body[int(header_length) :]
    try:
        value = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request's JSON cannot be read ({str(error)[:120]})") from error
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list) or not value["inputs"]:
        raise BadRequest("the request has no list 'inputs'; see /v2/models/NAME for what is expected")
    found: dict[str, Array | list[bytes]] = {}
    for entry in value["inputs"]:
        name, shape, kind = _described(entry)
        if name in found:
            raise BadRequest(f"the input {name[:80]!r} came twice")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            found[name] = _from_json(name, entry.get("data"), shape, kind)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise BadRequest(f"the input {name[:80]!r} claims {size!r} bytes of binary data; {len(rest)} are left")
        found[name] = _from_binary(name, rest[:size], shape, kind)
        rest = rest[size:]
    if rest:
        raise BadRequest(f"{len(rest)} bytes of binary data belong to no input")
    return value, found


def write_response(head: dict[str, Any], outputs: Mapping[str, Array | list[bytes]], binary: Sequence[str]) -> Any:
    """(body, length of its JSON part or None): outputs named in `binary` follow the JSON as bytes."""
    described, parts = [], []
    for name, value in outputs.items():
        kind = "BYTES" if isinstance(value, list) else datatype(value)
        entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(np.shape(value))}
        if name in binary:
            data = _packed(value) if isinstance(value, list) else np.ascontiguousarray(value).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        elif isinstance(value, list):
            entry["data"] = [each.decode() for each in value]
        else:
            entry["data"] = [_plain(each) for each in value.ravel().tolist()]
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False).encode()
    return text + b"".join(parts), len(text) if parts else None


def datatype(value: Array) -> str:
    """The protocol's name of an array's type."""
    return next(name for name, kind in DTYPES.items() if value.dtype == kind)


def _described(entry: Any) -> tuple[str, tuple[int, ...], str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise BadRequest("an input has no name")
    name, shape, kind = entry["name"], entry.get("shape"), entry.get("datatype")
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and 0 < n < 2**31 for n in shape)
        or not 0 < len(shape) < 9
    ):
        raise BadRequest(
            f"the input {name[:80]!r} has the shape {str(shape)[:80]}; expected a list of positive numbers"
        )
    if not isinstance(kind, str) or (kind != "BYTES" and kind not in DTYPES):
        raise BadRequest(f"the input {name[:80]!r} has the datatype {str(kind)[:40]!r}; see /v2/models/NAME")
    return name, tuple(shape), kind


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise BadRequest("'parameters' of an input is not an object")
    return found


def _from_binary(name: str, data: bytes, shape: tuple[int, ...], kind: str) -> Array | list[bytes]:
    count = math.prod(shape)
    if kind == "BYTES":
        found = []
        position = 0
        while position < len(data):
            if position + 4 > len(data):
                raise BadRequest(f"the input {name[:80]!r} ends inside a length")
            (length,) = struct.unpack_from("<I", data, position)
            position += 4
            if position + length > len(data):
                raise BadRequest(
                    f"the input {name[:80]!r} announces {length} bytes and {len(data) - position} are left"
                )
            found.append(data[position : position + length])
            position += length
        if len(found) != count:
            raise BadRequest(f"the input {name[:80]!r} holds {len(found)} elements and its shape says {count}")
        return found
    wanted = count * np.dtype(DTYPES[kind]).itemsize
    if len(data) != wanted:
        raise BadRequest(f"the input {name[:80]!r} has {len(data)} bytes and its shape says {wanted}")
    return np.frombuffer(data, DTYPES[kind]).reshape(shape)


def _from_json(name: str, data: Any, shape: tuple[int, ...], kind: str) -> Array | list[bytes]:
    if not isinstance(data, list):
        raise BadRequest(f"the input {name[:80]!r} has neither 'data' nor 'binary_data_size'")
    flat = _flatten(data)
    if len(flat) != math.prod(shape):
        raise BadRequest(f"the input {name[:80]!r} holds {len(flat)} elements and its shape says {math.prod(shape)}")
    if kind == "BYTES":
        return [_text(name, item) for item in flat]
    if not all(isinstance(item, (int, float)) for item in flat):
        raise BadRequest(f"the input {name[:80]!r} holds something that is no number")
    if kind == "UINT8" and not all(isinstance(item, int) and 0 <= item <= 255 for item in flat):
        raise BadRequest(f"the input {name[:80]!r} holds values outside 0..255")
    try:
        return np.array(flat, DTYPES[kind]).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"the input {name[:80]!r} holds values that do not fit {kind}") from error


def _flatten(data: list[Any]) -> list[Any]:
    """Nested lists in order, without recursion: a body of brackets must not fill the stack."""
    flat: list[Any] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            flat.append(item)
        else:
            stack.pop()
    return flat


def _text(name: str, item: Any) -> bytes:
    if not isinstance(item, str):
        raise BadRequest(f"the input {name[:80]!r} holds something that is no string")
    try:
        return item.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the input {name[:80]!r} holds a string that is no text") from error


def from_base64(name: str, item: bytes) -> bytes:
    """A photo in JSON is base64. Raises BadRequest."""
    try:
        return base64.b64decode(item, validate=True)
    except binascii.Error as error:
        raise BadRequest(
            f"the input {name[:80]!r} is not base64; send files as base64 in JSON, or as binary data"
        ) from error


def _packed(values: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
