"""Losses for mixed labels: values and gradients equal slow loops and the oracles."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support import oracles
from support.oracles import close, labels, normal

from hyperzoo.errors import InputError
from hyperzoo.losses import SoftTarget

ORACLES = oracles.load("loss")


def slow_soft(logits, target, kind):
    total, (rows, classes) = 0.0, logits.shape
    for z, t in zip(logits.tolist(), target.tolist(), strict=True):
        top = max(z)
        whole = top + math.log(sum(math.exp(a - top) for a in z))
        for j in range(classes):
            total -= t[j] * (z[j] - whole)
            if kind == "bce":
                others = z[:j] + z[j + 1 :]
                most = max(others)
                rest = most + math.log(sum(math.exp(a - most) for a in others))
                total -= (1 - t[j]) * (rest - whole)
    return torch.tensor(total / (rows * classes if kind == "bce" else rows), dtype=torch.float64)


EACH_KIND = pytest.mark.parametrize("kind", ["cross_entropy", "bce"])


@EACH_KIND
@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_soft_targets_equal_the_loops(kind, scale):
    loss = SoftTarget(kind)
    for seed, classes in itertools.product(range(3), (2, 3, 10)):
        z, t = normal(5, classes, seed=seed) * scale, normal(5, classes, seed=seed + 1).softmax(1)
        close(loss(z, t), slow_soft(z, t, kind), 1e-10)  # rounding only
        assert loss(z.float(), t.float()).dtype == torch.float32
        close(loss(z.float(), t), slow_soft(z.float(), t, kind), 1e-5)
        one_hot = F.one_hot(labels(5, classes, seed), classes).double()
        close(loss(z, one_hot), slow_soft(z, one_hot, kind), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_soft_targets(dtype):
    def tensors(case, *keys):
        return [torch.tensor(case["inputs"][key], dtype=dtype) for key in keys]

    def tolerance(case):
        return case["tolerance" if dtype is torch.float64 else "tolerance_float32"]

    for name, kind in (("mix_loss_soft_ce", "cross_entropy"), ("mix_loss_bce_on_softmax", "bce")):
        case = ORACLES[name]
        close(SoftTarget(kind)(*tensors(case, "logits", "targets")), case["expected"]["loss"], tolerance(case))
    case = ORACLES["mix_loss_gradients"]
    for key, kind in (("soft_ce", "cross_entropy"), ("bce_on_softmax", "bce")):
        z, t = tensors(case, "logits", "targets")
        SoftTarget(kind)(z.requires_grad_(), t).backward()
        close(z.grad, case["expected"][key], tolerance(case))
    case = ORACLES["mix_gradient_ratio_at_uniform"]
    for classes in case["inputs"]["num_classes"]:
        for key, kind in (("ce_target_logit", "cross_entropy"), ("bce_target_logit", "bce")):
            z, t = torch.zeros(1, classes, dtype=dtype, requires_grad=True), torch.zeros(1, classes, dtype=dtype)
            t[0, 0] = 1
            SoftTarget(kind)(z, t).backward()
            close(z.grad[0, 0], case["expected"][f"C{classes}"][key], tolerance(case))
    case = ORACLES["mix_bce_on_softmax_saturated"]
    z, t = (a[None] for a in tensors(case, "logits", "targets"))
    close(SoftTarget("bce")(z.requires_grad_(), t), case["expected"]["stable"], tolerance(case))
    SoftTarget("bce")(z, t).backward()
    assert z.grad.isfinite().all() and z.grad[0, 0] > 0.6  # 2/3 of a sample; the clamped form gives 1/3


@EACH_KIND
def test_mixing_labels_is_mixing_losses(kind):
    z, a, b = normal(6, 4), F.one_hot(labels(6, 4), 4).double(), F.one_hot(labels(6, 4, 1), 4).double()
    loss = SoftTarget(kind)
    close(loss(z, 0.3 * a + 0.7 * b), 0.3 * loss(z, a) + 0.7 * loss(z, b), 1e-12)


@EACH_KIND
def test_gradients_of_soft_targets(kind):
    z, t = normal(4, 3) * 2, normal(4, 3, seed=1).softmax(1)
    assert torch.autograd.gradcheck(SoftTarget(kind), (z.requires_grad_(), t))
    for scale in (0.0, 1e4):  # all ties; a probability that float32 rounds to 1
        z = (normal(4, 3, dtype=torch.float32) * scale).requires_grad_()
        loss = SoftTarget(kind)(z, t)
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all()


@EACH_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_soft_targets_of_half_precision_logits_are_computed_in_float32(kind, dtype):
    z, t = (normal(6, 5) * 9).to(dtype), normal(6, 5, seed=1).softmax(1)
    with torch.autocast("cpu", dtype):
        got = SoftTarget(kind)(z, t.to(dtype))
    assert got.dtype == torch.float32
    close(got, slow_soft(z, t.to(dtype), kind), 1e-5)


@EACH_KIND
def test_soft_targets_compile_whole(kind):
    z, t = normal(6, 5, dtype=torch.float32), normal(6, 5, seed=1, dtype=torch.float32).softmax(1)
    torch.compiler.reset()
    compiled = torch.compile(SoftTarget(kind), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, t), SoftTarget(kind)(z, t))


@pytest.mark.parametrize(
    "logits, target, message",
    [
        (
            (4, 3),
            torch.zeros(4, dtype=torch.int64),
            r"must be floating-point \(4, 3\), .*got \(4,\) torch.int64. .*one_hot",
        ),
        ((4, 3), torch.zeros(4, 3, dtype=torch.int64), "got .* torch.int64"),
        ((4, 3), torch.zeros(4, 2), r"got \(4, 2\)"),
        ((0, 3), torch.zeros(0, 3), r"B at least 1 and K at least 2; got \(0, 3\)"),
        ((4, 1), torch.zeros(4, 1), r"got \(4, 1\)"),
        ((4, 3, 2), torch.zeros(4, 3, 2), r"got \(4, 3, 2\)"),
    ],
)
def test_bad_soft_targets_are_refused(logits, target, message):
    with pytest.raises(InputError, match=message):
        SoftTarget()(torch.zeros(logits), target)
    with pytest.raises(InputError, match="cross_entropy, bce; got 'mse'"):
        SoftTarget("mse")
