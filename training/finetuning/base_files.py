"""The files of a base model: in a folder, in the hub's cache, or on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
# In which sentence encoders say how the vectors of a text's tokens become one.
POOLING_FILE = "1_Pooling/config.json"
PICKLED_FILE = "pytorch_model.bin"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class BaseFiles:
    """The files under `location`: a folder, or a name on the hub with a `revision` or its main."""

    location: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether they lie in a folder, and not on the hub."""
        return Path(self.location).is_dir()

    def read_json(self, file: str) -> dict[str, Any] | None:
        """The object in a JSON file; empty where there is none, None where that cannot be known."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(self.location) / file if self.is_folder else self._downloaded(file)
            content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        except LocalEntryNotFoundError:
            return None
        except (EntryNotFoundError, FileNotFoundError, ValueError):
            return {}
        except OSError:
            # The hub and the network raise it.
            return None
        return content if isinstance(content, dict) else {}

    def _downloaded(self, file: str) -> Path | None:
        """A file of the hub in its cache; None where the cache knows that the hub has none."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.location, file, revision=self.revision)
        if cached is not None and not isinstance(cached, str):
            return None
        return Path(hf_hub_download(self.location, file, revision=self.revision))

    def weights(self) -> Path | None:
        """The file of the weights, downloaded where need be; None where there is none."""
        from transformers.utils.hub import cached_file

        revision = {} if self.revision is None else {"revision": self.revision}
        for file in WEIGHTS_FILES:
            path = cached_file(
                self.location, file, _raise_exceptions_for_missing_entries=False, **revision
            )
            if path is not None:
                return Path(path)
        return None

    def local_weights(self) -> Path | None:
        """The file of the weights where it lies on this machine already; the hub is not asked."""
        from huggingface_hub import try_to_load_from_cache

        for file in WEIGHTS_FILES:
            path = Path(self.location) / file
            if not self.is_folder:
                try:
                    cached = try_to_load_from_cache(self.location, file, revision=self.revision)
                except ValueError:
                    # The path of a folder that is gone cannot be a name on the hub.
                    return None
                path = Path(cached) if isinstance(cached, str) else path
            if path.is_file():
                return path
        return None

    def are_pickled(self) -> bool:
        """Whether there are weights, and none in safetensors; False where that cannot be known."""
        from huggingface_hub import file_exists

        if self.is_folder:
            files = {path.name for path in Path(self.location).iterdir()}
        else:
            try:
                files = {
                    file
                    for file in (PICKLED_FILE, *WEIGHTS_FILES)
                    if file_exists(self.location, file, revision=self.revision)
                }
            except Exception:  # noqa: BLE001 - the hub and the network have failed already
                return False
        return PICKLED_FILE in files and files.isdisjoint(WEIGHTS_FILES)
