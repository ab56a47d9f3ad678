"""The Helm chart: what Helm renders is what kustomize renders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.k8s.manifests import pods
from tests.k8s.manifests.render import COMPONENTS, K8S, Manifests, kustomize
from tests.k8s.test_autoscaling import of_the_overlay

sys.path.insert(0, str(K8S))
import generate_chart

CHART = K8S / "chart"
SWITCHES = generate_chart.SWITCHES
ADDING = ("apiKeys", "gateway", "grafana", "ingress", "prometheus", "tracing", "capture")
COMBINATIONS = [
    (),
    *((name,) for name in SWITCHES),
    ADDING,
    (*ADDING, "keda"),
    (*ADDING, "keda", "argoRollouts"),
    tuple(name for name in SWITCHES if name != "prometheus"),
]
IMAGE = {"repository": "registry.example.com/text-classifier", "tag": "x0123456789"}


def test_the_chart_is_what_the_manifests_make_of_it() -> None:
    made = generate_chart.chart()
    files = {str(path.relative_to(CHART)): path for path in CHART.rglob("*") if path.is_file()}
    assert set(files) == set(made)
    for name, path in files.items():
        assert path.read_text("utf-8") == made[name], f"{name}: run make chart"


def test_every_component_has_a_switch() -> None:
    assert {*SWITCHES.values(), "gpu"} == set(COMPONENTS)


def helm(*words: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm; `make test-helm-setup` puts it beside the interpreter."""
    program = shutil.which("helm") or str(Path(sys.executable).with_name("helm"))
    return subprocess.run(
        [program, *words, "--values=-"],
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def templated(**values: Any) -> Manifests:
    """What Helm makes of the chart with some values, in the namespace `production`."""
    done = helm("template", "any", str(CHART), "--namespace=production", values=values)
    assert done.returncode == 0, done.stderr
    return Manifests(yaml.safe_load_all(done.stdout))


def customized(folder: Path, *switches: str, **more: Any) -> Manifests:
    """What kustomize makes of an overlay with the components of these switches."""
    for part in ("base", "components"):
        shutil.copytree(K8S / part, folder / part)
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "production",
        "resources": ["../../base"],
        "components": [f"../../components/{SWITCHES[name]}" for name in switches],
        "images": [
            {"name": "text-classifier", "newName": IMAGE["repository"], "newTag": IMAGE["tag"]}
        ],
        **more,
    }
    place = folder / "overlays" / "one"
    place.mkdir(parents=True)
    (place / "kustomization.yaml").write_text(yaml.safe_dump(overlay), "utf-8")
    return kustomize(place)


def comparable(manifests: Manifests) -> dict[str, Any]:
    """Resources by kind and name, without the hash that kustomize and Helm make each their way."""
    text = yaml.safe_dump(list(manifests), sort_keys=True)
    text = re.sub(r"name: text-classifier-[0-9a-z]{10}\n", "name: text-classifier-HASH\n", text)
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load(text)}


@pytest.mark.slow
@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda names: "+".join(names) or "alone")
def test_helm_renders_what_kustomize_renders(tmp_path: Path, switches: tuple[str, ...]) -> None:
    more = {"replacements": of_the_overlay()["replacements"]} if "keda" in switches else {}
    wanted = comparable(customized(tmp_path, *switches, **more))
    # Helm's user creates it.
    del wanted["Namespace/production"]
    found = comparable(templated(image=IMAGE, **{name: {"enabled": True} for name in switches}))
    assert set(found) == set(wanted)
    for name, resource in wanted.items():
        assert found[name] == resource, name


@pytest.mark.slow
def test_values_reach_what_they_are_for() -> None:
    on = {"enabled": True}
    manifests = templated(
        image={"repository": "example/tickets", "digest": "sha256:" + "0" * 64},
        replicas={"min": 3, "max": 20},
        resources={"limits": {"cpu": "4"}, "requests": {"cpu": "4"}},
        settings={"WHETSTONE_THREADS": "4", "WHETSTONE_TIMEOUT_MS": "1000000"},
        host="tickets.example.org",
        prometheusAddress="http://metrics:9090",
        gateway={**on, "name": "outside", "namespace": "edge"},
        ingress=on,
        tracing={**on, "url": "http://spans:4319/v1/traces", "port": 4319, "sampleRate": "0.5"},
        argoRollouts=on,
    )
    ((_, container),) = manifests.containers()
    assert container["image"] == f"example/tickets@sha256:{'0' * 64}"
    # What is given is merged with the defaults.
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "1Gi"}
    settings = pods.environment(manifests, container)
    assert settings["WHETSTONE_THREADS"] == "4"
    assert settings["WHETSTONE_TIMEOUT_MS"] == "1000000"
    assert settings["WHETSTONE_PROBE_PORT"] == "3001"
    assert settings["WHETSTONE_TRACING_URL"] == "http://spans:4319/v1/traces"
    assert settings["WHETSTONE_TRACING_SAMPLE_RATE"] == "0.5"
    (scaler,) = manifests.of("HorizontalPodAutoscaler")
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 20)
    (route,) = manifests.of("HTTPRoute")
    assert route["spec"]["hostnames"] == ["tickets.example.org"]
    assert route["spec"]["parentRefs"] == [{"name": "outside", "namespace": "edge"}]
    (ingress,) = manifests.of("Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "tickets.example.org"
    assert 4319 in [
        port["port"]
        for policy in manifests.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for port in rule["ports"]
    ]
    for analysis in manifests.of("AnalysisTemplate"):
        assert {"name": "prometheus", "value": "http://metrics:9090"} in analysis["spec"]["args"]


@pytest.mark.slow
def test_a_changed_setting_is_a_rollout() -> None:
    names = set()
    for values in ({}, {"settings": {"WHETSTONE_UI": "1"}}, {"apiKeys": {"enabled": True}}):
        ((_, container),) = templated(**values).containers()
        names.add(container["envFrom"][0]["configMapRef"]["name"])
    assert len(names) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": {"WHETSTONE_TIMEOUT_MS": 1000000}}, "WHETSTONE_TIMEOUT_MS"),
        ({"prometeus": {"enabled": True}}, "prometeus"),
        ({"keda": {"enabled": "yes"}}, "enabled"),
        (
            {"prometheus": {"enabled": True}, "podMonitor": {"enabled": True}},
            "switch one of them off",
        ),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    done = helm("template", "any", str(CHART), values=values)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
def test_helm_has_nothing_against_the_chart() -> None:
    done = helm("lint", str(CHART), "--strict", values={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


def test_the_chart_has_the_version_of_the_project() -> None:
    written = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert f'version = "{written["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
