"""The BentoML service.

    bentoml serve service.service:TextClassifier
    WHETSTONE_PACKAGE=runs/support_tickets/package bentoml serve service.service:TextClassifier

It serves the folder in WHETSTONE_PACKAGE, or else a model of BentoML's store: inside a bento the
one that the bento was built with, otherwise the newest `text-classifier`, or another one named by
`--arg model=text-classifier:<version>`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import bentoml
import yaml
from bentoml import Service
from bentoml.exceptions import BentoMLException
from bentoml.models import BentoModel
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.api_keys import ApiKeys, ApiKeysError
from service.classifier import Classifier, GoldenMismatchError
from service.http.access_log import write_accesses
from service.http.middleware import BoundedPreflights, TracedRoutes
from service.inference.cores import available_cores
from service.inference.device import Device, DeviceError, check_device
from service.inference.engine import BATCH_TOKENS, Engine
from service.metrics import Metrics
from service.model_package import (
    MODEL_STORE_NAME,
    PackageError,
    TargetDevice,
    read_golden,
    verify_package,
)
from service.probes import Probes, ProbesError, listen
from service.routes import Routes
from service.schemas import ClassifyRequest, ClassifyResponse
from service.settings import SettingsError, read_settings
from service.upgrades import ignore_upgrades

logger = logging.getLogger("bentoml.service")

# The device that a package is made for, by WHETSTONE_DEVICE.
TARGET_DEVICES: dict[Device, TargetDevice] = {"cpu": "cpu", "cuda": "gpu"}
BENTO_FILE = Path(__file__).resolve().parents[2] / "bento.yaml"


class BuildArguments(BaseModel):
    """What `--arg` may give to `bentoml build` and `bentoml serve`."""

    model: str = f"{MODEL_STORE_NAME}:latest"


def pinned_model(bento_file: Path = BENTO_FILE) -> str | None:
    """The tag of the model that the surrounding bento was built with; None outside a bento.

    BentoML evaluates `…:latest` anew at every start, so a bento would serve whatever was
    registered since; its bento.yaml says what it was built and tested with.

    Raises:
        BentoMLException: this is a bento, but it pins no text classifier.
    """
    if not bento_file.is_file():
        return None
    content = yaml.safe_load(bento_file.read_text(encoding="utf-8"))
    services = [content, *(content.get("services") or [])]
    tags = {str(model["tag"]) for service in services for model in (service.get("models") or [])}
    found = sorted(tag for tag in tags if tag.startswith(f"{MODEL_STORE_NAME}:"))
    if len(found) != 1:
        raise BentoMLException(
            f"{bento_file} pins {len(found)} models named {MODEL_STORE_NAME}, not one: build the "
            "bento again, with WHETSTONE_PACKAGE unset"
        )
    return found[0]


def refuse_unsound(package: Path, device: Device) -> None:
    """Raise BentoMLException when a folder is not a sound package, or not one for `device`.

    Before a worker is started: BentoML would start one whose `__init__` fails again and again.
    """
    try:
        manifest = verify_package(package)
    except PackageError as error:
        raise BentoMLException(str(error)) from None
    if manifest.target_device != TARGET_DEVICES[device]:
        raise BentoMLException(
            f"{package} was made and proven for a {manifest.target_device.upper()}, and "
            f"WHETSTONE_DEVICE is {device}: change that, or export the model again with "
            f"target_device: {TARGET_DEVICES[device]}"
        )


def sound_model(tag: str) -> BentoModel:
    """The model of the store, its package verified where it is there already."""
    model = BentoModel(tag)
    stored = model.stored
    if stored is not None:
        refuse_unsound(Path(stored.path), settings.device)
    return model


try:
    settings = read_settings()
    keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
    routes = Routes(settings, keys)
except (SettingsError, ApiKeysError) as error:
    raise BentoMLException(str(error)) from None


class ThinService(Service[Any]):  # type: ignore[misc]  # bentoml is not typed
    """BentoML's service with our routes in front of its middlewares.

    Those cost several times what a route does: an access log, spans and metrics by raw path. With
    `WHETSTONE_TRACING_URL` requests go through them all the same.
    """

    def schema(self) -> dict[str, Any]:
        """What BentoML's clients read; BentoML makes "a text" of "a text or a list of texts"."""
        content: dict[str, Any] = super().schema()
        for route in content["routes"]:
            if route["route"] == "/classify":
                route["input"] |= ClassifyRequest.model_json_schema()
                route["output"] |= ClassifyResponse.model_json_schema()
        return content

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """What the worker runs."""
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
            ],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-Id"],
        )
        return BoundedPreflights(with_cors)


def tracing() -> dict[str, Any]:
    """BentoML's settings of OpenTelemetry; nothing is collected without an address."""
    if settings.tracing_url is None:
        return {}
    return {
        "exporter_type": "otlp",
        "sample_rate": settings.tracing_sample_rate,
        "otlp": {"protocol": "http", "endpoint": settings.tracing_url},
    }


@bentoml.service(
    name="text-classifier",
    service_class=ThinService,
    # Ours is by switch and knows the request's id; the deadline of a request is ours, too.
    logging={"access": {"enabled": False}},
    traffic={"timeout": 86_400},
    workers=settings.workers,
    tracing=tracing(),
)
class TextClassifier:
    """Classifies text: `POST /classify`, `GET /info`."""

    # A declared model must be in the store even when it is never used, so it is declared only
    # when the package does not come from a folder.
    if settings.package is None:
        model = sound_model(pinned_model() or bentoml.use_arguments(BuildArguments).model)
    else:
        refuse_unsound(settings.package, settings.device)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def refuse_what_cannot_run() -> None:
        """Raise BentoMLException where ONNX Runtime lacks the device, or a port is taken.

        Once, before the first worker, and not on import: a bento for a GPU may be built where
        there is none.
        """
        try:
            check_device(settings.device)
            if settings.probe_port is not None:
                listen(settings.probe_port, shared=settings.workers > 1).close()
        except DeviceError as error:
            raise BentoMLException(str(error)) from None
        except ProbesError as error:
            raise BentoMLException(f"WHETSTONE_PROBE_PORT: {error}") from None

    def __init__(self) -> None:
        """Load, verify and warm up; until this returns, no probe is answered."""
        folder = settings.package or Path(self.model.path)
        on_gpu = settings.device == "cuda"
        cores = max(1, available_cores() // settings.workers)
        threads = settings.threads or (1 if on_gpu else cores)
        # Texts come one by one: threads inside the tokenizer would only compete with the model's.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            # One batch is one thread's work: batches run side by side, not their parts.
            classifier = Classifier.load(folder, threads=1, device=settings.device)
            golden = classifier.check_golden(folder)
        except (PackageError, GoldenMismatchError, DeviceError) as error:
            raise BentoMLException(str(error)) from None
        engine = Engine(
            classifier,
            answers=classifier.row_answers,
            threads=threads,
            # A GPU need not wait for what cores do.
            tokenizer_threads=cores if on_gpu else 0,
            batch_tokens=settings.batch_tokens or BATCH_TOKENS[settings.device],
            queue_tokens=settings.queue_tokens,
        )
        # So that the first requests are judged by a measured time per token.
        stand_in = ("warm", "up") if classifier.manifest.has_pairs else "warm up"
        for text in [answer.input for answer in read_golden(folder)] or [stand_in]:
            engine.run(classifier.encode([text]))
        if settings.access_log:
            write_accesses()
        manifest = classifier.manifest
        # BentoML's folder for the metrics of all its workers.
        shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        routes.attach(
            classifier, engine, Metrics(manifest, engine), Path(shared) if shared else None
        )
        if settings.probe_port is not None:
            answers = {"/livez": lambda: routes.alive, "/readyz": lambda: routes.ready}
            Probes(settings.probe_port, answers, shared=settings.workers > 1)
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
            engine.threads,
            engine.batch_tokens,
            golden,
            settings.max_texts,
            settings.max_characters,
            settings.max_body_bytes,
            settings.queue_tokens,
            settings.timeout_ms,
        )

    # For BentoML's clients, which read the routes of a service from its methods. Over HTTP
    # `service.routes` answers before BentoML is asked.
    @bentoml.api(  # type: ignore[untyped-decorator]
        route="/classify", input_spec=ClassifyRequest, output_spec=ClassifyResponse
    )
    async def classify(self, **request: Any) -> ClassifyResponse:
        """Classify one text or several."""
        return await routes.classify_here(request)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def shut_down(self) -> None:
        """Answer what is queued; the server asks this when it ends."""
        routes.close()

    def __is_ready__(self) -> bool:
        """What `/readyz` asks."""
        return routes.ready

    def __is_alive__(self) -> bool:
        """What `/livez` asks."""
        return routes.alive
