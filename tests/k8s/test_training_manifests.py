"""k8s/training: what it renders to is valid and safe, and its commands do what they should."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, example_rows, write_csv
from tests.k8s.manifests import pods, schemas, values
from tests.k8s.manifests.render import Manifests, Resource, kustomize
from tests.test_project import PYPROJECT, pins
from training.common.exit_status import EXIT_OF_VERDICT
from training.recipe.load import load_recipe, parse_overrides
from training.registry.publish import package_at, publish
from whetstone.main import build_parser, main
from whetstone.train import STORAGE_VARIABLE

TRAINING = ROOT / "k8s" / "training"
DOCKERFILE = (TRAINING / "Dockerfile").read_text("utf-8")
KINDS = ("data", "job", "cronjob", "trainjob", "tune")
SECRET = "training-credentials"  # noqa: S105 - its name; whoever publishes to a bucket makes it
STUDY = "tuning-study"


class Training(Manifests):
    """Rendered resources, of which a Pod, a Job and a CronJob make pods."""

    def pods(self) -> Iterator[tuple[Resource, Resource]]:
        """Init containers count as containers: the same is asked of them."""
        for resource in self.of("Pod", "Job", "CronJob"):
            made = copy.deepcopy(job_of(resource)["template"])
            made["spec"]["containers"][:0] = made["spec"].pop("initContainers", [])
            yield resource, made


def job_of(resource: Resource) -> Resource:
    """The `spec` of the Job that a resource is or makes; a Pod counts as one's."""
    if resource["kind"] == "Pod":
        return {"template": {"spec": resource["spec"]}}
    spec: Resource = resource["spec"]
    if resource["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return spec


@cache
def rendered(kind: str) -> Training:
    return Training(kustomize(TRAINING / kind))


def one(kind: str) -> Resource:
    """The resource that `kind` is there for."""
    kinds = {"data": "Pod", "cronjob": "CronJob", "trainjob": "TrainJob"}
    wanted = kinds.get(kind, "Job")
    (found,) = rendered(kind).of(wanted)
    return found


def container(kind: str, name: str) -> Resource:
    for _, template in rendered(kind).pods():
        for found in template["spec"]["containers"]:
            if found["name"] == name:
                return found
    raise AssertionError(f"{kind} has no container {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_rendered_resources_are_valid_and_restricted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainjob = "trainer.kubeflow.org/v1alpha1", "TrainJob"
    monkeypatch.setitem(schemas.CUSTOM, trainjob, "trainjob.json")
    checks = (
        schemas.schemas,
        values.enumerations,
        values.quantities,
        pods.restricted,
        pods.images,
        pods.volumes,
    )
    problems = {problem for check in checks for problem in check(rendered(kind))}
    # Of all containers together; each by itself is looked at here.
    problems -= {"two volumes are mounted at one path"}
    assert problems == set()
    for _, found in rendered(kind).containers():
        paths = [mount["mountPath"] for mount in found["volumeMounts"]]
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("kind", KINDS)
def test_training_has_no_permissions_in_the_cluster(kind: str) -> None:
    manifests = rendered(kind)
    allowed = {
        "ConfigMap",
        "CronJob",
        "Job",
        "PersistentVolumeClaim",
        "Pod",
        "ServiceAccount",
        "TrainJob",
    }
    assert {resource["kind"] for resource in manifests} <= allowed
    (account,) = manifests.of("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    # Where it runs is said by who applies it.
    assert not [resource for resource in manifests if "namespace" in resource["metadata"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_referenced_resource_exists(kind: str) -> None:
    manifests = rendered(kind)
    text = yaml.safe_dump(one(kind))
    named = {
        "ConfigMap": re.findall(
            r"configMap(?:Ref|KeyRef)?:\n\s+(?:key: \w+\n\s+)?name: (\S+)", text
        ),
        "PersistentVolumeClaim": re.findall(r"claimName: (\S+)", text),
        "ServiceAccount": re.findall(r"serviceAccountName: (\S+)", text),
    }
    for what, names in named.items():
        assert names or (what, kind) == ("ConfigMap", "data")
        for name in names:
            assert manifests.find(what, name), f"there is no {what} {name}"
    secrets = re.findall(
        r"secret(?:Ref|KeyRef):\n(?:\s+key: \w+\n)?\s+name: (\S+)\n\s+optional: true", text
    )
    assert set(secrets) == (set() if kind == "data" else {SECRET})
    # Without the address of the study there is nothing to search in.
    needed = re.findall(r"secretKeyRef:\n\s+key: \w+\n\s+name: (\S+)\n(?!\s+optional)", text)
    assert needed == ([STUDY] if kind == "tune" else [])
    assert text.count("secret") == len(secrets) + len(needed)


def test_pod_job_and_cron_job_train_in_the_same_pod() -> None:
    job, cron = job_of(one("job"))["template"]["spec"], job_of(one("cronjob"))["template"]["spec"]
    (training,) = job["containers"]
    (retraining,) = cron["initContainers"]
    varying = {"containers", "initContainers"}
    assert {k: v for k, v in job.items() if k not in varying} == {
        k: v for k, v in cron.items() if k not in varying
    }
    assert {k: v for k, v in training.items() if k != "args"} == {
        k: v for k, v in retraining.items() if k != "args"
    }
    workers = job_of(one("tune"))["template"]["spec"]
    (worker,) = workers["containers"]
    assert {k: v for k, v in workers.items() if k not in varying} == {
        k: v for k, v in job.items() if k not in varying
    }
    varying = {"name", "args", "env"}
    assert {k: v for k, v in worker.items() if k not in varying} == {
        k: v for k, v in training.items() if k not in varying
    }
    assert worker["env"][:-1] == training["env"]
    spec = one("trainjob")["spec"]
    assert spec["trainer"]["args"] == training["args"]
    assert spec["trainer"]["image"] == training["image"]
    assert spec["trainer"]["resourcesPerNode"] == training["resources"]
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (patched,) = pod.pop("containers")
    assert pod == {name: job[name] for name in pod}
    patched.pop("name")
    assert patched == {name: training[name] for name in patched}
    settings = {entry["name"] for entry in spec["trainer"]["env"]}
    assert settings >= {"PUBLISH", *(entry["name"] for entry in training["env"])}


@pytest.mark.parametrize("kind", ["job", "cronjob", "trainjob", "tune"])
def test_training_has_one_thread_for_each_requested_core(kind: str) -> None:
    """By the limit, which is the quota that threads follow; without one they are the node's."""
    found = [container["resources"] for _, container in rendered(kind).containers()]
    if kind == "trainjob":
        found = [one(kind)["spec"]["trainer"]["resourcesPerNode"]]
    assert found
    assert all(each["limits"]["cpu"] == each["requests"]["cpu"] for each in found)


# The commands


def expanded(manifests: Manifests, found: Resource) -> list[str]:
    """The arguments of a container as Kubernetes puts its variables into them."""
    variables = pods.environment(manifests, found)
    words = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in found["args"]]
    assert "$(" not in " ".join(words)
    return words


def recipe_in(manifests: Manifests, folder: Path) -> Path:
    (config,) = (c for c in manifests.of("ConfigMap") if "recipe.yaml" in c["data"])
    path = folder / "recipe.yaml"
    path.write_text(config["data"]["recipe.yaml"], encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "name"), [("job", "training"), ("cronjob", "training")])
def test_the_commands_and_the_recipe_are_whetstones(kind: str, name: str, tmp_path: Path) -> None:
    parsed = build_parser().parse_args(expanded(rendered(kind), container(kind, name)))
    assert parsed.verb.__name__ == "run"
    mounts = {m["mountPath"] for m in container(kind, name)["volumeMounts"]}
    assert str(parsed.recipe.parent) in mounts
    overrides = parse_overrides(parsed.overrides)
    assert overrides.pop("publish").startswith("/data/")
    overrides.pop("overwrite", None)
    recipe = load_recipe(recipe_in(rendered(kind), tmp_path), overrides)
    for file in (recipe.data.train_file, recipe.data.test_file):
        assert file is not None
        assert file[0].startswith("/data/")
    if kind == "cronjob":
        assert recipe.output_dir.is_relative_to("/data")
        compare = build_parser().parse_args(expanded(rendered(kind), container(kind, "compare")))
        assert compare.verb.__name__ == "compare"
        assert compare.challenger == str(recipe.output_dir / "package")
        assert [compare.data] == recipe.data.test_file


def test_workers_search_one_study(tmp_path: Path) -> None:
    job = one("tune")["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert "backoffLimit" not in job and job["backoffLimitPerIndex"] > 0
    found = container("tune", "tuning")
    parsed = build_parser().parse_args(expanded(rendered("tune"), found))
    assert parsed.verb.__name__ == "tune"
    overrides = parse_overrides(parsed.overrides)
    assert int(str(overrides.pop("trials"))) > job["completions"]
    recipe = load_recipe(recipe_in(rendered("tune"), tmp_path), overrides)
    assert recipe.output_dir.is_relative_to("/data")
    # From where the command reads it, so that no password is in a manifest.
    address = found["env"][-1]
    assert address["name"] == STORAGE_VARIABLE and "value" not in address


def test_a_negative_verdict_is_not_retried() -> None:
    job = job_of(one("cronjob"))
    (by_code,) = (r for r in job["podFailurePolicy"]["rules"] if "onExitCodes" in r)
    assert by_code["action"] == "FailJob"
    assert by_code["onExitCodes"]["containerName"] == "compare"
    codes = {code for code in EXIT_OF_VERDICT.values() if code}
    assert set(by_code["onExitCodes"]["values"]) == codes
    # What the policy asks for.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert one("cronjob")["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_cron_jobs_commands_publish_package_and_verdict(
    tiny_recipe: Path, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run one after the other, as they are, with the claim at another place."""
    claim, recipe = tmp_path / "data", tmp_path / "recipe"
    claim.mkdir()
    shutil.copytree(tiny_recipe.parent, recipe)
    write_csv(claim / "test.csv", example_rows("test"))
    text = (recipe / "recipe.yaml").read_text("utf-8")
    text = text.replace("num_train_epochs: 6", "num_train_epochs: 1")
    text = text.replace("learning_rate: 0.002", "learning_rate: 0.000001")
    (recipe / "recipe.yaml").write_text(text, "utf-8")
    manifests = copy.deepcopy(rendered("cronjob"))
    champion, _ = publish(tiny_package, str(claim / "published"))
    for config in manifests.of("ConfigMap"):
        if "CHAMPION" in config["data"]:
            assert config["data"]["CHAMPION"] == "none"
            config["data"]["CHAMPION"] = champion
    job = job_of(one("cronjob"))["template"]["spec"]
    statuses = []
    for found in (*job["initContainers"], *job["containers"]):
        words = [
            re.sub("^/data/", f"{claim}/", re.sub("^/recipe/", f"{recipe}/", word))
            for word in expanded(manifests, found)
        ]
        monkeypatch.chdir(claim)
        statuses.append(main(words))
    assert statuses == [0, EXIT_OF_VERDICT["refuse"]]
    (address,) = (
        path for path in (claim / "published" / "tiny").iterdir() if str(path) != champion
    )
    with package_at(str(address)):
        (verdict,) = (address / "verdicts").iterdir()
    content = json.loads(verdict.read_text("utf-8"))
    assert content["verdict"] == "refuse"
    assert content["challenger"]["version"] == address.name
    assert content["champion"]["named"] == champion


# The image


def test_the_image_is_linted() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--strict-labels", str(TRAINING / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_has_the_tested_version_of_torch() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    version = pins(ROOT / "constraints.txt")["torch"]
    assert base == f"docker.io/pytorch/pytorch:{version}-${{CUDA}}-runtime"
    assert "-c constraints.txt" in DOCKERFILE


def test_the_image_runs_without_root_and_has_the_projects_tag() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == [f"{pods.USER}:{pods.USER}"]
    tagged = f"whetstone-training:{PYPROJECT['project']['version']}"
    assert f"-t {tagged} ." in DOCKERFILE
    assert container("job", "training")["image"] == tagged
    assert one("trainjob")["spec"]["trainer"]["image"] == tagged


def test_only_copied_files_reach_the_build() -> None:
    first, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY")]
    wanted = sorted(f"!{name}" for names in copied for name in names)
    assert (first, sorted(line for line in kept if line.startswith("!"))) == ("*", wanted)
