"""Who may ask and how much: tokens, hosts, origins, rates, TLS, signatures; and what never leaves."""

from __future__ import annotations

import logging
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_runtime.server import settings as s
from anomalysd_runtime.server.errors import Unavailable
from anomalysd_runtime.server.http.middleware import RateLimit
from anomalysd_runtime.server.inference.fair_queue import FairQueue
from tests.conftest import sd_edge
from tests.support.serving import Box, free_port, png, running_box, small_settings
from tests.support.small_graphs import small_bundle

SECRET, OTHER = "0123456789abcdef0123", "another-secret-of-line-2"
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl here: apt-get install openssl")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("security") / "line1").path


@pytest.fixture(scope="module")
def box(bundle: Path) -> Iterator[Box]:
    security = s.SecuritySettings(tokens={"line1": SECRET, "line2": OTHER}, hosts=("box.factory",))
    with running_box(replace(small_settings(bundle), security=security)) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/bundles", "/verdicts", "/metrics", "/openapi.json", "/v2", "/v2/models/line1"])
def test_without_a_token_nothing_is_told(box: Box, path: str) -> None:
    for header in ({}, {"Authorization": f"Bearer {SECRET}x"}, {"Authorization": SECRET}, {"Authorization": "Bearer "},
                   {"Authorization": f"Basic {SECRET}"}):  # fmt: skip
        found = box.ask("GET", path, headers=header)
        assert found.status == 401
        assert found.headers["www-authenticate"] == "Bearer"
        assert SECRET not in found.body.decode()
    assert box.ask("GET", path, headers={"Authorization": f"Bearer {SECRET}"}).status == 200


def test_every_token_has_a_name_of_its_own(box: Box) -> None:
    for name, secret in (("line1", SECRET), ("line2", OTHER)):
        told = box.inspect(png(1), Authorization=f"Bearer {secret}").json
        assert told["client"] == name
    assert box.inspect(png(1)).status == 401


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/health", "/v2/health/live", "/v2/health/ready"])
def test_the_page_and_health_are_open_and_tell_no_verdict(box: Box, path: str) -> None:
    assert box.get(path).status == 200


def test_only_own_host_names_are_answered(box: Box) -> None:
    for host, status in (
        ("evil.example", 421),
        ("box.factory", 200),
        ("localhost", 200),
        ("[::1]:8080", 200),
        ("", 421),
    ):
        assert box.get("/health", host=host).status == status, host


def test_a_page_of_another_site_may_not_write(box: Box) -> None:
    token = {"Authorization": f"Bearer {SECRET}", "content-type": "image/png"}
    for header, status in (
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": f"http://127.0.0.1:{box.port}"}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200),
    ):  # fmt: skip
        assert box.ask("POST", "/inspect", png(1), {**token, **header}).status == status, header
    told = box.ask("OPTIONS", "/inspect", None, {"Origin": "http://evil.example", **token})
    assert not [key for key in told.headers if key.startswith("access-control")]


def test_every_answer_has_the_headers(box: Box) -> None:
    for path in ("/", "/health", "/nowhere", "/bundles"):
        told = box.get(path).headers
        assert told["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in told["content-security-policy"]
        assert told["x-frame-options"] == "DENY"
        assert "server" not in told


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "/etc/passwd", "line1%00", "line1/../line1"])
def test_no_path_of_a_client_reaches_the_file_system(box: Box, name: str) -> None:
    token = {"Authorization": f"Bearer {SECRET}"}
    for path in (f"/bundles/{name}/load", f"/v2/repository/models/{name}/load"):
        assert box.ask("POST", path, None, token).status in (404, 405), path
    assert box.ask("GET", f"/static/{name}", None, token).status == 404


def test_a_rate_is_a_clients_own(bundle: Path) -> None:
    security = s.SecuritySettings(tokens={"a": SECRET, "b": OTHER}, rate_per_s=0.01, rate_burst=3)
    with running_box(replace(small_settings(bundle), security=security)) as box:
        first = [box.inspect(png(1), Authorization=f"Bearer {SECRET}").status for _ in range(5)]
        assert first == [200, 200, 200, 429, 429]
        assert box.inspect(png(1), Authorization=f"Bearer {OTHER}").status == 200
        refused = box.inspect(png(1), Authorization=f"Bearer {SECRET}")
        assert int(refused.headers["retry-after"]) > 50


def test_the_bucket_worked_by_hand() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 3, lambda: now[0])
    assert [limit.wait_s("a") for _ in range(3)] == [0, 0, 0]
    assert limit.wait_s("a") == pytest.approx(0.5)
    now[0] = 0.5
    assert limit.wait_s("a") == 0
    assert limit.wait_s("b", 2) == 0
    assert limit.wait_s("b", 2) == pytest.approx(0.5)


def test_the_queue_takes_turns_and_keeps_places() -> None:
    queue: FairQueue[str] = FairQueue()
    for client, items in {"a": ["x1", "x2", "x3"], "b": ["y1"], "c": ["x4"]}.items():
        for item in items:
            queue.put(client, item)
    assert queue.ahead("b") == 1 + 2 + 1
    assert queue.ahead("d") == 3
    assert queue.take(2, lambda item: item[0]) == ["x1", "x4"]
    assert queue.take(2, lambda item: item[0]) == ["y1"], "who was passed over begins the next group"
    assert queue.remove("a", "x3")
    assert not queue.remove("a", "x3")
    assert queue.take(9, lambda item: item[0]) == ["x2"]
    assert len(queue) == 0


def test_outside_loopback_a_token_is_required(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="token"):
        s.ServeSettings(bundles=(bundle,), host="0.0.0.0")
    s.ServeSettings(bundles=(bundle,), host="0.0.0.0", security=s.SecuritySettings(tokens={"a": SECRET}))
    done = sd_edge("serve", bundle, "--host", "0.0.0.0", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr


def test_tokens_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# line 1\nline1:{SECRET}\n\nline2: {OTHER}\n")
    found = s.read_tokens(None, file)
    assert found == {"line1": SECRET, "line2": OTHER}
    told = repr(s.SecuritySettings(tokens=found)) + repr(s.WebhookSettings("http://x", secret=SECRET))
    assert SECRET not in told + repr(s.MqttSettings("x", password=SECRET))
    for text in ("short:abc", "no separator at all"):
        file.write_text(text)
        with pytest.raises(SettingsError) as refused:
            s.read_tokens(None, file)
        assert "abc" not in str(refused.value).replace("characters", "")
    with pytest.raises(SettingsError, match="cannot be read"):
        s.read_tokens(None, tmp_path / "absent")


def test_no_secret_is_logged(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    security = s.SecuritySettings(tokens={"line1": SECRET})
    with caplog.at_level(logging.DEBUG), running_box(replace(small_settings(bundle), security=security)) as box:
        box.inspect(png(1), Authorization=f"Bearer {SECRET}")
        box.inspect(b"no photo", Authorization=f"Bearer {SECRET}")
        box.get("/bundles", Authorization=f"Bearer {SECRET}y")
    assert caplog.text
    assert SECRET not in caplog.text


@needs_openssl
def test_tls_with_own_files(bundle: Path, tmp_path: Path) -> None:
    assert OPENSSL is not None
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run([OPENSSL, *made, *names], check=True, capture_output=True)
    port = free_port()
    with running_box(replace(small_settings(bundle), port=port, tls_cert=cert, tls_key=key)):
        trusted = ssl.create_default_context(cafile=cert)
        with urllib.request.urlopen(f"https://localhost:{port}/health", context=trusted) as answer:
            assert answer.status == 200
            assert "max-age" in answer.headers["strict-transport-security"]
    with pytest.raises(SettingsError, match="tls-key"):
        replace(small_settings(bundle), tls_cert=cert)


def test_a_bundle_must_be_signed_where_that_is_asked(bundle: Path, tmp_path: Path) -> None:
    """Signed by the command that docs/serve.md names."""
    signed, key = tmp_path / "line1", tmp_path / "line.pem"
    shutil.copytree(bundle, signed)
    told = sd_edge("sign", signed, "--key", key, "--new-key", cwd=tmp_path).stderr
    public = Path(f"{key}.pub")
    assert str(public) in told
    settings = replace(small_settings(signed), engine=s.EngineSettings(threads=1, signature_key=public))
    with running_box(settings) as box:
        assert box.inspect(png(1)).status == 200
        (signed / "manifest.json").write_text((signed / "manifest.json").read_text() + " ")
        changed = box.ask("POST", "/bundles/line1/reload")
        assert changed.status == 503
        assert "signature" in changed.json["error"]
        assert box.inspect(png(1)).status == 200, "the bundle that was checked goes on"
    shutil.rmtree(signed)
    shutil.copytree(bundle, signed)
    with pytest.raises(Unavailable, match="not signed"), running_box(settings):
        pass


def test_a_changed_file_is_refused_before_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "line1")
    with running_box(small_settings(tmp_path / "line1")) as box:
        model = tmp_path / "line1" / "unet" / "model.onnx"
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(data)
        refused = box.ask("POST", "/bundles/line1/reload")
        assert refused.status == 503
        assert "sha256" in refused.json["error"]
        assert box.inspect(png(1)).status == 200
