"""Angular losses: values and slopes are those of slow loops and of the oracles, for any model and precision."""

import math
import weakref
from functools import partial

import oracles
import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import close, labels, normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereLinear
from hyperzoo.losses import AngularSoftmax, angular_logits, replace_classifier
from hyperzoo.losses.angular_softmax import annealed

ORACLES = oracles.load("loss")
OPERATORS = [("cosine", 0.3), ("linear", 0.3), ("sigmoid", 0.1), ("sigmoid", 0.3), ("sigmoid", 0.7)]
EACH_OPERATOR = pytest.mark.parametrize("operator, k", OPERATORS)
MARGINS = [1, 2, 3, 4, 2.6]
EACH_MARGIN = pytest.mark.parametrize("margin", MARGINS)
CLAMP = 1 - 1e-6  # of the cosine: linear and sigmoid, and the right class when the margin is above 1


def g(theta: float, operator: str, k: float, margin: float = 1) -> float:
    """The operators at margin * theta as the paper writes them, psi for the cosine."""
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
        close(got, expected, 1e-4)  # the angle is good to 1e-6, its multiple times slope times length to 100 of that
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
        nearest = math.acos(CLAMP)  # what the clamp leaves of 0 and 180 degrees
        ends = [g(t, operator, k, margin) for t in (nearest, math.pi - nearest)]
        close(got[[0, -1]], ends if inner.start else tables[key][:: len(got) - 1], 1e-9)


@pytest.mark.parametrize("margin", [1.5, 2, 2.6, 4, 7])
def test_psi_is_one_minus_the_integral_of_the_absolute_sine_for_every_margin(margin):
    theta = torch.linspace(0.002, math.pi - 0.002, 20001, dtype=torch.float64)
    x, row = torch.stack([theta.cos(), theta.sin()], 1), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    y = torch.zeros(len(x), dtype=torch.int64)
    psi = angular_logits(x, row, y, margin=margin, eps=0.0)[:, 0]
    integral = torch.cumulative_trapezoid((margin * theta).sin().abs() * margin, theta)
    close(psi[1:] - psi[0], -integral, 1e-6)  # trapezoids of width 1.6e-4 m, kinks among them
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
    x[0], w[2] = 0, 0  # a zero feature and a zero row among ordinary ones

    def loss(x, w, annealing):
        z = angular_logits(x, w, y, operator=operator, margin=margin, k=k, eps=0.05, annealing=annealing)
        return F.cross_entropy(z, y)

    inputs = (x.requires_grad_(), w.requires_grad_())
    for annealing in (0.0, 5.0):
        # difference quotients are worse than the default 1e-5 where k = 0.1 bends sharply
        assert torch.autograd.gradcheck(partial(loss, annealing=annealing), inputs, atol=1e-4)


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


# W-, A- and GA-Softmax: half precision, compile, memory


@EACH_OPERATOR
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_small_angles(operator, k, dtype):
    """Features 0.5 to 6 degrees from their row: a cosine in bfloat16 is 1 up to 3.6 degrees and has no slope there."""
    w = F.normalize(normal(8, 64), dim=1)
    tangent = F.normalize(normal(8, 64, seed=1), dim=1)
    tangent = F.normalize(tangent - (tangent * w).sum(1, keepdim=True) * w, dim=1)
    theta = torch.tensor([0.5, 1, 1.5, 2, 3, 4, 5, 6], dtype=torch.float64).deg2rad()[:, None]
    x, y = (w * theta.cos() + tangent * theta.sin()) * 20, torch.arange(8)
    exact = angular_logits(x, w, y, operator=operator, margin=4, k=k).gather(1, y[:, None])
    leaf = x.float().requires_grad_()
    with torch.autocast("cpu", dtype):
        got = angular_logits(leaf, w.float(), y, operator=operator, margin=4, k=k)
        assert got.dtype == torch.float32
        own = got.gather(1, y[:, None])
    assert ((own - exact).abs() <= 2e-3).all()  # an angle of 9e-3 from a cosine in float32 is good to 1e-5
    own.sum().backward()
    assert (leaf.grad.norm(dim=1) > 0.01).all()
    exact_loss = AngularSoftmax(operator, 4, k=k, annealing=None)(x, w, y)
    with torch.autocast("cpu", dtype):
        loss = AngularSoftmax(operator, 4, k=k, annealing=None)(
            x.to(dtype), w.float(), y
        )  # half features, as from a net
    # the other logits have the error of a product in half precision, times length and slope
    torch.testing.assert_close(loss.double(), exact_loss, atol=40 * torch.finfo(dtype).eps * 5, rtol=0)


def test_products_beyond_the_range_of_float16():
    x, w = torch.full((1, 64), 2000.0), torch.full((2, 64), 20.0)
    w[1] *= -1
    with torch.autocast("cpu", torch.float16):
        assert F.linear(x, w).isinf().all(), "the plain product must overflow, or this test shows nothing"
        z = angular_logits(x, w, torch.tensor([0]))
    torch.testing.assert_close(z, torch.tensor([[16000.0, -16000.0]]), atol=0, rtol=2e-3)


@pytest.mark.parametrize("operator", ["cosine", "linear", "learnable"])
def test_compiles_whole_and_once(operator):
    loss, y = AngularSoftmax(operator, 4), labels(6, 5)
    k = torch.full((5,), 0.4) if operator == "learnable" else None
    eager = AngularSoftmax(operator, 4)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in range(3):
        x, w = (normal(n, 3, seed=step, dtype=torch.float32).requires_grad_() for n in (6, 5))
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            got = compiled(x, w, y, k)
        got.backward()
        grads = x.grad, w.grad
        x.grad = w.grad = None
        expected = eager(x, w, y, k)
        expected.backward()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            grads, (x.grad, w.grad), atol=1e-4, rtol=1e-4
        )  # arcsin is a polynomial when compiled
    assert loss.iteration == 3


class PeakMemory(TorchDispatchMode):
    """Highest number of bytes of live tensors that were made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.live = set()

    def _free(self, key, size):
        self.live.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((out,)):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out


def peak_bytes(loss, *inputs):
    with PeakMemory() as memory:
        loss(*inputs).backward()
    return memory.peak


@pytest.mark.parametrize("operator", ["cosine", "linear", "sigmoid", "learnable"])
def test_100000_classes_take_less_than_a_gigabyte_more_than_cross_entropy(operator):
    """Counted on tensors without storage: 512 features, 64 samples, forward and backward."""
    x = torch.empty(64, 512, device="meta", requires_grad=True)
    w = torch.empty(100_000, 512, device="meta", requires_grad=True)
    y = torch.empty(64, dtype=torch.int64, device="meta")
    plain = peak_bytes(lambda x, w, y: F.cross_entropy(F.linear(x, w), y), x, w, y)
    assert plain > 200e6, "the gradient of the rows alone has 205 MB, or nothing was counted"
    k = (torch.empty(100_000, device="meta", requires_grad=True),) if operator == "learnable" else ()
    more = peak_bytes(AngularSoftmax(operator, 4).to("meta"), x, w, y, *k) - plain
    assert more < 700e6, f"{more / 1e6:.0f} MB more than {plain / 1e6:.0f} MB"


# W-, A- and GA-Softmax: annealing, bad input, models


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
        close(loss(x, w, y), at(2), 1e-6)  # evaluation counts nothing
    loss.train()
    other = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss(x, w, y), other(x, w, y)) and other.iteration == 3
    for t in (3, 4):
        close(other(x, w, y), at(t), 1e-6)

    parts = AngularSoftmax("linear", 4, annealing=(9, 5, 0.5), accumulate=2)
    for t in (0, 0, 1, 1, 2):
        close(parts(x, w, y), at(t), 1e-6)


def test_no_margin_and_no_annealing_have_no_state():
    assert not AngularSoftmax().state_dict() and not AngularSoftmax("linear", 4, annealing=None).state_dict()
    x, w, y = normal(4, 3), normal(5, 3, seed=1), labels(4, 5)
    start = AngularSoftmax("linear", 4, annealing=(1e9, 0, 0))(x, w, y)
    close(start, AngularSoftmax("linear")(x, w, y), 1e-6)  # lambda = 1e9 leaves nothing of the margin


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(operator="sine"), "cosine, linear, sigmoid, learnable; got 'sine'"),
        (dict(margin=0.99), "margin must be a number, 1 or more; got 0.99"),
        (dict(margin=-4), "got -4"),
        (dict(margin=math.nan), "got nan"),
        (dict(margin=math.inf), "got inf"),
        (dict(margin="4"), "margin must be a number, 1 or more; got '4'"),
        (dict(k=0), "above 0; got 0"),
        (dict(k=-0.3), "k, the steepness of the sigmoid, must be a number above 0; got -0.3"),
        (dict(eps=-1e-4), "eps must be a number of at least 0; got -0.0001"),
        (dict(annealing=(1000, 5)), r"\(start, floor, rate\) or None; got \(1000, 5\)"),
        (dict(annealing=(1000, -5, 0.12)), "floor of annealing must be a number, 0 or more; got -5"),
        (dict(accumulate=0), "accumulate must be a number, 1 or more; got 0"),
        (dict(label_smoothing=1.5), "label_smoothing must be a number, 0 to 1; got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        AngularSoftmax(**arguments)


@pytest.mark.parametrize(
    "x, w, y, message",
    [
        ((4, 3), (5, 2), [0, 1, 2, 3], r"same D; got \(4, 3\) and \(5, 2\)"),
        ((4, 3, 1), (5, 3), [0, 1, 2, 3], r"got \(4, 3, 1\) and \(5, 3\)"),
        ((4, 3), (5, 3), [0, 1, 2, 5], r"labels must be 0 to 4, the number of class rows; got \[5\]"),
        ((4, 3), (5, 3), [-100, 1, 2, -1], r"labels must be 0 to 4, .*; got \[-100, -1\]"),
        ((4, 3), (5, 3), [0, 1, 2], r"target must be \(4,\) int64 class numbers, at least one; got \(3,\)"),
        (
            (4, 3),
            (5, 3),
            [0.0, 1.0, 2.0, 3.0],
            "float32. A margin needs one right class: mixed labels go to SoftTarget",
        ),
        ((0, 3), (5, 3), [], r"at least one; got \(0,\)"),
    ],
)
def test_bad_calls_are_refused_and_not_counted(x, w, y, message):
    loss = AngularSoftmax("linear", 4)
    y = torch.tensor(y) if y else torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        loss(torch.ones(x), torch.ones(w), y)
    assert loss.iteration == 0


def test_steepness_belongs_to_the_learnable_operator():
    x, w, y = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1])
    with pytest.raises(InputError, match="needs the raw_k of the classifier"):
        AngularSoftmax("learnable")(x, w, y)
    with pytest.raises(InputError, match=r"raw_k must be \(4,\).*; got \(3,\) for 'learnable'"):
        AngularSoftmax("learnable")(x, w, y, torch.ones(3))
    with pytest.raises(InputError, match=r"got \(4,\) for 'sigmoid'"):
        AngularSoftmax("sigmoid")(x, w, y, torch.ones(4))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet20_cifar"])
def test_a_replaced_classifier_is_the_loss_without_its_margin(name):
    model = timm.create_model(name, num_classes=6)
    rows, keys = model.get_classifier().weight, set(model.state_dict())
    criterion = AngularSoftmax("linear", 4, eps=0.01)
    classifier = replace_classifier(model, criterion)
    assert classifier is model.get_classifier() and classifier.weight is rows
    assert {key.rpartition(".")[2] for key in keys - set(model.state_dict())} == {"bias"}
    assert len(keys - set(model.state_dict())) == 1
    model.eval()
    x = normal(2, 3, 32, 32, dtype=torch.float32)
    if name == "test_vit":
        x = F.interpolate(x, model.patch_embed.img_size)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    logits = model(x)
    torch.testing.assert_close(classifier(features), logits)
    y = torch.tensor([1, 5])
    plain = AngularSoftmax("linear", eps=0.01)(features, classifier.weight, y)
    torch.testing.assert_close(plain, F.cross_entropy(logits, y))
    criterion(features, classifier.weight, y).backward()
    assert all(p.grad is not None for p in model.parameters()), "DDP waits for every gradient"


class Net(nn.Module):
    """The least that has timm's interface."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(2, 16), nn.Linear(16, 4)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return self.body(x).relu()

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("operator", ["cosine", "linear", "sigmoid", "learnable"])
def test_training_with_a_margin_makes_a_plain_classifier(operator):
    torch.manual_seed(0)
    model = Net()
    criterion = AngularSoftmax(operator, 4, annealing=(5, 0.5, 0.1))
    classifier = replace_classifier(model, criterion)
    y = torch.arange(40) % 4
    centers = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])
    x = centers[y] + normal(40, 2, dtype=torch.float32) * 0.3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        optimizer.zero_grad()
        criterion(features, classifier.weight, y, classifier.raw_k).backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(x).argmax(1), y)


def test_classifiers_that_cannot_be_replaced():
    criterion = AngularSoftmax()
    with pytest.raises(InputError, match="Sequential has no get_classifier and forward_head"):
        replace_classifier(nn.Sequential(nn.Linear(3, 2)), criterion)
    without = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(InputError, match="classifier of ResNet must be a linear layer with parameters; got Identity"):
        replace_classifier(without, criterion)
    lazy = timm.create_model("test_resnet", num_classes=3)
    lazy.fc = nn.LazyLinear(3)
    with pytest.raises(InputError, match="got LazyLinear"):
        replace_classifier(lazy, criterion)
    assert type(lazy.fc) is nn.LazyLinear

    twice = timm.create_model("test_resnet", num_classes=3).double().eval()
    twice.alias = twice.fc
    first = replace_classifier(twice, criterion)
    assert first.weight.dtype == torch.float64 and not first.training and twice.alias is twice.fc is first
    assert type(replace_classifier(twice, criterion)) is SphereLinear
