"""A load from the Hub ends: hanging, dripping, swelling and lying servers; what is at hand needs no Hub."""

import logging
import time

import pytest
import timm
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from support.hub_server import BOMB_BYTES
from support.published import COMMIT, MIXUP, PLAIN, publish, withdraw

import hyperzoo
from hyperzoo import errors, zoo
from hyperzoo.zoo import hub, weight_files
from hyperzoo.zoo.manifest import FILES

REPO = f"hyperzoo/{MIXUP}"
BODY = "GET /lfs/"
OTHER = "someone/else"


@pytest.fixture
def small(double, tmp_path, monkeypatch):
    """The small zoo, with MIXUP and a repository of somebody else on the double, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    published = publish(tmp_path / "zoo", monkeypatch)
    files = {part: (published.snapshot("hyperzoo", MIXUP) / part).read_bytes() for part in FILES}
    for repo in (REPO, OTHER):
        double.commit(repo, files, oid=COMMIT if repo == REPO else "")
    yield published
    withdraw(monkeypatch)


@pytest.fixture
def impatient(monkeypatch):
    """Time limits of a test: a line after 0.2 s, the end after 1 s."""
    for name, value in {"SILENT_S": 0.2, "LIMIT_S": 1.0, "BYTES_PER_S": 10**12}.items():
        monkeypatch.setattr(hub, name, value)


def test_the_limits_in_use():
    assert hub.SILENT_S == 10 and hub.LIMIT_S + 12_000_000 / hub.BYTES_PER_S == 180  # the largest bundled weight
    assert hub.LIMIT_S + hub.UNKNOWN_BYTES / hub.BYTES_PER_S == 560


@pytest.mark.fault("Hub that never ends its answer", 2)
@pytest.mark.parametrize("kind, on", [("hang", ""), ("hang", BODY), ("drip", BODY), ("retry-after", "")])
def test_a_server_that_never_ends_is_left_after_the_limit(double, small, impatient, caplog, monkeypatch, kind, on):
    for module in (file_download, _http):  # with the waits between retries, which other tests of the double skip
        monkeypatch.setattr(module, "time", time)
    double.fault(kind, on)
    for load in (lambda: hyperzoo.load(MIXUP), lambda: zoo.any_network(f"hf-hub:{OTHER}")):
        caplog.clear()
        start = time.monotonic()
        with pytest.raises(errors.WeightUnavailableError, match=r"did not deliver it within 1 s"):
            load()
        assert time.monotonic() - start < 10  # the limit of one file is a second
        assert "still waiting for the Hub, for at most 1 s in all" in caplog.text


@pytest.mark.fault("gzip bomb", 2)
@pytest.mark.parametrize("part", ["config.json", BODY])
def test_a_body_that_swells_is_stopped(double, small, tmp_path, part):
    double.fault("gzip-bomb", part if part == BODY else f"GET /{REPO}/resolve/{COMMIT}/{part}")
    with pytest.raises(errors.WeightUnavailableError, match="more than the .* bytes that it had announced"):
        hyperzoo.load(MIXUP)
    kept = sum(file.stat().st_size for file in (tmp_path / "home").rglob("*") if file.is_file())
    assert kept < BOMB_BYTES / 4


@pytest.mark.fault("ETag that leads out of the cache", 2)
def test_a_file_outside_the_cache_is_not_used(double, small):
    double.fault("traversal-etag", "HEAD ")
    for load in (lambda: hyperzoo.load(MIXUP), lambda: zoo.any_network(f"hf-hub:{OTHER}")):
        with pytest.raises(
            errors.WeightUnavailableError, match="outside the cache: the Hub answered with a false ETag"
        ):
            load()


@pytest.mark.fault("Hub that is not there", 4)
def test_what_is_at_hand_needs_no_hub(double, small):
    weight_files.path(MIXUP, repo=REPO, revision="main"), zoo.any_network(f"hf-hub:{REPO}")
    double.fault("hang")
    double.calls()
    for name in (f"hf-hub:{REPO}", f"hf-hub:{REPO}@main", f"hf-hub:hyperzoo/{PLAIN}"):
        assert zoo.any_network(name).num_classes == 10
    assert weight_files.path(PLAIN, repo=f"hyperzoo/{PLAIN}") == small.file(PLAIN)
    assert double.calls() == []


@pytest.mark.fault("foreign repository offline or with a bad name", 12)
def test_foreign_repositories_raise_our_errors(double, small, monkeypatch):
    assert zoo.any_network(f"hf-hub:{OTHER}").num_classes == 10
    bad = [
        "",
        "a/b/c",
        "a//b",
        "-a/b",
        "a/b@../../x",
        "a/b@/x",
        "ä/b",
        "a b/c",
        "a/" + "b" * 5_000,
        "a/b@" + "c" * 5_000,
    ]
    for name in bad:
        with pytest.raises(errors.InvalidNameError, match="is not a repository of the Hub"):
            zoo.any_network(f"hf-hub:{name}")
    with pytest.raises(errors.WeightUnavailableError, match="404"):
        zoo.any_network("hf-hub:someone/absent")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.WeightUnavailableError, match="HF_HUB_OFFLINE=1 forbids a download"):
        zoo.any_network("hf-hub:someone/absent")


def test_no_pickle_of_a_foreign_repository_is_downloaded(double, small):
    config = (small.file(PLAIN).parent / "config.json").read_bytes()
    double.commit("someone/pickle", {"pytorch_model.bin": b"\x80\x04}.", "config.json": config})
    with pytest.raises(errors.WeightUnavailableError, match=r"model\.safetensors is not in"):
        zoo.any_network("hf-hub:someone/pickle")
    assert not [call for call in double.calls() if "pytorch_model" in call]


def test_a_quick_download_logs_no_warning(double, small, caplog):
    with caplog.at_level(logging.WARNING, "hyperzoo"):
        timm.create_model(MIXUP, pretrained=True)
    assert not [record for record in caplog.records if record.name.startswith("hyperzoo")]
