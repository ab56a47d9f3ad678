"""SetFit (Tunstall et al. 2022, arXiv:2209.11055) on a few rows; runs in its own environment.

    python benchmarks/setfit_peer.py BASE train.csv test.csv answers.json

BASE is a folder with the encoder. Settings are the library's defaults, and nothing of the project
is imported: the environment does not have it.
"""

import csv
import json
import sys
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from setfit import SetFitModel, Trainer, TrainingArguments
from setfit.modeling import LogisticRegression


def read(path: str) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with Path(path).open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def main(base: str, train: str, test: str, answers: str) -> None:
    """Train on one file, and write the labels of the other's texts."""
    rows = [read(path) for path in (train, test)]
    encoder = Transformer(base, max_seq_length=256)
    pooling = Pooling(encoder.get_word_embedding_dimension(), pooling_mode="mean")
    body = SentenceTransformer(modules=[encoder, pooling, Normalize()], device="cpu")
    model = SetFitModel(model_body=body, model_head=LogisticRegression())
    columns = {key: [row[key] for row in rows[0]] for key in ("text", "label")}
    arguments = TrainingArguments(output_dir=f"{answers}.work", report_to="none", seed=0)
    trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns))
    trainer.train()
    found = [str(label) for label in model.predict([row["text"] for row in rows[1]])]
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:5])
