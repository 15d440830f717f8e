"""The only file that talks to the Hub about models."""

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import tqdm, validate_repo_id

from hyperzoo.errors import PublishError, WeightUnavailableError

_logger = logging.getLogger(__name__)
_ERRORS = (OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError)  # all that the client raises
SILENT_S, LIMIT_S, BYTES_PER_S = 10.0, 60.0, 100_000  # of a download: until a line is logged, and its time limit
UNKNOWN_BYTES = 50_000_000  # assumed for a file whose size is not known


def fetch(
    repo: str,
    revision: str,
    filename: str,
    *,
    cache_dir: str | Path | None = None,
    force: bool = False,
    size: int = UNKNOWN_BYTES,
) -> Path:
    """Return the path of a file of a model repository, downloading it unless it is cached; `force` downloads it again.

    A cached file of a 40-digit commit needs no request. Its content is not checked; the client checks only its length.

    Args:
        size: expected bytes. The time limit is 60 s plus 1 s per 100 kB; after 10 s a warning reports that the
            download is still running.
    Raises:
        WeightUnavailableError: not cached and offline, no network, refused by the Hub, too slow, longer than announced,
            stored outside the cache, or no space on the disk; the message is the reason.
    """
    place, limit = cache_folder(cache_dir), LIMIT_S + size / BYTES_PER_S
    start = f"{filename} should be replaced in {place}, but" if force else f"{filename} is not in {place}, and"

    def download() -> str:
        if force and (file := cached(repo, revision, filename, cache_dir=cache_dir)) and not file.is_symlink():
            file.unlink()  # where the cache has no links, the client would keep the old copy in place of the new blob
        return hf_hub_download(
            repo, filename, revision=revision, cache_dir=cache_dir, force_download=force, tqdm_class=_Bounded
        )

    try:
        found = _within(limit, download, f"{filename} of {repo}@{revision}")
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            raise WeightUnavailableError(f"{start} could not be stored there: {error.strerror}") from error
        if offline():
            raise WeightUnavailableError(
                f"{filename} of {repo}@{revision} is not cached in {place}, and HF_HUB_OFFLINE=1 forbids a download"
            ) from error
        raise WeightUnavailableError(f"{start} {repo}@{revision} answered {_reason(error)}") from error
    if found is None:
        raise WeightUnavailableError(
            f"{start} {repo}@{revision} did not deliver it within {limit:.0f} s. Try again; what has arrived is kept"
        )
    return _inside(Path(found), place)


def _within(limit_s: float, work: Callable[[], str], what: str) -> str | None:
    """What `work` returns or raises; None after the time limit, when it is left to itself in a thread."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([future], min(SILENT_S, limit_s)).done:
        _logger.warning("%s: still waiting for the Hub, for at most %.0f s in all", what, limit_s)
        wait([future], max(0.0, limit_s - SILENT_S))
    return future.result() if future.done() else None


class _Bounded(tqdm):  # type: ignore[type-arg]
    """The client's progress bar, which stops a body that is longer than announced, such as an inflated gzip."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arrived = kwargs.get("initial") or 0

    def update(self, n: float | None = 1) -> bool | None:
        self.arrived += n or 0
        if self.total and self.arrived > self.total:
            raise ValueError(f"more than the {self.total} bytes that it had announced")
        return super().update(n)


def _inside(file: Path, place: Path) -> Path:
    """Refuse a file that the client has stored outside the cache, where the Hub's ETag had `../` in it."""
    repository = next(parent for parent in file.parents if parent.name == "snapshots").parent
    target = file.resolve()
    if not any(target.is_relative_to(folder.resolve()) for folder in (place, repository)):
        raise WeightUnavailableError(
            f"{file} leads to {target}, outside the cache: the Hub answered with a false ETag. Delete both files"
        )
    return file


def cached(repo: str, revision: str, filename: str, *, cache_dir: str | Path | None = None) -> Path | None:
    """The path of a cached file, without a request; None if it is not cached."""
    found = try_to_load_from_cache(repo, filename, cache_dir=cache_folder(cache_dir), revision=revision)
    return Path(found) if isinstance(found, str) else None


def push(repo: str, files: Mapping[str, bytes], message: str, *, private: bool = False) -> str:
    """Commit files to the main branch of a model repository, which is created if missing; returns the 40-digit commit.

    Without a change there is no new commit, and the latest one is returned.

    Args:
        private: create a private repository. One that exists must be private already.
    Raises:
        PublishError: no token, offline, no network, a public repository for private files, or refused by the Hub, which
            then has all of the files or none.
    """
    if not get_token():
        raise PublishError(f"pushing to {repo} needs a token that may write there: set HF_TOKEN, or hf auth login")
    from huggingface_hub import CommitOperationAdd  # imports modules that `import hyperzoo` should not load

    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True, private=private or None)  # None: as the owner's settings say
        newest = api.model_info(repo, revision="main")
        if private and not newest.private:
            raise PublishError(f"{repo} exists and is public; make it private on the Hub, or choose another name")
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(repo, operations, commit_message=message, parent_commit=newest.sha).oid
    except PublishError:
        raise
    except _ERRORS as error:
        reason = "HF_HUB_OFFLINE=1 forbids requests" if offline() else f"the Hub answered {_reason(error)}"
        raise PublishError(f"pushing to {repo} failed; {reason}") from error


def is_repository(repo: str) -> bool:
    """Whether a text can be the id of a repository, `<owner>/<name>` or `<name>`, with `@<revision>` or without."""
    name, _, revision = repo.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return len(revision) < 256 and ".." not in revision and not revision.startswith("/") and "\0" not in revision


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
