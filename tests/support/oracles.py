"""The oracles of the papers, the rule to compare with them, and seeded random tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

ASSETS = Path(__file__).parents[1] / "assets"
OPERATORS = [("cosine", 0.3), ("linear", 0.3), ("sigmoid", 0.1), ("sigmoid", 0.3), ("sigmoid", 0.7)]
EACH_OPERATOR = pytest.mark.parametrize("operator, k", OPERATORS)


def load(subject: str) -> dict[str, dict[str, Any]]:
    """The cases of `assets/<subject>_oracles.json` by id."""
    return {case["id"]: case for case in json.loads((ASSETS / f"{subject}_oracles.json").read_text())}


def close(got, expected, tolerance):
    """Compare by the rule of the oracles: within `tolerance`, relative above 1."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == expected.shape
    error = (got.detach().double() - expected).abs() / expected.abs().clamp(min=1)
    assert (error <= tolerance).all(), f"off by {error.max():.3g}, allowed {tolerance:g}"


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(batch, classes, seed=0):
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
