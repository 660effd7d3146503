"""One denoising step as an ONNX graph of a few nodes, so that latents stay on the device between UNet passes.

ONNX Runtime can only compute inside a graph, and exporting this one would tie a bundle to it; it is 300 bytes, so it is
written here (onnx_bytes.py).
"""

from __future__ import annotations

from anomalysd_runtime.onnx.graph_bytes import model, node, tensor


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
            node("Split", ["out_sample"], ["negative", "positive"], axis=0, num_outputs=2),
            node("Sub", ["positive", "negative"], ["apart"]),
            node("Mul", ["apart", "guidance"], ["steer"]),
            node("Add", ["negative", "steer"], ["prediction"]),
        ]
    nodes += [
        node("Mul", ["latents", "c0"], ["kept"]),
        node("Mul", ["prediction" if guided else "out_sample", "c1"], ["moved"]),
        node("Add", ["kept", "moved"], ["first_order" if looks_back else "next_latents"]),
    ]
    if looks_back:
        nodes += [
            node("Mul", ["previous", "h0"], ["before"]),
            node("Add", ["first_order", "before"], ["next_latents"]),
            node("Mul", ["latents", "h1"], ["of_latents"]),
            node("Mul", ["prediction" if guided else "out_sample", "h2"], ["of_output"]),
            node("Add", ["of_latents", "of_output"], ["next_previous"]),
        ]
    nodes += [
        node("Concat", ["next_latents", "condition"], ["joined" if guided else "sample"], axis=1),
    ]
    if guided:
        nodes.append(node("Concat", ["joined", "joined"], ["sample"], axis=0))
    outputs = [("next_latents", (n, c, "h", "w")), ("sample", ("passes", "all", "h", "w"))]
    if looks_back:
        outputs.append(("next_previous", (n, c, "h", "w")))
    return model("step", nodes, [tensor(*entry) for entry in inputs], [tensor(*entry) for entry in outputs])
