"""Shared by all tests: no network but loopback, no Hub, one thread, the embedded data."""

import os
import shutil
import socket
from collections import Counter
from itertools import chain
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the networks are tiny, and threads that wait for a busy core cost a hundredfold
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

import hyperzoo  # noqa: F401  registers the models

ROOT = Path(__file__).parent.parent
MIRROR = Path(__file__).parent / "assets" / "mirror"

_connect = socket.socket.connect


def _loopback_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"tests open no connection to {address}")
    return _connect(self, address)


socket.socket.connect = _loopback_only


@pytest.fixture
def data_mirror(monkeypatch) -> Path:
    """HYPERZOO_DATA points at the embedded mirror."""
    monkeypatch.setenv("HYPERZOO_DATA", str(MIRROR))
    return MIRROR


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """The small published zoo of `support.published` in the place of the package's own."""
    from support.published import publish, withdraw

    yield publish(tmp_path, monkeypatch)
    withdraw(monkeypatch)


@pytest.fixture
def double(tmp_path, monkeypatch):
    """A running double of the Hub; the client of this process talks to it, with an empty cache."""
    from support.hub_double import Double, talk_to

    running = Double()
    talk_to(running, tmp_path / "home", monkeypatch)
    yield running
    running.stop()


@pytest.fixture
def command(capsys):
    """Run `hyperzoo` as the console script does; returns exit code, stdout, stderr."""
    from hyperzoo.cli import main

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main.main(list(map(str, words)))
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A checkout, the mirror of its run, and the run folder."""
    from support import finished

    root = tmp_path_factory.mktemp("trained")
    checkout = finished.new_checkout(root / "checkout")
    data = finished.mirror(root / "data", slice(10, 18), slice(20, 36))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(data))
        return checkout, data, finished.run(checkout, root / "run")


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """Copies of the checkout and the run folder for one test."""
    checkout, data, run = trained
    monkeypatch.setenv("HYPERZOO_DATA", str(data))
    shutil.copytree(checkout.root, tmp_path / "checkout")
    return type(checkout)(tmp_path / "checkout"), shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="session")
def published(trained, tmp_path_factory):
    """The checkout after one publication; tests must not change it."""
    from support.finished import NAME

    from hyperzoo.publishing import publish

    checkout, data, run = trained
    copy = type(checkout)(shutil.copytree(checkout.root, tmp_path_factory.mktemp("published") / "checkout"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYPERZOO_DATA", str(data))
        info = publish.publish(NAME, [run], checkout=copy)
    return copy, run, info


def pytest_collection_modifyitems(items):
    """`fault(kind, count=1)`: what a test tries goes with its report, also out of another process."""
    for item in items:
        item.user_properties += [("fault", (*mark.args, 1)[:2]) for mark in item.iter_markers("fault")]


def pytest_terminal_summary(terminalreporter):
    """The table of faults: how many of each kind were tried, and how many of those in tests that passed."""
    tried, survived = Counter[str](), Counter[str]()
    for report in chain(*terminalreporter.stats.values()):
        if getattr(report, "when", None) == "call" or (getattr(report, "when", None) == "setup" and report.failed):
            for kind, count in (value for name, value in report.user_properties if name == "fault"):
                tried[kind] += count
                survived[kind] += count * report.passed
    if tried:
        terminalreporter.section("faults tried and survived")
        for kind, count in sorted(tried.items()):
            terminalreporter.line(f"{count:7} {survived[kind]:7}  {kind}")
        terminalreporter.line(f"{tried.total():7} {survived.total():7}  in all")
