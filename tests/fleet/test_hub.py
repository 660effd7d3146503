"""Model hubs: the folder with its card, pushing to a stand-in for the client, pulling from a stand-in for the hub."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from anomalysd_edge.bundle.manifest import BaseRecord
from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.bundle.signing import new_key, sign
from anomalysd_edge.bundle.update import read_manifest, write_manifest
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.errors import BundleError, InputError, MissingExtra, RegistryError
from anomalysd_edge.fleet import registry
from anomalysd_edge.fleet.hub import CARD, HubStorage, parse_address, push_folder
from anomalysd_edge.fleet.installed import Installed
from anomalysd_edge.fleet.pulling import Pulled, pull
from anomalysd_edge.workflows.hub import write_hub_folder
from tests.support.command import ROOT, sd_edge
from tests.support.small_graphs import small_bundle

RUN = ROOT / "tests/data/version_0_1_0/run"
REAL = huggingface_hub.HfApi
PIECE = 256
"""Bytes: the small bundle's files then have several pieces."""
MEASURED = {
    "data": "PHOTOS",
    "preset": "edge",
    "backend": "cpu",
    "classes": {
        "bottle": {
            "figures": {"fused": {"image_auroc": 0.875, "pixel_auroc": None}, "prototypes": {"image_auroc": 0.5}},
            "verdicts": {"balanced_error": 0.25, "f1": 0.75},
        }
    },
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of small graphs that says it was exported from RUN."""
    path = small_bundle(tmp_path / "BUNDLE").path
    manifest = read_manifest(path)
    training = {"run_sha256": sha256_file(RUN / "run.json")}
    write_manifest(path, dataclasses.replace(manifest, training=training, licenses=("base: small, none",)))
    return path


def with_base(bundle: Path, name: str) -> Path:
    manifest = read_manifest(bundle)
    write_manifest(bundle, dataclasses.replace(manifest, base=BaseRecord(name, "0" * 64)))
    return bundle


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def card_of(folder: Path) -> Any:
    """The front matter, as the hub's own package reads it."""
    return huggingface_hub.ModelCard.load(folder / CARD).data


def test_the_folder_holds_card_bundle_and_weights_and_no_photo(bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "REPORT"
    report.mkdir()
    (report / "results.json").write_text(json.dumps({**MEASURED, "bundle_id": bundle_id(bundle)}))
    out = tmp_path / "line"
    write_hub_folder(bundle, out, RUN, report)
    found = files_of(out)
    assert {name.removeprefix("bundle/"): data for name, data in found.items() if name.startswith("bundle/")} == (
        files_of(bundle)
    )
    weights = {name: data for name, data in found.items() if not name.startswith("bundle/") and name != CARD}
    contexts = {"contexts.safetensors": (RUN / "contexts.safetensors").read_bytes()}
    assert weights == {**files_of(RUN / "model"), **contexts}, "and none of the shots"
    assert read_bundle(out / "bundle").manifest == read_bundle(bundle).manifest
    data = card_of(out)
    assert (data.license, data.license_name, data.base_model) == ("other", "of-the-base-model", None)
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("anomalysd-edge", "image-segmentation", "line")
    assert {"anomaly-detection", "onnx", "diffusers", "safetensors"} <= set(data.tags)
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("PHOTOS, bottle", "image_auroc", 0.875),
        ("PHOTOS, bottle", "balanced_error", 0.25),
        ("PHOTOS, bottle", "f1", 0.75),
    ], "what is not defined is not told"
    text = (out / CARD).read_text()
    assert "| bottle | 87.5 | - | 25.0 | 75.0 |" in text
    assert "base: small, none" in text
    write_hub_folder(bundle, out)  # written anew, without weights
    assert {name.partition("/")[0] for name in files_of(out)} == {CARD, "bundle"}
    assert card_of(out).eval_results is None, "no figures that were not measured"
    assert "diffusers" not in card_of(out).tags
    assert "Not measured" in (out / CARD).read_text()


@pytest.mark.slow
def test_the_weights_are_a_base_to_train_from(bundle: Path, tmp_path: Path) -> None:
    from anomalysd_edge.training.models.base import load_base
    from anomalysd_edge.training.run import read_run

    write_hub_folder(bundle, tmp_path / "line", RUN)
    assert load_base(tmp_path / "line").sha256 == read_run(RUN).record["model_sha256"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("nano", ("apache-2.0", None, None)),
        ("org/sd-inpainting", ("other", "https://huggingface.co/org/sd-inpainting", "org/sd-inpainting")),
        ("my folder", ("other", None, None)),
    ],
)
def test_license_and_base_model_are_what_is_known_of_them(
    base: str, expected: tuple[str | None, ...], bundle: Path, tmp_path: Path
) -> None:
    write_hub_folder(with_base(bundle, base), tmp_path / "line")
    data = card_of(tmp_path / "line")
    assert (data.license, data.license_link, data.base_model) == expected


def test_what_is_of_another_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "results.json"
    for value in ({**MEASURED, "bundle_id": "0123456789abcdef"}, MEASURED, [1]):
        other.write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"of the bundle 0123456789abcdef|of no bundle that it names"):
            write_hub_folder(bundle, tmp_path / "line", None, other)
    run = shutil.copytree(RUN, tmp_path / "run")
    unet = run / "model/unet/config.json"
    unet.write_text(unet.read_text() + " ")
    with pytest.raises(InputError, match="was changed since"):
        write_hub_folder(bundle, tmp_path / "line", run)
    (run / "run.json").write_text((run / "run.json").read_text() + " ")
    with pytest.raises(InputError, match="was not exported from"):
        write_hub_folder(bundle, tmp_path / "line", run)
    assert not (tmp_path / "line").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").touch()
    with pytest.raises(InputError, match="is not empty"):
        write_hub_folder(bundle, tmp_path / "mine")


class Client:
    """Stands in for HfApi: what is uploaded lies in `hub` as the hub would serve it. Calls must fit the real one."""

    hub: Path
    calls: list[dict[str, Any]]

    def _called(self, name: str, *arguments: Any, **named: Any) -> dict[str, Any]:
        bound = dict(inspect.signature(getattr(REAL, name)).bind(None, *arguments, **named).arguments)
        self.calls.append({"call": name, **bound})
        return bound

    def create_repo(self, *arguments: Any, **named: Any) -> str:
        return f"https://hub/{self._called('create_repo', *arguments, **named)['repo_id']}"

    def upload_folder(self, *arguments: Any, **named: Any) -> None:
        asked = self._called("upload_folder", *arguments, **named)
        target = self.hub / asked["repo_id"] / "resolve" / (asked["revision"] or "main")
        for pattern in asked["delete_patterns"]:
            assert pattern == "bundle/*"
            shutil.rmtree(target / "bundle", ignore_errors=True)
        shutil.copytree(asked["folder_path"], target, dirs_exist_ok=True)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    made = type("FreshClient", (Client,), {"hub": tmp_path / "hub", "calls": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(registry, "PIECE_BYTES", PIECE)
    return made


@contextmanager
def hub_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int | None = None, elsewhere: str | None = None
) -> Iterator[list[tuple[str, str | None, str | None]]]:
    """Serve `folder` as a hub does, with ranges; yields (path, Range, Authorization) of every GET.

    After `most` ranges the line breaks in the middle of an answer. `elsewhere`: graphs are redirected to that address.
    """
    asked: list[tuple[str, str | None, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(head=True)

        def do_GET(self) -> None:
            self.answer(head=False)

        def answer(self, head: bool) -> None:
            wanted = self.headers.get("Range")
            if not head:
                asked.append((self.path, wanted, self.headers.get("Authorization")))
            if elsewhere and self.path.endswith(".onnx"):
                self.send_response(302)
                self.send_header("Location", elsewhere + self.path)
                self.end_headers()
                return
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, status = file.read_bytes(), 200
            if wanted:
                first, last = map(int, re.findall(r"\d+", wanted))
                data, status = data[first : last + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            broken = most is not None and sum(1 for _, part, _ in asked if part) > most
            if not head:
                self.wfile.write(data[: len(data) // 2] if broken else data)
            self.close_connection = broken

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(box: Path, url: str = "hf://org/line", **how: Any) -> Pulled:
    return pull(url, "line", box, lambda *_: None, pauses_s=(), **how)


def test_a_bundle_goes_through_a_hub_byte_by_byte(
    bundle: Path, client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    out, box = tmp_path / "out", tmp_path / "box"
    write_hub_folder(bundle, out)
    assert push_folder(out, "hf://org/line") == (bundle_id(bundle), "https://hub/org/line")
    assert client.calls[0]["private"] is True
    assert "sd-edge pull hf://org/line --into BUNDLES" in (client.hub / "org/line/resolve/main" / CARD).read_text()
    with hub_of(client.hub, monkeypatch) as asked:
        done = get(box)
        assert (done.version, done.switched, done.fetched_bytes) == (bundle_id(bundle), True, done.total_bytes)
        assert files_of(box / "line") == files_of(bundle)
        assert not get(box).switched
        # Another version there: what is not of it goes, and what both share is not fetched again.
        manifest = read_manifest(bundle)
        write_manifest(bundle, dataclasses.replace(manifest, created="2999-01-01T00:00:00+00:00"))
        (client.hub / "org/line/resolve/main/bundle/old.bin").touch()
        write_hub_folder(bundle, out)
        push_folder(out, "hf://org/line@next")
        with pytest.raises(RegistryError, match=f"holds the version {done.version}, not {bundle_id(bundle)}"):
            get(box, version=bundle_id(bundle))
        newer = get(box, "hf://org/line@next", version=bundle_id(bundle))
        assert (newer.version, newer.before, newer.fetched_bytes) == (bundle_id(bundle), done.version, 0)
        with pytest.raises(BundleError, match="before what is in use"):
            get(box)
        push_folder(out, "hf://org/line")
        assert not (client.hub / "org/line/resolve/main/bundle/old.bin").exists()
        with pytest.raises(RegistryError, match=r"has no file manifest\.json; check OWNER/NAME and REVISION"):
            get(box, "hf://org/other")
    assert {token for _, _, token in asked} == {None}


def test_a_broken_transfer_goes_on_and_a_damaged_file_is_refused(
    bundle: Path, client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, box = tmp_path / "out", tmp_path / "box"
    key = tmp_path / "key.pem"
    public = new_key(key)
    sign(bundle / MANIFEST, key)
    write_hub_folder(bundle, out)
    push_folder(out, "hf://org/line", public)
    with hub_of(client.hub, monkeypatch, most=5), pytest.raises(RegistryError, match="cannot be reached"):
        get(box, public_key=public)
    assert Installed(box, "line").current is None
    with hub_of(client.hub, monkeypatch) as asked:
        done = get(box, public_key=public)
    came_before = done.total_bytes - done.fetched_bytes
    assert 4 * PIECE < came_before <= 5 * PIECE
    assert len([part for _, part, _ in asked if part]) >= done.fetched_bytes // PIECE
    served = client.hub / "org/line/resolve/main/bundle/constants.safetensors"
    data = bytearray(served.read_bytes())
    data[len(data) // 2] ^= 1
    served.write_bytes(data)
    with hub_of(client.hub, monkeypatch):
        with pytest.raises(RegistryError, match="do not make the file that the manifest names"):
            get(tmp_path / "box2", public_key=public)
        served.write_bytes(data[:-10])
        with pytest.raises(RegistryError, match="ends after"):
            get(tmp_path / "box2", public_key=public)
        (served.parent / "manifest.sig").unlink()
        with pytest.raises(BundleError, match="is not signed"):
            get(tmp_path / "box3", public_key=public)


def test_the_token_goes_to_the_hub_alone(
    bundle: Path, client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub sends large files from another host, by a redirection."""
    write_hub_folder(bundle, tmp_path / "out")
    push_folder(tmp_path / "out", "hf://org/line")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_of(client.hub, monkeypatch) as store:
        import os

        with hub_of(client.hub, monkeypatch, elsewhere=os.environ["HF_ENDPOINT"]) as hub:
            assert get(tmp_path / "box").switched
    assert {token for _, _, token in hub} == {"Bearer hf_secret"}
    assert {token for _, _, token in store} == {None}
    assert {path.rpartition(".")[2] for path, _, _ in store} == {"onnx"}


def test_what_cannot_be_pushed_or_named_is_said_in_a_sentence(
    bundle: Path, client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_address("hf://org/line@refs/pr/1") == ("org/line", "refs/pr/1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    assert HubStorage("hf://org/line@refs/pr/1").url == "http://127.0.0.1:1/org/line/resolve/refs%2Fpr%2F1/bundle"
    for wrong in ("hf://line", "hf://org/line/more", "hf://org/line@", "hf://org/li ne"):
        with pytest.raises(InputError, match="is no address on a hub"):
            parse_address(wrong)
    with pytest.raises(InputError, match="sd-edge hub BUNDLE --out FOLDER"):
        push_folder(bundle, "hf://org/line")
    out = tmp_path / "out"
    write_hub_folder(bundle, out)

    def refused(self: Client, *_: Any, **__: Any) -> None:
        raise ConnectionError("401 Client\nError")

    monkeypatch.setattr(client, "create_repo", refused)
    with pytest.raises(RegistryError, match=r"could not be written \(ConnectionError: 401 Client Error\)"):
        push_folder(out, "hf://org/line")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"anomalysd-edge\[hub\]"):
        push_folder(out, "hf://org/line")
    (out / "bundle/unet/model.onnx").unlink()
    (out / "bundle/unet/model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="copy the bundle again"):
        push_folder(out, "hf://org/line")


@pytest.mark.slow
def test_the_verbs_hub_push_and_pull(
    bundle: Path, client: type[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sd_edge("hub", bundle, "--out", "FOLDER", "--run", RUN, cwd=tmp_path)
    assert "next: sd-edge push FOLDER hf://OWNER/NAME" in done.stderr
    push_folder(tmp_path / "FOLDER", "hf://org/line")
    with hub_of(client.hub, monkeypatch):
        said = sd_edge("pull", "hf://org/line", "--into", "BOX", cwd=tmp_path).stderr
    assert f"BOX/line is {bundle_id(bundle)}" in said
    assert read_bundle(tmp_path / "BOX/line").manifest == read_bundle(bundle).manifest
    for words, message in (
        (("push", bundle, "hf://org/line"), "sd-edge hub BUNDLE --out FOLDER"),
        (("push", "FOLDER", "hf://org/line", "--name", "x"), "--name is for registries"),
        (("pull", "REGISTRY", "--into", "BOX"), "pull needs the bundle's name"),
    ):
        failed = sd_edge(*words, cwd=tmp_path, check=False)
        assert failed.returncode == 2
        assert message in failed.stderr
