"""The image in an overlay, written back although somebody has edited the overlay since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from release.cluster.kubectl import Cluster
from release.console import StepConsole
from release.context import ReleaseContext
from release.options import RollbackOptions
from release.overlay_edit import edit_image, undo_edit, write_edit
from release.records import Record, Records, ReleaseOutcome
from release.recovery import GivenUp, recover_for_rollback
from training.common.errors import ReleaseError

BEFORE = "resources: [a]\nimages:\n  - name: text-classifier\n    newName: r/c\n    newTag: old\n"
NOTE = "# a note of somebody\n"
NEW = "r/c:new"
RENDER = """\
kind: Deployment
metadata: {name: text-classifier, namespace: space}
spec:
  selector: {matchLabels: {app: a}}
  template: {spec: {containers: [{name: proxy, image: "p:1"}, {name: c, image: "r/c:new"}]}}
"""


class Shows(Cluster):
    """A cluster with a Deployment of this image, in a container behind another."""

    def __init__(self, image: str, context: str = "here") -> None:
        super().__init__(context)
        self.image = image

    def get(self, *_: str) -> dict[str, Any]:
        containers = [{"name": "proxy", "image": "p:1"}, {"name": "c", "image": self.image}]
        return {"spec": {"template": {"spec": {"containers": containers}}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kustomization.yaml"
    path.write_text(BEFORE, "utf-8")
    return path


def test_what_nobody_has_edited_is_as_before(file: Path) -> None:
    edit = edit_image(file.parent, NEW)
    write_edit(edit)
    assert file.read_text("utf-8") == edit.after
    assert undo_edit(edit) is None
    assert file.read_text("utf-8") == BEFORE
    file.write_text(BEFORE + NOTE, "utf-8")
    with pytest.raises(ReleaseError, match="was edited just now"):
        write_edit(edit)
    file.unlink()
    assert undo_edit(edit) is None


def test_of_an_edited_overlay_only_the_image_is_as_before(file: Path) -> None:
    edit = edit_image(file.parent, NEW)
    file.write_text(edit.after + NOTE, "utf-8")
    assert "its image is that of before (r/c:old)" in (undo_edit(edit) or "")
    written = file.read_text("utf-8")
    assert "new\n" not in written and written.endswith(NOTE)


def test_an_image_that_somebody_else_has_written_stays(file: Path) -> None:
    edit = edit_image(file.parent, NEW)
    third = BEFORE.replace("old", "third")
    file.write_text(third, "utf-8")
    assert "left as it is, with the image r/c:third" in (undo_edit(edit) or "")
    assert file.read_text("utf-8") == third


@pytest.mark.parametrize(
    ("before", "edited", "reason"),
    [
        ("resources: [a]\n", NOTE, "named no image before, so the image r/c:new is still in it"),
        (BEFORE, "<<<<<<< HEAD\n", "cannot be read"),
        # Two keys of one name: only the editor that keeps comments refuses that.
        (BEFORE, "namespace: a\nnamespace: b\n", "cannot be read"),
    ],
    ids=["no image before", "marks of a conflict", "a key twice"],
)
def test_an_overlay_that_cannot_be_restored_keeps_the_release_unfinished(
    file: Path, before: str, edited: str, reason: str
) -> None:
    file.write_text(before, "utf-8")
    context = prepared(file, "prepared")
    after = file.read_text("utf-8") + edited
    file.write_text(after, "utf-8")
    with pytest.raises(ReleaseError, match=reason):
        recover_for_rollback(context, options_of(file, unfinished=True))
    assert [record.outcome for record in context.records.all()] == ["prepared"]
    assert file.read_text("utf-8") == after
    # As the sentence says, somebody writes it.
    file.write_text(BEFORE, "utf-8")
    assert isinstance(recover_for_rollback(context, options_of(file, unfinished=True)), GivenUp)
    assert file.read_text("utf-8") == BEFORE


def test_where_only_the_overlay_cannot_be_restored_an_undo_says_so(file: Path) -> None:
    file.write_text("resources: [a]\n", "utf-8")
    context = prepared(file, "unfinished")
    record = context.records.all()[0].model_copy(update={"step": "apply"})
    context.records.save(record)
    file.write_text(file.read_text("utf-8") + NOTE, "utf-8")
    with pytest.raises(ReleaseError, match=r"the cluster is as it was, but .* is still in it"):
        recover_for_rollback(context, options_of(file, unfinished=True))
    assert [record.outcome for record in context.records.all()] == ["undone"]


def test_a_rollback_goes_on_from_a_release_that_touched_nothing(file: Path) -> None:
    context = prepared(file, "unfinished")
    assert isinstance(recover_for_rollback(context, options_of(file)), GivenUp)
    assert file.read_text("utf-8") == BEFORE
    context = prepared(file, "prepared", image="r/c:old")
    assert isinstance(recover_for_rollback(context, options_of(file)), GivenUp)


def test_a_rollback_does_not_go_on_from_a_prepared_release_that_the_cluster_shows(
    file: Path,
) -> None:
    context = prepared(file, "prepared", image=NEW)
    with pytest.raises(ReleaseError, match="the cluster shows its image: take it back with"):
        recover_for_rollback(context, options_of(file))
    assert "new" in file.read_text("utf-8")
    assert isinstance(recover_for_rollback(context, options_of(file, unfinished=True)), GivenUp)
    assert file.read_text("utf-8") == BEFORE


def test_a_prepared_release_is_never_to_be_abandoned_for_the_name_of_its_context(
    file: Path,
) -> None:
    record = prepared(file, "prepared").records.all()[0]
    context = prepared(file, "unfinished", cluster=Shows(NEW, "elsewhere"))
    with pytest.raises(ReleaseError, match="kubectl config rename-context elsewhere here") as error:
        context.refuse_other_cluster(record)
    assert "--abandon" not in str(error.value)
    with pytest.raises(ReleaseError, match="--abandon"):
        context.refuse_other_cluster(context.records.all()[0].model_copy(update={"context": "x"}))


def options_of(file: Path, *, unfinished: bool = False) -> RollbackOptions:
    return RollbackOptions(overlay=file.parent, unfinished=unfinished)


def prepared(
    file: Path, outcome: ReleaseOutcome, *, image: str = "", cluster: Cluster | None = None
) -> ReleaseContext:
    """The context of an overlay into which a release has written its image.

    Args:
        image: what the cluster shows.
    """
    cluster = cluster or Shows(image)
    records = Records(file.parent / "releases")
    records.folder.mkdir(exist_ok=True)
    context = ReleaseContext(options_of(file), records, cluster, StepConsole())
    edit = edit_image(file.parent, NEW)
    write_edit(edit)
    record = Record(
        id="b",
        name="tickets",
        version="b",
        overlay=str(file.parent),
        outcome=outcome,
        step="prepared" if outcome == "prepared" else "diff",
        started_at="2026-01-01T00:00:00+00:00",
        context=cluster.context,
        package="p",
        image=NEW,
        overlay_edit=edit,
        render=records.save_render("b.yaml", RENDER),
    )
    records.save(record)
    return context
