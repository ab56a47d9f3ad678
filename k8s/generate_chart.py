"""The Helm chart in `chart/`, made of what kustomize renders.

    python k8s/generate_chart.py            # write it
    python k8s/generate_chart.py --check    # exit status 1 where it would change

The base is rendered alone, with every component, and with every two of them. Where a resource
differs, the lines that do are written behind the component's switch. What a team sets is a value
(`VALUES`). So the chart has no manifest of its own; `tests/k8s/test_chart.py` compares what Helm
renders with what kustomize renders.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

K8S = Path(__file__).resolve().parent
CHART = K8S / "chart"
# The switches of the chart and their components, in the order in which an overlay lists them. `gpu`
# is none: it changes values that a chart's user sets anyway.
SWITCHES = {
    "apiKeys": "api-keys",
    "gateway": "gateway",
    "grafana": "grafana",
    "ingress": "ingress",
    "prometheus": "prometheus",
    "pullSecret": "pull-secret",
    "podMonitor": "pod-monitor",
    "tracing": "tracing",
    "capture": "capture",
    "keda": "keda",
    "argoRollouts": "argo-rollouts",
}
# Each of these has what the other one has.
EITHER = ("prometheus", "podMonitor")
# What stands in the rendered manifests, and the value in its place; by the kind of the resource.
TEXTS = {
    "text-classifier.example.com": ".Values.host",
    "http://prometheus-operated.monitoring.svc:9090": ".Values.prometheusAddress",
    # Of KEDA's queries.
    "of the overlay": ".Release.Namespace",
}
FIELDS = {
    ("HorizontalPodAutoscaler", "spec minReplicas"): ".Values.replicas.min",
    ("HorizontalPodAutoscaler", "spec maxReplicas"): ".Values.replicas.max",
    ("ScaledObject", "spec minReplicaCount"): ".Values.replicas.min",
    ("ScaledObject", "spec maxReplicaCount"): ".Values.replicas.max",
    ("HTTPRoute", "spec parentRefs 0 name"): ".Values.gateway.name",
    ("HTTPRoute", "spec parentRefs 0 namespace"): ".Values.gateway.namespace",
    ("Deployment", "spec template spec containers 0 image"): 'include "text-classifier.image" .',
    ("Deployment", "spec template spec containers 0 resources"): "toYaml .Values.resources",
}
# A setting of a component that is a value, too.
SETTINGS = {
    "WHETSTONE_TRACING_URL": ".Values.tracing.url",
    "WHETSTONE_TRACING_SAMPLE_RATE": ".Values.tracing.sampleRate",
    "WHETSTONE_CAPTURE": ".Values.capture.address",
    "WHETSTONE_CAPTURE_RATE": ".Values.capture.rate",
}
# What else a switch has.
MORE = {
    "gateway": "  name: gateway\n  namespace: gateway\n",
    "tracing": "  url: http://collector.observability:4318/v1/traces\n"
    '  # That of the address.\n  port: 4318\n  sampleRate: "0.01"\n',
    "capture": "  address: s3://captured/text-classifier\n"
    '  # That of the bucket.\n  port: 443\n  rate: "0.1"\n',
}
# A number would become 1e+06, and a mistyped switch would be ignored.
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "settings": {"type": "object", "additionalProperties": {"type": "string"}},
        **{
            switch: {
                "type": "object",
                "properties": {"enabled": {"type": "boolean"}},
            }
            for switch in SWITCHES
        },
        **{name: {"type": "object"} for name in ("image", "replicas", "resources", "global")},
        **{name: {"type": "string"} for name in ("host", "prometheusAddress")},
    },
    "additionalProperties": False,
}
# Switches whose component lets the pods out through one port, which is a value.
WITH_PORT = ("tracing", "capture")
NAME = "text-classifier"
MARK = re.compile(r"'?@@(.+?)@@'?")
HASHED = re.compile(rf"{NAME}-[a-z0-9]{{10}}$")
HEAD = "# Written by k8s/generate_chart.py from what kustomize renders.\n"

Resource = dict[str, Any]


class Render(NamedTuple):
    """The resources by kind and name, and the settings in the ConfigMap."""

    resources: dict[str, Resource]
    settings: dict[str, str]


class Dumper(yaml.SafeDumper):
    """Long texts as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)


Dumper.add_representer(str, _text)


def render(components: tuple[str, ...], tree: Path) -> Render:
    """The resources of the base with these components, by kind and name."""
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "components": [f"../../components/{name}" for name in components],
    }
    folder = tree / "overlays" / "-".join(["chart", *components])
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay), "utf-8")
    words = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"kubectl kustomize failed for {components}: {done.stderr}")
    resources = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] != "Namespace"]
    settings = next(each["data"] for each in resources if HASHED.match(each["metadata"]["name"]))
    return Render({key(each): prepared(each) for each in resources}, settings)


def key(resource: Resource) -> str:
    """Kind and name, without the hash of a ConfigMap's content."""
    name = HASHED.sub(NAME, resource["metadata"]["name"])
    return f"{resource['kind'].lower()}-{name}"


def prepared(resource: Resource) -> Resource:
    """A resource in which values are marked."""
    resource["metadata"]["namespace"] = "@@.Release.Namespace@@"
    for (kind, path), value in FIELDS.items():
        if kind == resource["kind"]:
            place, last = walked(resource, path)
            place[last] = f"@@{value}@@"
    if resource["kind"] == "Deployment":
        sources = walked(resource, "spec template spec containers 0")[0][0]["envFrom"]
        (source,) = (each for each in sources if "configMapRef" in each)
        source["configMapRef"]["name"] = '@@include "text-classifier.settingsName" .@@'
    if HASHED.match(resource["metadata"]["name"]):
        resource["metadata"]["name"] = '@@include "text-classifier.settingsName" .@@'
        resource["data"] = '@@include "text-classifier.settings" .@@'
    switch = str(resource["metadata"]["name"]).removeprefix(f"{NAME}-")
    if resource["kind"] == "NetworkPolicy" and switch in WITH_PORT:
        place, last = walked(resource, "spec egress 0 ports 0 port")
        place[last] = f"@@.Values.{switch}.port@@"
    return resource


def walked(resource: Any, path: str) -> tuple[Any, Any]:
    """The mapping or list that holds the field at a path, and the field's key in it."""
    *way, last = (int(step) if step.isdecimal() else step for step in path.split())
    for step in way:
        resource = resource[step]
    return resource, last


def lines_of(resource: Resource | None) -> list[str]:
    """The lines of a resource as a template; none if there is none."""
    if resource is None:
        return []
    text = yaml.dump(resource, Dumper=Dumper, width=10**6, default_flow_style=False)
    # What looks like a template of Helm's is one of Prometheus', Grafana's or Argo's.
    text = text.replace("{{", '{{ "{{" }}')
    for literal, value in TEXTS.items():
        text = text.replace(literal, f"{{{{ {value} }}}}")
    return [_filled(line) for line in text.splitlines()]


def _filled(line: str) -> str:
    """A line with the value in the place of its mark."""
    found = MARK.search(line)
    if found is None:
        return line
    indent = len(line) - len(line.lstrip())
    if found[1].startswith(("toYaml", 'include "text-classifier.settings" ')):
        name = line[: found.start()].rstrip()
        return f"{name}\n{{{{ {found[1]} | indent {indent + 2} }}}}"
    return f"{line[: found.start()]}{{{{ {found[1]} }}}}{line[found.end() :]}"


def condition(switches: list[str]) -> str:
    """A template's condition that one of some switches is on."""
    named = [f".Values.{each}.enabled" for each in switches]
    return named[0] if len(named) == 1 else f"or {' '.join(named)}"


def merged(plain: list[str], variants: dict[str, list[str]]) -> Iterator[str]:
    """Lines with those of each variant behind its switch.

    Args:
        variants: the lines with a component, by its switch.
    """
    edits: dict[int, list[tuple[int, str, list[str]]]] = {}
    for switch, lines in variants.items():
        matcher = difflib.SequenceMatcher(None, plain, lines, autojunk=False)
        for tag, first, last, start, end in matcher.get_opcodes():
            if tag != "equal":
                edits.setdefault(first, []).append((last, switch, lines[start:end]))
    place = 0
    while place <= len(plain):
        here = edits.get(place, [])
        for _, switch, new in (edit for edit in here if edit[0] == place):
            yield from [f"{{{{- if {condition([switch])} }}}}", *new, "{{- end }}"]
        changed = [edit for edit in here if edit[0] > place]
        if not changed:
            yield from plain[place : place + 1]
            place += 1
            continue
        ((last, switch, new),) = changed
        head = f"{{{{- if {condition([switch])} }}}}"
        yield from [head, *new, "{{- else }}", *plain[place:last], "{{- end }}"]
        place = last


def template(name: str, renders: dict[tuple[str, ...], Render]) -> str:
    """The template of a resource.

    Args:
        renders: by the switches that are on.
    """

    def found(*switches: str) -> Resource | None:
        ordered = tuple(sorted(set(switches), key=list(SWITCHES).index))
        return renders[ordered].resources.get(name) if ordered in renders else None

    owners = [] if found() else [switch for switch in SWITCHES if found(switch)]
    plain = lines_of(found(*owners[:1]))
    removing, variants = [], {}
    for switch in SWITCHES:
        if switch in owners or {switch, *owners[:1]} == set(EITHER):
            continue
        lines = lines_of(found(*owners[:1], switch))
        if not lines:
            removing.append(switch)
        elif lines != plain:
            variants[switch] = lines
    head = [f"{{{{- if {condition(owners)} }}}}"] if owners else []
    head += [f"{{{{- if not ({condition(removing)}) }}}}"] if removing else []
    body = [*head, *merged(plain, variants), *["{{- end }}"] * len(head)]
    # A comment of YAML would be a document of its own where the switch is off.
    return f"{{{{- /* {HEAD[2:-1]} */}}}}\n" + "\n".join(body) + "\n"


def helpers(renders: dict[tuple[str, ...], Render]) -> str:
    """The named templates: the image, the settings, and the name of their ConfigMap."""
    lines = [
        '{{- define "text-classifier.image" -}}',
        "{{ .Values.image.repository }}",
        "{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag }}{{ end }}",
        "{{- end }}",
        "",
        '{{- define "text-classifier.settings" -}}',
        f"{{{{- if and {' '.join(f'.Values.{each}.enabled' for each in EITHER)} }}}}",
        f'{{{{- fail "{" and ".join(EITHER)} read the same metrics: switch one of them off" }}}}',
        "{{- end }}",
        "{{- $settings := deepCopy .Values.settings }}",
    ]
    for switch in SWITCHES:
        for name, value in renders[switch,].settings.items():
            if renders[()].settings.get(name) != value:
                written = SETTINGS.get(name, f'"{value}"')
                lines += [
                    f"{{{{- if .Values.{switch}.enabled }}}}",
                    f'{{{{- $_ := set $settings "{name}" {written} }}}}',
                    "{{- end }}",
                ]
    lines += [
        "{{- toYaml $settings }}",
        "{{- end }}",
        "",
        "{{- /* A changed setting is a new ConfigMap, and so a rollout. */}}",
        '{{- define "text-classifier.settingsName" -}}',
        f'{NAME}-{{{{ include "text-classifier.settings" . | sha256sum | trunc 10 }}}}',
        "{{- end }}",
    ]
    return "\n".join(lines) + "\n"


def values(base: Render) -> str:
    """The values: what an overlay sets, as the base has it, and the switches."""
    raw = yaml.safe_load((K8S / "base" / "deployment.yaml").read_text("utf-8"))
    resources = raw["spec"]["template"]["spec"]["containers"][0]["resources"]
    scaler = yaml.safe_load((K8S / "base" / "horizontalpodautoscaler.yaml").read_text("utf-8"))
    least, most = scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
    switches = "".join(
        f"# k8s/components/{component}\n{switch}:\n  enabled: false\n{MORE.get(switch, '')}"
        for switch, component in SWITCHES.items()
    )
    return f"""{HEAD}
image:
  repository: {NAME}
  tag: unreleased
  # In place of the tag, as sha256:...
  digest: ""
replicas:
  min: {least}
  max: {most}
# The CPU is WHETSTONE_THREADS (times WHETSTONE_WORKERS), requested and allowed.
{yaml.safe_dump({"resources": resources}, sort_keys=True)}\
# The WHETSTONE_* variables of docs/reference/settings.md. Texts, so quote numbers.
{yaml.dump({"settings": base.settings}, Dumper=Dumper)}\
# Of `gateway` and `ingress`.
host: text-classifier.example.com
# Of `keda` and `argoRollouts`.
prometheusAddress: http://prometheus-operated.monitoring.svc:9090
{switches}"""


def chart() -> dict[str, str]:
    """Every file of the chart, by its path."""
    names = list(SWITCHES)
    wanted = [(), *((name,) for name in names), *itertools.combinations(names, 2)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("base", "components"):
            shutil.copytree(K8S / part, tree / part)
        renders = {
            switches: render(tuple(SWITCHES[each] for each in switches), tree)
            for switches in wanted
            if set(switches) != set(EITHER)
        }
    version = tomllib.loads((K8S.parent / "pyproject.toml").read_text("utf-8"))["project"][
        "version"
    ]
    resources = sorted({name for each in renders.values() for name in each.resources})
    return {
        "Chart.yaml": f"""{HEAD}apiVersion: v2
name: {NAME}
description: A text classifier that Whetstone has trained, as k8s/base and k8s/components deploy it
type: application
version: {version}
appVersion: {version}
""",
        "values.yaml": values(renders[()]),
        "values.schema.json": json.dumps(SCHEMA, indent=2) + "\n",
        "templates/_helpers.tpl": helpers(renders),
        **{f"templates/{name}.yaml": template(name, renders) for name in resources},
    }


def main() -> int:
    """Write the chart, or with `--check` name what would change."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if out of date"
    )
    check = parser.parse_args().check
    wanted = chart()
    there = {
        str(path.relative_to(CHART)): path.read_text("utf-8")
        for path in CHART.rglob("*")
        if path.is_file()
    }
    changed = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    for name in changed:
        if check:
            print(f"out of date: k8s/chart/{name}; run make chart")  # noqa: T201
        elif name in wanted:
            (CHART / name).parent.mkdir(parents=True, exist_ok=True)
            (CHART / name).write_text(wanted[name], "utf-8")
        else:
            (CHART / name).unlink()
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
