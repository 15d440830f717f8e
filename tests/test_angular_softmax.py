"""Angular losses: values and gradients equal slow loops and the oracles, for any model and precision."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import oracles
from support.oracles import EACH_OPERATOR, close, labels, normal

from hyperzoo.layers import SphereLinear
from hyperzoo.losses import AngularSoftmax, angular_logits
from hyperzoo.losses.angular_softmax import annealed

ORACLES = oracles.load("loss")
EACH_MARGIN = pytest.mark.parametrize("margin", [1, 2, 3, 4, 2.6])
CLAMP = 1 - 1e-6  # of the cosine: linear and sigmoid, and the target class when the margin is above 1


def g(theta: float, operator: str, k: float, margin: float = 1) -> float:
    """The operators at margin * theta in the paper's form, psi for the cosine."""
    if operator == "cosine":
        q = math.floor(margin * theta / math.pi)
        return (-1) ** q * math.cos(margin * theta) - 2 * q
    if operator == "linear":
        return 1 - 2 * margin * theta / math.pi
    e = math.exp(-math.pi / (2 * k))
    u = math.exp(margin * theta / k - math.pi / (2 * k))
    return (1 + e) / (1 - e) * (1 - u) / (1 + u)


def slow_logits(features, weight, target, operator, margin, k, eps, annealing):
    """One logit at a time from the formula; `k` is a list, one per class."""
    rows = []
    for x, y in zip(features.tolist(), target.tolist(), strict=True):
        length = math.sqrt(sum(a * a for a in x) + eps)
        row = []
        for j, w in enumerate(weight.tolist()):
            cosine = sum(a * b for a, b in zip(x, w, strict=True)) / length / math.sqrt(sum(b * b for b in w) + eps)
            theta = math.acos(max(-1.0, min(1.0, cosine)))
            plain = g(theta, operator, k[j])
            mixed = (annealing * plain + g(theta, operator, k[j], margin)) / (1 + annealing)
            row.append(length * (mixed if j == y else plain))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def slow_cross_entropy(logits, target):
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        total += math.log(sum(math.exp(z) for z in row)) - row[y]
    return torch.tensor(total / len(target), dtype=torch.float64)


def tensors(case, dtype):
    given = case["inputs"]
    return torch.tensor([given["x"]], dtype=dtype), torch.tensor(given["W"], dtype=dtype)


# W-, A- and GA-Softmax: values


@EACH_OPERATOR
@EACH_MARGIN
def test_equals_the_loops(operator, k, margin):
    for seed, (eps, annealing) in enumerate([(1e-4, 0.0), (0.3, 5.0), (0.0, 0.7)]):
        x, w, y = normal(5, 3, seed=seed) * 4, normal(4, 3, seed=seed + 10), labels(5, 4, seed)
        expected = slow_logits(x, w, y, operator, margin, [k] * 4, eps, annealing)
        got = angular_logits(x, w, y, operator=operator, margin=margin, k=k, eps=eps, annealing=annealing)
        close(got, expected, 1e-10)  # rounding only
        got = angular_logits(
            x.float(), w.float(), y, operator=operator, margin=margin, k=k, eps=eps, annealing=annealing
        )
        assert got.dtype == torch.float32
        close(got, expected, 1e-4)  # angle accurate to 1e-6, times margin, slope and length up to 100 times that
    loss = AngularSoftmax(operator, margin, k=k, annealing=None)
    expected = slow_cross_entropy(slow_logits(x, w, y, operator, margin, [k] * 4, 1e-4, 0.0), y)
    close(loss(x, w, y), expected, 1e-10)


@EACH_MARGIN
def test_learnable_operator_equals_the_loops_and_trains_its_steepness(margin):
    x, w, y = normal(6, 3) * 3, normal(4, 3, seed=1), labels(6, 4)
    raw = torch.tensor([0.05, -0.25, 0.7, 1.5], dtype=torch.float64, requires_grad=True)
    k = [abs(a) + 0.05 for a in raw.tolist()]
    loss = AngularSoftmax("learnable", margin, annealing=None)
    expected = slow_cross_entropy(slow_logits(x, w, y, "sigmoid", margin, k, 1e-4, 0.0), y)
    close(loss(x, w, y, raw), expected, 1e-10)
    close(loss(x.float(), w.float(), y, raw.float()), expected, 1e-4)
    same = torch.full((4,), 0.25, dtype=torch.float64)
    close(loss(x, w, y, same), AngularSoftmax("sigmoid", margin, annealing=None)(x, w, y), 1e-12)
    inputs = (x.requires_grad_(), w.requires_grad_(), raw)
    assert torch.autograd.gradcheck(lambda x, w, raw: loss(x, w, y, raw), inputs, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_logits_of_w_softmax(dtype):
    for name in ("wsoftmax_logits_eps0", "wsoftmax_logits_eps1e-4"):
        case = ORACLES[name]
        x, w = tensors(case, dtype)
        for key, expected in case["expected"].items():
            operator, _, k = key.partition("_k")
            got = angular_logits(
                x, w, torch.tensor([0]), operator=operator, k=float(k or 0.3), eps=case["inputs"]["eps"]
            )
            close(got[0], expected, case["tolerance" if dtype is torch.float64 else "tolerance_float32"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in ORACLES if "softmax_logits_m" in name or "annealed" in name])
def test_published_logits_and_losses_with_a_margin(name, dtype):
    case = ORACLES[name]
    x, w = tensors(case, dtype)
    given, y = case["inputs"], torch.tensor([case["inputs"]["label"]])
    operator, floor = "linear" if "linear" in name else "cosine", given.get("annealing_lambda", 0.0)
    tolerance = case["tolerance" if dtype is torch.float64 else "tolerance_float32"]
    got = angular_logits(x, w, y, operator=operator, margin=given["m"], eps=0.0, annealing=floor)
    close(got[0], case["expected"]["logits"], tolerance)
    loss = AngularSoftmax(operator, given["m"], eps=0.0, annealing=(floor, floor, 0.0))
    close(loss(x, w, y), case["expected"]["loss"], tolerance)


@pytest.mark.parametrize("name", [name for name in ORACLES if name.startswith("ga_")])
def test_published_operators_at_multiples_of_an_angle(name):
    case = ORACLES[name]
    given = case["inputs"]
    operator = "cosine" if "psi" in name else name.split("_")[1]
    tables = case["expected"] if operator == "sigmoid" else {f"m{given['m']}": case["expected"]}
    theta = torch.tensor(given["angle_degrees"], dtype=torch.float64).deg2rad()
    x, row = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    for key in [key for key in tables if key != "saturation"]:
        margin, k = int(key[1:]), given.get("k", 0.3)
        close(torch.tensor([g(t, operator, k, margin) for t in theta.tolist()]).double(), tables[key], 1e-6)
        y = torch.zeros(len(x), dtype=torch.int64)
        got = angular_logits(x, row, y, operator=operator, margin=margin, k=k, eps=0.0)[:, 0]
        inner = slice(1, -1) if operator != "cosine" or margin > 1 else slice(None)
        close(got[inner], tables[key][inner], case["tolerance"])
        nearest = math.acos(CLAMP)  # 0 and 180 degrees after the clamp
        ends = [g(t, operator, k, margin) for t in (nearest, math.pi - nearest)]
        close(got[[0, -1]], ends if inner.start else tables[key][:: len(got) - 1], 1e-9)


@pytest.mark.parametrize("margin", [1.5, 2, 2.6, 4, 7])
def test_psi_is_one_minus_the_integral_of_the_absolute_sine_for_every_margin(margin):
    theta = torch.linspace(0.002, math.pi - 0.002, 20001, dtype=torch.float64)
    x, row = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    y = torch.zeros(len(x), dtype=torch.int64)
    psi = angular_logits(x, row, y, margin=margin, eps=0.0)[:, 0]
    integral = torch.cumulative_trapezoid((margin * theta).sin().abs() * margin, theta)
    close(psi[1:] - psi[0], -integral, 1e-6)  # trapezoids of width 1.6e-4 m, including kinks
    assert (psi.diff() <= 1e-12).all(), "psi must fall"
    torch.testing.assert_close(psi[0].item(), math.cos(0.002 * margin), atol=1e-12, rtol=0)


@EACH_OPERATOR
def test_margin_one_is_the_sphere_classifier(operator, k):
    layer = SphereLinear(6, 5, operator=operator, k=k, scale_by_norm=True, dtype=torch.float64)
    x, y = normal(4, 6) * 5, labels(4, 5)
    close(AngularSoftmax(operator, k=k)(x, layer.weight, y), F.cross_entropy(layer(x), y), 1e-12)
    smooth = AngularSoftmax(operator, k=k, label_smoothing=0.1)(x, layer.weight, y)
    close(smooth, F.cross_entropy(layer(x), y, label_smoothing=0.1), 1e-12)


@EACH_OPERATOR
@EACH_MARGIN
def test_only_the_right_class_gets_the_margin_and_rows_count_by_direction(operator, k, margin):
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4, 5)
    plain = angular_logits(x, w, y, operator=operator, k=k, eps=0.0)
    got = angular_logits(x, w * normal(5, 1, seed=2).abs(), y, operator=operator, k=k, eps=0.0, margin=margin)
    right = F.one_hot(y, 5).bool()
    close(got[~right], plain[~right], 1e-12)
    assert (got[right] < plain[right]).all() or margin == 1
    close(angular_logits(x * 3, w, y, operator=operator, k=k, eps=0.0), 3 * plain, 1e-12)


# W-, A- and GA-Softmax: gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_holds_the_factor_m(dtype):
    case = ORACLES["gasoftmax_linear_target_gradient"]
    w, y = torch.tensor([case["inputs"]["w"]], dtype=dtype), torch.tensor([0])
    for margin in case["inputs"]["m"]:
        x = torch.tensor([case["inputs"]["x"]], dtype=dtype, requires_grad=True)
        angular_logits(x, w, y, operator="linear", margin=margin, eps=0.0).sum().backward()
        tolerance = case["tolerance" if dtype is torch.float64 else "tolerance_float32"]
        close(x.grad[0], case["expected"][f"m{margin}"], tolerance)


@pytest.mark.parametrize("margin", [2, 3, 4, 2.6])
def test_the_slope_of_psi_is_m_times_the_absolute_sine(margin):
    theta = torch.linspace(0.1, 3.0, 40, dtype=torch.float64, requires_grad=True)
    x, row = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    angular_logits(x, row, torch.zeros(40, dtype=torch.int64), margin=margin, eps=0.0).sum().backward()
    close(theta.grad, -margin * (margin * theta).sin().abs(), 1e-9)


@EACH_OPERATOR
@EACH_MARGIN
def test_gradients(operator, k, margin):
    x, w, y = normal(4, 3), normal(3, 3, seed=1), torch.tensor([0, 1, 2, 1])
    x[0], w[2] = 0, 0  # includes a zero feature and a zero row

    def loss(x, w, annealing):
        z = angular_logits(x, w, y, operator=operator, margin=margin, k=k, eps=0.05, annealing=annealing)
        schedule = (annealing, annealing, 0.0)
        return F.cross_entropy(z, y), AngularSoftmax(operator, margin, k=k, eps=0.05, annealing=schedule)(x, w, y)

    inputs = (x.requires_grad_(), w.requires_grad_())
    for annealing in (0.0, 5.0):
        # difference quotients exceed the default 1e-5 where k = 0.1 bends sharply
        assert torch.autograd.gradcheck(partial(loss, annealing=annealing), inputs, atol=1e-4)


@EACH_OPERATOR
@EACH_MARGIN
def test_gradients_of_gradients(operator, k, margin):
    x, w, y = normal(3, 3).requires_grad_(), normal(3, 3, seed=1).requires_grad_(), torch.tensor([0, 1, 2])
    loss = AngularSoftmax(operator, margin, k=k, annealing=None)
    assert torch.autograd.gradgradcheck(lambda x, w: loss(x, w, y), (x, w), atol=1e-3)


@EACH_OPERATOR
@EACH_MARGIN
def test_label_smoothing_counts_the_logit_with_the_margin(operator, k, margin):
    x, w, y = normal(5, 3) * 4, normal(4, 3, seed=1), labels(5, 4)
    rows = slow_logits(x, w, y, operator, margin, [k] * 4, 1e-4, 0.0)
    log_p = rows - rows.exp().sum(1, keepdim=True).log()
    expected = -(0.9 * log_p.gather(1, y[:, None]).squeeze(1) + 0.1 * log_p.mean(1)).mean()
    close(AngularSoftmax(operator, margin, k=k, annealing=None, label_smoothing=0.1)(x, w, y), expected, 1e-10)


@EACH_OPERATOR
@EACH_MARGIN
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_parallel_and_opposite_vectors_are_finite(operator, k, margin, dtype):
    x = torch.tensor([[0, 0], [3, 4], [-3, -4], [3, 4], [1e-6, 0], [100, 0]], dtype=dtype, requires_grad=True)
    w = torch.tensor([[3, 4], [0, 0], [0, -2], [90, 0]], dtype=dtype, requires_grad=True)
    loss = AngularSoftmax(operator, margin, k=k, annealing=None)(x, w, torch.tensor([0, 0, 0, 1, 1, 3]))
    loss.backward()
    assert loss.isfinite() and loss.dtype == (dtype if dtype is torch.float64 else torch.float32)
    assert x.grad.isfinite().all() and w.grad.isfinite().all()
    assert x.grad.dtype == w.grad.dtype == dtype


def test_zero_features_give_the_logits_of_right_angles():
    zero, w, y = torch.zeros(1, 3), normal(4, 3, dtype=torch.float32), torch.tensor([2])
    close(angular_logits(zero, w, y)[0], [0, 0, 0, 0], 0)
    got = angular_logits(zero, w, y, margin=4)  # sqrt(eps) psi(90 degrees) = 0.01 (1 - 4)
    close(got[0], [0, 0, -0.03, 0], 1e-7)


# W-, A- and GA-Softmax: annealing


def test_annealing_schedule():
    expected = [max(5, 1000 / (1 + 0.12 * t)) for t in (0, 1, 2, 100, 1658, 1659, 10**6)]
    close(annealed(torch.tensor([0, 1, 2, 100, 1658, 1659, 10**6]), 1000, 5, 0.12), expected, 1e-6)
    assert expected[4] > 5 == expected[5]


def test_the_schedule_counts_training_steps_and_resumes():
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4, 5)

    def at(t):
        return slow_cross_entropy(slow_logits(x, w, y, "linear", 4, [0.3] * 5, 1e-4, max(5, 9 / (1 + 0.5 * t))), y)

    loss = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5))
    for t in (0, 1):
        close(loss(x, w, y), at(t), 1e-6)
    loss.eval()
    for _ in range(2):
        close(loss(x, w, y), at(2), 1e-6)  # evaluation does not count
    loss.train()
    other = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss(x, w, y), other(x, w, y)) and other.iteration == 3
    for t in (3, 4):
        close(other(x, w, y), at(t), 1e-6)

    parts = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5), accumulate=2)
    for t in (0, 0, 1, 1, 2):
        close(parts(x, w, y), at(t), 1e-6)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_validation_loss_does_not_advance_the_schedule(without_gradients):
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4, 5)
    loss = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5))
    loss(x, w, y)
    with without_gradients():
        values = [loss(x, w, y) for _ in range(10)]  # model.eval() does not reach the criterion
    assert loss.iteration == 1 and all(torch.equal(value, values[0]) for value in values)


def test_no_margin_and_no_annealing_have_no_state():
    assert not AngularSoftmax().state_dict() and not AngularSoftmax("linear", 4, annealing=None).state_dict()
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4, 5)
    start = AngularSoftmax("linear", 4, annealing=(1e9, 0, 0))(x, w, y)
    close(start, AngularSoftmax("linear")(x, w, y), 1e-6)  # lambda = 1e9 cancels the margin
