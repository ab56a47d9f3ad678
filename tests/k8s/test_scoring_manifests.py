"""k8s/scoring: what it renders to is valid and safe, and its command does what it should."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.k8s.manifests import pods, schemas, values
from tests.k8s.manifests.render import Manifests, Resource, kustomize
from tests.test_project import PYPROJECT, pins
from whetstone.main import build_parser

SCORING = ROOT / "k8s" / "scoring"
DOCKERFILE = (SCORING / "Dockerfile").read_text("utf-8")
TAGGED = f"whetstone-scoring:{PYPROJECT['project']['version']}"


class Scoring(Manifests):
    """Rendered resources, of which a RayJob makes pods: one that submits, a head, and workers."""

    def pods(self) -> Iterator[tuple[Resource, Resource]]:
        for resource in self.of("RayJob"):
            cluster = resource["spec"]["rayClusterSpec"]
            templates = [resource["spec"]["submitterPodTemplate"]]
            templates += [cluster["headGroupSpec"]["template"]]
            templates += [group["template"] for group in cluster["workerGroupSpecs"]]
            for template in templates:
                yield resource, template


@cache
def rendered() -> Scoring:
    return Scoring(kustomize(SCORING))


def job() -> Resource:
    (found,) = rendered().of("RayJob")
    spec: Resource = found["spec"]
    return spec


def test_rendered_resources_are_valid_and_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schemas.CUSTOM, ("ray.io/v1", "RayJob"), "rayjob.json")
    # The pods of a custom resource have no schema there: each as a Pod of its own.
    all_pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": template["spec"]}
        for _, template in rendered().pods()
    ]
    assert list(schemas.schemas(Manifests(copy.deepcopy(all_pods)))) == []
    checks = (
        *(schemas.schemas, values.enumerations, values.quantities),
        *(pods.restricted, pods.images, pods.volumes),
    )
    assert {problem for check in checks for problem in check(rendered())} == set()
    assert len(all_pods) == 3
    (account,) = rendered().of("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for _, template in rendered().pods():
        assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert not [each for each in rendered() if "namespace" in each["metadata"]]


def test_pods_have_the_settings_and_the_image() -> None:
    (config,) = rendered().of("ConfigMap")
    for _, found in rendered().containers():
        assert found["image"] == TAGGED
        assert found["resources"]["limits"] == found["resources"]["requests"]
        if found["name"] != "ray-job-submitter":
            names = [source["configMapRef"]["name"] for source in found["envFrom"][:1]]
            assert names == [config["metadata"]["name"]]


def test_only_who_has_the_token_may_use_the_cluster_and_the_head_scores_nothing() -> None:
    cluster = job()["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job()["shutdownAfterJobFinishes"] is True
    assert cluster["rayVersion"] == pins(ROOT / "constraints.txt")["ray"]


def test_the_command_is_one_of_whetstone() -> None:
    (config,) = rendered().of("ConfigMap")
    entrypoint = re.sub(r"\$(\w+)", lambda match: config["data"][match[1]], job()["entrypoint"])
    program, *words = shlex.split(entrypoint)
    parsed = build_parser().parse_args(words)
    assert (program, parsed.verb.__name__) == ("whetstone", "predict")
    assert (parsed.engine, parsed.ray_address) == ("ray", "auto")
    assert parsed.files == [config["data"]["INPUT"]]
    assert parsed.out.endswith(".parquet")


def test_the_image_is_linted_and_has_what_the_project_pins() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--strict-labels", str(SCORING / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == [f"{pods.USER}:{pods.USER}"]
    assert "-c constraints.txt '.[ray]'" in DOCKERFILE
    assert f"-t {TAGGED} ." in DOCKERFILE


def test_the_image_has_the_same_files_as_that_of_training() -> None:
    """Those that .dockerignore lets through."""
    training = (ROOT / "k8s" / "training" / "Dockerfile").read_text("utf-8")

    def copied(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("COPY")]

    assert copied(DOCKERFILE) == copied(training)
