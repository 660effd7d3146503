"""The settings of an inspection box, frozen when it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.errors import SettingsError

MEGA = 1 << 20
VERDICTS = ("good", "anomalous", "uncertain", "unknown")
ROLES = {
    "operator": frozenset[str](),
    "teacher": frozenset({"teach"}),
    "admin": frozenset({"teach", "manage"}),
}
"""By role, what a token may do beyond inspecting and correcting: teach and restore; load, reload and unload bundles."""
NO_ROLE = frozenset({"manage"})
"""What a token without a role may do: what all could before there were roles."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings(OpenOptions):
    """How photos become verdicts: how the bundles are opened, and how their photos queue."""

    fallback: str | None = None
    """Backend to use where `backend` cannot be had; health then says degraded. None = refuse to start."""
    group: int = 4
    """Photos that share their UNet batches; a waiting photo joins when the running group is done."""
    gather_ms: float = 4.0
    """How long an idle worker waits for others after the first photo of a group arrived."""
    queue: int = 64
    """Photos that may wait; one more is answered 503 with Retry-After."""
    sign_key: Path | None = None
    """Private key that signs what this box teaches; None = taught bundles are unsigned."""
    queue_bytes: int = 1024 * MEGA
    """Decoded bytes of the photos that may wait or run: a few photos of 200 megapixels fill the memory, too."""
    full: bool = False
    """Whether every photo's whole plan is repainted, and not only what its verdict needs or whoever asks gets."""
    photos_per_second: float | None = None
    """Rate of a line that the box must keep up with: repaints that a photo's share of the time has no room for are left
    out. None: a photo takes what it takes."""
    stuck_s: float = 300.0
    """A group that takes longer counts as a crash: its worker is killed and started again."""
    memory_bytes: int = 0
    """Bundles are unloaded, the longest unused first, while their files' bytes exceed this; 0 = no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("group", "queue", "queue_bytes", "stuck_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.photos_per_second is not None and not self.photos_per_second > 0:
            raise SettingsError(f"--photos-per-second is {self.photos_per_second:g}; it must be above 0")
        if self.gather_ms < 0 or self.memory_bytes < 0:
            raise SettingsError("gather_ms and memory_bytes must not be negative")


@dataclass(frozen=True)
class RecordSettings:
    """What is kept of every verdict."""

    path: Path | None = None
    """SQLite file; None keeps only the last verdicts in memory."""
    keep_photo: bool = False
    """Store the photo's own bytes, so that it can be inspected again."""
    keep_map: bool = False
    """Store the fused score map (float32, deflated)."""
    max_age_days: float = 0.0
    """Verdicts older than this are removed; 0 = never."""
    max_bytes: int = 0
    """The oldest verdicts are removed while the file's used pages exceed this; 0 = no limit."""
    sweep_s: float = 60.0
    """Pause between two looks at age and size."""


@dataclass(frozen=True)
class SecuritySettings:
    """Authentication and limits of requests."""

    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """Name -> secret of the clients; empty = no token is required (loopback only), and everything is allowed."""
    roles: dict[str, str] = field(default_factory=dict)
    """Name -> role (ROLES) of the clients that have one; others may do what NO_ROLE says."""
    hosts: tuple[str, ...] = ()
    """Host names beyond the bound address under which the box may be addressed; against DNS rebinding."""
    max_body_bytes: int = 64 * MEGA
    """A longer body is answered 413."""
    max_pixels: int = 50_000_000
    """A photo of more pixels is answered 413 before it is decoded."""
    max_photos: int = 64
    """Photos in one batch request."""
    body_timeout_s: float = 30.0
    """A body that has not arrived by then is answered 408."""
    header_timeout_s: float = 10.0
    """A connection that has not sent a whole request head by then is closed."""
    max_connections: int = 256
    """Connections above this are answered 503."""
    rate_per_s: float = 0.0
    """Inspections a second that one client may ask for on average; 0 = no limit."""
    rate_burst: int = 64
    """Inspections that one client may ask for at once before the rate counts."""


@dataclass(frozen=True)
class MqttSettings:
    """An MQTT broker: triggers come from it, verdicts are published to it."""

    host: str
    """Its address."""
    port: int = 1883
    """Its port."""
    user: str | None = None
    """User name, if it requires one."""
    password: str | None = field(default=None, repr=False)
    """Its password."""
    ca: Path | None = None
    """PEM of its certificate's authority; turns TLS on."""
    prefix: str = "sd-edge"
    """First part of every topic."""
    client_id: str = ""
    """The session's name at the broker; prefix and host name if empty. What it holds for us survives our restart."""


@dataclass(frozen=True)
class WebhookSettings:
    """A URL that verdicts are posted to."""

    url: str
    """http or https."""
    verdicts: frozenset[str] = frozenset({"anomalous", "uncertain"})
    """Which are posted; uncertain ones are those that a person should see."""
    secret: str | None = field(default=None, repr=False)
    """Signs every call with HMAC-SHA256; None = unsigned."""
    timeout_s: float = 10.0
    """For one call."""
    attempts: int = 12
    """A call that failed so often is given up; the pauses double from 1 s to 10 minutes."""


@dataclass(frozen=True)
class ServeSettings:
    """All settings of `sd-edge serve`."""

    bundles: tuple[Path, ...]
    """Bundle folders; a bundle's name is its folder's."""
    host: str = "127.0.0.1"
    """Address to bind; outside loopback a token is required."""
    port: int = 8080
    """Port; 0 = any free one, printed at start."""
    tls_cert: Path | None = None
    """PEM certificate chain."""
    tls_key: Path | None = None
    """PEM private key."""
    deadline_ms: float = 60_000.0
    """Deadline of a request that names none."""
    stop_s: float = 30.0
    """How long a stop waits for what was taken."""
    recent: int = 200
    """Verdicts, with their pictures, that the page can show from memory."""
    engine: EngineSettings = EngineSettings()
    """How photos become verdicts."""
    record: RecordSettings = RecordSettings()
    """What is kept."""
    security: SecuritySettings = SecuritySettings()
    """Who may ask."""
    mqtt: MqttSettings | None = None
    """Broker, if there is one."""
    webhook: WebhookSettings | None = None
    """Whom to tell, if anybody."""
    trusted_width: float = 0.2
    """Width of the interval of a class's balanced error, in (0,1], at which the box proposes to trust it."""
    auto: bool = False
    """Whether it then trusts it by itself; otherwise a person accepts."""

    def __post_init__(self) -> None:
        if not self.bundles:
            raise SettingsError("no bundle was named; give at least one folder that 'sd-edge export' wrote")
        names = [bundle_path(path).name for path in self.bundles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(
                f"two bundles are called {', '.join(twice)}; a bundle's name is its folder's: rename one"
            )
        if not self.security.tokens and not is_loopback(self.host):
            raise SettingsError(
                f"--host {self.host} lets other machines in; that needs a token: set SD_EDGE_TOKEN or --token-file, "
                "or bind 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("TLS needs both --tls-cert and --tls-key")
        if not 0 < self.trusted_width <= 1:
            raise SettingsError(f"--trusted-width is {100 * self.trusted_width:g}; expected percent, above 0 up to 100")
        if self.auto and self.record.path is None:
            raise SettingsError("--auto needs --record: the stream that a class is accepted on is kept there")
        if self.webhook is not None and self.record.path is None:
            raise SettingsError("--webhook needs --record: calls that are not delivered yet wait there over a restart")


def record_settings(path: Path | None, keep: str, max_age_days: float, max_bytes: int) -> RecordSettings:
    """From the command line's words. Raises SettingsError."""
    kept = {word.strip() for word in keep.split(",") if word.strip()}
    if not kept <= {"photo", "map"}:
        raise SettingsError(f"--keep is {keep!r}; use photo, map, or photo,map")
    if path is None and (kept or max_age_days or max_bytes):
        raise SettingsError("--keep, --max-age-days and --max-record-size need --record FILE")
    if max_age_days < 0 or max_bytes < 0:
        raise SettingsError("--max-age-days and --max-record-size must not be negative")
    return RecordSettings(path, "photo" in kept, "map" in kept, max_age_days, max_bytes)


def mqtt_settings(address: str, ca: Path | None, prefix: str, environment: Mapping[str, str]) -> MqttSettings:
    """From HOST:PORT and the environment's secrets. Raises SettingsError."""
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "8883" if ca else "1883")
    if not host or not port.isdigit() or not prefix or set("+#") & set(prefix):
        raise SettingsError(
            f"--mqtt is {address!r} with prefix {prefix!r}; expected HOST:PORT and a prefix without + or #"
        )
    user, password = environment.get("SD_EDGE_MQTT_USER"), environment.get("SD_EDGE_MQTT_PASSWORD")
    return MqttSettings(host, int(port), user, password, ca, prefix.strip("/"))


def webhook_settings(url: str, when: str, secret: str | None) -> WebhookSettings:
    """From the command line's words. Raises SettingsError."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--webhook is {url[:80]!r}; expected a URL with http or https")
    wanted = set(VERDICTS) if when.strip() == "all" else {word.strip() for word in when.split(",")}
    if not wanted <= set(VERDICTS):
        raise SettingsError(f"--webhook-on is {when!r}; use {', '.join(VERDICTS)}, with commas between, or all")
    return WebhookSettings(url, frozenset(wanted), secret)


def bundle_path(path: Path) -> Path:
    """`path` from the root, links kept: its last part is the name that clients use."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the links


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return host in ("localhost", "::1") or host.startswith("127.")


def read_tokens(environment: str | None, file: Path | None) -> dict[str, str]:
    """Tokens from SD_EDGE_TOKEN (one secret, named 'token') and a file of lines NAME:SECRET or
    NAME:SECRET:ROLE. Raises SettingsError.

    Messages never show a secret.
    """
    found = {"token": environment.strip()} if environment else {}
    found |= {name: secret for name, secret, _ in _token_lines(file)}
    short = sorted(name for name, secret in found.items() if len(secret) < 16)
    if short:
        raise SettingsError(
            f"the token of {', '.join(short)} is shorter than 16 characters; make one with: openssl rand -hex 24"
        )
    return found


def read_roles(file: Path | None) -> dict[str, str]:
    """Name -> role of the tokens in a file that have one. Raises SettingsError."""
    return {name: role for name, _, role in _token_lines(file) if role is not None}


def _token_lines(file: Path | None) -> list[tuple[str, str, str | None]]:
    """(name, secret, role) of each line. A secret may hold colons: only a role's own name is taken for one."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token file {file} cannot be read ({type(error).__name__}); check it") from error
    found: list[tuple[str, str, str | None]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, rest = line.partition(":")
        if not separator or not name.strip():
            raise SettingsError(f"line {number} of {file} is not NAME:SECRET or NAME:SECRET:ROLE")
        secret, _, last = rest.strip().rpartition(":")
        role = last.strip() if last.strip() in ROLES else None
        found.append((name.strip(), rest.strip() if role is None else secret.strip(), role))
    return found
