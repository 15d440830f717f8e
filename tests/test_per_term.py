"""The term acts on each layer that it was given, in training only; it leaves nothing behind in the model."""

import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.regularizers import PER, ActivationNorm, projected_error


def net(inplace=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=inplace), nn.Dropout(0.0, inplace=inplace),
        nn.Conv2d(4, 5, 3, padding=1), nn.ELU(inplace=inplace), nn.Flatten(),
        nn.Linear(5 * 36, 6), nn.Tanh(), nn.Linear(6, 2),
    )  # fmt: skip


LAYERS = ["1", "4", "7"]


def images(batch=4, size=6, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(model, x, layers):
    """What the layers put out, by hand: no hook, no in-place operation."""
    found = {}
    for name, module in model.named_children():
        x = module(x)
        if name in layers:
            found[name] = x
    return found


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def step(model, term, x):
    with term:
        out = model(x)
        return out.square().mean() + term()


def traces(model):
    """All that a term could leave behind."""
    return [
        (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            sorted(vars(module)),
            getattr(module, "inplace", 0),
        )
        for module in model.modules()
    ]


@pytest.mark.parametrize("slices", [None, 16])
@pytest.mark.parametrize("reduce", ["mean", "batch", "sum"])
@pytest.mark.parametrize("view", ["location", "flatten"])
def test_value_and_gradient_are_those_of_the_layers_by_hand(slices, reduce, view):
    model, x = net(), images()
    term = PER(model, strength=0.3, layers=LAYERS, slices=slices, reduce=reduce, view=view, seed=7)
    assert term.parameters() == []
    with term:
        model(x)
        value = term()
    found = gradients(model, value)

    plain, draws = copy.deepcopy(net(inplace=False)), torch.Generator().manual_seed(7)
    taps = outputs(plain, x, LAYERS).values()
    expected = 0.3 * sum(projected_error(h, slices=slices, reduce=reduce, view=view, generator=draws) for h in taps)
    for got, wanted in zip(found, gradients(plain, expected), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)  # the same sums in another order
    exact = 0.3 * sum(projected_error(h, slices=None, reduce=reduce, view=view) for h in taps)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)  # the value is that of all directions


@pytest.mark.parametrize("slices", [None, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_reaches_each_layer(name, slices):
    model = net()
    term = PER(model, strength=1.0, layers=[name], slices=slices)
    with term:
        model(images())
        found = gradients(model, term())
    own = {"1": 2, "4": 4, "7": 6}[name]  # tensors in front of the layer
    assert all(grad.abs().sum() > 0 for grad in found[:own]) and all(grad is None for grad in found[own:])


@pytest.mark.parametrize("batch_first", [False, True])
def test_every_hidden_state_of_every_lstm_counts(batch_first):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn1 = nn.LSTM(3, 4, batch_first=batch_first)
            self.rnn2 = nn.LSTM(4, 5, batch_first=batch_first)

        def forward(self, x):
            h1, _ = self.rnn1(x)
            h2, _ = self.rnn2(h1)
            return h1, h2

    torch.manual_seed(0)
    model, x = Language(), torch.randn(2, 7, 3)  # (B, T, 3)
    x = x if batch_first else x.transpose(0, 1)
    for reduce, size in (("mean", 14), ("batch", 2), ("sum", 1)):
        term = PER(model, strength=1.0, layers="type:LSTM", slices=None, reduce=reduce)
        with term:
            states = model(x)
            value = term()
        expected = 0.0
        for h in states:
            for vector in h.reshape(-1, h.shape[-1]):
                expected = expected + projected_error(vector[None], slices=None) / size
        torch.testing.assert_close(value, expected)
        found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        for got, wanted in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
            assert got.abs().sum() > 0
        assert set(term.report()) == {f"rnn{i}/{what}" for i in (1, 2) for what in ("error", "mean", "variance")}


def test_packed_sequences_and_shared_modules():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4)
    holder = nn.Sequential(model)
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 3), torch.randn(1, 3)])
    term = PER(holder, strength=1.0, layers="0", slices=None)
    with term:
        out, _ = holder(packed)
        torch.testing.assert_close(term(), projected_error(out.data, slices=None))
    shared = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 4), shared)
    x = torch.randn(5, 3)
    term = PER(model, strength=1.0, layers="type:ReLU", slices=None)
    with term:
        model(x)
        value = term()
    first = model[1](model[0](x))
    both = projected_error(first, slices=None) + projected_error(model[3](model[2](first.clone())), slices=None)
    torch.testing.assert_close(value, both)


def test_report_has_error_mean_and_variance_of_each_layer():
    model, x = net(), images()
    term = PER(model, strength=5.0, layers=LAYERS, slices=4, reduce="sum")
    assert term.report() == {}
    with term:
        model(x)
        term()
    report = term.report()
    assert list(report)[:3] == ["1/error", "1/mean", "1/variance"] and len(report) == 9
    for name, h in outputs(net(inplace=False), x, LAYERS).items():
        h = h.detach()
        expected = projected_error(h, slices=None), h.mean(), h.var(correction=0)
        for what, value in zip(("error", "mean", "variance"), expected, strict=True):
            assert report[f"{name}/{what}"] == pytest.approx(value.item(), rel=1e-4)


def test_nothing_in_evaluation_in_the_state_dict_or_behind():
    model, x = net(), images()
    before, keys = traces(model), list(model.state_dict())
    term = PER(model, strength=1.0, layers=LAYERS)
    model.eval()
    with term:
        model(x)
        assert float(term()) == 0
        assert list(model.state_dict()) == keys
    assert traces(model) == before and list(model.state_dict()) == keys
    model.train()
    model[4].eval()  # a frozen part
    with term:
        model(x)
        term()
    assert {key.partition("/")[0] for key in term.report()} == {"1", "7"}
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), term:
            model(x)
            raise ZeroDivisionError
    assert traces(model) == before
    with pytest.raises(InputError, match="nothing was recorded"):
        term()  # what was recorded before the exception is gone
    twin = copy.deepcopy(model)
    step(model, term, x)
    assert traces(model) == before == traces(twin)


def test_one_forward_pass_for_each_with():
    model, x = net(), images()
    term = PER(model, strength=1.0, layers=LAYERS)
    with pytest.raises(InputError, match="nothing was recorded of '1', '4', '7': run one forward pass"), term:
        term()
    with term:
        model(x)
        first = term()
        model(x)  # as gradient checkpointing repeats it
        with pytest.raises(InputError, match="nothing was recorded"):
            term()
        with pytest.raises(InputError, match="recording already"):
            term.__enter__()
    with term:
        model(x)
    torch.testing.assert_close(term(), first)  # also right behind the `with`
    part = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"unused": nn.Linear(2, 2)}))
    term = PER(part, strength=1.0, layers=["0", "1.unused"])
    with pytest.raises(InputError, match="nothing was recorded of '1.unused'"), term:
        part[0](torch.zeros(1, 2))
        term()


def test_in_place_modules_do_not_overwrite_what_was_recorded():
    x = images()
    model = net(inplace=True)
    term = PER(model, strength=1.0, layers=["0", "1", "3", "4"], slices=None)  # in front of, at and behind
    found = gradients(model, step(model, term, x))
    plain = net(inplace=False)
    expected = plain(x).square().mean() + sum(
        projected_error(h, slices=None) for h in outputs(plain, x, ["0", "1", "3", "4"]).values()
    )
    for got, wanted in zip(found, gradients(plain, expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert model[1].inplace and model[2].inplace and model[4].inplace


def test_in_place_code_of_the_model_is_an_error_that_names_the_layer():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            y = self.fc(x)
            y += x
            return y

    model = Adds()
    term = PER(model, strength=1.0, layers="fc")
    with pytest.raises(InputError, match="output of 'fc' was overwritten"):
        step(model, term, torch.randn(2, 3))
    assert not model.fc._forward_hooks


def test_directions_follow_the_seed_and_disturb_nobody():
    model, x = net(), images()
    term = PER(model, strength=1.0, layers=LAYERS, slices=4, seed=3)
    state = torch.get_rng_state()
    first, second = (gradients(model, step(model, term, x)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], second[0])  # drawn anew
    term.seed(3)
    again = gradients(model, step(model, term, x))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_accumulated_parts_equal_the_whole_batch():
    model, x = net(), images(8)
    for reduce, factor in (("mean", 1), ("batch", 1), ("sum", 2)):
        whole = PER(model, strength=0.5, layers=LAYERS, slices=None, reduce=reduce)
        parts = PER(model, strength=0.5 * factor, layers=LAYERS, slices=None, reduce=reduce)
        expected = gradients(model, step(model, whole, x))
        model.zero_grad()
        for part in x.chunk(2):
            (step(model, parts, part) / 2).backward()
        for p, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6)


def test_half_precision_leaves_the_term_in_float32():
    model, x = net(), images()
    term = PER(model, strength=1.0, layers=LAYERS, slices=None)
    exact = step(model, term, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = step(model, term, x)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)  # activations of 8 bits
    assert all(grad.isfinite().all() for grad in gradients(model, half))
    double = copy.deepcopy(model).double()
    assert step(double, PER(double, strength=1.0, layers=LAYERS), x.double()).dtype == torch.float64


@pytest.mark.parametrize("slices", [None, 4])
def test_a_compiled_model_has_the_same_term(slices):
    model, x = net(), images()
    expected = gradients(model, step(model, PER(model, strength=1.0, layers=LAYERS, slices=slices), x))
    compiled = copy.deepcopy(model)
    compiled(x)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(x)  # compiled before the hooks arrive
    term = PER(compiled, strength=1.0, layers=LAYERS, slices=slices)
    for _ in range(2):
        term.seed(0)
        for got, wanted in zip(gradients(compiled, step(compiled, term, x)), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
        compiled.eval()
        with term:
            compiled(x)
            assert float(term()) == 0
        compiled.train()
        compiled(x)


@pytest.mark.parametrize("inside", [False, True])
def test_gradient_checkpointing_changes_nothing(inside):
    torch.manual_seed(0)
    plain = timm.create_model("resnet20_cifar")
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # statistics would be updated twice by the recomputation
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    found = []
    for model in (plain, saving):
        for layers in ("type:ReLU", "stages"):
            term = PER(model, strength=1.0, layers=layers, slices=16)
            with term:
                loss = model(images(2, 8)).square().mean() + term()
                if inside:
                    found.append(gradients(model, loss))
            if not inside:
                found.append(gradients(model, loss))
    for first, second in zip(found[:2], found[2:], strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b)


def test_reentrant_checkpointing_is_an_error():
    model = net()

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=True)

    saving = Saving()
    term = PER(saving, strength=1.0, layers="net.1")
    with pytest.raises(InputError, match="'net.1' ran without gradients.*use_reentrant=False"):
        step(saving, term, images())
    with torch.no_grad():
        assert step(saving, term, images()).item() > 0  # a value alone is fine


def test_nan_is_reported_under_its_layer():
    model = net()
    with torch.no_grad():
        model[3].weight[0] = float("nan")
    term = PER(model, strength=1.0, layers=LAYERS, slices=None)
    with term:
        model(images())
        assert torch.isnan(term())
    bad = [name for name, value in term.report().items() if value != value]
    assert bad[0] == "4/error" and not any(name.startswith("1/") for name in bad)


def test_two_terms_at_once():
    model, x = net(), images()
    a, b = PER(model, strength=1.0, layers=LAYERS), ActivationNorm(model, strength=1.0, layers=LAYERS)
    before = traces(model)
    with a, b:
        model(x)
        both = a() + b()
    alone = step(model, a, x) + step(model, b, x) - 2 * model(x).square().mean()
    assert both.item() == pytest.approx(alone.item(), rel=1e-5)
    assert traces(model) == before


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (dict(strength=-1.0), InputError, "strength must be a number of at least 0; got -1.0"),
        (dict(strength=float("nan")), InputError, "got nan"),
        (dict(strength="1"), InputError, "got '1'"),
        (dict(slices=0), InputError, "slices must be 1 or more"),
        (dict(reduce="avg"), InputError, "got 'avg'"),
        (dict(view="flat"), InputError, "got 'flat'"),
        (dict(layers=[]), InputError, "got \\[\\]"),
        (dict(layers="stages"), InputError, "no feature_info"),
        (dict(layers="type:GELU"), UnknownNameError, "type:GELU"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    model = net()
    before = traces(model)
    with pytest.raises(kind, match=message):
        PER(model, **{"strength": 1.0, "layers": LAYERS, **arguments})
    assert traces(model) == before


def test_an_empty_batch_is_refused():
    model = net()
    with pytest.raises(InputError, match=r"got float32 \(0, 4, 6, 6\)"):
        step(model, PER(model, strength=1.0, layers="1"), images(0))


def test_sum_is_multiplied_by_the_number_of_processes(monkeypatch):
    model, x = net(), images()
    alone = {r: PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=r) for r in ("sum", "mean", "batch")}
    values = {reduce: (step(model, term, x) - model(x).square().mean()).item() for reduce, term in alone.items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for reduce, term in alone.items():
        factor = 3 if reduce == "sum" else 1
        got = (step(model, term, x) - model(x).square().mean()).item()
        assert got == pytest.approx(factor * values[reduce], rel=1e-5)


TWO = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_per_term import LAYERS, images, net
from torch.nn.parallel import DistributedDataParallel
from hyperzoo.regularizers import PER

torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
for reduce in ("mean", "sum"):
    model = net()
    term = PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=reduce)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    with term:
        logits = wrapped(images(4).chunk(2)[dist.get_rank()])
        (term() + 0 * logits.sum()).backward()  # DDP waits for every parameter that the output reaches
    if dist.get_rank() == 0:
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file(found, f"{sys.argv[1]}/{reduce}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.full
def test_two_processes_have_the_gradient_of_one(tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([*command, tmp_path / "two.py", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for reduce in ("mean", "sum"):
        model = net()
        term = PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=reduce)
        with term:
            model(images(4))
            term().backward()
        found = load_file(tmp_path / f"{reduce}.safetensors")
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)  # summed in another order


def test_functional_reference_is_not_in_place():
    """`outputs` above keeps what it found: the reference of these tests is sound."""
    plain, x = net(inplace=False), images()
    assert torch.equal(outputs(plain, x, ["1"])["1"], F.relu(plain[0](x)))
