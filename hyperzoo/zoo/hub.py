"""The only file that talks to the Hub about models."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

from hyperzoo.errors import PublishError, WeightUnavailableError

_ERRORS = (OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError)  # all that the client raises


def fetch(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None, force: bool = False) -> Path:
    """Return the path of one file of a model repository: cached, else downloaded; with `force` downloaded again.

    A cached file of a 40-digit commit needs no request. Its content is not checked: the client checks the length only.

    Raises:
        WeightUnavailableError: not cached, and offline, no network, the Hub said no, or no room; the message is the
            reason.
    """
    try:
        if force and (file := cached(repo, revision, filename, cache_dir=cache_dir)) and not file.is_symlink():
            file.unlink()  # where the cache has no links, the client would keep the old copy in place of the new blob
        return Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, force_download=force))
    except _ERRORS as error:
        where = f"{filename} {'should be replaced' if force else 'is not'} in {cache_folder(cache_dir)}"
        start = f"{where}, {'but' if force else 'and'}"
        if isinstance(error, OSError) and error.errno:
            raise WeightUnavailableError(f"{start} could not be stored there: {error.strerror}") from error
        raise WeightUnavailableError(f"{start} {repo}@{revision} answered {_reason(error)}") from error


def cached(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None) -> Path | None:
    """Where the client keeps a file already, without asking the Hub."""
    found = try_to_load_from_cache(repo, filename, cache_dir=cache_folder(cache_dir), revision=revision)
    return Path(found) if isinstance(found, str) else None


def push(repo: str, files: Mapping[str, bytes], message: str) -> str:
    """Put files on the main branch of a model repository by one commit; returns its 40 digits.

    Makes the repository if there is none. Files that the Hub holds already make no commit: the newest is returned.

    Raises:
        PublishError: no token, offline, no network, or the Hub said no. It then holds all of these files, or none.
    """
    if not get_token():
        raise PublishError(f"pushing to {repo} needs a token that may write there: set HF_TOKEN, or hf auth login")
    from huggingface_hub import CommitOperationAdd  # brings modules that a mere import of ours should not load

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        newest = api.model_info(repo, revision="main").sha
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(repo, operations, commit_message=message, parent_commit=newest).oid
    except _ERRORS as error:
        raise PublishError(f"pushing to {repo} failed; the Hub answered {_reason(error)}") from error


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where the client keeps its files."""
    return Path(cache_dir or constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE=1 was set when the client was imported."""
    return constants.is_offline_mode()


def _reason(error: Exception) -> str:
    """A status or the kind of a failure in one line, never with the token."""
    if offline():
        return "nothing, because HF_HUB_OFFLINE=1"
    cause = error.__cause__ or error
    for one in (error, cause):
        if isinstance(one, HfHubHTTPError):
            said = f": {error}" if isinstance(error, ValueError) else ""  # the client's own words, as on a bad card
            return _one_line(f"{one.response.status_code} ({type(one).__name__}){said}")
    return _one_line(f"{type(cause).__name__}: {cause}")


def _one_line(text: str) -> str:
    return " ".join(text.replace(get_token() or "\0", "hf_***").split())
