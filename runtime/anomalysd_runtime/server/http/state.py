"""The HTTP routes of the box's own state: health with its reasons, and figures for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from anomalysd_runtime.server.http import schemas
from anomalysd_runtime.server.http.error_handlers import ERROR_RESPONSES
from anomalysd_runtime.server.inference.service import Service


def routes(service: Service) -> APIRouter:
    """GET /health and /metrics."""
    router = APIRouter(tags=["state"], responses=ERROR_RESPONSES)

    @router.get("/health", response_model=schemas.HealthAnswer)
    async def health() -> Any:
        """starting, ok, degraded (with reasons) or stopping."""
        return health_of(service)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(metrics_of(service), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def health_of(service: Service) -> dict[str, Any]:
    """The state of the box, as /health returns it."""
    reasons = []
    state = service.engine.state
    for loaded in service.bundles.loaded():
        if loaded.opened.fell_back is not None:
            reasons.append(f"bundle {loaded.name} runs on {loaded.opened.backend}: {loaded.opened.fell_back}")
    reasons += [f"bundle {key.partition('@')[0]}: {why}" for key, why in state.unopened.items()]
    reasons += [f"bundle {key.partition('@')[0]} answers from {what}" for key, what in state.changed.items()]
    if state.lost is not None:
        reasons.append(state.lost)
    if service.store is not None and service.store.failing is not None:
        reasons.append(service.store.failing)
    reasons += service.drift.sentences()
    status = service.phase if service.phase != "ready" else "degraded" if reasons else "ok"
    return {
        "status": status,
        "reasons": reasons,
        "ready": service.ready,
        "waiting": service.engine.waiting,
        "running": state.running,
        "worker_restarts": state.restarts,
    }


def metrics_of(service: Service) -> bytes:
    """The gauges brought up to date, then everything."""
    metrics, state = service.metrics, service.engine.state
    metrics.waiting.set(service.engine.waiting)
    metrics.running.set(state.running)
    metrics.restarts.set(state.restarts)
    metrics.ready.set(service.ready)
    metrics.degraded.set(health_of(service)["status"] == "degraded")
    for name in service.bundles.names():
        loaded = service.bundles.known(name)
        metrics.loaded.labels(name).set(loaded is not None)
        if loaded is not None:
            metrics.photo_ms.labels(name).set(state.photo_ms.get(loaded.key, 0.0))
    for (bundle, class_name), findings in service.drift.findings().items():
        for finding in findings:
            metrics.drift.labels(bundle, class_name, finding.quantity).set(finding.drifted)
            metrics.drift_change.labels(bundle, class_name, finding.quantity).set(finding.change)
    return metrics.text()
