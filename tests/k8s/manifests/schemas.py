"""Strict validation: Kubernetes' own schemas of three versions, small ones of ours for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_validate import utils

from tests.manifests.render import Manifests, label

HERE = Path(__file__).parent
VERSIONS = utils.all_versions()[-3:]
# It reads megabytes of definitions anew for every resource.
utils.schema_contents = cache(utils.schema_contents)
# Custom resources that may be used, and what we know of their `spec`.
CUSTOM = {
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "httproute.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrule.json",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "servicemonitor.json",
}


def schemas(manifests: Manifests) -> Iterator[str]:
    """What a schema refuses, and kinds that have none."""
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
    found = jsonschema.Draft202012Validator(schema).iter_errors(resource["spec"])
    return tuple(f"{error.json_path}: {error.message}" for error in found)


@cache
def _refusals(resource: str) -> tuple[str, ...]:
    """By Kubernetes' schemas; most resources are the same in most overlays, so it is kept."""
    found = []
    for version in VERSIONS:
        try:
            utils.validate(json.loads(resource), version, strict=True)
        except utils.ValidationError as error:
            found.append(f"{version}: {error.json_path}: {error.message}")
        except utils.SchemaNotFoundError as error:
            found.append(f"{version}: {error.message}")
    return tuple(found)
