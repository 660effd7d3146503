"""ONNX models written and read field by field, as ONNX's protobuf schema numbers them: no onnx package."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.types import Array

IR_VERSION = 8
OPSET = 18
FLOAT, FLOAT16 = 1, 10
_FLOAT_ATTRIBUTE, _INT_ATTRIBUTE = 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DTYPES = {1: "<f4", 7: "<i8", 10: "<f2"}
"""TensorProto.DataType of the constants that are read: float, int64, float16."""

Axes = Sequence["int | str"]


def model(name: str, nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    """A serialised ModelProto of nodes and tensors made by :func:`node` and :func:`tensor`."""
    graph = b"".join(_bytes(1, entry) for entry in nodes) + _text(2, name)
    graph += b"".join(_bytes(11, entry) for entry in inputs) + b"".join(_bytes(12, entry) for entry in outputs)
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "anomalysd-edge") + _bytes(7, graph) + _bytes(8, opset)


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: int | float
) -> bytes:
    """NodeProto with integer and float attributes."""
    found = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs) + _text(4, kind)
    for name, value in attributes.items():
        if isinstance(value, float):
            entry = _varint(2 << 3 | _FIXED32) + struct.pack("<f", value) + _number(20, _FLOAT_ATTRIBUTE)
        else:
            entry = _number(3, value) + _number(20, _INT_ATTRIBUTE)
        found += _bytes(5, _text(1, name) + entry)
    return found + (_text(7, domain) if domain else b"")


def tensor(name: str, shape: Axes, kind: int = FLOAT) -> bytes:
    """ValueInfoProto; a name stands for a free axis."""
    axes = b"".join(_bytes(1, _number(1, axis) if isinstance(axis, int) else _text(2, axis)) for axis in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, axes)))


@dataclass(frozen=True)
class Node:
    """A NodeProto as far as it is looked at."""

    kind: str
    """op_type."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, tuple[int, ...]]
    """Integer attributes; a single one is a tuple of one."""
    data: bytes
    """The whole message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """(number, value, whole entry) of every field of a message; the value of a text or message is a view of it."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        kind = key & 7
        value: int | memoryview
        if kind == _VARINT:
            value, at = _read_varint(message, at)
        else:
            length = {_FIXED32: 4, _FIXED64: 8}.get(kind, -1)
            if kind == _LENGTH:
                length, at = _read_varint(message, at)
            if length < 0 or at + length > len(message):
                raise ValueError(f"no protobuf message: field {key >> 3} of wire type {kind} at byte {start}")
            value, at = message[at : at + length], at + length
        yield key >> 3, value, message[start:at]


def read_node(message: memoryview) -> Node:
    """A NodeProto."""
    inputs: list[str] = []
    outputs: list[str] = []
    kind = ""
    integers: dict[str, tuple[int, ...]] = {}
    for number, value, _ in fields(message):
        if isinstance(value, int):
            continue
        if number == 1:
            inputs.append(str(value, "utf-8"))
        elif number == 2:
            outputs.append(str(value, "utf-8"))
        elif number == 4:
            kind = str(value, "utf-8")
        elif number == 5:
            name, found = _read_attribute(value)
            integers[name] = found
    return Node(kind, tuple(inputs), tuple(outputs), integers, bytes(message))


def read_constant(message: memoryview, most: int = 64) -> tuple[str, Array | None]:
    """Name and values of a TensorProto of at most `most` bytes inside the file; None for another one."""
    name, dims, kind, raw = "", [], 0, None
    for number, value, _ in fields(message):
        if number == 1:
            dims += [value] if isinstance(value, int) else _read_varints(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number == 9 and not isinstance(value, int):
            raw = value
    if raw is None or len(raw) > most or kind not in _DTYPES:
        return name, None
    return name, np.frombuffer(bytes(raw), _DTYPES[kind]).reshape(dims)


def joined(number: int, message: bytes) -> bytes:
    """`message` as field `number` of the message around it."""
    return _bytes(number, message)


def opset(domain: str, version: int) -> bytes:
    """OperatorSetIdProto."""
    return _text(1, domain) + _number(2, version)


def _read_attribute(message: memoryview) -> tuple[str, tuple[int, ...]]:
    name, found = "", list[int]()
    for number, value, _ in fields(message):
        if number == 1 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number in (3, 8):
            found += [value] if isinstance(value, int) else _read_varints(value)
    return name, tuple(found)


def _read_varints(packed: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        found.append(value)
    return found


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, at
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
