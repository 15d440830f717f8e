"""Downloads: the real client against a double of the Hub, with every fault on the way."""

import contextlib
import logging
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.errors import EntryNotFoundError
from support.hub_double import TOKEN, talk_to
from support.published import ARCH, COMMIT, MHE, MIXUP, PLAIN, digest, publish, withdraw

import hyperzoo
from hyperzoo import errors
from hyperzoo.cli import main
from hyperzoo.files import sha256
from hyperzoo.publishing import verify
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import FILES

ROOT = str(Path(__file__).parent.parent)
REPO = f"hyperzoo/{MIXUP}"
AT_ONCE = "process that loads while others do"
FETCH = "GET /lfs/"  # how the body of model.safetensors is asked for
ROUTES = {
    "tag": lambda **kw: timm.create_model(MIXUP, pretrained=True, **kw),
    "load": lambda **kw: hyperzoo.load(MIXUP, **kw).model,
    "torch.hub": lambda **kw: torch.hub.load(ROOT, ARCH, source="local", pretrained=True, tag="mixup_c10", **kw),
    "hf-hub at a commit": lambda **kw: timm.create_model(f"hf-hub:{REPO}@{COMMIT}", pretrained=True, **kw),
    "hf-hub": lambda **kw: timm.create_model(f"hf-hub:{REPO}", pretrained=True, **kw),
}


@pytest.fixture
def waits(double, tmp_path, monkeypatch):
    """Point the client of this process at the double, and record the seconds it would wait between retries."""
    return talk_to(double, tmp_path / "home", monkeypatch)


@pytest.fixture
def zoo(double, waits, tmp_path, monkeypatch):
    """The small zoo, with the weight MIXUP on the double and an empty cache."""
    zoo = publish(tmp_path / "zoo", monkeypatch)
    double.commit(REPO, {part: (zoo.snapshot("hyperzoo", MIXUP) / part).read_bytes() for part in FILES}, oid=COMMIT)
    yield zoo
    withdraw(monkeypatch)


def cache():
    return Path(constants.HF_HUB_CACHE)


def is_mixup(model, zoo):
    state = model.state_dict()
    return all(torch.equal(state[key], value) for key, value in zoo.tensors[MIXUP].items())


def bodies(double):
    return sum(call.startswith(FETCH) for call in double.calls())


def flip(file):
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.resolve().write_bytes(data)


# Every route


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_downloads_once_and_loads_the_published_tensors(double, zoo, route):
    assert is_mixup(ROUTES[route](), zoo)
    calls = double.calls()
    assert sum(call.startswith(FETCH) for call in calls) == 1
    assert not [call for call in calls if "pytorch_model" in call]
    seven, gray, features = ROUTES[route](num_classes=7), ROUTES[route](in_chans=1), ROUTES[route](features_only=True)
    expected = zoo.tensors[MIXUP]
    for model in (seven, features):
        assert torch.equal(model.state_dict()["conv1.weight"], expected["conv1.weight"])
    stem = expected["conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(gray.conv1.weight.detach(), stem, rtol=0, atol=1e-6)  # order of a sum of three
    assert seven(torch.zeros(2, 3, 32, 32)).shape == (2, 7) and len(features(torch.zeros(1, 3, 32, 32))) == 3
    calls = double.calls()
    assert all(call.startswith("HEAD ") and "/main/" in call for call in calls), "a pinned commit needs no request"
    assert bool(calls) == (route == "hf-hub")


def test_the_token_does_not_leave_the_hub(double, zoo):
    hyperzoo.load(MIXUP)
    for call in double.calls():
        assert call.endswith(" +auth") != call.startswith(FETCH), call


def test_a_download_is_announced(zoo, caplog):
    with caplog.at_level(logging.INFO, "hyperzoo"):
        weight_files.path(MIXUP)
        weight_files.path(MIXUP)
    announced = [record.getMessage() for record in caplog.records]
    assert announced == [f"{MIXUP} (1.1 MB): fetching model.safetensors of {REPO}@{COMMIT}"]


# Wrong bytes


@pytest.mark.fault("wrong bytes from the Hub")
def test_wrong_bytes_are_fetched_once_more_and_then_refused(double, zoo):
    double.fault("flip", FETCH)
    with pytest.raises(errors.WeightHashError) as caught:
        ROUTES["tag"]()
    assert bodies(double) == 2
    wanted, file = zoo.entries[MIXUP]["files"]["model.safetensors"], next(cache().rglob("model.safetensors"))
    start = f"{MIXUP}: {file} has sha256 {sha256(file)}, weights.json says {wanted}. "
    assert str(caught.value).startswith(f"{start}Fetched twice from {REPO}@{COMMIT}. ")
    assert sha256(file) != wanted
    double.fault("ok")
    assert is_mixup(ROUTES["tag"](), zoo) and bodies(double) == 1


@pytest.mark.fault("wrong bytes from the Hub")
def test_wrong_bytes_once_are_repaired(double, zoo):
    double.fault("flip", FETCH, times=1)
    assert is_mixup(ROUTES["load"](), zoo) and bodies(double) == 2


@pytest.mark.fault("rotted file of the cache")
@pytest.mark.parametrize("links", [True, False])
def test_a_rotted_cache_is_fetched_once_and_loads(double, zoo, monkeypatch, links):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    file = weight_files.path(MIXUP)
    assert file.is_symlink() == links and bodies(double) == 1
    flip(file)
    assert is_mixup(ROUTES["load"](), zoo)
    assert bodies(double) == 1 and digest(file) == zoo.entries[MIXUP]["files"]["model.safetensors"]
    assert is_mixup(ROUTES["tag"](), zoo) and double.calls() == []


@pytest.mark.fault("rotted file of the cache")
def test_a_rotted_cache_without_a_hub_names_both_hashes(double, zoo):
    ROUTES["tag"]()  # all files are cached
    file = weight_files.path(MIXUP)
    flip(file)
    double.stop()
    with pytest.raises(errors.WeightHashError) as caught:
        ROUTES["tag"]()
    for part in (MIXUP, str(file), digest(file), zoo.entries[MIXUP]["files"]["model.safetensors"]):
        assert part in str(caught.value)
    assert "A second download failed" in str(caught.value) and "refused" in str(caught.value)


def test_other_bytes_upstream_do_not_reach_the_user(double, zoo):
    newer = double.commit(REPO, {"model.safetensors": zoo.file(MHE).read_bytes()})
    for route in ROUTES:
        assert is_mixup(ROUTES[route](), zoo), route
    with pytest.raises(errors.WeightHashError, match=rf"{MIXUP}: .* has sha256 {digest(zoo.file(MHE))}"):
        timm.create_model(f"hf-hub:{REPO}@{newer}", pretrained=True)
    double.commit(f"someone/{MIXUP}", {part: (zoo.file(MHE).parent / part).read_bytes() for part in FILES})
    with pytest.raises(errors.WeightHashError, match=f"Fetched twice from someone/{MIXUP}@main.*local-dir:"):
        timm.create_model(f"hf-hub:someone/{MIXUP}", pretrained=True)


def test_a_repository_with_a_pickle_only_is_refused(double, zoo):
    config = (zoo.file(PLAIN).parent / "config.json").read_bytes()
    double.commit("someone/else", {"pytorch_model.bin": b"\x80\x04}.", "config.json": config})
    with pytest.raises(EntryNotFoundError, match=r"model\.safetensors"):
        timm.create_model("hf-hub:someone/else", pretrained=True)
    assert not [call for call in double.calls() if "pytorch_model" in call]


# The way there


def refused(route="tag"):
    """The error of a failed download, after a check of what every such error contains."""
    with pytest.raises(errors.WeightUnavailableError) as caught:
        ROUTES[route]()
    text = str(caught.value)
    assert text.startswith(f"{MIXUP} (1.1 MB): ") and "\n" not in text
    for part in (str(cache()), f"hyperzoo verify {MIXUP}", f"Bundled: {MHE}, {PLAIN}"):
        assert part in text
    assert isinstance(caught.value, OSError) and TOKEN not in text
    return text


def nothing_cached():
    return not [file for file in cache().rglob("*") if file.is_file() and file.stat().st_size > 100_000]


@pytest.mark.fault("connection that breaks")
@pytest.mark.parametrize(
    "kind, says",
    [
        ("cut", "RemoteProtocolError: peer closed connection"),
        ("reset", "ReadError"),
        ("short", "should be of size {size} but has size {half}"),
    ],
)
def test_a_connection_that_breaks_leaves_nothing_under_a_final_name(double, zoo, kind, says):
    size = zoo.entries[MIXUP]["bytes"]
    double.fault(kind, FETCH)
    text = refused()
    assert f"{REPO}@{COMMIT} answered" in text and says.format(size=size, half=size // 2) in text
    assert kind != "cut" or f"expected {size}" in text
    assert nothing_cached() and bodies(double) >= 1
    double.fault("ok")
    assert is_mixup(ROUTES["tag"](), zoo)


@pytest.mark.fault("connection that breaks")
def test_a_connection_that_breaks_once_is_resumed(double, zoo):
    double.fault("cut", FETCH, times=1)
    assert is_mixup(ROUTES["tag"](), zoo) and bodies(double) == 2


@pytest.mark.fault("error status of the Hub")
@pytest.mark.parametrize("status", ["401", "403", "404", "429", "500", "502", "503"])
def test_a_status_is_named(double, zoo, status):
    weight_files.path(MIXUP, "config.json"), double.calls()
    double.fault(status, "model.safetensors")
    assert f"{REPO}@{COMMIT} answered {status} (HfHubHTTPError)" in refused()
    calls = double.calls()
    assert len(calls) == (7 if status in ("429", "500", "502", "503") else 1)  # one try, one round of six
    assert all(f"/{COMMIT}/model.safetensors" in call for call in calls), "a pickle was tried"
    double.fault("ok")
    double.fault("404", "config.json")
    shutil.rmtree(cache())
    assert "config.json is not in" in refused("load")


def test_a_commit_or_repository_that_is_gone_is_named(double, zoo, monkeypatch):
    zoo.entries[MIXUP]["commit"] = gone = "9" * 40
    zoo.save()
    monkeypatch.setattr(weight_files.MANIFEST, "weights", type(weight_files.MANIFEST)(zoo.root).weights)
    assert f"{REPO}@{gone} answered 404 (RevisionNotFoundError)" in refused("load")
    monkeypatch.setattr(weight_files.MANIFEST, "namespace", "nobody")
    assert f"nobody/{MIXUP}@{gone} answered 404 (RepositoryNotFoundError)" in refused("load")


@pytest.mark.fault("answer that is no Hub's")
@pytest.mark.parametrize("kind, says", [("no-etag", "ETag"), ("no-commit", "X-Repo-Commit")])
def test_a_response_of_another_server_is_refused(double, zoo, kind, says):
    double.fault(kind, "HEAD ")
    assert says in refused() and nothing_cached()


def test_a_wrong_etag_does_no_harm(double, zoo):
    double.fault("other-etag", "HEAD ")
    assert is_mixup(ROUTES["tag"](), zoo)
    assert weight_files.path(MIXUP).resolve().name == "9" * 64  # the cache calls the blob so; the hash was ours


@pytest.mark.fault("Hub that is not there")
def test_a_hub_that_never_answers(double, zoo, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.2)
    double.fault("hang")
    assert "ReadTimeout" in refused()


@pytest.mark.fault("Hub that is not there")
def test_no_network_is_one_round_of_retries_and_no_pickle(double, zoo, waits):
    double.stop()
    assert "ConnectError" in refused()
    assert waits == [1, 2, 4, 8, 8]


@pytest.mark.fault("Hub that is not there")
def test_offline(double, zoo, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not cached in" in refused() and "HF_HUB_OFFLINE=1 forbids a download" in refused()
    for name in (PLAIN, MHE):
        hyperzoo.load(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hyperzoo.load(MIXUP)
    double.calls()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for route in ROUTES.keys() - {"hf-hub"}:
        assert is_mixup(ROUTES[route](), zoo), route
    assert double.calls() == []


# The disk, and other processes


def test_a_cache_that_cannot_be_written(zoo, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(errors.WeightUnavailableError, match=r"1\.1 MB.*could not be stored there: \w+"):
        weight_files.path(MIXUP, cache_dir=tmp_path / "file")


def test_a_cache_that_is_read_only_serves_what_it_has(double, zoo):
    weight_files.path(MIXUP), weight_files.path(MIXUP, "config.json")
    double.calls()
    folders = [folder for folder in cache().rglob("*") if folder.is_dir() and not folder.is_symlink()]
    try:
        for folder in folders:
            folder.chmod(0o555)
        assert is_mixup(ROUTES["tag"](), zoo) and double.calls() == []
    finally:
        for folder in folders:
            folder.chmod(0o755)


def child(work):
    """A forked process with this test's small zoo and client, and its own connections."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@forks
@pytest.mark.fault("full disk")
def test_a_full_disk_names_the_size_and_leaves_nothing(double, zoo, tmp_path):
    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            weight_files.path(MIXUP)
        except errors.WeightUnavailableError as error:
            (tmp_path / "message").write_text(str(error))

    process = child(fill)
    process.join(60)
    text = (tmp_path / "message").read_text()
    assert text.startswith(f"{MIXUP} (1.1 MB): ") and "could not be stored there: File too large" in text
    assert nothing_cached()
    assert is_mixup(ROUTES["tag"](), zoo)


@forks
@pytest.mark.fault("kill -9 while downloading")
def test_a_process_killed_while_downloading_leaves_no_usable_file(double, zoo):
    double.fault("slow", FETCH, times=1)
    process, end = child(lambda: weight_files.path(MIXUP)), time.monotonic() + 30
    while not bodies(double) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -9 and len(list(cache().rglob("*.incomplete"))) == 1
    assert not list(cache().rglob("model.safetensors"))
    assert is_mixup(ROUTES["tag"](), zoo) and bodies(double) == 1


@forks
@pytest.mark.parametrize(
    "processes, locked, downloads",
    [
        pytest.param(2, True, 1, marks=pytest.mark.fault(AT_ONCE, 2)),
        pytest.param(2, False, 2, marks=pytest.mark.fault(AT_ONCE, 2)),  # as where a file system honours no locks
        pytest.param(8, True, 1, marks=[pytest.mark.full, pytest.mark.fault(AT_ONCE, 8)]),
    ],
)
def test_processes_at_once_all_get_the_weight(double, zoo, monkeypatch, processes, locked, downloads):
    if not locked:
        monkeypatch.setattr(file_download, "WeakFileLock", lambda *args: contextlib.nullcontext())

    def load():
        torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork
        assert is_mixup(ROUTES["load"](), zoo)

    double.fault("slow", FETCH)
    children = [child(load) for _ in range(processes)]
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [0] * processes
    assert bodies(double) == downloads
    assert is_mixup(ROUTES["tag"](), zoo) and double.calls() == []


# Verify


def test_verify_reads_the_files_of_the_pinned_commit_again(double, zoo, monkeypatch):
    monkeypatch.setattr(verify, "_sample", lambda info, model: (None, "not here"))
    weight_files.path(MIXUP), weight_files.path(MIXUP, "config.json")
    double.calls()
    assert "hub" not in {check.what for check in verify.verify(MIXUP)} and double.calls() == []
    check = verify.verify(MIXUP, on_hub=True)[-1]
    assert check == (MIXUP, "hub", True, f"{REPO}@{COMMIT}: identical files") and bodies(double) == 1
    assert verify.verify(PLAIN, on_hub=True)[-1][1:3] == ("hub", None)
    double.fault("flip", FETCH)
    check = verify.verify(MIXUP, on_hub=True)[-1]
    assert check.ok is False and zoo.entries[MIXUP]["files"]["model.safetensors"] in check.detail
    assert "config.json" not in check.detail
    double.fault("404", "config.json")
    check = verify.verify(MIXUP, on_hub=True)[-1]
    assert check.ok is False and f"{REPO}@{COMMIT} answered 404" in check.detail


def test_the_command_asks_the_hub_on_request_only(monkeypatch):
    asked = []
    monkeypatch.setattr(verify, "verify", lambda name, on_hub: asked.append((name, on_hub)) or [])
    assert [main._exit_code(["verify", MIXUP, *words]) for words in ([], ["--hub"])] == [0, 0]
    assert asked == [(MIXUP, False), (MIXUP, True)]
