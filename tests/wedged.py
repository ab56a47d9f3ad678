"""The service with a model that hangs on long texts, for the tests of what operators see then.

WEDGE=/tmp/wedge bentoml serve tests.wedged:TextClassifier

It hangs from the time on when there is such a file: golden texts are asked before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.inference.classifier import Classifier

LONG = 20
_logits = Classifier.logits


def _hang_on_long_texts(classifier: Classifier, encodings: Sequence[Any]) -> Any:
    if Path(os.environ["WEDGE"]).exists() and any(len(one) >= LONG for one in encodings):
        time.sleep(3600)
    return _logits(classifier, encodings)


Classifier.logits = _hang_on_long_texts  # type: ignore[method-assign]

from service.service import TextClassifier  # noqa: E402, F401
