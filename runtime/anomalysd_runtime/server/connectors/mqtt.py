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
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from anomalysd_runtime.server.errors import BadRequest, DeadlineMissed, QueueFull, ServeError, TooLarge, Unavailable
from anomalysd_runtime.server.inference.inflight import Ask
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.settings import MqttSettings
from anomalysd_runtime.server.verdicts import Told, Verdict

log = logging.getLogger("sd-edge.mqtt")
SESSION_S = 7 * 86_400
"""How long the broker keeps our session, with its unacknowledged triggers, while we are away."""
AGAIN_S = 0.5
"""Pause before a trigger is tried again that met a full queue; doubled each time while it cannot be judged at all."""
DOUBLINGS = 4
FAREWELL_S = 5.0
"""How long a stop waits for what is to be told before the connection is closed."""
IN_FLIGHT = 10
"""Messages of ours that may be on their way to the broker at once: the least that a common broker takes by default."""


@dataclass(frozen=True)
class Trigger:
    """A message that came, and the connection that it came over: over another one it cannot be acknowledged."""

    message: Any
    """paho's."""
    connection: int
    """Of MqttDoor's count."""


CONFIRMED = Trigger(None, -1)
"""Stands for the broker's confirmation of something that we published, whatever it was."""


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
        client.max_inflight_messages_set(IN_FLIGHT)
        client.enable_logger(log.getChild("paho"))
        client.suppress_exceptions = True  # logged; a fault in one of our calls would else end the network's thread
        client.reconnect_delay_set(1, 30)
        if settings.user is not None:
            client.username_pw_set(settings.user, settings.password)
        if settings.ca is not None:
            client.tls_set(ca_certs=str(settings.ca))
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_publish = self._triggered, self._published
        client.on_subscribe = self._subscribed
        self._connection = 0
        self._halves: dict[int, Trigger | None] = {}
        # Never held while paho is called: it calls _published under a lock of its own, which its publish() takes, too.
        self._lock = threading.Lock()
        self._judged = threading.Condition(self._lock)
        self._with_service = 0
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
        with self._judged:  # what the service has finished is still told
            self._judged.wait_for(lambda: self._with_service == 0, timeout=FAREWELL_S)
        if self.connected.is_set():
            said = self._publish(self._topic("status"), {"status": "offline"}, None, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):  # the connection went just now: the last will tells
                said.wait_for_publish(FAREWELL_S)
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
        # A retained trigger would come anew with every connection, and its part be judged anew.
        how = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(self._topic("inspect"), how), (self._topic("inspect", "+"), how)])

    def _subscribed(self, _: Any, __: Any, ___: Any, reasons: Any, ____: Any) -> None:
        """Online means that triggers arrive: only now."""
        if refused := [str(reason) for reason in reasons if reason.is_failure]:
            log.error("the broker refuses to send triggers of %s (%s)", self._topic("inspect"), ", ".join(refused))
            return
        self._publish(self._topic("status"), {"status": "online"}, None, retain=True)
        self.connected.set()
        log.info("connected to the broker %s:%d", self._settings.host, self._settings.port)

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        self.connected.clear()
        self._connection += 1
        if not self._stopping.is_set():
            log.warning("the broker is gone (%s); trying again", reason)

    def _triggered(self, _: Any, __: Any, message: Any) -> None:
        """A photo came. Whatever is wrong with it is told on PREFIX/error, and the trigger is acknowledged."""
        given: dict[str, Any] = {}
        trigger = Trigger(message, self._connection)
        try:
            ask = self._ask(message, given)
        except ServeError as error:
            self._refuse(trigger, given, error)
            return
        self._try(trigger, given, ask)

    def _try(self, trigger: Trigger, given: dict[str, Any], ask: Ask, tries: int = 0) -> None:
        if self._stopping.is_set():
            return  # not acknowledged: it comes again after the restart
        try:
            self._service.reserve()
        except (QueueFull, Unavailable):
            _later(AGAIN_S, self._try, trigger, given, ask, tries)
            return
        with self._lock:
            self._with_service += 1
        self._service.inspect(ask).add_done_callback(lambda done: self._answered(trigger, given, ask, tries, done))

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

    def _answered(self, trigger: Trigger, given: dict[str, Any], ask: Ask, tries: int, done: Future[Told]) -> None:
        try:
            self._answer(trigger, given, ask, tries, done)
        finally:
            with self._judged:
                self._with_service -= 1
                self._judged.notify_all()

    def _answer(self, trigger: Trigger, given: dict[str, Any], ask: Ask, tries: int, done: Future[Told]) -> None:
        if done.cancelled():
            return  # the box stops: not acknowledged, it comes again
        error = done.exception()
        if error is None:
            self._publish_verdict(done.result().verdict, trigger)
        elif isinstance(error, (Unavailable, QueueFull, DeadlineMissed)):
            log.warning("a trigger waits: %s", error)
            ask.deadline = 0.0
            _later(AGAIN_S * 2 ** min(tries, DOUBLINGS), self._try, trigger, given, ask, tries + 1)
        else:
            self._refuse(trigger, given, error)

    def _refuse(self, trigger: Trigger, given: dict[str, Any], error: BaseException) -> None:
        status = error.status if isinstance(error, ServeError) else 500
        self._publish(self._topic("error"), {"error": str(error), "status": status, **given}, trigger)

    def _publish_verdict(self, verdict: Verdict, trigger: Trigger | None) -> None:
        told = verdict.to_json()
        if verdict.request_key is not None:
            told["request_key"] = verdict.request_key.removeprefix("mqtt:")
        self._publish(self._topic("verdict", _level(verdict.class_name)), told, trigger)

    def _publish(self, topic: str, told: dict[str, Any], trigger: Trigger | None, retain: bool = False) -> Any:
        """Send, or leave it to paho until the connection is back. The trigger is acknowledged when it has arrived."""
        sent = self._client.publish(topic, json.dumps(told, allow_nan=False), 1, retain)
        if sent.rc != paho.MQTT_ERR_QUEUE_SIZE:
            self._meet(sent.mid, trigger)
        elif trigger is not None and not self._stopping.is_set():  # too much waits for a broker that is away
            _later(AGAIN_S, self._publish, topic, told, trigger)
        return sent

    def _published(self, _: Any, __: Any, mid: int, reason: Any, ____: Any) -> None:
        if reason.is_failure:
            log.warning("the broker refuses a message of ours: %s", reason)
        self._meet(mid, CONFIRMED)

    def _meet(self, mid: int, half: Trigger | None) -> None:
        """Who published `mid` and who heard that it arrived come here in either order; the second one acknowledges."""
        with self._lock:
            if mid not in self._halves:
                self._halves[mid] = half
                return
            other = self._halves.pop(mid)
        trigger = other if half is CONFIRMED else half
        # Over a newer connection the broker has sent the trigger once more, and perhaps its number to another one.
        if trigger is not None and trigger.message.qos > 0 and trigger.connection == self._connection:
            self._client.ack(trigger.message.mid, trigger.message.qos)


def _later(pause_s: float, what: Callable[..., Any], *given: Any) -> None:
    again = threading.Timer(pause_s, what, given)
    again.daemon = True
    again.start()


def _level(name: str) -> str:
    """A class's name as one level of a topic."""
    return "".join("_" if letter in "/+#\0" else letter for letter in name)
