"""Angular losses in every mode: half precision, compile, memory, bad input, any model."""

import math
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
from support.oracles import EACH_OPERATOR, labels, normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperzoo.errors import InputError
from hyperzoo.layers import SphereLinear
from hyperzoo.losses import AngularSoftmax, angular_logits, replace_classifier

# W-, A- and GA-Softmax: half precision, compile, memory


@EACH_OPERATOR
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_small_angles(operator, k, dtype):
    """Features 0.5 to 6 degrees from their row: in bfloat16 the cosine is 1, without slope, up to 3.6 degrees."""
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
    assert ((own - exact).abs() <= 2e-3).all()  # an angle of 9e-3 from a float32 cosine is accurate to 1e-5
    own.sum().backward()
    assert (leaf.grad.norm(dim=1) > 0.01).all()
    exact_loss = AngularSoftmax(operator, 4, k=k, annealing=None)(x, w, y)
    with torch.autocast("cpu", dtype):
        loss = AngularSoftmax(operator, 4, k=k, annealing=None)(
            x.to(dtype), w.float(), y
        )  # half-precision features, as from a network
    # the other logits: error of a half-precision product, times length and slope
    torch.testing.assert_close(loss.double(), exact_loss, atol=40 * torch.finfo(dtype).eps * 5, rtol=0)


@EACH_OPERATOR
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_gradients(operator, k, dtype):
    """Error against float64 as of sums of 64 rounded products; float32 leaves get float32 gradients."""
    x, w, y = normal(16, 64), normal(8, 64, seed=1), torch.arange(16) % 8
    grads = []
    for leaves in ([x.clone(), w.clone()], [x.float(), w.float()]):
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with torch.autocast("cpu", dtype, enabled=len(grads) > 0):
            loss = AngularSoftmax(operator, 4, k=k, annealing=None)(*leaves, y)
        grads.append(torch.autograd.grad(loss, leaves))
    for exact, got in zip(*grads, strict=True):
        assert got.dtype == torch.float32
        assert (got - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


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
        )  # compiled code uses a polynomial arcsin
    assert loss.iteration == 3


class PeakMemory(TorchDispatchMode):
    """Peak number of bytes of live tensors created inside."""

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
    """Counted on fake tensors: 512 features, 64 samples, forward and backward."""
    x = torch.empty(64, 512, device="meta", requires_grad=True)
    w = torch.empty(100_000, 512, device="meta", requires_grad=True)
    y = torch.empty(64, dtype=torch.int64, device="meta")
    plain = peak_bytes(lambda x, w, y: F.cross_entropy(F.linear(x, w), y), x, w, y)
    assert plain > 200e6, "the gradient of the rows alone has 205 MB, or nothing was counted"
    k = (torch.empty(100_000, device="meta", requires_grad=True),) if operator == "learnable" else ()
    more = peak_bytes(AngularSoftmax(operator, 4).to("meta"), x, w, y, *k) - plain
    assert more < 700e6, f"{more / 1e6:.0f} MB more than {plain / 1e6:.0f} MB"


# W-, A- and GA-Softmax: bad input, models


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(operator="sine"), "cosine, linear, sigmoid, learnable; got 'sine'"),
        (dict(margin=0.99), "margin must be a finite number of at least 1; got 0.99"),
        (dict(margin=-4), "got -4"),
        (dict(margin=math.nan), "got nan"),
        (dict(margin=math.inf), "got inf"),
        (dict(margin="4"), "margin must be a finite number of at least 1; got '4'"),
        (dict(k=0), "above 0; got 0"),
        (dict(k=-0.3), "k, the steepness of the sigmoid, must be a finite number above 0; got -0.3"),
        (dict(eps=-1e-4), "eps must be a finite number of at least 0; got -0.0001"),
        (dict(annealing=(1000, 5)), r"\(start, floor, rate\) or None; got \(1000, 5\)"),
        (dict(annealing=(1000, -5, 0.12)), "floor of annealing must be a finite number of at least 0; got -5"),
        (dict(accumulate=0), "accumulate must be a whole number of at least 1; got 0"),
        (dict(label_smoothing=1.5), "label_smoothing must be a finite number from 0 to 1; got 1.5"),
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
        ((4, 3), (5, 3), [0, 1, 2, 5], r"labels must be from 0 to 4, one per class row; got \[5\]"),
        ((4, 3), (5, 3), [-100, 1, 2, -1], r"labels must be from 0 to 4, .*; got \[-100, -1\]"),
        ((4, 3), (5, 3), [0, 1, 2], r"target must be \(4,\) int64 class indices, at least one; got \(3,\)"),
        (
            (4, 3),
            (5, 3),
            [0.0, 1.0, 2.0, 3.0],
            "float32. For mixed labels use SoftTarget",
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
    with pytest.raises(InputError, match=r"raw_k must be \(4,\), one per class row; got \(3,\)"):
        AngularSoftmax("learnable")(x, w, y, torch.ones(3))
    with pytest.raises(InputError, match=r"'sigmoid' has no raw_k; got \(4,\)"):
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
    """The smallest model with timm's interface."""

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
    with pytest.raises(InputError, match="Sequential lacks get_classifier or forward_head"):
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
