"""One denoising step as an ONNX graph of a few nodes, so that latents stay on the device between UNet passes.

ONNX Runtime can only compute inside a graph, and exporting this one would tie a bundle to it; it is 300 bytes, so it is
written here, field by field, as the ONNX protobuf schema numbers them (onnx.proto3), without the onnx package.
"""

from __future__ import annotations

from collections.abc import Sequence

IR_VERSION = 8
OPSET = 18
_FLOAT, _INT_ATTRIBUTE = 1, 2


def step_graph(guided: bool, looks_back: bool = False) -> bytes:
    """A serialised ONNX model of one step.

    Inputs: latents z (N,C,h,w), out_sample (N,C,h,w), condition (N,1+C,h,w) [mask, masked latents], c0 (1,), c1 (1,).
    Outputs: next_latents = c0*z + c1*out_sample (N,C,h,w) and sample = [next_latents, condition] (N,2C+1,h,w).
    With `guided`, out_sample is (2N,C,h,w), negative rows first as in diffusers; a further input guidance (1,) makes
    it neg + guidance * (pos - neg), and sample comes twice, (2N,2C+1,h,w). All float32.
    With `looks_back`, inputs previous p (N,C,h,w), h0, h1, h2 (1,) come last: next_latents gets h0*p on top, and a
    third output is next_previous = h1*z + h2*out_sample (networks.InpaintJob.history).
    """
    n, c = "batch", "channels"
    inputs: list[tuple[str, tuple[int | str, ...]]] = [
        ("latents", (n, c, "h", "w")),
        ("out_sample", ("passes", c, "h", "w")),
        ("condition", (n, "m", "h", "w")),
    ]
    inputs += [(name, (1,)) for name in (("c0", "c1", "guidance") if guided else ("c0", "c1"))]
    if looks_back:
        inputs += [("previous", (n, c, "h", "w")), *((name, (1,)) for name in ("h0", "h1", "h2"))]
    nodes = []
    if guided:
        nodes += [
            _node("Split", ["out_sample"], ["negative", "positive"], axis=0, num_outputs=2),
            _node("Sub", ["positive", "negative"], ["apart"]),
            _node("Mul", ["apart", "guidance"], ["steer"]),
            _node("Add", ["negative", "steer"], ["prediction"]),
        ]
    nodes += [
        _node("Mul", ["latents", "c0"], ["kept"]),
        _node("Mul", ["prediction" if guided else "out_sample", "c1"], ["moved"]),
        _node("Add", ["kept", "moved"], ["first_order" if looks_back else "next_latents"]),
    ]
    if looks_back:
        nodes += [
            _node("Mul", ["previous", "h0"], ["before"]),
            _node("Add", ["first_order", "before"], ["next_latents"]),
            _node("Mul", ["latents", "h1"], ["of_latents"]),
            _node("Mul", ["prediction" if guided else "out_sample", "h2"], ["of_output"]),
            _node("Add", ["of_latents", "of_output"], ["next_previous"]),
        ]
    nodes += [
        _node("Concat", ["next_latents", "condition"], ["joined" if guided else "sample"], axis=1),
    ]
    if guided:
        nodes.append(_node("Concat", ["joined", "joined"], ["sample"], axis=0))
    outputs = [("next_latents", (n, c, "h", "w")), ("sample", ("passes", "all", "h", "w"))]
    if looks_back:
        outputs.append(("next_previous", (n, c, "h", "w")))
    graph = b"".join(_bytes(1, node) for node in nodes) + _text(2, "step")
    graph += b"".join(_bytes(11, _tensor(*entry)) for entry in inputs)
    graph += b"".join(_bytes(12, _tensor(*entry)) for entry in outputs)
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "anomalysd-edge") + _bytes(7, graph) + _bytes(8, opset)


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int) -> bytes:
    node = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs) + _text(4, kind)
    for name, value in attributes.items():
        node += _bytes(5, _text(1, name) + _number(3, value) + _number(20, _INT_ATTRIBUTE))
    return node


def _tensor(name: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto of a float32 tensor; a name stands for a free axis."""
    axes = b"".join(_bytes(1, _number(1, axis) if isinstance(axis, int) else _text(2, axis)) for axis in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, axes)))


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
