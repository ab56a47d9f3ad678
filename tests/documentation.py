"""The pages of the documentation, and what a reader is told to type in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.conftest import ROOT

DOCS = ROOT / "docs"
# A page for the code host, not of the site.
FRONT_PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
BLOCK = re.compile(r"^```(bash|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A block of YAML that a reader saves says where in its first line.
FILE_NAME = re.compile(r"# (\S+\.yaml)\n")

# Commands that another test runs, and which.
RUN_ELSEWHERE = {
    "make demo": "the fixture `demo` of test_chain",
    "make test": "what CI calls",
    "make setup": "what every other target calls first",
    "source .venv/bin/activate": "the environment of this run",
    "bentoml serve service.service:TextClassifier": "test_service",
    "WHETSTONE_PACKAGE=runs/support_tickets/package bentoml serve service.service:TextClassifier": (
        "test_service"
    ),
    "WHETSTONE_EXPLAIN=1 WHETSTONE_UI=1 bentoml serve service.service:TextClassifier": "test_page",
    "WHETSTONE_UI=1 bentoml serve service.service:TextClassifier": "test_page",
    "bentoml build": "test_bento",
    "bentoml build && make image": "test_image",
    "make image": "test_image",
    "whetstone run examples/support_tickets/recipe.yaml --publish s3://models/whetstone": (
        "test_publish"
    ),
    "WHETSTONE_DEVICE=cuda bentoml build -f bentofile.gpu.yaml "
    "--arg model=text-classifier:<version>": "test_image",
    "torchrun --nproc_per_node 2 -m whetstone train examples/support_tickets/recipe.yaml": (
        "test_resume"
    ),
    "whetstone tune examples/support_tickets/recipe.yaml --trials 20 --output_dir runs/tuned": (
        "test_tune"
    ),
    "pip install -c constraints.txt -e '.[train,postgresql]'": "make setup installs the extra",
    "pip install -c constraints.txt -e '.[ray]'": "make test-engines-setup installs the extra",
    "pip install -c constraints.txt -e '.[spark]'": "make test-engines-setup installs the extra",
    "export OPTUNA_STORAGE=postgresql://user:password@host/database": "test_shared_study",
    "whetstone tune examples/support_tickets/recipe.yaml --trials 100 --study_name tickets-1": (
        "test_shared_study"
    ),
    "WHETSTONE_CAPTURE=captured WHETSTONE_CAPTURE_RATE=0.1 bentoml serve "
    "service.service:TextClassifier": "test_production",
    "WHETSTONE_API_KEYS_FILE=api-keys bentoml serve service.service:TextClassifier": (
        "test_contract"
    ),
}
# A page whose commands are one story, which test_walk plays in a folder of its own.
WALK = DOCS / "guides" / "loop.md"
# Beginnings of commands that no test runs as they are written, and why.
STARTS_ELSEWHERE = {
    "KEY=": "test_contract makes a key and serves with it",
    "echo ": "test_contract makes a key and serves with it",
    "curl ": "needs a server at a fixed port; test_clients calls curl",
    "ray start ": "needs a second node; test_engines starts both",
    "spark-submit ": "needs a cluster; test_engines submits to one of this machine",
    "whetstone predict s3://": "names a version and needs a cluster; test_engines",
    "docker ": "needs a container engine: make test-image",
    "helm ": "needs a cluster; test_chart renders the chart",
    "kind ": "needs a cluster",
    "kubectl ": "needs a cluster",
    "perl -pi -e 's/newTag": "changes the overlay of the repository; test_manifests renders it",
    "whetstone image ": "needs a container engine: make test-image",
    "whetstone release ": "needs a cluster; test_release runs it with a stand-in",
    "whetstone rollback ": "needs a cluster; test_release runs it with a stand-in",
    "whetstone verify http": "needs a server at a fixed port; test_verify",
    "whetstone compare text-classifier:<version>": "names a version; test_compare",
    "whetstone compare <champion>": "names a version; test_publish",
    "whetstone register s3://": "names a version; test_publish",
    "whetstone drift ": "needs captured answers; test_production",
    "whetstone collect ": "needs captured answers; test_production",
    "whetstone forget ": "needs captured answers; test_production",
    "bentoml build --arg ": "names a version; test_bento",
    "bentoml serve service.service:TextClassifier --arg ": "names a version; test_bento",
}


@dataclass(frozen=True)
class WrittenFile:
    """A file that a reader saves: its path in the working folder, and its content."""

    path: str
    content: str


def pages() -> list[Path]:
    """The README, then the pages of the site in the order of its navigation."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    return [ROOT / "README.md", *(DOCS / name for name in _leaves(config["nav"]))]


def _leaves(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        for each in entry:
            yield from _leaves(each)
    elif isinstance(entry, dict):
        for each in entry.values():
            yield from _leaves(each)


def text_of_pages() -> str:
    """All pages, one after the other."""
    return "\n".join(page.read_text("utf-8") for page in pages())


def steps(text: str | None = None) -> list[str | WrittenFile]:
    """Commands and files of all pages, or of a text, in order; continued lines are joined."""
    found: list[str | WrittenFile] = []
    for language, block in BLOCK.findall(text_of_pages() if text is None else text):
        name = FILE_NAME.match(block)
        if language == "yaml":
            found += [WrittenFile(name[1], block)] if name else []
            continue
        lines = block.replace("\\\n", " ").splitlines()
        lines = [line.partition("  #")[0].strip() for line in lines]
        found += [line for line in lines if line and not line.startswith("#")]
    return found


def where_else(command: str) -> str | None:
    """Where a command is tested that test_chain does not run; None for one that it runs."""
    if command in RUN_ELSEWHERE:
        return RUN_ELSEWHERE[command]
    if command in steps(WALK.read_text("utf-8")):
        return "test_walk"
    for start, reason in STARTS_ELSEWHERE.items():
        if command.startswith(start):
            return reason
    return None
