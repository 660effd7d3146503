"""The base of all networks: wrappers forward every attribute and call, and the numpy loop is the backends' own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.evaluation.network_parity import ComparedNetworks
from anomalysd_edge.method.networks import (
    ForwardingNetworks,
    InpaintJob,
    Networks,
    NetworkSizes,
    denoise,
    single_pass,
)
from anomalysd_edge.profiling.network_meter import MeteredNetworks
from anomalysd_export.engines.calibrating import Recorder
from anomalysd_runtime.fallback import FallbackNetworks
from tests.support.fake_networks import FakeNetworks

ATTRIBUTES = [name for name in inspect.get_annotations(Networks) if not name.startswith("_")]
METHODS = [
    name for name, value in vars(Networks).items() if inspect.isfunction(value) and name[0] != "_" and name != "close"
]
WRAPPERS: dict[str, Callable[[Networks], ForwardingNetworks]] = {
    "forwarding": ForwardingNetworks,
    "metered": MeteredNetworks,
    "side by side": lambda networks: ComparedNetworks(networks, Marked()),
    "recorder": Recorder,
    "fallback": lambda networks: FallbackNetworks(networks, Marked),
}


class Marked(FakeNetworks):
    """Every attribute has a value that no default has, and every call is noted."""

    def __init__(self) -> None:
        super().__init__(max_batch=6)
        self.backend = "marked"
        self.batch_sizes = (2, 4)
        self.called: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            super().__getattribute__("called").append(name)
        return super().__getattribute__(name)


def job(history: F32 | None = None) -> InpaintJob:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    return InpaintJob(
        z, np.ones((2, 1, 8, 8), np.float32), z, np.ones((1, 77, 4), np.float32), np.zeros(2, np.int64),
        np.array([9, 5, 1]), rng.normal(size=(3, 2)).astype(np.float32), history=history,
    )  # fmt: skip


def arguments(method: str) -> tuple[Any, ...]:
    images: F32 = np.zeros((2, 3, 32, 32), np.float32)
    rows: I64 = np.zeros(2, np.int64)
    return {
        "encode": (images,), "decode": (images[:, :, :8, :8],), "features": (images,),
        "distance": (images[:1], images, rows), "inpaint": (job(),), "probe": (),
    }[method]  # fmt: skip


def test_the_protocol_is_what_is_tested() -> None:
    assert {"sizes", "backend", "max_batch", "batch_sizes"} <= set(ATTRIBUTES)
    assert sorted(METHODS) == ["decode", "distance", "encode", "features", "inpaint", "probe"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_forwards_every_attribute(name: str) -> None:
    inner = Marked()
    with WRAPPERS[name](inner) as wrapper:
        for attribute in ATTRIBUTES:
            assert getattr(wrapper, attribute) == getattr(inner, attribute), attribute
        inner.backend = "marked, then changed"
        assert wrapper.backend == "marked, then changed"
        wrapper.backend = "set"
        assert inner.backend == "set"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_forwards_every_call(name: str, method: str) -> None:
    expected = getattr(FakeNetworks(), method)(*arguments(method))
    inner = Marked()
    found = getattr(WRAPPERS[name](inner), method)(*arguments(method))
    assert method in inner.called
    if method != "inpaint" or name in ("forwarding", "metered", "fallback"):  # the others go step by step
        np.testing.assert_array_equal(found, expected)


class Linear(FakeNetworks):
    """A UNet that is a multiple of its latents, so that a loop's result is known without a network."""

    def inpaint(self, job: InpaintJob) -> F32:
        return denoise(job, lambda latents, number: latents * np.float32(job.timesteps[number] / 10))


@pytest.mark.parametrize("looks_back", [False, True])
@pytest.mark.parametrize("wrap", [Recorder, lambda networks: ComparedNetworks(networks, Linear())])
def test_step_by_step_is_the_whole_loop(wrap: Callable[[Networks], Networks], looks_back: bool) -> None:
    """A sampler that looks one pass back keeps its second term where passes are run one by one."""
    history = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32) if looks_back else None
    whole = job(history)
    expected = Linear().inpaint(whole)
    np.testing.assert_array_equal(wrap(Linear()).inpaint(whole), expected)
    z, p = whole.start_latents.astype(np.float64), np.zeros_like(whole.start_latents, np.float64)
    for number, (c0, c1) in enumerate(whole.coefficients):
        out = z * whole.timesteps[number] / 10
        h0, h1, h2 = np.zeros(3) if history is None else history[number]
        z, p = c0 * z + c1 * out + h0 * p, h1 * z + h2 * out
    np.testing.assert_allclose(expected, z, rtol=1e-4, atol=1e-5)


def test_a_single_pass_gives_the_output_itself() -> None:
    whole = job(np.ones((3, 3), np.float32))
    np.testing.assert_allclose(
        Linear().inpaint(single_pass(whole, whole.masked_latents, 1)), whole.masked_latents * 0.5, rtol=1e-6
    )


def test_networks_without_static_sizes() -> None:
    assert FakeNetworks().batch_sizes == ()
    assert FakeNetworks().sizes == NetworkSizes(32, 3, 4, 32)
