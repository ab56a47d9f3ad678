"""k8s/monitoring: what it renders to is valid and safe, and its command does what it should."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from monitoring.drift import EXIT_OF_DRIFT
from service.package.manifest import read_manifest
from tests.conftest import ROOT
from tests.k8s.manifests import pods, schemas, values
from tests.k8s.manifests.render import kustomize
from tests.k8s.test_training_manifests import Training, expanded, job_of
from tests.test_project import PYPROJECT
from whetstone.main import build_parser, main


@cache
def rendered() -> Training:
    return Training(kustomize(ROOT / "k8s" / "monitoring"))


def container() -> dict[str, Any]:
    ((_, found),) = rendered().containers()
    return dict(found)


def test_rendered_resources_are_valid_and_restricted() -> None:
    checks = (
        *(schemas.schemas, values.enumerations, values.quantities),
        *(pods.restricted, pods.images, pods.volumes),
    )
    assert {problem for check in checks for problem in check(rendered())} == set()
    (account,) = rendered().of("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert not [each for each in rendered() if "namespace" in each["metadata"]]
    resources = container()["resources"]
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"]
    assert container()["image"].endswith(f":{PYPROJECT['project']['version']}")


def test_the_command_is_one_of_whetstone() -> None:
    parsed = build_parser().parse_args(expanded(rendered(), container()))
    assert parsed.verb.__name__ == "drift"
    assert (parsed.package, parsed.since) == (
        "s3://models/whetstone/support_tickets/0123456789ab",
        "1d",
    )


def test_a_verdict_is_not_retried() -> None:
    (job,) = rendered().of("CronJob")
    (by_code,) = (
        rule for rule in job_of(job)["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    )
    assert by_code["action"] == "FailJob"
    assert by_code["onExitCodes"]["containerName"] == container()["name"]
    # Too few rows is no reason to wake somebody.
    assert by_code["onExitCodes"]["values"] == [EXIT_OF_DRIFT["drift"]]
    assert "--allow_too_few" in container()["args"]
    assert job_of(job)["template"]["spec"]["restartPolicy"] == "Never"


def test_its_words_run(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against folders in place of buckets, in which nothing was captured of this version."""
    day = tmp_path / "captured" / "2020-01-01"
    day.mkdir(parents=True)
    (day / "part.jsonl").write_text("", "utf-8")
    words = expanded(rendered(), container())
    words[1:3] = [str(tiny_package), str(tmp_path / "captured")]
    assert main(words) == 1
    version = read_manifest(tiny_package).version
    assert f"{version} in that time" in capsys.readouterr().err
