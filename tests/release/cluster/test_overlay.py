"""Overlays: the image in them, and what they render to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from release.cluster.kubectl import Cluster
from release.cluster.overlay import (
    dump_manifests,
    image_of_content,
    kustomization_of,
    read_kustomization,
    render_overlay,
    repository_of,
    with_image,
    without_secrets,
    workload_of,
    write_kustomization,
)
from tests.conftest import ROOT
from training.common.errors import ReleaseError

OVERLAYS = sorted((ROOT / "k8s" / "overlays").iterdir())
IMAGE = "registry.example.com/team/text-classifier:1e5"
DIGEST = f"sha256:{'5' * 64}"


def names(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names)
def test_only_the_image_of_an_overlay_changes(overlay: Path) -> None:
    before = kustomization_of(overlay).read_text("utf-8")
    after = with_image(before, IMAGE)
    assert repository_of(after) == IMAGE.rpartition(":")[0]
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert set(changed) <= {
        "    newName: registry.example.com/team/text-classifier",
        '    newTag: "1e5"',
    }
    theirs = ("    newTag:", "    newName:")
    kept = [line for line in before.splitlines() if not line.startswith(theirs)]
    assert [line for line in after.splitlines() if line not in changed] == kept
    # A second time nothing changes.
    assert with_image(after, IMAGE) == after


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names)
def test_an_overlay_renders_in_a_temporary_folder(overlay: Path) -> None:
    before = {path: path.read_bytes() for path in overlay.rglob("*") if path.is_file()}
    content = with_image(kustomization_of(overlay).read_text("utf-8"), IMAGE)
    workload = workload_of(render_overlay(Cluster(), overlay, content), IMAGE)
    assert workload.name == "text-classifier"
    assert workload.namespace == f"whetstone-{overlay.name}"
    assert {path: path.read_bytes() for path in overlay.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "content",
    [
        # Flush and indented sequences, other images, comments everywhere, a digest.
        "# top\nimages:\n- name: other\n  newTag: '7'\n- name: text-classifier  # ours\n"
        "  newTag: old\nresources: [a]  # end\n",
        "images:\n    - name: text-classifier\n      newName: x/y\n      digest: sha256:00\n",
        "resources: [a]\n",
        "images: [{name: text-classifier, newTag: old}]\n",
    ],
)
def test_the_rest_of_an_overlay_stays_as_it_was(content: str) -> None:
    after = with_image(content, IMAGE)
    edited, before = yaml.safe_load(after), yaml.safe_load(content)
    entry = next(entry for entry in edited.pop("images") if entry["name"] == "text-classifier")
    repository, _, tag = IMAGE.rpartition(":")
    assert entry == {"name": "text-classifier", "newName": repository, "newTag": tag}
    assert [entry for entry in before.pop("images", []) if entry["name"] == "other"] == [
        entry for entry in yaml.safe_load(after)["images"] if entry["name"] == "other"
    ]
    assert edited == before
    for comment in ("# top", "# ours", "# end"):
        assert (comment in content) == (comment in after)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "images:\n  - name: text-classifier\n    newName: a/b\n    newTag: old  # ours\n\n"
            "# below\nresources: [a]\n",
            f"    digest: {DIGEST} # tag 1e5 # ours",
        ),
        ("resources: [a]\n", f"  digest: {DIGEST} # tag 1e5"),
        # Behind a comment, the rest of such a line would be lost.
        ("images: [{name: text-classifier, newTag: old}]\n", f", digest: {DIGEST}}}]"),
    ],
)
def test_a_digest_takes_the_place_of_the_tag_and_a_tag_that_of_the_digest(
    content: str, line: str
) -> None:
    after = with_image(content, f"{IMAGE}@{DIGEST}")
    assert any(each.endswith(line) for each in after.splitlines())
    assert with_image(after, f"{IMAGE}@{DIGEST}") == after
    repository = IMAGE.rpartition(":")[0]
    (entry,) = yaml.safe_load(after)["images"]
    assert entry == {"name": "text-classifier", "newName": repository, "digest": DIGEST}
    assert image_of_content(after) == f"{repository}@{DIGEST}"
    back = with_image(after, IMAGE)
    assert image_of_content(back) == IMAGE and "digest" not in back and "# tag" not in back
    for comment in ("# ours", "# below"):
        assert (comment in content) == (comment in after) == (comment in back)
    assert image_of_content("resources: [a]\n") is None


def test_kustomize_renders_a_digest_without_the_tag() -> None:
    overlay = OVERLAYS[0]
    content = with_image(kustomization_of(overlay).read_text("utf-8"), f"{IMAGE}@{DIGEST}")
    render = render_overlay(Cluster(), overlay, content)
    assert f"image: {IMAGE.rpartition(':')[0]}@{DIGEST}\n" in render
    assert workload_of(render, f"{IMAGE}@{DIGEST}").name == "text-classifier"


def test_a_folder_without_a_kustomization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="is not an overlay"):
        kustomization_of(tmp_path)
    (tmp_path / "Kustomization").write_text("", "utf-8")
    assert kustomization_of(tmp_path).name == "Kustomization"


def test_a_render_needs_exactly_one_classifier_and_a_namespace() -> None:
    deployment: dict[str, Any] = {
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {
                "spec": {"containers": [{"name": "proxy"}, {"name": "model", "image": IMAGE}]}
            },
        },
    }
    with pytest.raises(ReleaseError, match="names no namespace"):
        workload_of(yaml.safe_dump(deployment), IMAGE)
    deployment["metadata"]["namespace"] = "space"
    workload = workload_of(yaml.safe_dump(deployment), IMAGE)
    assert (workload.port, workload.container) == ("3000", "model")
    with pytest.raises(ReleaseError, match="has 0 containers"):
        workload_of(yaml.safe_dump(deployment), "other:tag")
    with pytest.raises(ReleaseError, match="has 2 containers"):
        workload_of(yaml.safe_dump_all([deployment, deployment]), IMAGE)


def test_secrets_are_not_saved() -> None:
    secret = {"kind": "Secret", "metadata": {"name": "keys"}, "data": {"keys": "c2VjcmV0"}}
    service = {"kind": "Service", "metadata": {"name": "a"}}
    kept = without_secrets(yaml.safe_dump_all([secret, service]))
    assert "c2VjcmV0" not in kept and yaml.safe_load(kept) == service
    # Manifests without a Secret stay as they were rendered.
    assert without_secrets("# note\nkind: Service\n") == "# note\nkind: Service\n"


def test_line_ends_links_and_file_modes_of_an_overlay_stay(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_bytes(b"resources: [a]\r\nimages:\r\n  - name: text-classifier\r\n")
    real.chmod(0o640)
    link = tmp_path / "kustomization.yaml"
    link.symlink_to(real)
    before = read_kustomization(link)
    after = with_image(before, IMAGE)
    assert after.count("\r\n") == after.count("\n") == 5
    write_kustomization(link, after)
    assert (link.is_symlink(), real.stat().st_mode & 0o777) == (True, 0o640)
    write_kustomization(link, before)
    assert real.read_bytes() == before.encode()


def test_texts_that_look_like_numbers_or_booleans_are_quoted() -> None:
    config = {"kind": "ConfigMap", "data": {"a": "1e5", "n": "y", "b": "two\nlines", "c": "é"}}
    text = dump_manifests([config])
    assert '"a": "1e5"' in text and '"n": "y"' in text
    assert yaml.safe_load(text) == config
