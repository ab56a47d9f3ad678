"""A package is refused when a file is missing, altered or of another format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.package.files import (
    PackageError,
    PackageFileError,
    PackageFormatError,
    replacing_folder,
    write_text,
)
from service.package.manifest import (
    FORMAT_VERSION,
    HASHED_FILES,
    MANIFEST_FILE,
    READABLE_FORMATS,
    package_version,
    read_manifest,
    write_manifest,
)
from service.package.package import verify_package


def change_manifest(package: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = package / MANIFEST_FILE
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_a_sound_package_verifies(package: Path) -> None:
    manifest = verify_package(package)
    assert manifest.labels == ("delivery", "praise", "returns")
    assert set(manifest.files) == set(HASHED_FILES)


@pytest.mark.parametrize("name", [*HASHED_FILES, MANIFEST_FILE])
def test_a_missing_file_is_named(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(PackageFileError, match=name):
        verify_package(package)


@pytest.mark.parametrize("name", HASHED_FILES)
def test_one_flipped_byte_is_refused_by_name(package: Path, name: str) -> None:
    content = bytearray((package / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package / name).write_bytes(content)
    with pytest.raises(PackageFileError, match=f"{name} was altered"):
        verify_package(package)


def test_an_unknown_format_version_is_refused_with_advice(package: Path) -> None:
    change_manifest(package, lambda content: content.update(format_version=99))
    with pytest.raises(PackageFormatError, match=r"format_version 99.*reads 1 and 2"):
        verify_package(package)


def test_a_package_of_the_previous_format_is_read(package: Path) -> None:
    """Its version is still valid, because fields added since then have their defaults."""
    version = verify_package(package).version

    def as_before(content: dict[str, Any]) -> None:
        content["format_version"] = 1
        for name in ("temperature", "platt", "target_device", "selection", "calibration"):
            del content[name]

    change_manifest(package, as_before)
    manifest = verify_package(package)
    assert (manifest.version, manifest.temperature, manifest.platt) == (version, 1, {})
    # Written again, it states the new format, because readers of the old one refuse new fields.
    write_manifest(package, manifest)
    assert json.loads((package / MANIFEST_FILE).read_text())["format_version"] == FORMAT_VERSION
    assert verify_package(package).version == version


def test_a_server_of_the_previous_format_refuses_a_new_package(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checks the format before the fields, some of which it cannot know."""
    change_manifest(package, lambda content: content.update(of_the_next_format=1))
    monkeypatch.setattr("service.package.manifest.READABLE_FORMATS", READABLE_FORMATS[:-1])
    with pytest.raises(
        PackageFormatError, match="format_version 3, this Whetstone reads 1 and 2: use"
    ):
        verify_package(package)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"platt": {"delivery": [1, 0]}}, "platt has coefficients for every label"),
        ({"target_device": "tpu"}, "target_device"),
    ],
)
def test_an_impossible_calibration_is_refused(
    package: Path, fields: dict[str, Any], message: str
) -> None:
    change_manifest(package, lambda content: content.update(fields))
    with pytest.raises(PackageFormatError, match=message):
        verify_package(package)


def test_calibration_is_part_of_the_version(package: Path) -> None:
    """Another temperature gives another answer."""
    manifest = verify_package(package)
    other = manifest.model_copy(update={"temperature": 1.5})
    assert package_version(manifest.files, other) != manifest.version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["labels"].reverse(), "version"),
        (lambda content: content.update(max_length=16), "version"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(labels=["a", "a"]), "labels are not unique"),
        (lambda content: content.pop("precision"), "precision"),
        (lambda content: content["files"].pop("model.onnx"), "files must be exactly"),
        (
            lambda content: content["files"].update({"../x": content["files"]["model.onnx"]}),
            "files must be exactly",
        ),
    ],
)
def test_an_altered_manifest_is_refused(
    package: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_manifest(package, change)
    with pytest.raises(PackageFormatError, match=message):
        verify_package(package)


def test_a_manifest_that_is_not_json_is_refused(package: Path) -> None:
    (package / MANIFEST_FILE).write_text("{", "utf-8")
    with pytest.raises(PackageFileError, match=MANIFEST_FILE):
        verify_package(package)


def test_an_absent_folder_is_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a model package"):
        verify_package(tmp_path / "nowhere")


def test_metrics_and_time_do_not_change_the_version(package: Path) -> None:
    before = read_manifest(package)
    write_manifest(
        package,
        before.model_copy(update={"metrics": {"test": {"rows": 1}}, "created_at": "later"}),
    )
    assert verify_package(package).version == before.version


def test_a_failed_replacement_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), replacing_folder(target) as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_replacement_takes_the_place_of_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").touch()
    with replacing_folder(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    assert [path.name for path in target.iterdir()] == ["new"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old", "utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text("utf-8") == "old"


def test_a_failed_rename_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").touch()
    plain = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if (self / "new").exists():
            raise OSError("no space left on device")
        return plain(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no space"), replacing_folder(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    assert [path.name for path in target.iterdir()] == ["old"]
