"""TensorRT and TensorRT for RTX: everything in which the two libraries differ stands here, and nowhere else."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anomalysd_edge.bundle.backend_spec import ENGINES
from anomalysd_edge.errors import BackendError, MissingExtra, SettingsError, missing_extra

if TYPE_CHECKING:
    from anomalysd_runtime.tensorrt.kernel_cache import KernelCache

PORTABLE = "portable"
"""A TensorRT-for-RTX engine without targets: it runs on PORTABLE_ON."""
PORTABLE_ON = ("sm86", "sm89", "sm120", "sm121")
"""Ampere, Ada and Blackwell with RTX: no data-centre GPU (sm80, sm90, sm100), no Jetson (sm87, sm110)."""
RECIPES = {"rtx": 2, "tensorrt": 1}
"""Version of the builder's settings below, by kind: engines of an older one are built anew. 2: no TF32, no allocation
of its own at run time."""
RTX_ONLY_RULE = "POLYGRAPHY_USE_TENSORRT_RTX"
"""Tells polygraphy which library its loaders shall import; read when polygraphy is first imported."""


@dataclass(frozen=True)
class Library:
    """One of the two libraries, loaded."""

    kind: str
    """rtx or tensorrt, as backends are called."""
    module: Any
    """tensorrt_rtx or tensorrt."""

    @property
    def name(self) -> str:
        """The module's name: what a fingerprint holds."""
        return ENGINES[self.kind]

    @property
    def version(self) -> str:
        """Its full version."""
        return str(self.module.__version__)

    @property
    def recipe(self) -> int:
        """Version of the settings that engines are built with."""
        return RECIPES[self.kind]

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds without a GPU."""
        return self.kind == "rtx"

    def targets(self) -> tuple[str, ...]:
        """Architectures that it can build for ahead of time, as sm86; none for a library that builds where it runs."""
        if not self.ahead_of_time:
            return ()
        names = [name for name in dir(self.module.ComputeCapability) if name.startswith("SM")]
        return tuple(sorted((name.lower() for name in names), key=lambda name: int(name[2:])))

    def check_targets(self, targets: Sequence[str]) -> None:
        """Raise SettingsError for a target that this library does not know."""
        known = self.targets()
        if not self.ahead_of_time:
            if targets:
                raise SettingsError(
                    f"{self.name} builds for the GPU it runs on, so it takes no --targets (got {', '.join(targets)}): "
                    "leave them out, or build with --engine rtx"
                )
            return
        unknown = [target for target in targets if target != PORTABLE and target not in known]
        if unknown:
            raise SettingsError(
                f"{self.name} {self.version} does not know the target {unknown[0]!r}, it knows {', '.join(known)} and "
                f"'{PORTABLE}': build for one of these, or with --engine tensorrt on the device itself"
            )
        if PORTABLE in targets and len(targets) > 1:
            raise SettingsError(f"'{PORTABLE}' stands alone, got {', '.join(targets)}: build twice for both")

    def config_loader(self, targets: Sequence[str], workspace_bytes: int | None = None, **settings: Any) -> Any:
        """polygraphy's configuration loader for these targets; call select_polygraphy_library first.

        `workspace_bytes` bounds what a kernel may use beside tensors; without it that is all of a GPU's memory.
        """
        if workspace_bytes is not None:
            settings["memory_pool_limits"] = {self.module.MemoryPoolType.WORKSPACE: workspace_bytes}
        if not self.ahead_of_time:
            from polygraphy.backend.trt import CreateConfig

            return CreateConfig(**settings)  # it clears TF32 itself
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        settings.pop("load_timing_cache", None)  # this library has no timing: kernels are chosen on the GPU
        capabilities = [divmod(int(target[2:]), 10) for target in targets if target != PORTABLE]
        create = CreateConfigRTX(compute_capabilities=capabilities or None, **settings)
        flags = self.module.BuilderFlag

        def configured(builder: Any, network: Any) -> Any:
            config = create(builder, network)
            config.clear_flag(flags.TF32)  # on by default, and CreateConfigRTX leaves it on
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)  # an engine that allocates at run time is never captured
            return config

        return configured

    @property
    def has_timing_cache(self) -> bool:
        """Whether a build can be made faster by the measurements of an earlier one."""
        return not self.ahead_of_time

    def fits(self, gpu: Sequence[str], capability: tuple[int, int]) -> bool:
        """Whether an engine for `gpu` runs on a device of this compute capability."""
        return f"sm{capability[0]}{capability[1]}" in (PORTABLE_ON if PORTABLE in gpu else gpu)

    def execution_context(self, engine: Any, kernels: KernelCache | None = None) -> Any:
        """A context that owns no device memory: the caller sets it (set_device_memory). `kernels` is for RTX alone."""
        by_user = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.ahead_of_time:
            return engine.create_execution_context(by_user)
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(by_user)
        # Kernels are compiled when a context first runs; done eagerly they cannot fall into a graph's capture.
        eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        settings.dynamic_shapes_kernel_specialization_strategy = eager
        if kernels is not None:
            kernels.attach(settings)
        return engine.create_execution_context(settings)


def load_library(kind: str) -> Library:
    """Load the library of a backend kind (rtx or tensorrt). Raises MissingExtra, or BackendError if it is broken."""
    if kind not in ENGINES:
        raise BackendError(f"{kind!r} names no engine library, expected one of {', '.join(ENGINES)}")
    try:
        return Library(kind, importlib.import_module(ENGINES[kind]))
    except ModuleNotFoundError as error:
        jetson = "; on a Jetson it comes with JetPack (docs/jetson.md)" if kind == "tensorrt" else ""
        raise MissingExtra(f"{missing_extra(ENGINES[kind], kind)}{jetson}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(f"{ENGINES[kind]} is installed but does not load ({error}): reinstall it") from error


def select_polygraphy_library(kind: str) -> None:
    """Make polygraphy's loaders use this library. Before polygraphy's first import, once a process."""
    os.environ[RTX_ONLY_RULE] = "1" if kind == "rtx" else "0"
