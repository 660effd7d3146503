"""Verdicts that leave by themselves: MQTT with a real mosquitto, webhooks with a receiver that fails first."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from anomalysd_runtime.server.connectors.mqtt import MqttConnector, Trigger
from anomalysd_runtime.server.connectors.webhook import Webhook, proxy_of, signature
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.records.tables import VerdictEntry
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.settings import VERDICTS, MqttSettings, RecordSettings, WebhookSettings
from anomalysd_runtime.server.verdicts import VerdictResult
from tests.support.serving import Box, free_port, open_touchy, png, running_box, small_settings
from tests.support.small_graphs import THREE_WAY, small_bundle
from tests.support.verdicts import verdict

pytestmark = [pytest.mark.slow, pytest.mark.net]

MOSQUITTO = shutil.which("mosquitto") or (shutil.which("mosquitto", path="/usr/sbin"))
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="no mosquitto here: apt-get install mosquitto")


def until(true: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never happened: {what}")


class Broker:
    """A mosquitto that can be stopped and started again with what it remembers."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nautosave_on_changes true\nautosave_interval 1\nuser root\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    found.start()
    yield found
    found.stop()


class Plc:
    """What stands at the other end: triggers, and hears what comes."""

    def __init__(self, port: int) -> None:
        self.heard: queue.Queue[tuple[str, Any, bool]] = queue.Queue()
        self.waiting: list[tuple[str, Any]] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="plc", protocol=paho.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("sd-edge/#", 1)
        self.client.on_message = lambda _, __, m: self.heard.put((m.topic, m.payload, m.retain))
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.reconnect_delay_set(1, 1)
        until(lambda: self._connects(port), "the broker answers")
        self.client.loop_start()
        assert subscribed.wait(10)

    def _connects(self, port: int) -> bool:
        try:
            self.client.connect("127.0.0.1", port)
        except OSError:
            return False
        return True

    def trigger(self, class_name: str, photo: bytes, **told: str) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = list(told.items())
        self.client.publish(f"sd-edge/inspect/{class_name}", photo, 1, properties=properties).wait_for_publish(10)

    def next(self, topic: str, seconds: float = 60) -> Any:
        """The next message of a topic; those of other topics are kept for whoever asks for them."""
        end = time.monotonic() + seconds
        while not (found := [message for message in self.waiting if message[0] == topic]):
            try:
                told, payload, _ = self.heard.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing came on {topic}, but {self.waiting}") from None
            self.waiting.append((told, payload))
        self.waiting.remove(found[0])
        return json.loads(found[0][1])

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def mqtt_box(bundle: Path, broker: Broker, folder: Path) -> Iterator[tuple[Box, MqttConnector]]:
    """A box whose MQTT door is at hand."""
    record = RecordSettings(folder / "record.sqlite")
    settings = replace(
        small_settings(bundle), record=record, mqtt=MqttSettings("127.0.0.1", broker.port, client_id="box")
    )
    connectors: list[MqttConnector] = []
    start = MqttConnector.start

    def noted(self: MqttConnector) -> None:
        connectors.append(self)
        start(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MqttConnector, "start", noted)
        with running_box(settings, open_touchy) as box:
            until(lambda: connectors and connectors[0].connected.is_set(), "the box is connected")
            yield box, connectors[0]


@needs_broker
def test_a_trigger_becomes_a_verdict(bundle: Path, broker: Broker, tmp_path: Path) -> None:
    plc = Plc(broker.port)
    with mqtt_box(bundle, broker, tmp_path) as (box, _):
        assert plc.next("sd-edge/status") == {"status": "online"}
        plc.trigger("bottle", png(1), request_key="part-1", name="belt.png")
        told = plc.next("sd-edge/verdict/bottle")
        assert told["request_key"] == "part-1"
        assert told["photo"] == "belt.png"
        assert told["schema"] == "sd-edge.verdict.1"
        assert told["pred_score"] == box.inspect(png(1)).json["pred_score"]
        assert plc.next("sd-edge/verdict/bottle")["source"] == "http"
        both = {"photo": base64.b64encode(png(2)).decode(), "class": "bottle", "request_key": "part-2"}
        plc.client.publish("sd-edge/inspect", json.dumps(both), 1)
        assert plc.next("sd-edge/verdict/bottle")["request_key"] == "part-2"
        for topic, payload, status in (
            ("sd-edge/inspect", b"no json", 422),
            ("sd-edge/inspect", b'{"photo": 5}', 422),
            ("sd-edge/inspect", b'{"photo": "", "class": 3}', 422),
            ("sd-edge/inspect/bottle", b"no photo", 415),
            ("sd-edge/inspect/screw", png(1), 404),
        ):
            plc.client.publish(topic, payload, 1)
            assert plc.next("sd-edge/error")["status"] == status
    assert plc.next("sd-edge/status") == {"status": "offline"}
    plc.close()


@needs_broker
def test_an_uncertain_verdict_is_published_with_its_limits(broker: Broker, tmp_path: Path) -> None:
    plc = Plc(broker.port)
    with mqtt_box(small_bundle(tmp_path / "line1", **THREE_WAY).path, broker, tmp_path):
        plc.trigger("bottle", png(1), request_key="part-1")
        told = plc.next("sd-edge/verdict/bottle")
    assert told["verdict"] == "uncertain"
    assert told["limits"] == {"good": 1e-3, "anomalous": 1e3}
    assert 0 < told["pred_probability"] < 1
    plc.close()


@needs_broker
def test_the_last_will_and_what_came_meanwhile(bundle: Path, broker: Broker, tmp_path: Path) -> None:
    """The connection is torn, not closed: the broker tells so, and keeps triggers until the box is back."""
    plc = Plc(broker.port)
    with mqtt_box(bundle, broker, tmp_path) as (box, connector):
        assert plc.next("sd-edge/status") == {"status": "online"}
        plc.trigger("bottle", png(1), request_key="a")
        plc.next("sd-edge/verdict/bottle")
        connector._client._sock_close()  # as if the cable was pulled
        assert plc.next("sd-edge/status") == {"status": "offline"}
        plc.trigger("bottle", png(2), request_key="b")
        assert plc.next("sd-edge/status") == {"status": "online"}
        # "a" may come once more before it: its acknowledgement was torn off with the connection.
        until(lambda: plc.next("sd-edge/verdict/bottle")["request_key"] == "b", "the trigger that waited")
        plc.trigger("bottle", png(1), request_key="a")
        until(lambda: plc.next("sd-edge/verdict/bottle")["request_key"] == "a", "the first trigger once more")
        assert box.service.store is not None
        assert len(box.service.store.select("request_key = ?", ("mqtt:a",))) == 1
    waiting = {f"c{number}" for number in range(5)}
    for number, key in enumerate(sorted(waiting)):  # while no box is there at all
        plc.trigger("bottle", png(number), request_key=key)
    with mqtt_box(bundle, broker, tmp_path):
        while waiting:  # one of before may come once more, too
            waiting.discard(plc.next("sd-edge/verdict/bottle")["request_key"])
    plc.close()


@needs_broker
def test_a_retained_trigger_is_judged_once(bundle: Path, broker: Broker, tmp_path: Path) -> None:
    """A broker gives retained messages to whoever subscribes: it would come anew with every connection."""
    plc = Plc(broker.port)
    with mqtt_box(bundle, broker, tmp_path):
        plc.client.publish("sd-edge/inspect/bottle", png(1), 1, retain=True)
        plc.next("sd-edge/verdict/bottle")
    with mqtt_box(bundle, broker, tmp_path) as (box, _):
        plc.trigger("bottle", png(2), request_key="later")
        assert plc.next("sd-edge/verdict/bottle")["request_key"] == "later"
        assert box.service.store is not None
        assert len(box.service.store.select()) == 2
    plc.close()


class Quick:
    """A service that answers at once, from four threads, as the real one's pool does."""

    settings = SimpleNamespace(engine=SimpleNamespace(queue=64), security=SimpleNamespace(max_body_bytes=1 << 20))

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(4)

    def reserve(self) -> None:
        """There is always room."""

    def inspect(self, request: PhotoRequest) -> Future[VerdictResult]:
        told = VerdictResult(replace(verdict(1), source="mqtt", request_key=request.request_key))
        return self.pool.submit(lambda: told)


@needs_broker
def test_verdicts_and_confirmations_cross_without_a_jam(broker: Broker) -> None:
    """paho confirms under its own lock, and publish() takes the same one: ours must not be held around either."""
    plc = Plc(broker.port)
    connector = MqttConnector(Quick(), MqttSettings("127.0.0.1", broker.port, client_id="box"))  # type: ignore[arg-type]
    connector.start()
    assert connector.connected.wait(10)
    keys = {f"k{number}" for number in range(400)}
    for key in keys:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = [("request_key", key)]
        plc.client.publish("sd-edge/inspect/bottle", b"photo", 1, properties=properties)
    while keys:
        keys.discard(plc.next("sd-edge/verdict/bottle")["request_key"])
    connector.stop()
    assert connector._unmatched == {}
    plc.close()


class Crossed:
    """A client whose confirmation comes, on another thread, before publish() returns."""

    def __init__(self, connector: MqttConnector) -> None:
        self.connector = connector
        self.acknowledged: list[int] = []

    def publish(self, *_: Any) -> Any:
        good = SimpleNamespace(is_failure=False)
        network = threading.Thread(target=self.connector._published, args=(None, None, 7, good, None), daemon=True)
        network.start()
        network.join(10)
        assert not network.is_alive(), "the network's thread waits for us while we wait for it"
        return SimpleNamespace(mid=7, rc=paho.MQTT_ERR_SUCCESS)

    def ack(self, mid: int, _: int) -> None:
        self.acknowledged.append(mid)


def test_a_confirmation_may_come_before_publish_returns() -> None:
    connector = MqttConnector(Quick(), MqttSettings("127.0.0.1"))  # type: ignore[arg-type]
    client = connector._client = Crossed(connector)  # type: ignore[assignment]
    message = SimpleNamespace(mid=3, qos=1)
    connector._publish("a", {}, Trigger(message, connector._connection))
    assert client.acknowledged == [3]
    connector._publish("a", {}, Trigger(message, connector._connection - 1))
    assert client.acknowledged == [3], "over a new connection the number may be another trigger's"
    connector._publish("a", {}, None)
    assert client.acknowledged == [3]
    assert connector._unmatched == {}
    connector._subscribed(None, None, None, [SimpleNamespace(is_failure=True)], None)
    assert not connector.connected.is_set(), "no trigger arrives where the broker's access list is against it"


@needs_broker
def test_a_broker_that_goes_away_comes_back(bundle: Path, broker: Broker, tmp_path: Path) -> None:
    with mqtt_box(bundle, broker, tmp_path) as (box, connector):
        broker.stop()
        until(lambda: not connector.connected.is_set(), "the loss is noticed")
        assert b"sd_edge_mqtt_connected 0.0" in box.get("/metrics").body
        assert box.inspect(png(3)).status == 200, "the box goes on without its broker"
        broker.start()
        until(connector.connected.is_set, "connected again")
        assert b"sd_edge_mqtt_connected 1.0" in box.get("/metrics").body
        plc = Plc(broker.port)
        plc.trigger("bottle", png(4), request_key="later")
        while plc.next("sd-edge/verdict/bottle")["request_key"] != "later":
            pass
        plc.close()


class Receiver:
    """A receiver of webhooks that fails as often as it is told to."""

    def __init__(self, failures: int = 0, port: int = 0) -> None:
        self.calls: list[tuple[dict[str, str], bytes]] = []
        self.failures = failures
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.calls.append(({key.lower(): value for key, value in self.headers.items()}, body))
                receiver.failures -= 1
                self.send_response(500 if receiver.failures >= 0 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = HTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_a_webhook_is_signed_retried_and_delivered_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalysd_runtime.server.connectors.webhook.random.uniform", lambda *_: 0.05)
    receiver = Receiver(failures=2)
    hook = WebhookSettings(f"http://127.0.0.1:{receiver.port}/in", verdicts=frozenset(VERDICTS), secret="s3cret")
    settings = replace(small_settings(bundle), record=RecordSettings(tmp_path / "r.sqlite"), webhook=hook)
    with running_box(settings) as box:
        told = box.inspect(png(1)).json
        until(lambda: len(receiver.calls) == 3, "two failures and a delivery")
        until(lambda: b"sd_edge_webhook_outbox 0.0" in box.get("/metrics").body, "the outbox is empty")
    receiver.close()
    for headers, body in receiver.calls:
        assert headers["x-sd-edge-delivery"] == told["uid"]
        assert headers["x-sd-edge-signature"] == signature("s3cret", headers["x-sd-edge-timestamp"], body)
        assert json.loads(body)["pred_score"] == told["pred_score"]
    assert len(receiver.calls) == 3


def test_undelivered_webhooks_wait_over_a_restart(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    hook = WebhookSettings(f"http://127.0.0.1:{port}/in", verdicts=frozenset(VERDICTS))
    settings = replace(small_settings(bundle), record=RecordSettings(tmp_path / "r.sqlite"), webhook=hook)
    with running_box(settings) as box:
        uid = box.inspect(png(1)).json["uid"]
    receiver = Receiver(port=port)
    with running_box(settings):
        until(lambda: receiver.calls, "the call that was left")
    receiver.close()
    assert receiver.calls[0][0]["x-sd-edge-delivery"] == uid


def test_a_webhook_follows_no_redirect_and_gives_up_in_the_end(tmp_path: Path) -> None:
    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Moved)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    record = VerdictStore(tmp_path / "r.sqlite")
    record.add(VerdictEntry(verdict(1), publish=True)).result()
    hook = Webhook(record, WebhookSettings(f"http://127.0.0.1:{server.server_port}/", attempts=1))
    assert hook.waiting() == 1
    hook._deliver_due()
    assert hook.waiting() == 0
    assert record.by_uid(verdict(1).uid) is not None
    server.shutdown()
    thread.join()
    server.server_close()
    record.close()


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://127.0.0.1:9/x", {"http_proxy": "http://proxy:3128"}, None),
        ("http://localhost/x", {"http_proxy": "http://proxy:3128"}, None),
        ("http://[::1]:9/x", {"http_proxy": "http://proxy:3128"}, None),
        ("http://plant.example/x", {"http_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://plant.example/x", {"http_proxy": "http://name:secret@proxy:3128"}, "proxy:3128"),
        ("https://plant.example/x", {"http_proxy": "http://proxy:3128"}, None),
        ("http://plant.example/x", {"http_proxy": "http://proxy:3128", "no_proxy": "plant.example"}, None),
    ],
)
def test_a_proxy_of_the_environment_is_used_and_named_but_never_for_this_machine(
    url: str, environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == expected
