"""Figures for Prometheus. Labels take values of this box alone (bundles, classes, statuses), never a client's text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anomalysd_runtime.server.verdicts import Verdict

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters and gauges of one box; a registry of its own, so that two boxes in one process never mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.verdicts = Counter("sd_edge_verdicts", "Verdicts told", ["bundle", "class_name", "verdict"], registry=own)
        self.requests = Counter("sd_edge_requests", "Photos asked for, by outcome", ["source", "status"], registry=own)
        self.duration = Histogram(
            "sd_edge_request_seconds", "From arrival to verdict", ["source"], buckets=SECONDS, registry=own
        )
        self.stages = Histogram(
            "sd_edge_stage_seconds", "A photo's share of a stage", ["stage"], buckets=SECONDS, registry=own
        )
        self.waiting = Gauge("sd_edge_waiting_photos", "Photos that wait for a worker", registry=own)
        self.running = Gauge("sd_edge_running_photos", "Photos with the worker", registry=own)
        self.restarts = Gauge("sd_edge_worker_restarts", "Worker processes started again", registry=own)
        self.photo_ms = Gauge("sd_edge_photo_milliseconds", "Running mean of a photo's time", ["bundle"], registry=own)
        self.loaded = Gauge("sd_edge_bundle_loaded", "Whether a bundle is open", ["bundle"], registry=own)
        self.ready = Gauge("sd_edge_ready", "Whether the box takes photos", registry=own)
        self.degraded = Gauge("sd_edge_degraded", "Whether something is not as asked for; see /health", registry=own)
        of_class = ["bundle", "class_name", "quantity"]
        self.drift = Gauge("sd_edge_drift", "Whether the last photos differ from commissioning", of_class, registry=own)
        self.drift_change = Gauge(
            "sd_edge_drift_change", "Of the median against commissioning, relative", of_class, registry=own
        )
        self.mqtt = Gauge("sd_edge_mqtt_connected", "Whether triggers of a broker arrive", registry=own)
        self.outbox = Gauge("sd_edge_webhook_outbox", "Webhook calls that are not delivered yet", registry=own)

    def count_verdict(self, verdict: Verdict, seconds: float) -> None:
        """Count a verdict."""
        self.verdicts.labels(verdict.bundle, verdict.class_name, verdict.verdict).inc()
        self.requests.labels(verdict.source, "200").inc()
        self.duration.labels(verdict.source).observe(seconds)
        for stage, ms in verdict.timings_ms.items():
            self.stages.labels(stage.removesuffix("_ms")).observe(ms / 1e3)

    def count_rejected(self, source: str, status: int) -> None:
        """Count a photo that got no verdict."""
        self.requests.labels(source, str(status)).inc()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
