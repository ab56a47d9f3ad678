"""A finished package → URL/<name>/<version>/, in a folder or an object store, and back.

    whetstone run recipe.yaml --publish s3://models/whetstone
    whetstone register s3://models/whetstone/tickets/3f2a9c1b77d0

A folder with a manifest is a version. The manifest is written last, after the other files were read
back and compared: a killed upload leaves no version, and the next upload completes it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.package.files import FileRecord, PackageError, file_record, write_text
from service.package.manifest import MANIFEST_FILE, PACKAGE_FILES, Manifest
from service.package.package import verify_package
from training.common.errors import PublishError
from training.common.progress import progress
from training.common.storage import Place, file_system, one_sentence
from training.registry.verify import is_url, package_folder

VERDICTS = "verdicts"
# Bytes that are sent at once; the parts of an S3 upload have at least 5 MiB.
BLOCK_BYTES = 8 * 2**20


def check_place(url: str) -> None:
    """Refuse, before an hour's work, a place that cannot be published to.

    Raises:
        PublishError: it is no address, or cannot be written.
    """
    place = open_place(url)
    with one_sentence(place.url, PublishError):
        probe = (place / ".whetstone").path
        place.fs.pipe_file(probe, b"")
        # A user who may write need not be allowed to delete; another run may have been faster.
        with suppress(PermissionError, FileNotFoundError):
            place.fs.rm_file(probe)


def publish(package: Path, url: str) -> tuple[str, bool]:
    """Copy a package to `url`.

    Returns:
        The version's address, and whether it is new there.

    Raises:
        PackageError: the package does not verify.
        PublishError: it cannot be written, or another content is published as this version.
    """
    manifest = verify_package(package)
    place = open_place(url) / manifest.name / manifest.version
    with one_sentence(place.url, PublishError):
        if _is_version(place):
            _refuse_other_content(place, manifest)
            return place.url, False
        others = [name for name in PACKAGE_FILES if name != MANIFEST_FILE]
        names = [name for name in others if (package / name).is_file()]
        upload(package, place, names)
        _check_upload(package, place, names)
        _write(place / MANIFEST_FILE, (package / MANIFEST_FILE).read_text(encoding="utf-8"))
    return place.url, True


def publish_verdict(url: str, challenger: Manifest, name: str, file: Path) -> str:
    """Copy a comparison to the published challenger, in place of an earlier one of that name.

    Returns:
        Its address.

    Raises:
        PublishError: the challenger is not there, or the verdict cannot be written.
    """
    version = open_place(url) / challenger.name / challenger.version
    with one_sentence(version.url, PublishError):
        if not _is_version(version):
            raise PublishError(
                f"{version.url} is no published version, and a verdict stands beside one: publish "
                "the challenger first, with `whetstone run RECIPE --publish URL`"
            )
        verdict = version / VERDICTS / f"{name}.json"
        _write(verdict, file.read_text(encoding="utf-8"))
    return verdict.url


@contextmanager
def package_at(target: str) -> Iterator[Path]:
    """The folder of a package, which is named by folder, tag, version or published address.

    A published package is fetched and verified; its copy is deleted after the block.

    Raises:
        VerifyError: the model store has no such model, or this is the address of a service.
        PublishError: there is no such published version, or it was altered.
    """
    if "://" not in target or is_url(target):
        yield package_folder(target)
        return
    with tempfile.TemporaryDirectory(prefix="whetstone-") as folder:
        place = open_place(target)
        with one_sentence(place.url, PublishError):
            _fetch(place, Path(folder))
        yield Path(folder)


def open_place(url: str) -> Place:
    """The folder at `url`, which need not be there.

    Raises:
        PublishError: it is no address, holds a secret, or has no driver.
    """
    _, separator, rest = url.partition("://")
    if (separator and ("@" in rest.partition("/")[0] or "?" in rest)) or "::" in url:
        # Not repeated: it may hold a password.
        raise PublishError(
            "an address to publish to holds no user, password or query: write it like "
            "s3://bucket/folder, and give credentials in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY)"
        )
    if is_url(url) or not url or (separator and not rest.strip("/")):
        raise PublishError(
            f"{url or 'nothing'} is no place for packages: name a folder, or an address such as "
            "s3://bucket/folder"
        )
    fs, path = file_system(url, PublishError)
    return Place(fs, path, url)


def _is_version(place: Place) -> bool:
    """Whether this folder holds a published version."""
    return bool(place.fs.exists((place / MANIFEST_FILE).path))


def _refuse_other_content(place: Place, manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory(prefix="whetstone-") as folder:
        published = _fetch(place, Path(folder))
    if published.files != manifest.files:
        # The version is a digest of model, tokenizer and inference config, not of golden texts.
        raise PublishError(
            f"{place.url} is published with other golden texts, and is not replaced: publish to "
            "another address, or delete it there first"
        )


def upload(package: Path, place: Place, names: Sequence[str]) -> None:
    """Copy files of a package to a place."""
    total = sum((package / name).stat().st_size for name in names)
    with progress(total, "publishing", "B") as bar:
        for name in names:
            with (
                (package / name).open("rb") as source,
                place.fs.open((place / name).path, "wb", block_size=BLOCK_BYTES) as target,
            ):
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
                    bar.update(len(block))


def _check_upload(package: Path, place: Place, names: Sequence[str]) -> None:
    """Read all files back, and compare them with the package."""
    expected = {name: file_record(package / name) for name in names}
    with progress(sum(x.size for x in expected.values()), "reading back", "B") as bar:
        for name in names:
            digest, size = hashlib.sha256(), 0
            for block in _blocks(place / name):
                digest.update(block)
                size += len(block)
                bar.update(len(block))
            if FileRecord(sha256=digest.hexdigest(), size=size) != expected[name]:
                raise PublishError(
                    f"{(place / name).url} is not what was sent, so the version was not published: "
                    "give the same command again"
                )


def _fetch(place: Place, folder: Path) -> Manifest:
    """Copy the published version to `folder`, and verify it."""
    if not _is_version(place):
        versions = _versions(place)
        advice = (
            f"name one of its versions {', '.join(versions)}"
            if versions
            else "name it as URL/<name>/<version>"
        )
        raise PublishError(f"{place.url} is no published version: {advice}")
    names = [name for name in PACKAGE_FILES if place.fs.exists((place / name).path)]
    total = sum(place.fs.size((place / name).path) for name in names)
    with progress(total, "fetching", "B", leave=False) as bar:
        for name in names:
            with (folder / name).open("wb") as target:
                for block in _blocks(place / name):
                    target.write(block)
                    bar.update(len(block))
    try:
        return verify_package(folder)
    except PackageError as error:
        raise PublishError(str(error).replace(str(folder), place.url)) from None


def _versions(place: Place) -> list[str]:
    """The versions under a name."""
    manifests = place.fs.glob(f"{place.path}/*/{MANIFEST_FILE}")
    return sorted(path.split("/")[-2] for path in manifests)


def _blocks(file: Place) -> Iterator[bytes]:
    options: dict[str, Any] = {"block_size": BLOCK_BYTES, "cache_type": "none"}
    with file.fs.open(file.path, "rb", **options) as source:
        while block := source.read(BLOCK_BYTES):
            yield block


def _write(file: Place, content: str) -> None:
    """Write a small file, whole or not at all: one request, or in a folder by a temporary name."""
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(file.fs, LocalFileSystem):
        path = Path(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content)
    else:
        file.fs.pipe_file(file.path, content.encode())
