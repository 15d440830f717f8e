"""Every example of a docstring runs and gives what it says; torch and the module's own names are at hand."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import hyperzoo

PACKAGE = Path(hyperzoo.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_examples_run(file, data_mirror):
    torch.manual_seed(0)
    module = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted and not result.failed
