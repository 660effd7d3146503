"""Subcommands facts and ceiling: what the GPU and its libraries are, and what nothing on it can be faster than."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.claims import REHEARSAL, Claim, Kit, Lines, Part
from benchmarks.gpu.needs import first_missing, missing_provider

SIDES = {"cuda": (2048, 4096, 8192), "cpu": (256, 512)}
"""Sides of the square matrices that are tried: the best of them is the rate."""
COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 24}

FACTS = (
    Claim("facts.product", "torch computes on the GPU", "2 x 3 = 6"),
    Claim("facts.kernels", "torch holds kernels for this GPU's architecture", "its own, an older minor's, or PTX"),
    Claim("facts.bindings", "cuda-bindings and torch describe one GPU", "equal name, capability and memory"),
    Claim("facts.driver", "the driver is new enough for torch's CUDA", "its CUDA is that of torch or newer"),
    Claim("facts.onnxruntime", "ONNX Runtime runs a graph on CUDA", "a step's graph gives 1 x 1 + 1 x 1 = 2"),
    Claim("facts.doctor", "doctor says of CUDA what opening a graph says", "the same answer"),
    Claim("facts.rtx", "doctor says of TensorRT RTX whether it has this architecture", "the same answer"),
)
CEILING = (
    Claim("ceiling.half", "fp16 runs on the matrix units", "at least 3 times float32's rate", True),
    Claim("ceiling.float32", "a float32 product is not TF32's", "relative error at most 1e-5"),
    Claim(
        "ceiling.random", "constant matrices are no measure: random ones are not faster", "at most 1.02 of theirs", True
    ),
    Claim("ceiling.steady", "the clocks hold under load", "after 5 s at least 85 % of the best fp16 rate", True),
    Claim("ceiling.product", "the ceiling that bench divides by is the machine's", "within 20 % of torch's fp16 rate"),
)


def facts(kit: Kit, lines: Lines) -> None:
    """Show FACTS."""
    import torch

    with lines.showing("facts.product"):
        found = (torch.full((1,), 2.0, device=kit.device) * 3).item()
        lines.shown("facts.product", found, found == 6, torch=torch.__version__, cuda=torch.version.cuda)
    if kit.rehearsal:
        lines.not_shown_rest(REHEARSAL)
        return
    capability = torch.cuda.get_device_capability()
    with lines.showing("facts.kernels"):
        held = torch.cuda.get_arch_list()
        lines.shown("facts.kernels", held, has_kernels(held, capability), capability=capability)
    with lines.showing("facts.bindings"):
        from anomalysd_runtime.tensorrt.cuda_device import gpu

        mine, theirs = gpu(), torch.cuda.get_device_properties(0)
        pairs = [
            (mine.name, theirs.name), (list(mine.capability), list(capability)),
            (mine.memory_bytes, theirs.total_memory),
        ]  # fmt: skip
        lines.shown("facts.bindings", pairs, all(a == b for a, b in pairs))
    with lines.showing("facts.driver"):
        from cuda.bindings import runtime

        code, version = runtime.cudaDriverGetVersion()
        needed = [int(word) for word in str(torch.version.cuda).split(".")[:2]]
        has = [version // 1000, version % 1000 // 10]
        # Within a major version an older driver runs what a newer toolkit compiled.
        lines.shown("facts.driver", has, int(code) == 0 and has[0] >= needed[0], torch=needed)
    from anomalysd_edge.workflows.doctor import examine

    says = {finding.what: finding for finding in examine()}
    opened = _onnxruntime(kit, lines)
    with lines.showing("facts.doctor"):
        found_so = says["inspect on CUDA"]
        lines.shown("facts.doctor", [found_so.able, opened], found_so.able == opened, because=found_so.because)
    why = first_missing(kit, ["tensorrt-rtx"])
    if why:
        lines.not_shown("facts.rtx", why)
        return
    with lines.showing("facts.rtx"):
        from anomalysd_runtime.tensorrt.library import load_library

        library = load_library("rtx")
        knows = f"sm{capability[0]}{capability[1]}" in library.targets()
        able = says["run TensorRT RTX"].able
        lines.shown("facts.rtx", [able, knows], able == knows, targets=library.targets(), version=library.version)


def has_kernels(held: list[str], capability: tuple[int, int]) -> bool:
    """Whether a build for these architectures (sm_90, compute_90 for PTX) runs on a GPU of this capability."""
    for arch in held:
        kind, _, number = arch.partition("_")
        major, minor = divmod(int(number.rstrip("af")), 10)
        specific = number[-1] in "af"
        if (
            kind == "sm"
            and major == capability[0]
            and (minor == capability[1] or (minor < capability[1] and not specific))
        ):
            return True
        if kind == "compute" and not specific and (major, minor) <= capability:
            return True
    return False


def _onnxruntime(kit: Kit, lines: Lines) -> bool:
    """Show whether a graph of a few nodes runs on CUDA; whether it did."""
    why = missing_provider(kit)
    if why:
        lines.not_shown("facts.onnxruntime", why)
        return False
    with lines.showing("facts.onnxruntime"):
        from anomalysd_runtime.onnx.sessions import trouble

        found = trouble(kit.device)
        lines.shown("facts.onnxruntime", found or "it ran", found is None)
        return found is None
    return False


def ceiling(kit: Kit, lines: Lines) -> None:
    """Show CEILING."""
    import torch

    rates: dict[str, float] = {}
    with lines.showing("ceiling.half"):
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
            rates[name] = matrix_rate(kit, dtype)
        with tf32(True):
            rates["tf32"] = matrix_rate(kit, torch.float32)
        moved = copy_rate(kit)
        ratio = rates["fp16"] / rates["float32"]
        lines.shown("ceiling.half", ratio, ratio >= 3, flops_a_second=rates, bytes_a_second=moved)
    with lines.showing("ceiling.float32"):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(512, 512, generator=generator, dtype=torch.float64) for _ in range(2))
        found = (a.float().to(kit.device) @ b.float().to(kit.device)).cpu().double()
        error = float((found - a @ b).abs().max() / (a.abs() @ b.abs()).max())
        lines.shown("ceiling.float32", error, error <= 1e-5, convolutions_use_tf32=torch.backends.cudnn.allow_tf32)
    with lines.showing("ceiling.random"):
        constant = matrix_rate(kit, torch.float16, constant=True)
        ratio = rates["fp16"] / constant
        lines.shown("ceiling.random", ratio, ratio <= 1.02, constant_flops_a_second=constant)
    with lines.showing("ceiling.steady"):
        seconds = 0.2 if kit.rehearsal else 5.0
        matrix_rate(kit, torch.float16, seconds=seconds)
        after = matrix_rate(kit, torch.float16)
        lines.shown("ceiling.steady", after / rates["fp16"], after >= 0.85 * rates["fp16"])
    why = first_missing(kit, ["onnxruntime-gpu"])
    if why or kit.rehearsal:
        lines.not_shown("ceiling.product", why or REHEARSAL)
        return
    with lines.showing("ceiling.product"):
        from anomalysd_runtime.machine_rates import measure_rates

        product = measure_rates(kit.device, half=True)
        ratio = product.flops_a_second / rates["fp16"]
        lines.shown("ceiling.product", ratio, 0.8 <= ratio <= 1.2, bytes_a_second=product.bytes_a_second)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """TF32 in float32 products and convolutions, on or off, within a block."""
    import torch

    product, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = product.allow_tf32, convolution.allow_tf32
    product.allow_tf32 = convolution.allow_tf32 = on
    try:
        yield
    finally:
        product.allow_tf32, convolution.allow_tf32 = before


def synchronize(kit: Kit) -> None:
    """Wait for the GPU's work."""
    if not kit.rehearsal:
        import torch

        torch.cuda.synchronize()


def matrix_rate(kit: Kit, dtype: Any, constant: bool = False, seconds: float = 0.5) -> float:
    """Operations a second of the fastest square product, on random data unless `constant`, about `seconds` a side."""
    import torch

    best = 0.0
    for side in SIDES[kit.device]:
        shape = (side, side)
        a, b = (
            torch.full(shape, 0.5, dtype=dtype, device=kit.device)
            if constant
            else torch.randn(shape, device=kit.device).to(dtype)
            for _ in range(2)
        )
        out = torch.empty(shape, dtype=dtype, device=kit.device)

        def product(a: Any = a, b: Any = b, out: Any = out) -> None:
            torch.matmul(a, b, out=out)

        best = max(best, 2 * side**3 / seconds_of(kit, product, seconds))
    return best


def copy_rate(kit: Kit, seconds: float = 0.5) -> float:
    """Bytes a second, read and written, of a copy within the device's memory."""
    import torch

    length = COPIED_BYTES[kit.device]
    source = torch.empty(length // 2, dtype=torch.uint8, device=kit.device).random_(0, 255)
    target = torch.empty_like(source)
    return length / seconds_of(kit, lambda: target.copy_(source), seconds)


def seconds_of(kit: Kit, work: Callable[[], Any], seconds: float = 0.5, least: int = 3) -> float:
    """Seconds of one call of `work` as the fastest of several groups of calls; the first calls warm up."""
    for _ in range(2):
        work()
    synchronize(kit)
    began = time.perf_counter()
    work()
    synchronize(kit)
    # So many calls a group that waiting for the GPU costs next to nothing.
    group = max(1, min(100, int(0.02 / max(time.perf_counter() - began, 1e-6))))
    best, until, groups = float("inf"), time.perf_counter() + seconds, 0
    while groups < least or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(group):
            work()
        synchronize(kit)
        best = min(best, (time.perf_counter() - began) / group)
        groups += 1
    return best


PARTS = (
    Part("facts", "the GPU, its driver and libraries, and whether they work together", 30, ("torch",), FACTS, facts),
    Part("ceiling", "rates of matrix products and copies, on random data", 60, ("torch",), CEILING, ceiling),
)
