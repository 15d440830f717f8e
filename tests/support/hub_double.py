"""A double of the Hugging Face Hub: a process of its own that the real huggingface_hub client talks to, with faults.

`Double` starts and holds it, `talk_to` points the client to it; what it answers is in `hub_server`.
"""

import base64
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support import hub_server
from support.hub_server import TOKEN


class Double:
    """A running double; `url` is what HF_ENDPOINT wants."""

    def __init__(self, xet: Path | None = None) -> None:
        arguments = [sys.executable, "-I", "-S", hub_server.__file__, *([str(xet)] if xet else [])]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().split()[0]}"

    def stop(self) -> None:
        """Down: from now on every connection is refused, pooled ones too."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()

    def fault(self, kind: str, on: str = "", times: int = 10**6) -> None:
        """From now on the next `times` requests with `on` in "METHOD /path" meet this fault; 'ok' ends all faults.

        A number: this status. cut, reset: half of the body (or no answer), closed by FIN or RST; a resumed download
        gets nothing more. short: half of the body, with a Content-Length that says so. flip: the last eight bytes are
        others. slow: the body takes a second. drip: a byte every 50 ms. gzip-bomb: a body that inflates to 100 MB.
        hang: no answer. retry-after: 429, with a wait of 100,000 s. lost: done, but never answered. no-etag, no-commit,
        other-etag, traversal-etag: HEAD without, or with another, header.
        """
        self._ask("fault", kind=kind, on=on, times=times)

    def commit(self, repo: str, files: dict[str, bytes], oid: str = "") -> str:
        """Commit files on main without the client, as somebody else would; returns the 40 digits, `oid` if given."""
        content = {path: base64.b64encode(data).decode() for path, data in files.items()}
        return self._ask("commit", repo=repo, files=content, oid=oid)

    def commits(self, repo: str) -> list[str]:
        """The commits of main, oldest first, without the empty one that a new repository begins with."""
        return self._ask("commits", repo=repo)

    def files(self, repo: str, commit: str) -> dict[str, str]:
        """The sha256 of each file of a commit."""
        return self._ask("files", repo=repo, commit=commit)

    def calls(self) -> list[str]:
        """Requests since the last time this was asked: 'METHOD /path', with ' +auth' if a token came along."""
        return self._ask("calls")

    def _ask(self, what: str, **values: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/_double/{what}", data=json.dumps(values).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def talk_to(double: Double, home: Path, monkeypatch: Any) -> list[float]:
    """Let the client of this process talk to the double, as HF_ENDPOINT, HF_HOME=home and HF_TOKEN would.

    It does not wait between retries; the returned list collects the seconds that it would have waited.
    """
    from huggingface_hub import close_session, constants, file_download
    from huggingface_hub.utils import _http

    values = {
        "ENDPOINT": double.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": double.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "AGENT_HARNESSES_PATH": str(home / "harnesses.json"),
    }
    for key, value in values.items():
        monkeypatch.setattr(constants, key, value)
    waits: list[float] = []
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append, time=time.time))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    return waits
