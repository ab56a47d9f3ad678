"""Which rows a package was made with is known by hashes, of any number of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.package.manifest import Manifest, read_manifest
from tests.conftest import example_rows
from training.data.leakage import HASH_BYTES, KEY, MOST_HASHES, find_leakage, fingerprint


def with_texts(manifest: Manifest, kept: object) -> Manifest:
    return manifest.model_copy(update={"provenance": {KEY: kept}})


def test_a_package_knows_its_training_and_validation_texts(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package)
    seen = [row["text"] for row in example_rows("train")]
    unseen = [row["text"] for row in example_rows("test")]
    found = find_leakage(manifest, [unseen[0], *seen, unseen[1]])
    assert found is not None
    assert found.rows == tuple(range(1, len(seen) + 1))
    assert found.looked_at == len(seen) + 2
    untouched = find_leakage(manifest, unseen)
    assert untouched is not None
    assert untouched.rows == ()


def test_no_text_and_no_label_is_kept(tiny_package: Path) -> None:
    kept = read_manifest(tiny_package).provenance[KEY]
    different = len({row["text"] for row in example_rows("train")})
    assert kept["different"] == different
    assert set(kept) == {"different", "hash", "hashes"}
    # In base64, four letters for three bytes.
    assert len(kept["hashes"]) == pytest.approx(different * HASH_BYTES * 4 / 3, abs=4)


def test_of_many_texts_a_sample_is_kept_that_finds_as_large_a_share(tiny_package: Path) -> None:
    texts = [f"text number {number}" for number in range(20_000)]
    kept = fingerprint(texts, most=1000)
    assert kept["different"] == 20_000
    manifest = with_texts(read_manifest(tiny_package), kept)
    # Half of these rows were there.
    found = find_leakage(manifest, texts[:2000] + [f"other {number}" for number in range(2000)])
    assert found is not None
    # About a twentieth of the rows can be looked up.
    assert 130 < found.looked_at < 280
    assert 0.35 < found.share < 0.65
    assert all(row < 2000 for row in found.rows)


def test_a_million_rows_fit_into_a_manifest() -> None:
    kept = fingerprint(str(number) for number in range(MOST_HASHES + 10))
    assert len(kept["hashes"]) < 140_000


def test_a_pair_is_another_text_than_its_parts(tiny_package: Path) -> None:
    manifest = with_texts(read_manifest(tiny_package), fingerprint([("a", "b")]))
    found = find_leakage(manifest, [("a", "b"), ("b", "a"), "a", "ab"])
    assert found is not None
    assert found.rows == (0,)


@pytest.mark.parametrize(
    "change",
    [
        {"hashes": "not base64!"},
        {"hashes": "QUJD"},
        {"hashes": ""},
        {"hash": "blake2"},
        {"different": "9"},
    ],
)
def test_hashes_that_fingerprint_does_not_write_are_ignored(
    tiny_package: Path, change: dict[str, object]
) -> None:
    """No hash vouches for a manifest's provenance."""
    manifest = read_manifest(tiny_package)
    kept = fingerprint(["a", "b"])
    assert find_leakage(with_texts(manifest, kept), ["a"]) is not None
    assert find_leakage(with_texts(manifest, kept | change), ["a"]) is None
    for odd in ("text", ["list"], 5, {}):
        assert find_leakage(with_texts(manifest, odd), ["a"]) is None


def test_the_last_hash_of_a_sample_is_looked_up(tiny_package: Path) -> None:
    texts = [f"text number {number}" for number in range(100)]
    manifest = with_texts(read_manifest(tiny_package), fingerprint(texts, most=10))
    found = find_leakage(manifest, texts)
    assert found is not None
    assert (len(found.rows), found.looked_at) == (10, 10)


def test_an_older_package_does_not_say(tiny_package: Path) -> None:
    manifest = read_manifest(tiny_package).model_copy(update={"provenance": {}})
    assert find_leakage(manifest, ["a"]) is None
