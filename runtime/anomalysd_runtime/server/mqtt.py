"""MQTT 5: photos in by topic, verdicts out as JSON, a last will, a session that outlives this process.

    PREFIX/inspect/CLASS   in   an image file; user properties `request_key`, `name`, `bundle` if wanted
    PREFIX/inspect         in   {"photo": BASE64, "class": ..., "bundle": ..., "name": ..., "request_key": ...}
    PREFIX/verdict/CLASS   out  every verdict of the box
    PREFIX/error           out  {"error": ..., "status": ..., "class": ..., "name": ..., "request_key": ...}
    PREFIX/status          out  {"status": "online"} or {"status": "offline"}, retained

Triggers come with QoS 1 and are acknowledged only when their verdict has reached the broker: one that a crash
interrupts is delivered again. With a request_key it is still judged and recorded once.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import socket
import threading
from concurrent.futures import Future
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from anomalysd_runtime.server.course import Ask
from anomalysd_runtime.server.jobs import BadRequest, DeadlineMissed, QueueFull, ServeError, TooLarge, Unavailable
from anomalysd_runtime.server.service import Service
from anomalysd_runtime.server.settings import MqttSettings
from anomalysd_runtime.server.verdicts import Told, Verdict

log = logging.getLogger("sd-edge.mqtt")
SESSION_S = 7 * 86_400
"""How long the broker keeps our session, with its unacknowledged triggers, while we are away."""
AGAIN_S = 0.5
"""Pause before a trigger is tried again that met a full queue."""


class MqttDoor:
    """Connects in the background and again after every loss."""

    def __init__(self, service: Service, settings: MqttSettings) -> None:
        self._service, self._settings = service, settings
        name = settings.client_id or f"{settings.prefix}-{socket.gethostname()}"
        client = self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5, manual_ack=True
        )
        client.will_set(self._topic("status"), json.dumps({"status": "offline"}), qos=1, retain=True)
        client.max_queued_messages_set(10_000)
        client.reconnect_delay_set(1, 30)
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        if settings.ca is not None:
            client.tls_set(ca_certs=str(settings.ca))
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish = self._triggered, self._published
        self._to_ack: dict[int, Any] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self.connected = threading.Event()

    def start(self) -> None:
        """Connect; while the broker cannot be reached it is tried again."""
        wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wanted.SessionExpiryInterval = SESSION_S
        # The broker sends no more than this unacknowledged: its queue is the place to wait in, not ours.
        wanted.ReceiveMaximum = max(1, self._service.settings.engine.queue // 2)
        self._client.connect_async(
            self._settings.host, self._settings.port, keepalive=30, clean_start=False, properties=wanted
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Say offline, and go; the session stays at the broker."""
        self._stopping.set()
        if self.connected.is_set():
            self._client.publish(self._topic("status"), json.dumps({"status": "offline"}), 1, True).wait_for_publish(5)
        self._client.disconnect()
        self._client.loop_stop()

    def heard(self, verdict: Verdict) -> None:
        """Publish a verdict that did not come by MQTT; those are published before their trigger is acknowledged."""
        if verdict.source != "mqtt":
            self._publish_verdict(verdict, None)

    def _topic(self, *parts: str) -> str:
        return "/".join((self._settings.prefix, *parts))

    def _connected(self, client: Any, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            log.warning("the broker refuses: %s", reason)
            return
        client.subscribe([(self._topic("inspect"), 1), (self._topic("inspect", "+"), 1)])
        client.publish(self._topic("status"), json.dumps({"status": "online"}), 1, retain=True)
        self.connected.set()
        log.info("connected to the broker %s:%d", self._settings.host, self._settings.port)

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        self.connected.clear()
        if not self._stopping.is_set():
            log.warning("the broker is gone (%s); trying again", reason)

    def _triggered(self, _: Any, __: Any, message: Any) -> None:
        """A photo came. Whatever is wrong with it is told on PREFIX/error, and the trigger is acknowledged."""
        given: dict[str, Any] = {}
        try:
            ask = self._ask(message, given)
        except ServeError as error:
            self._refuse(message, given, error)
            return
        self._try(message, given, ask)

    def _try(self, message: Any, given: dict[str, Any], ask: Ask) -> None:
        if self._stopping.is_set():
            return  # not acknowledged: it comes again after the restart
        try:
            self._service.reserve()
        except (QueueFull, Unavailable):
            again = threading.Timer(AGAIN_S, self._try, (message, given, ask))
            again.daemon = True
            again.start()
            return
        self._service.inspect(ask).add_done_callback(lambda done: self._answer(message, given, ask, done))

    def _ask(self, message: Any, given: dict[str, Any]) -> Ask:
        class_name: str | None = None
        if len(message.payload) > self._service.settings.security.max_body_bytes:
            raise TooLarge("the message is longer than a body may be; send a smaller photo")
        if message.topic == self._topic("inspect"):
            try:
                value = json.loads(message.payload)
                data = base64.b64decode(value["photo"], validate=True)
            except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
                raise BadRequest('the trigger is not {"photo": BASE64, "class": ...}; see docs/serve.md') from error
            texts = {key: value.get(key) for key in ("class", "bundle", "name", "request_key")}
            wrong = [key for key, text in texts.items() if text is not None and not isinstance(text, str)]
            if wrong:
                raise BadRequest(f"{wrong[0]!r} of the trigger is no string")
            class_name = texts.pop("class")
        else:
            data = message.payload
            class_name = message.topic.rpartition("/")[2]
            pairs = dict(getattr(message.properties, "UserProperty", []) or [])
            texts = {key: pairs.get(key) for key in ("bundle", "name", "request_key")}
        given |= {"class": class_name, **texts}
        key = texts["request_key"]
        return Ask(
            data=bytes(data), source="mqtt", client="mqtt", class_name=class_name, bundle=texts["bundle"],
            name=(texts["name"] or "")[:200], request_key=f"mqtt:{key}" if key else None,
        )  # fmt: skip

    def _answer(self, message: Any, given: dict[str, Any], ask: Ask, done: Future[Told]) -> None:
        if done.cancelled():
            return  # the box stops: not acknowledged, it comes again
        error = done.exception()
        if error is None:
            self._publish_verdict(done.result().verdict, message)
        elif isinstance(error, (Unavailable, QueueFull, DeadlineMissed)):
            log.warning("a trigger waits: %s", error)
            ask.deadline = 0.0
            again = threading.Timer(AGAIN_S, self._try, (message, given, ask))
            again.daemon = True
            again.start()
        else:
            self._refuse(message, given, error)

    def _refuse(self, message: Any, given: dict[str, Any], error: BaseException) -> None:
        status = error.status if isinstance(error, ServeError) else 500
        self._publish(self._topic("error"), {"error": str(error), "status": status, **given}, message)

    def _publish_verdict(self, verdict: Verdict, message: Any) -> None:
        told = verdict.to_json()
        if verdict.request_key is not None:
            told["request_key"] = verdict.request_key.removeprefix("mqtt:")
        self._publish(self._topic("verdict", _level(verdict.class_name)), told, message)

    def _publish(self, topic: str, told: dict[str, Any], trigger: Any) -> None:
        with self._lock:
            sent = self._client.publish(topic, json.dumps(told, allow_nan=False), qos=1)
            if trigger is not None:
                self._to_ack[sent.mid] = trigger

    def _published(self, _: Any, __: Any, mid: int, ___: Any, ____: Any) -> None:
        with self._lock:
            trigger = self._to_ack.pop(mid, None)
        if trigger is not None and trigger.qos > 0:
            self._client.ack(trigger.mid, trigger.qos)


def _level(name: str) -> str:
    """A class's name as one level of a topic."""
    return "".join("_" if letter in "/+#\0" else letter for letter in name)
