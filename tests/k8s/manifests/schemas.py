"""Strict validation: Kubernetes' schemas of three versions, and our own for custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_validate import utils

from tests.k8s.manifests.render import Manifests, label

HERE = Path(__file__).parent
VERSIONS = utils.all_versions()[-3:]
# Without the cache, every resource would read megabytes of definitions anew.
utils.schema_contents = cache(utils.schema_contents)
# The custom resources in use, and schemas of their `spec`.
CUSTOM = {
    ("argoproj.io/v1alpha1", "AnalysisTemplate"): "analysistemplate.json",
    ("argoproj.io/v1alpha1", "Rollout"): "rollout.json",
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "httproute.json",
    ("keda.sh/v1alpha1", "ScaledObject"): "scaledobject.json",
    ("monitoring.coreos.com/v1", "PodMonitor"): "podmonitor.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrule.json",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "servicemonitor.json",
}


def schemas(manifests: Manifests) -> Iterator[str]:
    """Resources that a schema refuses, and kinds without a schema."""
    for resource in manifests:
        kind = resource["apiVersion"], resource["kind"]
        if kind in CUSTOM:
            errors = _custom(resource, CUSTOM[kind])
        else:
            errors = _refusals(json.dumps(resource, sort_keys=True))
        yield from (f"{label(resource)}: {error}" for error in errors)


def _custom(resource: dict[str, Any], file: str) -> tuple[str, ...]:
    if set(resource) != {"apiVersion", "kind", "metadata", "spec"}:
        return (f"a custom resource with the fields {sorted(resource)}",)
    schema = json.loads((HERE / file).read_text("utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(resource["spec"])
    return tuple(f"{error.json_path}: {error.message}" for error in errors)


@cache
def _refusals(resource: str) -> tuple[str, ...]:
    """Errors by Kubernetes' schemas; cached, because overlays share most resources."""
    errors = []
    for version in VERSIONS:
        try:
            utils.validate(json.loads(resource), version, strict=True)
        except utils.ValidationError as error:
            errors.append(f"{version}: {error.json_path}: {error.message}")
        except utils.SchemaNotFoundError as error:
            errors.append(f"{version}: {error.message}")
    return tuple(errors)
