"""The bill of materials of an image, as CycloneDX JSON: every package that serves, and the model.

The packages come from the list that the image is built from. That list is complete: the build
installs it without resolving anything, and checks that nothing is missing. `cyclonedx-py` reads the
list, and the model is added here. The packages of the base image are not listed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from release.image.commands import run_command
from service.package.manifest import MODEL_FILE, Manifest
from training.common.errors import ImageError

SBOM_FILE = "sbom.cdx.json"
# The first version with components for models is 1.5.
SPECIFICATION = "1.6"


def write_sbom(path: Path, requirements: Path, image: str, manifest: Manifest) -> None:
    """List the packages of `requirements` and the model of `manifest` as parts of `image`."""
    content = list_packages(requirements)
    name, _, version = image.rpartition(":")
    root = {"type": "container", "bom-ref": "image", "name": name, "version": version}
    content["metadata"]["component"] = root
    # BentoML adds itself to the list a second time.
    packages = {component["purl"]: component for component in content["components"]}
    content["components"] = [*packages.values(), model_component(manifest)]
    parts = sorted(component["bom-ref"] for component in content["components"])
    # A list does not say what its packages depend on; a part without an entry says the same.
    content["dependencies"] = [{"ref": "image", "dependsOn": parts}]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def list_packages(requirements: Path) -> dict[str, Any]:
    """The bill of materials that `cyclonedx-py` makes of a list of pinned packages.

    Its own validation is off because it takes ten times as long; a test validates instead.

    Raises:
        ImageError: it cannot read the list.
        ModuleNotFoundError: it is not installed.
    """
    words = [sys.executable, "-m", "cyclonedx_py", "requirements", "--spec-version", SPECIFICATION]
    done = run_command([*words, "--output-format", "JSON", "--no-validate", str(requirements)])
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
