"""Real engines, built ahead of time without a GPU; and everything that stops a build, in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.errors import BackendError, BundleError, MissingExtra, SettingsError
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.build import BuildReport, BuildRequest, build
from anomalysd_export.engines import building
from anomalysd_export.engines.profiles import Graph, choose_profiles, planned_batches
from anomalysd_runtime.static_batches import references_of
from anomalysd_runtime.tensorrt.engine_files import read_engine
from tests.support.command import Chain, sd_edge
from tests.support.small_graphs import SIZES, write_graph


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed: the extra rtx brings it")
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: the extra rtx brings it")


def asked(bundle: Bundle, **changes: Any) -> BuildReport:
    settings = {"engine": "rtx", "precision": "fp16", "batches": (1, 2), **changes}
    return build(BuildRequest(bundle=bundle.path, **settings), lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_engines_of_a_bundle(bundle: Bundle) -> None:
    report = asked(bundle, targets=("sm86", "sm89"))
    assert [e.fingerprint.network for e in report.engines] == [*bundle.manifest.networks, "step"]
    assert report.kept == []
    found = read_bundle(bundle.path)
    for record in found.manifest.engines:
        assert len(read_engine(found, record)) == record.bytes > 1000
        assert record.fingerprint.gpu == ("sm86", "sm89")
        assert record.build_seconds > 0
        assert record.build_peak_bytes > 50 * 2**20
        assert 0 < record.predicted_peak_bytes <= report.predicted_peak_bytes
        assert record.fingerprint.digest in record.file
    before = {record.file: (bundle.path / record.file).stat().st_mtime_ns for record in found.manifest.engines}
    # Again: nothing to do. Then another graph: what was built from the older one goes.
    again = asked(bundle, targets=("sm86", "sm89"))
    assert len(again.kept) == 6
    assert before == {file: (bundle.path / file).stat().st_mtime_ns for file in before}
    truncated = bundle.path / found.manifest.engines[0].file
    truncated.write_bytes(truncated.read_bytes()[:100])
    mended = asked(bundle, targets=("sm86", "sm89"))
    assert len(mended.kept) == 5
    assert "not compared" in mended.sentence() or mended.seen_peak_bytes is not None


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_trained_network_in_fp8(chain: Chain, tmp_path: Path) -> None:
    """nano's decoder, quantised on real photos, for a GPU that has fp8."""
    import shutil

    shutil.copytree(chain.bundle, tmp_path / "bundle")
    request = BuildRequest(
        bundle=tmp_path / "bundle", engine="onnx", precision="fp8", photos=chain.photos, quantised=("vae_decoder",)
    )
    report = build(request, lambda *_: None)
    assert report.graphs["vae_decoder"]["quantised"] > 5
    found = read_bundle(tmp_path / "bundle")
    job: dict[str, Any] = {
        "onnx": str(found.network_file("vae_decoder", "fp8")), "kind": "rtx", "targets": ["sm89"], "batches": [1],
        "axes": {}, "timing_cache": "", "memory_limit_bytes": None, "workspace_bytes": None,
        "out": str(tmp_path / "out.plan"),
    }  # fmt: skip
    result = building.run_worker(job, "vae_decoder", tmp_path)
    assert (tmp_path / "out.plan").stat().st_size > 100_000
    assert result["error"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_what_the_library_does_not_know(bundle: Bundle) -> None:
    for targets, words in ((("sm87",), "'sm87', it knows sm75"), (("sm86", "portable"), "stands alone")):
        with pytest.raises(SettingsError, match=words):
            asked(bundle, targets=targets)
    assert read_bundle(bundle.path).manifest.engines == ()


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_out_of_memory_while_building(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # The builder's numpy takes memory a thread: with these it needs more than the limit on any machine.
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with pytest.raises(BackendError, match=r"out of memory while building the rtx engine of 'unet'.*limit 200 MiB"):
        asked(bundle, host_memory_bytes=200 << 20)
    engines = bundle.path / "engines"
    assert not engines.exists() or not list(engines.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_graph_that_the_library_cannot_take(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "mine" : 1]> g (float[batch,4] x) => (float[batch,4] y)'
        " { y = mine.Magic(x) }"
    )
    onnx.save(model, str(tmp_path / "g.onnx"))
    job: dict[str, Any] = {
        "onnx": str(tmp_path / "g.onnx"), "kind": "rtx", "targets": ["portable"], "batches": [1], "axes": {},
        "timing_cache": "", "memory_limit_bytes": None, "out": str(tmp_path / "out.plan"),
    }  # fmt: skip
    with pytest.raises(BackendError, match=r"could not be built: .*Magic"):
        building.run_worker(job, "unet", tmp_path)
    assert not (tmp_path / "out.plan").exists()


def test_a_builder_that_dies_is_told_by_its_signal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    job: dict[str, Any] = {"kind": "rtx", "batches": [1], "memory_limit_bytes": None}
    assert "out of memory" in building._reason(-9, tmp_path / "none.json", log, "unet", job)
    assert "ended by signal SIGSEGV" in building._reason(-11, tmp_path / "none.json", log, "unet", job)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="this system does not tell a process's CPU time")
def test_a_builder_that_stands_still_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", code])

    stuck = started("import threading; threading.Event().wait()")
    assert not building.finished(stuck, still_s=1.5)
    assert stuck.returncode == -9
    at_work = started("import time; end = time.time() + 4\nwhile time.time() < end: pass")
    assert building.finished(at_work, still_s=1.5), "one that computes is waited for"
    assert at_work.returncode == 0

    def ended(process: subprocess.Popen[bytes]) -> bool:
        process.kill()
        process.wait()
        return False

    monkeypatch.setattr(building, "finished", ended)
    job: dict[str, Any] = {"kind": "rtx", "batches": [1], "memory_limit_bytes": None, "out": str(tmp_path / "out")}
    with pytest.raises(BackendError, match=r"engine of 'unet' stood still for 120 s .*raise --host-memory"):
        building.run_worker(job, "unet", tmp_path)


@pytest.mark.slow
def test_two_builds_at_once(bundle: Bundle) -> None:
    code = f"""
import time
from pathlib import Path
from anomalysd_edge.bundle.update import writing
with writing(Path({str(bundle.path)!r})):
    print("held", flush=True)
    time.sleep(30)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(BundleError, match=f"being written by another process .process {holder.pid}"):
            asked(bundle, engine="onnx")
        holder.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            asked(bundle, engine="onnx")
            break
        except BundleError:
            time.sleep(0.1)
    assert set(read_bundle(bundle.path).manifest.precisions) == {"fp16"}, "a dead writer kept its lock"


def test_profiles_follow_the_budget(tmp_path: Path) -> None:
    files = {name: write_graph(name, tmp_path / f"{name}.onnx") for name in ("unet", "vae_decoder")}
    whole = choose_profiles(files, SIZES, (1, 4, 16), None)
    assert whole.batches == {"unet": (1, 4, 16), "vae_decoder": (1, 4, 16)}
    assert whole.dropped == ()
    small = choose_profiles(files, SIZES, (1, 4, 16), whole.peak_bytes - 1)
    assert 16 not in small.batches["unet"] or 16 not in small.batches["vae_decoder"]
    assert len(small.dropped) >= 1
    assert small.peak_bytes < whole.peak_bytes
    with pytest.raises(SettingsError, match="memory budget of 0 MiB is too small for unet at batch 1"):
        choose_profiles(files, SIZES, (1,), 100)
    with pytest.raises(SettingsError, match="expected one or more of at least 1"):
        choose_profiles(files, SIZES, (0, 1), None)


def test_memory_is_that_of_tensors_alive_together() -> None:
    """x -> a -> b -> y, 4 bytes * 8 * batch each: at any node two of them live; a view costs nothing."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[batch,8] x) => (float[batch,8] y)
        <int64[2] shape = {-1, 8}> { a = Relu(x) r = Reshape(a, shape) b = Relu(r) y = Relu(b) }"""
    )
    graph = Graph(model)
    assert graph.weights_bytes == 16
    assert graph.activation_bytes(4) == 2 * 4 * 8 * 4


def test_the_planner_is_asked(bundle: Bundle) -> None:
    sizes = planned_batches(bundle)
    # Scales 2 and 4 packed are 8 slots and one guided: 9 for one photo; 36 for four, in three runs of 12.
    assert sizes == (1, 9, 12)
    assert references_of(12) == 3


def test_unknown_words_are_refused(bundle: Bundle) -> None:
    for changes, words in (
        ({"engine": "onnx", "precision": "fp12"}, "precision 'fp12' is unknown"),
        ({"engine": "magic"}, "engine 'magic' is unknown, expected one of onnx, rtx, tensorrt"),
        ({"engine": "onnx", "precision": "int8"}, "int8 needs good photos"),
    ):
        with pytest.raises(SettingsError, match=words):
            asked(bundle, **changes)


def test_classic_tensorrt_needs_its_package_and_a_gpu(bundle: Bundle) -> None:
    if find_spec("tensorrt") is None:
        with pytest.raises(MissingExtra, match=r"anomalysd-edge\[tensorrt\]"):
            asked(bundle, engine="tensorrt")
    else:
        with pytest.raises(SettingsError, match="builds for the GPU it runs on"):
            asked(bundle, engine="tensorrt", targets=("sm86",))


def test_the_chain_of_verbs(chain: Chain, tmp_path: Path) -> None:
    """fp16 made, held against float32, refused on purpose, and then served by force alone."""
    import shutil

    shutil.copytree(chain.bundle, tmp_path / "bundle")
    sd_edge("build", "bundle", "--engine", "onnx", "--precision", "fp16", cwd=tmp_path)
    common = ("verify", "bundle", "--backend", "cpu,cpu:fp16", "--photos", chain.photos, "--labels", "--json")
    judged = json.loads(sd_edge(*common, "--out", "report", cwd=tmp_path).stdout)
    assert judged["passed"]
    assert judged["flips"] == 0
    assert set(judged["networks"]) >= {"unet", "vae_encoder", "vae_decoder", "features"}
    assert (tmp_path / "report/verify.html").is_file()
    strict = sd_edge(*common, "--max-drop", "-1", cwd=tmp_path, check=False)
    assert strict.returncode == 1
    assert "REFUSED" in strict.stderr
    images.save_png(tmp_path / "new.png", np.zeros((40, 40, 3), np.uint8))
    inspect = ("inspect", "bundle", "new.png", "--json", "--backend", "cpu:fp16")
    refused = sd_edge(*inspect, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "the gate refused fp16" in refused.stderr
    forced = json.loads(sd_edge(*inspect, "--force", cwd=tmp_path).stdout)
    assert forced[0]["backend"].endswith("fp16")
    torch = ("verify", "bundle", "--backend", "torch,cpu:fp16", "--photos", chain.photos, "--run", chain.folder / "RUN")
    assert sd_edge(*torch, "--limit", "2", cwd=tmp_path).returncode == 0
    alone = sd_edge("verify", "bundle", "--photos", chain.photos, cwd=tmp_path, check=False)
    assert alone.returncode == 2
    assert "--run" in alone.stderr


@pytest.mark.usefixtures("rtx")
def test_rtx_engines_keep_float32_and_can_be_captured(tmp_path: Path) -> None:
    """The builder's configuration by the real library, which needs no GPU for it."""
    code = """
import sys
from anomalysd_runtime.tensorrt.library import load_library, select_polygraphy_library
select_polygraphy_library("rtx")
library = load_library("rtx")
from polygraphy.backend.trt import CreateNetwork
builder, network = CreateNetwork()()
config = library.config_loader(["sm86", "sm120"], 12345678)(builder, network)
flags, pool = library.module.BuilderFlag, library.module.MemoryPoolType.WORKSPACE
print(config.get_flag(flags.TF32), config.get_flag(flags.REQUIRE_USER_ALLOCATION),
      config.get_memory_pool_limit(pool), [str(config.get_compute_capability(i)) for i in range(2)])
plain = library.config_loader(["portable"])(builder, network)
print(plain.num_compute_capabilities, plain.get_memory_pool_limit(pool) > 12345678)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    configured, plain = [line for line in done.stdout.splitlines() if line.startswith(("True", "False", "0"))]
    assert configured.startswith("False True 12345678")
    assert "SM86" in configured
    assert "SM120" in configured
    assert plain == "0 True"


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_the_memory_budget_reaches_the_builder(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []
    real = building.run_worker

    def watched(job: dict[str, Any], network: str, work: Path) -> dict[str, Any]:
        jobs.append(job)
        return real(job, network, work)

    monkeypatch.setattr(building, "run_worker", watched)
    asked(bundle, batches=(1,), memory_budget_bytes=64 << 20)
    assert {0 < job["workspace_bytes"] < 64 << 20 for job in jobs} == {True}
