"""PER acts on each selected layer, in training only, and leaves no trace in the model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.regularizers import PER, ActivationNorm, projected_error
from hyperzoo.training.recipe_methods import PERSettings


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
    """The outputs of the layers by hand, without hooks or in-place operations."""
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
    """Everything that a term could leave in the model."""
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
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)  # same sums in another order
    exact = 0.3 * sum(projected_error(h, slices=None, reduce=reduce, view=view) for h in taps)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)  # the value is over all directions


@pytest.mark.parametrize("slices", [None, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_reaches_each_layer(name, slices):
    model = net()
    term = PER(model, strength=1.0, layers=[name], slices=slices)
    with term:
        model(images())
        found = gradients(model, term())
    own = {"1": 2, "4": 4, "7": 6}[name]  # tensors before the layer
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
        term()  # the recording from before the exception is gone
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
        model(x)  # like the recomputation of gradient checkpointing
        with pytest.raises(InputError, match="nothing was recorded"):
            term()
        with pytest.raises(InputError, match="recording already"):
            term.__enter__()
    with term:
        model(x)
    torch.testing.assert_close(term(), first)  # also directly after the `with`
    part = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"unused": nn.Linear(2, 2)}))
    term = PER(part, strength=1.0, layers=["0", "1.unused"])
    with pytest.raises(InputError, match="nothing was recorded of '1.unused'"), term:
        part[0](torch.zeros(1, 2))
        term()


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
        (dict(strength=-1.0), InputError, "strength must be a finite number of at least 0; got -1.0"),
        (dict(strength=float("nan")), InputError, "got nan"),
        (dict(strength="1"), InputError, "got '1'"),
        (dict(slices=0), InputError, "must be a whole number of at least 1; got 0"),
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


def test_functional_reference_is_not_in_place():
    """The reference `outputs` above does not change the model."""
    plain, x = net(inplace=False), images()
    assert torch.equal(outputs(plain, x, ["1"])["1"], F.relu(plain[0](x)))


def test_all_directions_are_the_default_of_the_class_and_256_that_of_a_recipe():
    model, x = net(), images()
    found = []
    for term in (PER(model, strength=1.0, layers=LAYERS, seed=1), PER(model, strength=1.0, layers=LAYERS, slices=None)):
        found.append(gradients(model, step(model, term, x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # no random direction has a part in it
    assert PERSettings(strength=1.0).slices == 256  # the digests of published recipes rest on it


def test_a_bad_axis_is_refused():
    model = net()
    for axis in (0, 1.0):
        with pytest.raises(InputError, match=f"axis must be .* got {axis}"):
            PER(model, strength=1.0, layers=LAYERS, axis=axis)
    with pytest.raises(InputError, match="leave axis out"):
        PER(model, strength=1.0, layers=LAYERS, axis=1, view="flatten")
    with pytest.raises(InputError, match=r"axis=2 .* \(4, 6\)"):
        step(model, PER(model, strength=1.0, layers=LAYERS, axis=2), images())


def test_an_output_that_is_no_tensor_is_named():
    class Named(nn.Module):
        def forward(self, x):
            return {"hidden": x}

    model = nn.Sequential(nn.Linear(2, 2), Named())
    term = PER(model, strength=0.1, layers="1")
    with pytest.raises(InputError, match="1 returns dict, not a tensor"), term:
        model(torch.zeros(3, 2))
