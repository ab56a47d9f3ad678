"""Pictures: labels are drawn as they are, and a file is whole or the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.common.figures import plain, save_figure

PNG = b"\x89PNG\r\n\x1a\n"


def figure_with(labels: list[str]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    return figure


def test_labels_with_signs_of_mathematics_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "made" / "labels.png"
    labels = ["cost_$5_$6", "$x^2$", "100%", "a_b_c", "\\frac{", "#1 & {more}"]
    save_figure(figure_with(labels), path)
    assert path.read_bytes().startswith(PNG)
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def savefig(_figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(PNG)
        raise OSError("disk full")

    path = tmp_path / "labels.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure_with(["a", "b"]), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
