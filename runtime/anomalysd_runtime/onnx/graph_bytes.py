"""Small ONNX models written field by field, as the ONNX protobuf schema numbers them (onnx.proto3): no onnx package."""

from __future__ import annotations

from collections.abc import Sequence

IR_VERSION = 8
OPSET = 18
FLOAT, FLOAT16 = 1, 10
_INT_ATTRIBUTE = 2

Axes = Sequence["int | str"]


def model(name: str, nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    """A serialised ModelProto of nodes and tensors made by :func:`node` and :func:`tensor`."""
    graph = b"".join(_bytes(1, entry) for entry in nodes) + _text(2, name)
    graph += b"".join(_bytes(11, entry) for entry in inputs) + b"".join(_bytes(12, entry) for entry in outputs)
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "anomalysd-edge") + _bytes(7, graph) + _bytes(8, opset)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int) -> bytes:
    """NodeProto with integer attributes."""
    found = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs) + _text(4, kind)
    for name, value in attributes.items():
        found += _bytes(5, _text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    return found


def tensor(name: str, shape: Axes, kind: int = FLOAT) -> bytes:
    """ValueInfoProto; a name stands for a free axis."""
    axes = b"".join(_bytes(1, _number(1, axis) if isinstance(axis, int) else _text(2, axis)) for axis in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, axes)))


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
