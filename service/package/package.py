"""The package as a whole: verify every file, or hash every file into the manifest."""

from __future__ import annotations

from pathlib import Path

from service.package.files import PackageFileError, PackageFormatError, file_record
from service.package.manifest import (
    GOLDEN_FILE,
    HASHED_FILES,
    MANIFEST_FILE,
    Manifest,
    package_version,
    read_manifest,
    write_manifest,
)


def verify_package(folder: Path) -> Manifest:
    """Read the manifest and compare every file that the server reads with its hash.

    Raises:
        PackageFileError: a file is missing or differs from the manifest.
        PackageFormatError: the manifest cannot be read, or its version does not match its content.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise PackageFileError(f"{folder} is missing {name}: copy the whole package again")
        if file_record(path) != expected:
            raise PackageFileError(
                f"{path} was altered: its SHA-256 or size differs from the manifest: "
                "copy the package again from where it was made"
            )
    if package_version(manifest.files, manifest) != manifest.version:
        raise PackageFormatError(
            f"{folder / MANIFEST_FILE} was altered: version {manifest.version} is not the "
            "digest of its model, tokenizer and inference settings: copy the package again"
        )
    return manifest


def seal_package(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the files of `folder` into the manifest, set its version, and write it.

    Args:
        manifest: everything except `files` and `version`, which are computed here.
    """
    # A package without golden texts has an empty file.
    (folder / GOLDEN_FILE).touch()
    files = {name: file_record(folder / name) for name in HASHED_FILES}
    sealed = manifest.model_copy(
        update={"files": files, "version": package_version(files, manifest)}
    )
    sealed = Manifest.model_validate(sealed.model_dump())
    write_manifest(folder, sealed)
    return sealed
