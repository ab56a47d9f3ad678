"""The BentoML service.

    bentoml serve service.service:TextClassifier
    WHETSTONE_PACKAGE=runs/support_tickets/package bentoml serve service.service:TextClassifier

It serves the folder in WHETSTONE_PACKAGE, or else a model of BentoML's store: inside a bento the
one that the bento was built with, otherwise the newest `text-classifier`, or another one named by
`--arg model=text-classifier:<version>`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import bentoml
import yaml
from bentoml.exceptions import BentoMLException
from bentoml.models import BentoModel
from pydantic import BaseModel

from service.classifier import Classifier, GoldenMismatchError, available_cores
from service.model_package import MODEL_STORE_NAME, PackageError, verify_package
from service.routes import attach, make_app
from service.settings import SettingsError, read_settings

logger = logging.getLogger("bentoml.service")

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


def refuse_unsound(package: Path) -> None:
    """Raise BentoMLException when a folder is not a sound package.

    Before a worker is started: BentoML would start one whose `__init__` fails again and again.
    """
    try:
        verify_package(package)
    except PackageError as error:
        raise BentoMLException(str(error)) from None


def sound_model(tag: str) -> BentoModel:
    """The model of the store, its package verified where it is there already."""
    model = BentoModel(tag)
    stored = model.stored
    if stored is not None:
        refuse_unsound(Path(stored.path))
    return model


try:
    settings = read_settings()
except SettingsError as error:
    raise BentoMLException(str(error)) from None

app = make_app()


@bentoml.service(name="text-classifier")
@bentoml.asgi_app(app, path="/")
class TextClassifier:
    """Classifies text: `POST /classify`, `GET /info`."""

    # A declared model must be in the store even when it is never used, so it is declared only
    # when the package does not come from a folder.
    if settings.package is None:
        model = sound_model(pinned_model() or bentoml.use_arguments(BuildArguments).model)
    else:
        refuse_unsound(settings.package)

    def __init__(self) -> None:
        """Load, verify and warm up; until this returns, no probe is answered."""
        folder = settings.package or Path(self.model.path)
        threads = settings.threads or available_cores()
        try:
            # One request is one thread's work: requests run side by side, not their parts.
            classifier = Classifier.load(folder, threads=1)
            golden = classifier.check_golden(folder)
        except (PackageError, GoldenMismatchError) as error:
            raise BentoMLException(str(error)) from None
        attach(app, classifier, threads)
        manifest = classifier.manifest
        logger.info(
            "serving %s:%s, %s, %d labels, %d threads, %d golden texts answered as recorded",
            manifest.name,
            manifest.version,
            manifest.precision,
            len(manifest.labels),
            threads,
            golden,
        )

    def __is_ready__(self) -> bool:
        """What `/readyz` asks."""
        return app.state.classifier is not None
