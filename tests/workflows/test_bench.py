"""sd-edge bench: rows from file to verdict, the floor, tables and pictures; the modes that a deadline picks from."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest
from typer.testing import CliRunner

from anomalysd_edge.cli.main import app
from anomalysd_edge.errors import BackendError, BundleError, SettingsError
from anomalysd_edge.profiling import hardware, operating_point_search
from anomalysd_edge.profiling.hardware import EnergyMeter, board_milliwatts, machine_facts
from anomalysd_edge.profiling.measurement import STAGES, BenchRequest, BenchRow
from anomalysd_edge.profiling.operating_points import (
    OperatingPoint,
    OperatingPointTable,
    batch_within,
    mark_pareto_front,
    pick,
    read_table,
    table_file,
    write_table,
)
from anomalysd_edge.reports.bench import COLUMNS, Floor, as_csv, plot, stage_table, table
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.bench import in_own_process
from anomalysd_edge.workflows.bench_worker import measure
from anomalysd_edge.workflows.open_options import InspectOptions, machine_name
from anomalysd_export.engines.counting import graph_cost
from anomalysd_runtime.machine_rates import measure_rates
from anomalysd_runtime.onnx.providers import built_in
from tests.support.small_graphs import small_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    small_bundle(folder / "BUNDLE")
    rng = np.random.default_rng(0)
    for kind, count in (("train/good", 4), ("test/good", 3), ("test/hole", 3)):
        for number in range(count):
            picture = np.clip(rng.normal(120, 9, (40, 40, 3)), 0, 255).astype(np.uint8)
            if kind == "test/hole":
                picture[10:20, 10:20] = 0
            images.save_png(folder / "PHOTOS/bottle" / kind / f"{number}.png", picture)
    return folder


def request(place: Path, **changes: Any) -> BenchRequest:
    files = [(str(file), "bottle") for file in images.list_images(place / "PHOTOS/bottle/test/good")]
    return replace(BenchRequest(bundle=str(place / "BUNDLE"), photos=files, rounds=3, threads=1), **changes)


@pytest.fixture(scope="module")
def row(place: Path) -> BenchRow:
    return measure(request(place, in_flight=2), 0.0)


def test_a_row_says_where_the_time_went(row: BenchRow) -> None:
    assert (row.rounds, row.in_flight, set(row.stages_ms)) == (3, 2, set(STAGES))
    whole = sum(row.stages_ms.values())
    assert whole == pytest.approx(1e3 / row.photos_a_second, rel=1e-6), "stages and rest are the whole"
    assert row.p50_ms <= row.p95_ms <= row.p99_ms
    assert 0 < row.in_networks <= 1
    slots = 4 + 4  # K = 2, 4 packed; the guided slot comes where a patch is far
    assert row.counts["unet"]["samples"] in (slots * 2, (slots + 1) * 2)
    assert row.counts["features"]["samples"] == 1 + 1 + row.counts["decode"]["samples"] - 1
    assert row.peak_rss_bytes > 50e6
    assert 0 < row.open_s < row.first_verdict_s


def test_the_report_is_whole(row: BenchRow) -> None:
    floor = Floor(1e9, 1e9, {"unet": 0.5}, {"unet": 2.0}, {"unet": 1e-6})
    assert len(table([row], floor)[0]) == len(table([row], None)[0]) == len(COLUMNS)
    assert len(stage_table([row])[0]) == 1 + len(STAGES)
    lines = list(csv.DictReader(io.StringIO(as_csv([row, row]))))
    assert len(lines) == 2
    assert float(lines[0]["p50_ms"]) == row.p50_ms
    assert None not in lines[0], "as many names as values"
    part = floor.of(row)["unet"]
    samples = row.counts["unet"]["samples"]
    assert part["gflop"] == pytest.approx(0.5 * samples)
    assert part["times_floor"] == pytest.approx(row.counts["unet"]["seconds"] / (samples * 1e-6))
    picture = plot([row, row], "title")
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 8


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own_and_what_breaks_there(place: Path) -> None:
    found = in_own_process(request(place, rounds=1))
    assert found.rounds == 1
    assert asdict(found).keys() == asdict(measure(request(place, rounds=1), 0.0)).keys()
    with pytest.raises(BackendError, match="no preset 'fast'"):
        in_own_process(request(place, preset="fast"))


@pytest.mark.slow
def test_the_verb_writes_json_csv_and_a_plot(place: Path, tmp_path: Path) -> None:
    command = ["bench", str(place / "BUNDLE"), "--photos", str(place / "PHOTOS"), "--plan", "edge,paper", "--full"]
    done = CliRunner().invoke(app, [*command, "--rounds", "2", "--out", str(tmp_path / "out"), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/bench.json").read_text(encoding="utf-8"))
    assert [entry["plan"] for entry in found["rows"]] == ["edge", "paper"]
    assert found["rows"][0]["floor"]["networks"]["unet"]["gflop"] > 0
    assert not found["rows"][0]["mode"].endswith("settle")
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert images.load_rgb(tmp_path / "out/bench.png").shape[1] > 500
    assert (tmp_path / "out/bench.csv").read_text(encoding="utf-8").count("\n") == 3
    wrong = CliRunner().invoke(app, [*command, "--batch", "four"])
    assert "--max-batch is 'four'" in str(wrong.exception)


def test_operations_of_a_graph_by_hand(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[batch,3,8,8] x) => (float[batch,6,4,5] y)
        <float[6,3,3,3] w, float[4,5] m> {
        c = Conv<strides = [2,2], pads = [1,1,1,1]>(x, w)
        r = Relu(c)
        y = MatMul(r, m) }"""
    )
    for name, shape in (("w", (6, 3, 3, 3)), ("m", (4, 5))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    cost = graph_cost(tmp_path / "g.onnx", 2)
    conv, product = 2 * 2 * 6 * 4 * 4 * 27, 2 * 2 * 6 * 4 * 5 * 4
    assert [node.flops for node in cost.nodes] == [conv, product]
    assert [node.weight_bytes for node in cost.nodes] == [4 * 6 * 27, 4 * 20]
    assert cost.nodes[0].moved_bytes == 4 * 2 * (3 * 64 + 6 * 16)
    slow = cost.floor_seconds(1.0, 1e12)
    assert slow == pytest.approx(conv + product)
    assert cost.floor_seconds(1e30, 1.0) == pytest.approx(cost.bytes)


@pytest.mark.slow
def test_rates_of_this_machine_are_sane() -> None:
    rates = measure_rates("cpu", 1, seconds=0.2)
    assert 1e8 < rates.flops_a_second < 1e14
    assert 1e8 < rates.bytes_a_second < 1e13


@pytest.mark.gpu
def test_rates_memory_and_energy_of_a_gpu(place: Path) -> None:
    if "CUDAExecutionProvider" not in built_in():
        pytest.skip("no CUDAExecutionProvider in this onnxruntime: the GPU's rates were not measured")
    rates = measure_rates("cuda", half=True, seconds=0.5)
    assert 1e12 < rates.flops_a_second < 1e16
    found = in_own_process(request(place, backend="cuda", rounds=2))
    assert found.gpu_bytes is None or found.gpu_bytes > 1 << 20
    assert "gpu" in machine_facts()


def test_the_machine_is_described_without_its_name() -> None:
    facts = machine_facts()
    assert facts["cores"] >= 1
    assert "onnxruntime" in facts["versions"]
    assert board_milliwatts("RAM 3/7 MB VDD_IN 4567mW/4321mW VDD_CPU 1mW/1mW") == 4567
    assert board_milliwatts("no power here") is None
    agx = "VDD_GPU_SOC 3000mW/2900mW VDD_CPU_CV 800mW/800mW VIN_SYS_5V0 4200mW/4200mW VDDQ_VDD2_1V8AO 700mW/700mW"
    assert board_milliwatts(agx) == 8000
    assert board_milliwatts(agx.replace("VDD_CPU_CV", "VDD_OTHER")) is None, "two rails of three are not the board"
    assert board_milliwatts("VDD_GPU 9mW/9mW VDD_CPU_SOC_MSS 8mW/8mW VIN_SYS_5V0 7mW/7mW VIN 30000mW/1mW") == 30000


def test_a_gpus_energy_is_its_counters_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Nvml:
        """libnvidia-ml, as far as it is called: 0 is success, energy in millijoules."""

        millijoules = 5_000_000

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, value: Any) -> int:
            asked.append("energy")
            value._obj.value = self.millijoules
            return 0

    library = Nvml()
    monkeypatch.setattr("ctypes.CDLL", lambda name: library if "nvidia-ml" in name else None)
    monkeypatch.setattr(
        hardware, "_smi", lambda _arguments: pytest.fail("nvidia-smi was started while it was measured")
    )
    with EnergyMeter() as meter:
        library.millijoules += 12_500
    assert meter.joules["gpu"] == pytest.approx(12.5)
    assert len(asked) <= 3, "the counter is read at the beginning and at the end"


def mode(name: str, ms: float, auroc: float) -> OperatingPoint:
    return OperatingPoint(name, {}, ms, ms, auroc, 0.9, 0, 1, 0, 1, 1.0)


def test_a_deadline_picks_the_best_mode_that_keeps_it() -> None:
    modes = mark_pareto_front(
        [mode("slow", 400, 0.95), mode("middle", 200, 0.9), mode("worse", 250, 0.85), mode("fast", 20, 0.8)]
    )
    assert [(m.name, m.front) for m in modes] == [("fast", True), ("middle", True), ("worse", False), ("slow", True)]
    assert [pick(modes, d).name for d in (1000, 399, 100, 5)] == ["slow", "middle", "fast", "fast"]
    with pytest.raises(SettingsError, match="empty"):
        pick((), 100)


def test_a_memory_budget_picks_the_batch() -> None:
    peaks = {"1": 500 << 20, "4": 530 << 20, "16": 650 << 20}
    assert [batch_within(peaks, mib << 20) for mib in (500, 531, 600, 9000)] == [1, 4, 11, 16]
    with pytest.raises(SettingsError, match="needs 500 MiB here"):
        batch_within(peaks, 100 << 20)
    with pytest.raises(SettingsError, match="bench --pareto first"):
        batch_within({}, 1 << 40)


@pytest.mark.slow
def test_the_table_is_measured_and_a_deadline_uses_it(place: Path, tmp_path: Path) -> None:
    small_bundle(tmp_path / "BUNDLE")
    command = ["bench", str(tmp_path / "BUNDLE"), "--photos", str(place / "PHOTOS"), "--pareto", "--per-class", "3"]
    done = CliRunner().invoke(app, [*command, "--threads", "1", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    table = read_table(tmp_path / "BUNDLE", "edge", "cpu", machine_name())
    assert table is not None
    assert table.judged_on == "labelled photos"
    by_name = {m.name: m for m in table.modes}
    assert by_name["prototypes alone"].unet_samples == 0
    assert by_name["four passes, DPM-Solver++"].unet_samples == 2 * by_name["whole"].unet_samples > 0
    assert all(m.calibration["bottle"].threshold is not None for m in table.modes)
    assert (by_name["whole"].good, by_name["whole"].bad) == (3, 3)
    assert min(table.peak_bytes.values()) > 50e6
    with InspectOptions(memory_budget_bytes=64 << 30, threads=1).detector(tmp_path / "BUNDLE") as detector:
        assert detector.networks.max_batch == 3
    with pytest.raises(SettingsError, match="memory budget is 1 MiB"):
        InspectOptions(memory_budget_bytes=1 << 20, threads=1).detector(tmp_path / "BUNDLE")
    with InspectOptions(deadline_ms=1e6, threads=1).detector(tmp_path / "BUNDLE") as detector:
        assert detector.label == pick(table.modes, 1e6).name
    photo = str(place / "PHOTOS/bottle/test/hole/0.png")
    inspect = ["inspect", str(tmp_path / "BUNDLE"), photo, "--threads", "1", "--json", "--deadline-ms"]
    late, early = (json.loads(CliRunner().invoke(app, [*inspect, ms]).stdout)[0] for ms in ("100000", "0.001"))
    assert late["deadline_met"] is True
    assert pick(table.modes, 1e5).name in late["mode"]
    assert early["deadline_met"] is False
    wrong = CliRunner().invoke(app, [*inspect, "-5"])
    assert "deadline is -5 ms" in str(wrong.exception)


def test_a_table_of_another_bundle_or_machine_is_refused(place: Path, tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "BUNDLE").path
    assert read_table(bundle, "edge", "cpu", "here") is None
    good = OperatingPointTable("0" * 64, "edge", "cpu", "here", None, "labelled photos", (mode("only", 10, 0.9),))
    write_table(bundle, good)
    with pytest.raises(BundleError, match="another state of"):
        read_table(bundle, "edge", "cpu", "here")
    from anomalysd_edge.core.files import sha256_file

    mine = replace(good, bundle_sha256=sha256_file(bundle / "manifest.json"))
    write_table(bundle, mine)
    assert read_table(bundle, "edge", "cpu", "here") == mine
    assert read_table(bundle, "edge", "cuda", "here") is None
    with pytest.raises(BundleError, match="was measured on 'here', this is 'there'"):
        read_table(bundle, "edge", "cpu", "there")
    table_file(bundle).write_text('{"tables": 3}', encoding="utf-8")
    with pytest.raises(BundleError, match="no table of modes"):
        read_table(bundle, "edge", "cpu", "here")


def test_without_labels_modes_are_judged_on_synthetic_anomalies() -> None:
    rng = np.random.default_rng(1)
    shots = {"bottle": [rng.integers(90, 160, (64, 64, 3)).astype(np.uint8) for _ in range(2)]}
    found = operating_point_search.synthetic_judged(shots, {"bottle": "texture"}, 4)
    assert sum(not j.bad for j in found) == 4
    bad = [j for j in found if j.bad]
    assert bad
    assert all(j.mask is not None and j.mask.any() and j.mask.shape == (256, 256) for j in bad)
