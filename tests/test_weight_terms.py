"""Weight terms are exact under compile, autocast and DDP and for any memory layout, and own no parameters."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from support.oracles import normal
from support.slow_energy import gradients, small
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperzoo.errors import InputError
from hyperzoo.regularizers import (
    MHE,
    MinimumAngle,
    Orthogonality,
    hyperspherical_energy,
    label_energy,
    nearest_angle,
    orthogonality_penalty,
)

TERMS = [
    lambda net: MHE(net, hidden=1.0, output=10.0, half_space=True),
    lambda net: MHE(net, hidden=1.0, output=1.0, power=0, angular=True),
    lambda net: Orthogonality(net, strength=0.1, output=0.2),
    lambda net: MinimumAngle(net, hidden=0.07, output=0.07),
]


@pytest.mark.parametrize("make", TERMS)
def test_a_term_compiles_whole_and_gives_the_same(make):
    net = small()
    term = make(net)
    compiled = torch.compile(lambda: term(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), term())
    for got, expected in zip(gradients(net, compiled()), gradients(net, term()), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo reads it after a break
def test_a_loss_with_random_rows_compiles_once_and_draws_as_without():
    torch.manual_seed(0)
    widths = [6, *range(12, 24)]  # more shapes than torch compiles one function for
    net = nn.Sequential(*[nn.Linear(*pair) for pair in pairwise(widths)])
    term, plain = (MHE(net, hidden=1.0, output=1.0, neurons=8) for _ in range(2))
    x = torch.randn(5, 6)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: net(x).square().mean() + term(), backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        for _ in range(3):  # each draws anew
            torch.testing.assert_close(compiled(x), net(x).square().mean() + plain())


@pytest.mark.parametrize("make", TERMS)
def test_a_term_is_float32_in_autocast_and_for_half_precision_weights(make):
    net = small()
    expected = make(net)()
    with torch.autocast("cpu", torch.bfloat16):
        got = make(net)()
    grads = gradients(net, got)  # outside, because inside autocast torch rounds the backward of any product to bfloat16
    assert got.dtype == torch.float32 and torch.equal(got, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, gradients(net, make(net)()), strict=True))
    assert make(copy.deepcopy(net).double())().dtype == torch.float64
    half = copy.deepcopy(net).to(torch.bfloat16)
    value = make(half)()
    assert value.dtype == torch.float32
    exact = make(copy.deepcopy(half).double())()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)  # rounding of the weights only
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients(half, value))


@pytest.mark.parametrize("make", TERMS)
def test_a_term_owns_nothing_and_leaves_nothing_behind(make):
    net = small()
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    term = make(net)
    with pytest.raises(ZeroDivisionError), term as entered:
        assert entered is term
        _ = 1 / 0
    assert list(term.parameters()) == []
    assert before == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert {p.grad is None for p in net.parameters()} == {True}
    # gradients reach the weights only
    term().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {f"{i}.weight" for i in (0, 1, 2, 4)}


def test_channels_last_weights_give_the_same_and_keep_their_format():
    net = small()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for make in TERMS:
        torch.testing.assert_close(make(last)(), make(net)())
        for got, expected in zip(gradients(last, make(last)()), gradients(net, make(net)()), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # other order of sums
        assert last[1].weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_in_ddp_the_gradient_is_that_of_one_process_and_sharded_weights_are_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net, x = small(), normal(2, 3, 7, 7, dtype=torch.float32)
        expected = gradients(net, net(x).square().mean() + MHE(net, hidden=1.0, output=10.0)())
        expected = [g.clone() for g in expected]
        wrapped = nn.parallel.DistributedDataParallel(net)
        term = MHE(wrapped, hidden=1.0, output=10.0)
        assert list(term.report()) == ["0", "1", "2", "4"]
        for got, one in zip(gradients(net, wrapped(x).square().mean() + term()), expected, strict=True):
            torch.testing.assert_close(got, one)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (1,))
        net[1].weight = nn.Parameter(distribute_tensor(net[1].weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(InputError, match="1 is sharded.*Use DDP"):
            term()
        with pytest.raises(InputError, match="1 is sharded"):
            MHE(net, hidden=1.0, output=1.0)
        with pytest.raises(InputError, match="sharded"):
            hyperspherical_energy(net[1].weight.flatten(1))
    finally:
        dist.destroy_process_group()


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation creates."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_memory_grows_with_the_rows_not_with_their_square():
    w = normal(1500, 8, dtype=torch.float32).requires_grad_()
    for energy in (
        lambda: hyperspherical_energy(w, half_space=True),
        lambda: label_energy(w, torch.arange(100)),
        lambda: nearest_angle(w),
        lambda: orthogonality_penalty(w),
    ):
        with LargestTensor() as largest:
            energy().backward()
        assert 1500 * 8 <= largest.numel <= 512 * 1500  # the matrix of cosines has 1500 * 1500


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(power=3), "0, 1, 2; got 3"),
        (dict(power="2"), "0, 1, 2; got '2'"),
        (dict(power=True), "0, 1, 2; got True"),
        (dict(eps=-1.0), "at least 0; got -1.0"),
        (dict(hidden=-1), "hidden layers, must be a finite number of at least 0; got -1"),
        (dict(output=float("nan")), "output layers, must be a finite number of at least 0; got nan"),
        (dict(hidden="1"), "got '1'"),
        (dict(hidden=0, output=0), "nothing to regularize"),
        (dict(layers="1"), "no hidden layer"),
        (dict(output_layer="1"), "has no neurons"),
        (dict(neurons=1), "at least 2; got 1"),
        (dict(neurons=2.5), "at least 2; got 2.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match=message):
        MHE(net, **(dict(hidden=1.0, output=1.0) | arguments))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
