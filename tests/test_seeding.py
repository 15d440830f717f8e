"""Seeds differ by run and epoch, and a result records the commit and the state of the whole checkout."""

import json
import random
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyperzoo.training import seeding


def test_a_seed_fixes_all_generators_and_epochs_differ():
    def draws(seed, epoch):
        seeding.seed_epoch(seed, epoch)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draws(0, 1) == draws(0, 1)
    found = [draws(seed, epoch) for seed in range(3) for epoch in range(4)]
    assert all(len(set(column)) == 12 for column in zip(*found, strict=True))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that tracks a file of the package and a readme."""
    file = tmp_path / "hyperzoo" / "training" / "seeding.py"
    file.parent.mkdir(parents=True)
    for path in (file, tmp_path / "README.md"):
        path.write_text("one\n")
    monkeypatch.setattr(seeding, "__file__", str(file))

    def git(*words):
        own = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path, git


def test_a_change_anywhere_in_the_checkout_is_seen(checkout):
    root, git = checkout
    commit = git("rev-parse", "HEAD").strip()
    (root / "notes.txt").write_text("untracked files do not count\n")
    assert {"commit": commit, "dirty": False}.items() <= seeding.environment().items()
    (root / "README.md").write_text("two\n")
    assert {"commit": commit, "dirty": True}.items() <= seeding.environment().items()


@pytest.mark.parametrize("recorded", ["4f2a", None])
def test_the_repository_around_an_environment_is_not_ours(checkout, monkeypatch, recorded):
    _, git = checkout
    git("rm", "-q", "--cached", "hyperzoo/training/seeding.py")

    class Distribution:
        def read_text(self, name):
            return json.dumps({"vcs_info": {"commit_id": recorded}}) if recorded else None

    monkeypatch.setattr(seeding, "distribution", lambda name: Distribution())
    expected = {"commit": recorded, "dirty": False if recorded else None}
    assert expected.items() <= seeding.environment().items()


def test_an_unpacked_archive_has_no_commit(monkeypatch):
    def nowhere(*_, **__):
        raise seeding.PackageNotFoundError("hyperzoo")

    monkeypatch.setattr(seeding.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    monkeypatch.setattr(seeding, "distribution", nowhere)
    assert {"commit": None, "dirty": None}.items() <= seeding.environment().items()


def test_a_run_of_an_installed_package_names_the_commit_that_pip_noted(monkeypatch):
    def no_git(*words, **more):
        raise FileNotFoundError("git")

    noted = {"url": "file:///somewhere", "vcs_info": {"vcs": "git", "commit_id": "4f2a"}}
    monkeypatch.setattr(seeding.subprocess, "run", no_git)
    for text, commit, dirty in (
        (json.dumps(noted), "4f2a", False),
        ('{"dir_info": {}}', None, None),
        (None, None, None),
    ):
        monkeypatch.setattr(
            seeding, "distribution", lambda name, text=text: SimpleNamespace(read_text=lambda file: text)
        )
        found = seeding.environment()
        assert (found["commit"], found["dirty"]) == (commit, dirty)
