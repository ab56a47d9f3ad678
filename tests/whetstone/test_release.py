"""The arguments of release, rollback and history."""

from __future__ import annotations

import pytest

from whetstone.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--watch", "-1"], "not a number of seconds"),
        (["--watch", "nan"], "not a number of seconds"),
        (["--plan", "--apply"], "not allowed with argument"),
        (["--champion"], "expected one argument"),
    ],
)
def test_impossible_flags_are_refused(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    release = ["release", "p", "--overlay", "o", "--data", "d", "--champion", "none", *words]
    with pytest.raises(SystemExit) as caught:
        main(release)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [["0a1b", "--unfinished"], ["--unfinished", "--abandon"]])
def test_a_rollback_does_one_thing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rollback", "--overlay", "o", *words])
    assert caught.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["release", "rollback", "history"])
def test_each_verb_has_a_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert "--overlay" in capsys.readouterr().out
