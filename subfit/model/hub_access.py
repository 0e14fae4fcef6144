"""Whether the hub can be reached at all, which its libraries find out by trying for a minute."""

import errno
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not re-exported explicitly

from subfit.errors import SubFitError, missing

HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]  # of the HTTP client, which depends on the version
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH)


def check_reachable(name: str, file: str = "config.json", kind: str = "model") -> None:
    """Looks once, without another try, for a file of a repository that is not on this machine.

    Whatever the hub answers, and however slowly, is left to what loads the repository.

    Args:
        name: of the repository, or of a local folder or file, which needs no hub.
        kind: what is in it, `model` or `dataset`.

    Raises:
        SubFitError: if the name can only be that of a folder, which is not there, or no connection can be made.
    """
    if Path(name).exists():
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise SubFitError(f"the folder {missing(name)}") from None
    if constants.HF_HUB_OFFLINE or try_to_load_from_cache(name, file, repo_type=kind):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HTTP_ERROR, OSError) as error:
        refused = next(filter(_is_refusal, _causes(error)), None)
        if refused is not None:
            raise SubFitError(
                f"{name} is not on this machine, and {constants.ENDPOINT} cannot be reached: {refused}"
            ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_refusal(error: BaseException) -> bool:
    """Whether an error says that there is no way to a host, rather than that it is slow or has a defect."""
    if isinstance(error, ConnectionRefusedError | socket.gaierror | ssl.SSLError):
        return True
    return isinstance(error, OSError) and error.errno in UNREACHABLE
