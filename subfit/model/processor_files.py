"""The files of a checkpoint that say how images, sounds and videos become what a model reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

NAMES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def processor_files(model: Any) -> Iterator[Path]:
    """Yields those of these files that are beside the weights that a model was read from, in a folder or on the hub."""
    if not model.config.sub_configs or not model.name_or_path:
        return  # it reads text alone, or was not read from a checkpoint
    folder = Path(model.name_or_path)
    for name in NAMES:
        if folder.is_dir():
            path = folder / name
        else:
            try:
                path = Path(hf_hub_download(model.name_or_path, name))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
                continue
        if path.is_file():
            yield path
