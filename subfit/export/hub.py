"""Uploads a compressed model to the hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError

from subfit.errors import SubFitError
from subfit.model.checkpoint import card
from subfit.model.hub_access import HTTP_ERROR
from subfit.model.loading import is_compressed
from subfit.options.checked import checked
from subfit.tracking.records import read_record


@checked
def push(folder: str, repository: str, private: bool = False) -> str:
    """Uploads a compressed model, with its record and a model card of its results, in one commit.

    Args:
        folder: of the model, as `subfit compress` wrote it.
        repository: its name on the hub, `USER/NAME`; it is made if there is none.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        SubFitError: if the folder is not a compressed model's, or the hub does not take it.
    """
    path = Path(folder)
    record = path / "compression.json"
    if not is_compressed(folder) or not record.is_file():
        raise SubFitError(
            f"{folder} is not a folder that subfit compress wrote: config.json and compression.json are needed"
        )
    text = card(read_record(record), repository)
    files: dict[str, Path | bytes] = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    files["README.md"] = text.encode()
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=f"Compressed by SubFit: {path.name}").commit_url)
    except (HTTP_ERROR, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SubFitError(f"the hub does not take {repository}: {reason or type(error).__name__}") from error
