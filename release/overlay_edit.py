"""The edit that writes an image into an overlay, and how it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from release.cluster.overlay import (
    image_of_content,
    kustomization_of,
    read_kustomization,
    with_image,
    write_kustomization,
)
from release.records import OverlayEdit
from training.common.errors import ReleaseError


def edit_image(overlay: Path, image: str) -> OverlayEdit:
    """The edit that writes an image into an overlay; nothing is written yet.

    Raises:
        ReleaseError: the folder is not an overlay, or the image has no tag.
    """
    file = kustomization_of(overlay)
    before = read_kustomization(file)
    return OverlayEdit(file=str(file), before=before, after=with_image(before, image))


def write_edit(edit: OverlayEdit) -> None:
    """Write the image into the overlay.

    Raises:
        ReleaseError: somebody has edited the overlay since it was read.
    """
    file = Path(edit.file)
    if read_kustomization(file) != edit.before:
        raise ReleaseError(f"{file} was edited just now: look at it, and release again")
    write_kustomization(file, edit.after)


def undo_edit(edit: OverlayEdit) -> str | None:
    """Write the overlay as before; where somebody has edited it since, only the image in it.

    An image that somebody else has written into it stays.

    Returns:
        How the overlay differs from before, in a sentence; None if it does not.

    Raises:
        ReleaseError: the overlay still names the image of the edit, and which image it named before
            is not known; or it cannot be read.
    """
    file = Path(edit.file)
    if not file.is_file():
        return None
    content = read_kustomization(file)
    if content in (edit.before, edit.after):
        if content != edit.before:
            write_kustomization(file, edit.before)
        return None
    written, before = image_of_content(edit.after), image_of_content(edit.before)
    with _refusing_bad_yaml(file):
        named = image_of_content(content)
    if named not in (written, before):
        return f"{file} was edited meanwhile: it is left as it is, with the image {named}"
    if named == written:
        if before is None:
            raise ReleaseError(
                f"{file} was edited meanwhile and named no image before, so the image {written} is "
                "still in it: write the image there that ran before, and try again"
            )
        with _refusing_bad_yaml(file):
            restored = with_image(content, before)
        write_kustomization(file, restored)
    return (
        f"{file} was edited meanwhile: its image is that of before ({before or 'none'}), and the "
        "rest is left as it is"
    )


@contextmanager
def _refusing_bad_yaml(file: Path) -> Iterator[None]:
    """Refuse an overlay that is no YAML any more, for example with the marks of a git conflict.

    Raises:
        ReleaseError: the block could not read it.
    """
    from ruamel.yaml.error import YAMLError

    try:
        yield
    except (yaml.YAMLError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ReleaseError(
            f"{file} was edited meanwhile and cannot be read: {reason}; mend it, and try again"
        ) from None
