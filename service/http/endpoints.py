"""What each route of ours answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.capture.capture import Capture
from service.http.answers import describe, model_card, model_list, model_name
from service.http.asgi import Answer, to_json
from service.http.errors import RequestError
from service.http.explaining import Explaining
from service.http.inference import Inference
from service.http.openapi import document
from service.http.request import Request
from service.inference.classifier import Classifier
from service.page.page import MEDIA_TYPE, page
from service.settings import Settings

MODEL_PREFIX = "/v1/models/"
# The key of an ASGI scope that holds the path of the request, where `path` holds a route's name.
REQUESTED_PATH = "whetstone.path"


class Endpoints:
    """A method for each route. The routes that need a model answer 503 until `attach`.

    Args:
        settings: the limits, and whether there is a page.
        with_keys: whether requests need an API key.
        is_ready: what `/health` tells.
    """

    def __init__(
        self, settings: Settings, *, with_keys: bool, is_ready: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._with_keys = with_keys
        self._is_ready = is_ready
        self._inference: Inference | None = None
        self._explaining: Explaining | None = None
        self._page = page() if settings.ui else (b"", ())
        self._info = b""
        self._models = b""
        self._document = b""

    def attach(
        self,
        inference: Inference,
        classifier: Classifier,
        capture: Capture | None = None,
        explaining: Explaining | None = None,
    ) -> None:
        """Answer with `inference`; describe `classifier` and what is captured."""
        manifest = classifier.manifest
        self._inference = inference
        self._explaining = explaining
        self._info = to_json(
            describe(manifest, self._settings, capture, explains=explaining is not None)
        )
        self._models = to_json(model_list(manifest))
        self._document = to_json(
            document(
                manifest,
                self._settings,
                with_keys=self._with_keys,
                special_tokens=classifier.encoder.special_tokens,
            )
        )

    async def classify(self, request: Request) -> Answer:
        """`POST /classify`: see `ClassifyRequest` and `ClassifyResponse`."""
        inference = self._loaded()
        # No name holds the decoded body: it may be 26 times as large as its bytes, and the request
        # may wait.
        parsed = inference.parse_classify(await request.json(self._settings))
        return Answer(200, to_json(await inference.classify(request, parsed)))

    async def classify_content(self, request: Request, content: dict[str, Any]) -> bytes:
        """The body of the answer to `POST /classify`, for a decoded body."""
        inference = self._loaded()
        return to_json(await inference.classify(request, inference.parse_classify(content)))

    async def predict(self, request: Request) -> Answer:
        """`POST /predict`: see `PredictRequest`; every label, the highest score first."""
        inference = self._loaded()
        parsed, texts = inference.parse_predict(await request.json(self._settings))
        scores = await inference.label_scores(request, parsed, texts)
        is_batch = isinstance(parsed.inputs, list) and isinstance(parsed.inputs[0], list)
        return Answer(200, to_json(scores if is_batch else scores[0]))

    async def hub(self, request: Request) -> Answer:
        """`POST /`: like `/predict`, with a list for each text, for Hugging Face's clients."""
        inference = self._loaded()
        parsed, texts = inference.parse_hub(await request.json(self._settings))
        return Answer(200, to_json(await inference.label_scores(request, parsed, texts)))

    async def explain(self, request: Request) -> Answer:
        """`POST /explain`, by switch: see `ExplainRequest` and `ExplainResponse`."""
        if self._explaining is None:
            raise not_loaded()
        parsed = self._explaining.parse(await request.json(self._settings))
        return Answer(200, to_json(await self._explaining.explain(request, parsed)))

    async def feedback(self, request: Request) -> Answer:
        """`POST /feedback`: see `FeedbackRequest`."""
        self._loaded().keep_feedback(await request.json(self._settings))
        return Answer(202, to_json({"status": "accepted"}))

    async def info(self, _request: Request) -> Answer:
        """`GET /info`: the model that is served, and the limits."""
        self._loaded()
        return Answer(200, self._info)

    async def models(self, _request: Request) -> Answer:
        """`GET /v1/models`: see `ModelList`."""
        self._loaded()
        return Answer(200, self._models)

    async def model(self, request: Request) -> Answer:
        """`GET /v1/models/{id}`: the card of the model, also by its name without the version."""
        manifest = self._loaded().manifest
        path = request.scope.get(REQUESTED_PATH, request.scope["path"])
        if path.removeprefix(MODEL_PREFIX) not in (manifest.name, model_name(manifest)):
            raise RequestError(404, "there is no such model: GET /v1/models names the one here")
        return Answer(200, to_json(model_card(manifest)))

    async def health(self, _request: Request) -> Answer:
        """`GET /health`: what `/readyz` tells, in JSON."""
        if not self._is_ready():
            raise RequestError(503, "the server is starting or shutting down")
        return Answer(200, to_json({"status": "ok"}))

    async def docs(self, _request: Request) -> Answer:
        """`GET /docs.json`: the OpenAPI document."""
        self._loaded()
        return Answer(200, self._document)

    async def ui(self, _request: Request) -> Answer:
        """`GET /ui`, by switch: the page for people."""
        return Answer(200, *self._page, MEDIA_TYPE)

    def _loaded(self) -> Inference:
        if self._inference is None:
            raise not_loaded()
        return self._inference


def not_loaded() -> RequestError:
    """503: the server is starting."""
    return RequestError(503, "the model is not loaded yet: try again in a moment")
