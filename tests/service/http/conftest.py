"""The tiny classifier, and a client of the routes that serve it in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.inference.classifier import Classifier
from tests.servers import routes_of


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=1)


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[TestClient]:
    with routes_of(classifier, threads=2) as routes:
        yield TestClient(routes)
