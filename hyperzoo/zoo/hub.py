"""The only file that talks to the Hub about models."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from hyperzoo.errors import PublishError, WeightUnavailableError

_ERRORS = (OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError)  # all that the client raises


def fetch(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None, force: bool = False) -> Path:
    """Return the path of a file of a model repository, downloading it unless it is cached; `force` downloads it again.

    A cached file of a 40-digit commit needs no request. Its content is not checked; the client checks only its length.

    Raises:
        WeightUnavailableError: not cached and offline, no network, refused by the Hub, or no space on the disk; the
            message is the reason.
    """
    try:
        if force and (file := cached(repo, revision, filename, cache_dir=cache_dir)) and not file.is_symlink():
            file.unlink()  # where the cache has no links, the client would keep the old copy in place of the new blob
        return Path(hf_hub_download(repo, filename, revision=revision, cache_dir=cache_dir, force_download=force))
    except _ERRORS as error:
        place = cache_folder(cache_dir)
        start = f"{filename} should be replaced in {place}, but" if force else f"{filename} is not in {place}, and"
        if isinstance(error, OSError) and error.errno:
            raise WeightUnavailableError(f"{start} could not be stored there: {error.strerror}") from error
        if offline():
            raise WeightUnavailableError(
                f"{filename} of {repo}@{revision} is not cached in {place}, and HF_HUB_OFFLINE=1 forbids a download"
            ) from error
        raise WeightUnavailableError(f"{start} {repo}@{revision} answered {_reason(error)}") from error


def cached(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None) -> Path | None:
    """The path of a cached file, without a request; None if it is not cached."""
    found = try_to_load_from_cache(repo, filename, cache_dir=cache_folder(cache_dir), revision=revision)
    return Path(found) if isinstance(found, str) else None


def push(repo: str, files: Mapping[str, bytes], message: str) -> str:
    """Commit files to the main branch of a model repository, which is created if missing; returns the 40-digit commit.

    Without a change there is no new commit, and the latest one is returned.

    Raises:
        PublishError: no token, offline, no network, or refused by the Hub, which then has all of the files or none.
    """
    if not get_token():
        raise PublishError(f"pushing to {repo} needs a token that may write there: set HF_TOKEN, or hf auth login")
    from huggingface_hub import CommitOperationAdd  # imports modules that `import hyperzoo` should not load

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        newest = api.model_info(repo, revision="main").sha
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(repo, operations, commit_message=message, parent_commit=newest).oid
    except _ERRORS as error:
        reason = "HF_HUB_OFFLINE=1 forbids requests" if offline() else f"the Hub answered {_reason(error)}"
        raise PublishError(f"pushing to {repo} failed; {reason}") from error


def is_repository(repo: str) -> bool:
    """Whether a text can be the id of a repository, `<owner>/<name>` or `<name>`."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The client's cache folder."""
    return Path(cache_dir or constants.HF_HUB_CACHE)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE=1 was set when the client was imported."""
    return constants.is_offline_mode()


def _reason(error: Exception) -> str:
    """The status or the kind of an error in one line, without the token."""
    cause = error.__cause__ or error
    for one in (error, cause):
        if isinstance(one, HfHubHTTPError):
            detail = f": {error}" if isinstance(error, ValueError) else ""  # the client's text, as on a bad card
            return _one_line(f"{one.response.status_code} ({type(one).__name__}){detail}")
    return _one_line(f"{type(cause).__name__}: {cause}")


def _one_line(text: str) -> str:
    return " ".join(text.replace(get_token() or "\0", "hf_***").split())
