"""A push makes one commit or none, whatever fails, over LFS and Xet; the real client talks to a double of the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub_double import TOKEN, Double

from hyperzoo import errors
from hyperzoo.zoo import hub

# The warning is raised inside the Hub client, which passes an open file when it uploads a large one.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


CARD = b"---\nlicense: mit\n---\nA card.\n"
SENT = {"README.md": CARD, "config.json": b"{}", "model.safetensors": bytes(range(256)) * 8, "a.png": b"picture"}


def test_a_push_is_one_commit_and_a_repeated_push_is_none(double):
    commit = hub.push("hyperzoo/x", SENT, "message")
    assert double.commits("hyperzoo/x") == [commit] and len(commit) == 40
    assert sum("/commit/" in call for call in double.calls()) == 1
    for path, content in SENT.items():
        assert hub.fetch("hyperzoo/x", commit, path).read_bytes() == content
    double.calls()
    assert hub.push("hyperzoo/x", dict(reversed(SENT.items())), "another message") == commit
    calls = double.calls()
    assert double.commits("hyperzoo/x") == [commit] and not [c for c in calls if "/commit/" in c or c.startswith("PUT")]
    newer = hub.push("hyperzoo/x", {**SENT, "config.json": b"{1}"}, "message")
    assert double.commits("hyperzoo/x") == [commit, newer]
    assert hub.fetch("hyperzoo/x", commit, "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    "kind, on",
    [
        ("401", "create"),
        ("403", "commit"),
        ("412", "commit"),
        ("429", "commit"),
        ("500", "commit"),
        ("500", "preupload"),
        ("404", "revision/main"),
        ("400", "PUT"),
        ("500", "PUT"),
        ("500", "objects/batch"),
        ("404", "lfs/verify"),
        ("reset", "commit"),
        ("cut", "preupload"),
    ],
)
def test_a_failed_push_makes_no_commit(double, kind, on):
    double.fault(kind, on)
    with pytest.raises(errors.PublishError) as caught:
        hub.push("hyperzoo/x", SENT, "message")
    assert "pushing to hyperzoo/x failed" in str(caught.value) and TOKEN not in str(caught.value)
    assert f"answered {kind} (" in str(caught.value) or kind in ("reset", "cut")
    assert double.commits("hyperzoo/x") == []
    double.fault("ok")
    assert [hub.push("hyperzoo/x", SENT, "message")] == double.commits("hyperzoo/x")


def test_a_commit_whose_response_was_lost_is_found(double):
    double.fault("lost", "commit/main")
    with pytest.raises(errors.PublishError):
        hub.push("hyperzoo/x", SENT, "message")
    double.fault("ok")
    assert [hub.push("hyperzoo/x", SENT, "message")] == double.commits("hyperzoo/x")


def test_a_push_after_a_concurrent_commit_is_refused(double, monkeypatch):
    hub.push("hyperzoo/x", SENT, "message")
    create = hub.HfApi.model_info

    def overtaken(self, *args, **kwargs):
        seen = create(self, *args, **kwargs)
        double.commit("hyperzoo/x", {"config.json": b"theirs"})
        return seen

    monkeypatch.setattr(hub.HfApi, "model_info", overtaken)
    with pytest.raises(errors.PublishError, match="answered 412"):
        hub.push("hyperzoo/x", {**SENT, "config.json": b"ours"}, "message")


def test_a_card_that_the_hub_rejects_stops_the_push_before_any_upload(double):
    with pytest.raises(
        errors.PublishError, match=r"400 \(BadRequestError\): Invalid metadata in README\.md\. - no meta"
    ):
        hub.push("hyperzoo/x", {**SENT, "README.md": b"no block"}, "message")
    assert not [call for call in double.calls() if call.startswith("PUT") or "preupload" in call]


@pytest.mark.parametrize("token", ["", "hf_" + "b" * 34, "hf_é", "hf_\x01" + "c" * 34])
def test_a_bad_token_is_never_shown(double, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(errors.PublishError) as caught:
        hub.push("hyperzoo/x", SENT, "message")
    assert "set HF_TOKEN" in str(caught.value) if not token else token not in str(caught.value)


def test_a_reason_that_contains_the_token_is_shown_without_it(double):
    reason = hub._reason(OSError(f"Illegal header value b'Bearer {TOKEN}'"))
    assert reason == "OSError: Illegal header value b'Bearer hf_***'"


def test_pushing_offline_or_without_a_hub(double, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.PublishError, match="HF_HUB_OFFLINE=1"):
        hub.push("hyperzoo/x", SENT, "message")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    double.stop()
    with pytest.raises(errors.PublishError, match="ConnectError"):
        hub.push("hyperzoo/x", SENT, "message")


# Xet, configured by the environment instead of patches: hub.py in its own process, without torch

ALONE = """
import os, sys, types
package = types.ModuleType("hyperzoo")
package.__path__ = [sys.argv[1]]
sys.modules["hyperzoo"] = package
from pathlib import Path
from hyperzoo.zoo import hub

files = {"README.md": b"---\\na: b\\n---\\n", "model.safetensors": os.urandom(300_000)}
commit = hub.push("hyperzoo/x", files, "message")
assert hub.push("hyperzoo/x", files, "message") == commit
for path, content in files.items():
    assert hub.fetch("hyperzoo/x", commit, path).read_bytes() == content, path
print(commit)
"""


@pytest.mark.parametrize("xet", [False, True])
def test_the_environment_suffices_and_xet_transfers_the_same_bytes(tmp_path, xet):
    running = Double(tmp_path / "xet" if xet else None)
    try:
        env = {"HF_ENDPOINT": running.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        env |= {"HF_HUB_DISABLE_XET": str(int(not xet)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", ALONE, str(Path(hub.__file__).parent.parent)]
        done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        calls = running.calls()
        assert running.commits("hyperzoo/x") == [done.stdout.strip()]
        used = {word for call in calls for word in ("/lfs/", "xet-write-token", "xet-read-token") if word in call}
        assert used == ({"xet-write-token", "xet-read-token"} if xet else {"/lfs/"})
    finally:
        running.stop()
