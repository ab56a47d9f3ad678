"""Is this copy sound? A folder, a model of BentoML's store, or a running service.

    whetstone verify runs/support_tickets/package
    whetstone verify text-classifier:latest
    whetstone verify http://localhost:3000 --api_key_file key

It checks hashes, the version, and the golden texts: this copy must answer them as recorded when the
package was made, within what another processor explains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.inference.classifier import Classifier
from service.inference.decisions import Decision
from service.inference.golden import compare_golden
from service.package.golden import GoldenAnswer, read_golden
from service.package.manifest import MODEL_STORE_NAME, Manifest
from service.package.package import verify_package
from training.common.errors import VerifyError
from training.registry.client import SMALL_BODY_BYTES, TEXTS_PER_REQUEST, VERSION, Service, read_key


def is_url(target: str) -> bool:
    """Whether `target` is the address of a service rather than a package."""
    return target.startswith(("http://", "https://"))


def package_folder(target: str) -> Path:
    """The folder of a package, which is named by path, tag, version, or the store's name.

    The store's name alone means the model that was registered last.

    Raises:
        VerifyError: the model store has no such model, or this is an address.
    """
    if is_url(target):
        raise VerifyError(
            f"{target} is the address of a service: name a folder, a tag or a version"
        )
    folder = Path(target)
    if folder.exists() or not (
        VERSION.fullmatch(target) or target.partition(":")[0] == MODEL_STORE_NAME
    ):
        return folder
    import bentoml
    from bentoml.exceptions import BentoMLException

    tag = f"{MODEL_STORE_NAME}:{target}" if VERSION.fullmatch(target) else target
    try:
        return Path(bentoml.models.get(tag).path)
    except BentoMLException:
        raise VerifyError(
            f"there is no {tag} in BentoML's model store: name a folder, or register the package"
        ) from None


def verify_folder(folder: Path, shown_name: str | None = None) -> str:
    """Check hashes, version and golden texts of a package.

    Args:
        shown_name: the user's name for it, where that is not the folder.

    Returns:
        A line for the screen.

    Raises:
        PackageError: a file is missing or altered.
        GoldenMismatchError: it does not answer as it did where it was made.
    """
    classifier = Classifier.load(folder)
    golden = classifier.check_golden(folder)
    return _summary(shown_name or str(folder), classifier.manifest, golden)


def verify_service(url: str, package: str | None, key_file: Path | None) -> str:
    """Check that a service answers as the package that it claims to serve.

    Args:
        package: folder, tag or version; by default the model of the store with that version.
        key_file: its first line is the API key.

    Returns:
        A line for the screen.

    Raises:
        VerifyError: the service cannot be asked, or serves another version.
        PackageError: the package to compare with does not verify.
        GoldenMismatchError: an answer differs by more than another processor explains.
    """
    service = Service(url, read_key(key_file))
    info = service.ask("/info")
    version = info.get("version")
    # Other servers may have an /info with a version, too.
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise VerifyError(f"{url}/info is not Whetstone's: is this the right address?")
    folder = package_folder(package) if package else _stored_package(url, version)
    manifest = verify_package(folder)
    if manifest.version != version:
        raise VerifyError(
            f"{url} serves version {version}, and {folder} is version {manifest.version}"
        )
    golden = read_golden(folder)
    answers: list[Decision] = []
    for part in _requests(golden, info, manifest):
        answers += service.classify(part, manifest)
    compare_golden(golden, answers, manifest, url)
    return _summary(url, manifest, len(golden))


def _requests(
    golden: Sequence[GoldenAnswer], info: dict[str, Any], manifest: Manifest
) -> Iterator[list[GoldenAnswer]]:
    """Golden texts in as few requests as the service's limits take.

    A text that is read by windows goes alone: the service counts how many windows it needs.
    """
    limits = info.get("limits")
    most_texts = _limit(limits, "texts", TEXTS_PER_REQUEST)
    if manifest.long_text == "window":
        most_texts = 1
    # Half of a body: the JSON around the texts takes little.
    room = _limit(limits, "body_bytes", SMALL_BODY_BYTES) // 2
    part: list[GoldenAnswer] = []
    used = 0
    for text in golden:
        size = len(json.dumps([text.text, text.text_pair]))
        if part and (len(part) == most_texts or used + size > room):
            yield part
            part, used = [], 0
        part.append(text)
        used += size
    if part:
        yield part


def _limit(limits: object, name: str, most: int) -> int:
    """A limit that a service states, at most so much."""
    stated = limits.get(name) if isinstance(limits, dict) else None
    return min(stated, most) if isinstance(stated, int) and stated > 0 else most


def _stored_package(url: str, version: str) -> Path:
    """The model of the store that a service claims to serve."""
    try:
        return package_folder(f"{MODEL_STORE_NAME}:{version}")
    except VerifyError:
        raise VerifyError(
            f"{url} serves version {version}, which is not in BentoML's model store here: name "
            "its package with --package"
        ) from None


def _summary(where: str, manifest: Manifest, golden: int) -> str:
    golden_texts = (
        f"{golden} golden texts answered as recorded" if golden else "it has no golden texts"
    )
    return f"{where}: {manifest.name} {manifest.version}, {manifest.precision}, {golden_texts}"
