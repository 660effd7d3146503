"""The file of compiled kernels: kept, read again, refused when foreign, and never in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.errors import BackendError
from anomalysd_runtime.tensorrt.kernel_cache import KernelCache


class RuntimeConfig:
    """The part of IRuntimeConfig that a cache meets; its cache takes blobs that begin with this GPU's name."""

    def __init__(self, gpu: bytes = b"sm89", refuses: bool = False) -> None:
        self.gpu, self.refuses, self.used = gpu, refuses, []  # type: ignore[var-annotated]

    def create_runtime_cache(self) -> Any:
        gpu = self.gpu

        class Cache:
            blob = gpu

            def serialize(self) -> bytes:
                return self.blob

            def deserialize(self, blob: bytes) -> bool:
                fits = blob.startswith(gpu)
                self.blob = blob if fits else self.blob
                return fits

        return Cache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.used.append(cache)
        return not self.refuses


def test_kernels_are_written_once_and_read_by_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "engines/kernels.cache"
    first = KernelCache(file)
    contexts = [RuntimeConfig(), RuntimeConfig()]
    for context in contexts:
        first.attach(context)
    assert contexts[0].used == contexts[1].used, "one cache for all contexts"
    contexts[0].used[0].blob = b"sm89 kernels"
    first.save()
    assert file.read_bytes() == b"sm89 kernels"
    second, context = KernelCache(file), RuntimeConfig()
    second.attach(context)
    assert context.used[0].blob == b"sm89 kernels"
    before = file.stat().st_mtime_ns
    second.save()
    assert file.stat().st_mtime_ns == before, "nothing new, nothing written"


def test_another_gpus_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "kernels.cache"
    file.write_bytes(b"sm120 kernels")
    cache = KernelCache(file)
    cache.attach(RuntimeConfig())
    cache.save()
    assert file.read_bytes() == b"sm89"


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "engines").write_text("a file where the folder should be")
    cache = KernelCache(tmp_path / "engines/kernels.cache")
    cache.attach(RuntimeConfig())
    cache.save()
    assert "every start compiles them anew" in caplog.text


def test_a_refused_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="refused its own cache"):
        KernelCache(tmp_path / "k").attach(RuntimeConfig(refuses=True))
    KernelCache(tmp_path / "k").save()  # classic TensorRT: nothing was ever attached
    assert not (tmp_path / "k").exists()
