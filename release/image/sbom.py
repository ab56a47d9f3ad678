"""The bill of materials of an image, as CycloneDX JSON: every package that serves, and the model.

The packages come from the list that the image is built from, which is complete: the build installs
it without resolving anything and checks that nothing is missing. `cyclonedx-py` reads the list;
the model is added here. What the base image holds is the base image's to list.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.model_package import MODEL_FILE, Manifest
from training.errors import ImageError

SBOM_FILE = "sbom.cdx.json"
# The first version with components for models is 1.5.
SPECIFICATION = "1.6"


def write_sbom(path: Path, requirements: Path, image: str, manifest: Manifest) -> None:
    """List the packages of `requirements` and the model of `manifest` as parts of `image`."""
    content = list_packages(requirements)
    name, _, version = image.rpartition(":")
    root = {"type": "container", "bom-ref": "image", "name": name, "version": version}
    content["metadata"]["component"] = root
    # BentoML writes itself into the list again.
    packages = {component["purl"]: component for component in content["components"]}
    content["components"] = [*packages.values(), model_component(manifest)]
    parts = sorted(component["bom-ref"] for component in content["components"])
    # What the parts depend on is not known from a list: one without an entry says so.
    content["dependencies"] = [{"ref": "image", "dependsOn": parts}]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def list_packages(requirements: Path) -> dict[str, Any]:
    """What `cyclonedx-py` makes of a list of pinned packages.

    Without its own validation, which takes ten times as long; a test does it.
    """
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [
            *(sys.executable, "-m", "cyclonedx_py", "requirements"),
            *("--spec-version", SPECIFICATION, "--output-format", "JSON", "--no-validate"),
            str(requirements),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        if "No module named cyclonedx_py" in done.stderr:
            raise ModuleNotFoundError(name="cyclonedx-bom")
        raise ImageError(f"cyclonedx-py cannot read {requirements}: {done.stderr.strip()}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def model_component(manifest: Manifest) -> dict[str, Any]:
    """The model, with the hash of its graph, and of each file that serving reads."""
    hashes = {
        name: [{"alg": "SHA-256", "content": record.sha256}]
        for name, record in manifest.files.items()
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": manifest.version,
        "hashes": hashes[MODEL_FILE],
        "components": [
            {"type": "file", "bom-ref": f"model/{name}", "name": name, "hashes": hashes[name]}
            for name in sorted(hashes)
        ],
    }
