"""Shared by all tests: no network but loopback, no Hub, two threads, the embedded data."""

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

import hyperzoo  # noqa: F401  registers the models

ROOT = Path(__file__).parent.parent
MIRROR = Path(__file__).parent / "assets" / "mirror"
torch.set_num_threads(2)

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
