"""The BentoML service.

    bentoml serve service.service:TextClassifier
    WHETSTONE_PACKAGE=runs/support_tickets/package bentoml serve service.service:TextClassifier

It serves the folder in WHETSTONE_PACKAGE, or else a model of BentoML's store. Inside a bento this
is the model that the bento was built with. Otherwise it is the newest `text-classifier`, or the one
that `--arg model=text-classifier:<version>` names.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import bentoml
from bentoml import Service
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.capture.start import check_capture, start_capture
from service.capture.store import without_credentials
from service.http.access_log import enable_access_log
from service.http.api_keys import ApiKeys, ApiKeysError
from service.http.middleware import BoundedPreflights, TracedRoutes
from service.http.probes import Probes
from service.http.routes import Routes
from service.http.schemas import ClassifyRequest, ClassifyResponse
from service.http.upgrades import ignore_upgrades
from service.inference.engine import Engine
from service.metrics.recorder import Metrics
from service.metrics.shared_files import shared_folder
from service.package.manifest import MODEL_STORE_NAME, Manifest
from service.settings import SettingsError, read_settings
from service.startup import (
    check_machine,
    load_classifier,
    pinned_model,
    refuse_unsound,
    sound_model,
    start_engine,
)

logger = logging.getLogger("bentoml.service")


class BuildArguments(BaseModel):
    """The arguments that `--arg` can give to `bentoml build` and `bentoml serve`."""

    model: str = f"{MODEL_STORE_NAME}:latest"


try:
    settings = read_settings()
    keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
    routes = Routes(settings, keys)
    lifecycle = routes.lifecycle
    capture_rules = check_capture(settings)
except (SettingsError, ApiKeysError) as error:
    raise BentoMLException(str(error)) from None


class ThinService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service with our routes in front of its middlewares.

    These middlewares cost several times what a route costs: an access log, spans, and metrics by
    path. With `WHETSTONE_TRACING_URL`, requests go through them nevertheless.
    """

    def schema(self) -> dict[str, Any]:
        """What BentoML's clients read. BentoML itself makes "a text" of "a text or a list"."""
        content: dict[str, Any] = super().schema()
        for route in content["routes"]:
            if route["route"] == "/classify":
                route["input"] |= ClassifyRequest.model_json_schema()
                route["output"] |= ClassifyResponse.model_json_schema()
        return content

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """The application that the worker runs."""
        ignore_upgrades()
        if settings.tracing_url:
            self.add_asgi_middleware(TracedRoutes, routes=routes)
        routes.bentoml = super().to_asgi(is_main=is_main)
        if not settings.cors_origins:
            return routes
        with_cors = CORSMiddleware(
            routes,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Encoding",
                "Content-Type",
                "X-Request-Id",
                "X-Request-Timeout-Ms",
                "X-Whetstone-Group",
            ],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
        )
        return BoundedPreflights(with_cors)


def tracing() -> dict[str, Any]:
    """BentoML's settings for OpenTelemetry; without an address no span is collected."""
    if settings.tracing_url is None:
        return {}
    return {
        "exporter_type": "otlp",
        "sample_rate": settings.tracing_sample_rate,
        "otlp": {"protocol": "http", "endpoint": settings.tracing_url},
    }


@bentoml.service(
    name=MODEL_STORE_NAME,
    service_class=ThinService,
    # Our access log has a switch and the request's id, and our deadline replaces BentoML's.
    logging={"access": {"enabled": False}},
    traffic={"timeout": 86_400},
    workers=settings.workers,
    tracing=tracing(),
)
class TextClassifier:
    """Classifies text: `POST /classify`, `GET /info`."""

    # A declared model must be in the store even if it is never used. Therefore it is declared only
    # when the package does not come from a folder.
    if settings.package is None:
        model = sound_model(
            pinned_model() or bentoml.use_arguments(BuildArguments).model, settings.device
        )
    else:
        refuse_unsound(settings.package, settings.device)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def refuse_what_cannot_run() -> None:
        """Check the machine once, before the first worker.

        Not at import: a bento for a GPU may be built on a machine without one.
        """
        check_machine(settings)

    def __init__(self) -> None:
        """Load, verify and warm up; no probe is answered until this returns."""
        folder = settings.package or Path(self.model.path)
        classifier, golden = load_classifier(folder, settings.device)
        engine = start_engine(classifier, folder, settings)
        if settings.access_log:
            enable_access_log()
        metrics = Metrics(classifier.manifest, engine)
        capture = start_capture(capture_rules, settings, classifier, metrics)
        routes.attach(classifier, engine, metrics, shared_folder(), capture)
        if settings.probe_port is not None:
            checks = {"/livez": lambda: lifecycle.alive, "/readyz": lambda: lifecycle.ready}
            Probes(settings.probe_port, checks, shared=settings.workers > 1)
        log_start(classifier.manifest, engine, golden)

    # For BentoML's clients, which read the routes of a service from its methods. Over HTTP
    # `service.http.routes` answers before BentoML is asked.
    @bentoml.api(  # type: ignore[untyped-decorator]
        route="/classify", input_spec=ClassifyRequest, output_spec=ClassifyResponse
    )
    async def classify(self, **request: Any) -> ClassifyResponse:
        """Classify one text or several."""
        return await routes.classify_here(request)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def shut_down(self) -> None:
        """Answer the queue; the server calls this when it ends."""
        lifecycle.close()

    def __is_ready__(self) -> bool:
        """The answer of `/readyz`."""
        return lifecycle.ready

    def __is_alive__(self) -> bool:
        """The answer of `/livez`."""
        return lifecycle.alive


def log_start(manifest: Manifest, engine: Engine, golden: int) -> None:
    """Log in one line what is served, and within which limits."""
    logger.info(
        "serving %s:%s, %s, %d labels, %s, on %s, %d workers, %d threads, batches of "
        "%d tokens, %d golden texts answered as recorded; at most %d texts of %d characters "
        "in %d bytes, %d tokens waiting, %d ms",
        manifest.name,
        manifest.version,
        manifest.precision,
        len(manifest.labels),
        "no API key needed" if keys is None else f"API keys accepted: {len(keys)}",
        settings.device,
        settings.workers,
        engine.capacity.threads,
        engine.capacity.batch_tokens,
        golden,
        settings.max_texts,
        settings.max_characters,
        settings.max_body_bytes,
        settings.queue_tokens,
        settings.timeout_ms,
    )
    if capture_rules is not None:
        logger.info("capturing to %s: %s", without_credentials(settings.capture), capture_rules)
