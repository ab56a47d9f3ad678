"""The documentation: links lead somewhere, commands are tested, tables are current."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.http.schemas import Classification, ClassifyResponse
from tests.conftest import ROOT
from tests.documentation import (
    DOCS,
    FRONT_PAGES,
    RUN_ELSEWHERE,
    STARTS_ELSEWHERE,
    WrittenFile,
    pages,
    steps,
    where_else,
)

LINK = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)\"#\s]*)(?:#([^)\"\s]+))?")
# Programs that test_chain runs besides whetstone.
SHELL = ("mkdir ", "cp ")


def anchors(page: Path) -> set[str]:
    """The ids that a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*FRONT_PAGES, *pages()[1:]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text("utf-8")):
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor} is not there"


@pytest.mark.parametrize(
    "page", [*FRONT_PAGES, *pages()[1:]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_source_file_that_a_page_names_is_there(page: Path) -> None:
    for path in re.findall(r"`([a-z0-9_./]+/[a-z0-9_.]+\.py)`", page.read_text("utf-8")):
        assert (ROOT / path).is_file(), path


def test_the_readme_is_a_front_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in pages()[1:]:
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT)}" in readme


def test_every_page_is_in_the_navigation() -> None:
    assert set(DOCS.rglob("*.md")) == set(pages()[1:])


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    """The names of docs/generate.py, which is a script and no module of a package."""
    return runpy.run_path(str(DOCS / "generate.py"))


def test_generated_regions_are_what_the_code_and_the_results_say(
    generator: dict[str, Any],
) -> None:
    assert generator["outdated"]() == [], "run make reference"


@pytest.mark.parametrize("name", ["docs/reference/settings.md", "README.md"])
def test_a_region_that_was_edited_is_noticed(generator: dict[str, Any], name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    start = text.index("|---", text.index("<!-- generated: "))
    edited = text[:start] + text[start + 4 :]
    assert generator["regenerated"](text) == text
    assert generator["regenerated"](edited) == text


def test_every_command_is_run_or_says_where_it_is() -> None:
    commands = [step for step in steps() if not isinstance(step, WrittenFile)]
    for command in commands:
        ran = command.startswith(("whetstone ", *SHELL))
        assert ran or where_else(command), f"no test runs `{command}`"


def test_every_exception_is_still_needed() -> None:
    commands = [step for step in steps() if not isinstance(step, WrittenFile)]
    for command in RUN_ELSEWHERE:
        assert command in commands
    for start in STARTS_ELSEWHERE:
        assert any(command.startswith(start) for command in commands), start


def test_every_exception_names_a_test_module() -> None:
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for reason in (*RUN_ELSEWHERE.values(), *STARTS_ELSEWHERE.values()):
        assert set(re.findall(r"test_\w+", reason)) <= modules, reason


def test_recipes_of_the_documentation_have_known_keys() -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    from training.recipe.arguments import OWN_ARGUMENTS

    known = {key.name for part in (*OWN_ARGUMENTS, TrainingArguments) for key in fields(part)}
    blocks = re.findall(
        r"^```yaml\n(.*?)^```",
        "\n".join(page.read_text("utf-8") for page in pages()),
        re.MULTILINE | re.DOTALL,
    )
    assert len(blocks) >= 5
    for block in blocks:
        assert set(yaml.safe_load(block)) <= known, block


def test_answers_in_the_documentation_have_the_schema_of_the_server() -> None:
    text = "\n".join(page.read_text("utf-8") for page in pages())
    blocks = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        answer = ClassifyResponse.model_validate_json(block)
        shown = json.loads(block)["data"]
        assert all(set(entry) <= set(Classification.model_fields) for entry in shown)
        assert all(len(entry.probs) == entry.num_classes for entry in answer.data)


def test_contributing_names_every_room() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rooms = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    assert {"service", "training", "tests"} <= set(rooms)
    for room in rooms:
        assert f"| `{room}/` |" in contributing, room


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert phony is not None
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in phony[1].replace("\\\n", " ").split():
        if not target.endswith("-setup"):
            assert f"make {target} " in help_text, target


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github" / "workflows").glob("*.yaml")), ids=lambda path: path.name
)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    used = re.findall(r"uses: (.*)$", workflow.read_text("utf-8"), re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
