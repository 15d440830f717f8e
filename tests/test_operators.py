"""The table of operators: each row is one function of the angle in every mode, and a new row needs nothing else."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyperzoo.errors import InputError
from hyperzoo.layers.operators import OPERATORS, angular, check_operator

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # deprecated since torch 2.15
PACKAGE = Path(__file__).parent.parent / "hyperzoo"
EACH_ROW = pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)


@EACH_ROW
@pytest.mark.parametrize("k", [0.1, 0.7])
def test_the_continuation_equals_the_operator_up_to_pi_and_falls_beyond(row, k):
    theta = torch.linspace(0.002, math.pi - 0.002, 999, dtype=torch.float64)  # inside the clamp of the cosine
    for steepness in (k, torch.tensor(k, dtype=torch.float64)):
        expected = angular(theta.cos(), row.name, steepness)
        torch.testing.assert_close(row.continued(theta, steepness), expected, rtol=0, atol=1e-12)  # rounding
        ends = row.continued(torch.tensor([0, math.pi / 2, math.pi], dtype=torch.float64), steepness)
        torch.testing.assert_close(ends, torch.tensor([1.0, 0, -1], dtype=torch.float64), rtol=0, atol=1e-14)
        beyond = row.continued(torch.linspace(0, 4 * math.pi, 4001, dtype=torch.float64), steepness)
        assert (beyond.diff() <= 0).all() and beyond.diff().abs().max() < 0.02 / k  # no jump


@EACH_ROW
def test_torchscript_compiles_every_row(row):
    cosine = torch.linspace(-1, 1, 101)
    scripted = torch.jit.script(angular)
    for steepness in (0.3, torch.tensor(0.3)):
        assert torch.equal(scripted(cosine, row.name, steepness), angular(cosine, row.name, steepness))
    with pytest.raises(torch.jit.Error, match="ValueError: sine"):
        scripted(cosine, "sine", 0.3)


def test_names_and_suffixes_are_unique():
    assert list(OPERATORS) == ["cosine", "linear", "sigmoid", "learnable"]
    assert [row.suffix for row in OPERATORS.values()] == ["", "_linear", "_sigmoid", "_learnable"]
    assert OPERATORS["sigmoid"].label.format(k=0.5) == "sigmoid, k = 0.5"


@pytest.mark.parametrize(
    "args, told",
    [
        (("sine", 0.3, 1e-4), "cosine, linear, sigmoid, learnable; got 'sine'"),
        (("sigmoid", 0, 1e-4), "k, the steepness of the sigmoid, must be a finite number above 0; got 0"),
        (("sigmoid", True, 1e-4), "above 0; got True"),
        (("cosine", 0.3, -1.0), "eps must be a finite number of at least 0; got -1.0"),
        (("cosine", 0.3, math.nan), "at least 0; got nan"),
    ],
)
def test_bad_arguments_are_named(args, told):
    with pytest.raises(InputError, match=told):
        check_operator(*args)


FUNCTIONS = """
def _square(cosine: Tensor, k: float | Tensor) -> Tensor:
    return cosine * cosine.abs()


def _square_continued(theta: Tensor, k: float | Tensor) -> Tensor:
    q = torch.floor(theta / math.pi)
    cosine = torch.cos(theta - q * math.pi)
    return cosine * cosine.abs() - 2 * q


"""
ROW = '    Operator("square", "_square", "square cosine", "ignored", _square, _square_continued),\n'
PROGRAM = """
import torch, hyperzoo
from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.losses import AngularSoftmax
from hyperzoo.models import sphere_cnn
from hyperzoo.training.recipe_methods import AngularSettings

assert hyperzoo.__file__.startswith(r"{root}")
layer, x = SphereConv2d(2, 3, 3, operator="square"), torch.randn(2, 2, 5, 5)
assert torch.equal(torch.jit.script(layer)(x), layer(x))
plain = SphereConv2d(2, 3, 3)
plain.weight = layer.weight
cosine = plain.eval()(x).detach()
torch.testing.assert_close(layer(x), cosine * cosine.abs())
rows, features = torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
loss = AngularSoftmax("square", margin=2, annealing=None)(features, rows, torch.tensor([0, 0]))
logits = torch.tensor([[1.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)  # at 2 theta = 2 pi the continuation is -3
expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0]))
torch.testing.assert_close(loss.double(), expected, rtol=0, atol=2e-2)  # the margin's angle is clamped to 0.08 degrees
assert AngularSettings(operator="square").operator == "square"
assert sphere_cnn.SphereCNN(3, (4, 4, 4), operator="square").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
"""


def test_a_new_row_needs_nothing_else(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "hyperzoo", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    table = tmp_path / "hyperzoo" / "layers" / "operators.py"
    before, _, after = table.read_text(encoding="utf-8").partition("_ROWS = (\n")
    table.write_text(f"{before.rstrip()}\n\n{FUNCTIONS}_ROWS = (\n{ROW}{after}", encoding="utf-8")
    program = PROGRAM.replace("{root}", str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
