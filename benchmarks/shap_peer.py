"""SHAP's text masker (Lundberg and Lee 2017, arXiv:1705.07874); runs in its own environment.

    python benchmarks/shap_peer.py PACKAGE texts.json values.json

PACKAGE is a folder with model.onnx and tokenizer.json. texts.json has a list of texts, each with
the places of its words, its label and the temperature. values.json gets for each text the value of
each word, and how often the model was asked. Settings are the library's defaults, and nothing of
the project is imported: the environment does not have it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import shap
from tokenizers import Tokenizer

TEXTS_AT_ONCE = 32


class Model:
    """The log-odds of one label; it counts the texts."""

    def __init__(self, package: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(package / "model.onnx"), options)
        self.names = [node.name for node in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
        self.label, self.temperature, self.asked = 0, 1.0, 0

    def __call__(self, texts: np.ndarray) -> np.ndarray:
        """For each text, the log-odds of the label."""
        self.asked += len(texts)
        odds: list[float] = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            encoded = self.tokenizer.encode_batch(list(texts[first : first + TEXTS_AT_ONCE]))
            columns = {
                "input_ids": [each.ids for each in encoded],
                "token_type_ids": [each.type_ids for each in encoded],
                "attention_mask": [each.attention_mask for each in encoded],
            }
            feed = {name: np.asarray(columns[name], dtype=np.int64) for name in self.names}
            logits = self.session.run(["logits"], feed)[0].astype(np.float64) / self.temperature
            others = np.delete(logits, self.label, axis=1)
            odds += list(logits[:, self.label] - np.logaddexp.reduce(others, axis=1))
        return np.asarray(odds)


def main(package: str, source: str, target: str) -> None:
    """Explain every text, and write the values."""
    items = json.loads(Path(source).read_text("utf-8"))
    spans = {item["text"]: item["words"] for item in items}
    model = Model(Path(package))

    def words_of(text: str, return_offsets_mapping: bool = True) -> dict[str, list]:
        # The library also asks for the tokens of the empty text and of the mask.
        places = spans.get(text, [[0, len(text)]] if text else [])
        return {
            "input_ids": [text[start:end] for start, end in places],
            "offset_mapping": places,
        }

    masker = shap.maskers.Text(words_of, mask_token="[MASK]")  # noqa: S106 - no secret
    explainer = shap.Explainer(model, masker, silent=True)
    found = []
    for item in items:
        model.label, model.temperature, model.asked = item["label"], item["temperature"], 0
        values = explainer([item["text"]]).values[0]
        found.append({"values": np.asarray(values, dtype=float).tolist(), "asked": model.asked})
    Path(target).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])
