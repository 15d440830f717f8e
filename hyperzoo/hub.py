"""The only file that talks to the Hub about models."""

from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

from hyperzoo.errors import WeightUnavailableError


def fetch(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None, force: bool = False) -> Path:
    """Return the path of one file of a model repository: cached, else downloaded; with `force` downloaded again.

    A cached file of a 40-digit commit needs no request. Its content is not checked: the client checks the length only.

    Raises:
        WeightUnavailableError: not cached, and offline, no network, or the Hub said no; the message is the reason.
    """
    try:
        return Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, force_download=force))
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        raise WeightUnavailableError(
            f"{filename} is not in {cache_folder(cache_dir)}, and {repo}@{revision} answered {_reason(error)}"
        ) from error


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where the client keeps its files."""
    return Path(cache_dir or constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE=1 was set when the client was imported."""
    return constants.is_offline_mode()


def _reason(error: Exception) -> str:
    if offline():
        return "nothing, because HF_HUB_OFFLINE=1"
    if isinstance(error, HfHubHTTPError):
        return f"{error.response.status_code} ({type(error).__name__})"
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
