"""neurons.select returns the right rows of the right layers, and a reason for each skipped layer."""

import pytest
import timm
import torch
from support.slow_energy import slow_energy
from torch import nn

from hyperzoo.errors import InputError, UnknownNameError
from hyperzoo.layers import SphereConv2d, SphereLinear
from hyperzoo.regularizers import MHE, MinimumAngle
from hyperzoo.regularizers.neurons import select


def test_rows_of_every_kind_of_layer():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        dict(
            conv1=nn.Conv1d(2, 4, 3),
            conv2=nn.Conv2d(4, 6, (2, 3), groups=2),
            last=nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
            conv3=nn.Conv3d(2, 3, 2),
            up=nn.ConvTranspose2d(4, 6, 2, groups=2),
            up1=nn.ConvTranspose1d(3, 4, 2),
            sphere=SphereConv2d(3, 4, 3),
            row=SphereLinear(5, 4),
            lstm=nn.LSTM(3, 2, num_layers=2, proj_size=1, bidirectional=True),
            gru=nn.GRU(3, 2),
            rnn=nn.RNN(3, 2),
            cell=nn.LSTMCell(3, 2),
            attention=nn.MultiheadAttention(4, 2),
            apart=nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
            table=nn.Embedding(7, 3),
            depthwise=nn.Conv2d(4, 4, 3, groups=4),
            head=nn.Linear(4, 3),
        )
    ).double()
    named_too = [name for name, _ in net.named_children() if name != "head"]
    report = MHE(net, hidden=1.0, output=1.0, layers=named_too).report()
    expected = {f"{n}": net[n].weight.flatten(1) for n in ("conv1", "conv2", "last", "conv3", "sphere", "row", "head")}
    expected |= {"table": net["table"].weight, "depthwise": net["depthwise"].weight.flatten(1)}
    expected["up1"] = net["up1"].weight.movedim(1, 0).flatten(1)
    up = net["up"].weight  # (4, 3, 2, 2): output channel 3 g + o of group g reads input channels 2 g and 2 g + 1
    expected["up"] = torch.stack([up[2 * g : 2 * g + 2, o].flatten() for g in range(2) for o in range(3)])
    for name, letters in (("lstm", "ifgo"), ("gru", "rzn"), ("rnn", ""), ("cell", "ifgo")):
        for key, weight in net[name].named_parameters():
            if key.startswith("weight_hr") or (not letters and key.startswith("weight")):
                expected[f"{name}.{key}"] = weight
            elif key.startswith("weight"):
                parts = zip(letters, weight.unflatten(0, (len(letters), 2)), strict=True)
                expected |= {f"{name}.{key}.{letter}": part for letter, part in parts}
    attention = net["attention"].in_proj_weight
    expected |= {f"attention.in_proj_weight.{c}": attention[4 * i : 4 * i + 4] for i, c in enumerate("qkv")}
    expected |= {f"apart.{c}_proj_weight": getattr(net["apart"], f"{c}_proj_weight") for c in "qkv"}
    expected |= {f"{name}.out_proj": net[name].out_proj.weight for name in ("attention", "apart")}
    assert report.keys() == expected.keys()
    for name, rows in expected.items():
        assert report[name] == pytest.approx(slow_energy(rows.detach()), rel=1e-10), name
    term = MHE(net, hidden=1.0, output=1.0)
    assert term.report().keys() == expected.keys() - {"table", "depthwise"}
    assert term.skipped.keys() == {"table", "depthwise"}
    assert "embedding" in term.skipped["table"] and "depthwise" in term.skipped["depthwise"]
    term().backward()
    assert all(net.get_parameter(f"{n}.weight").grad is not None for n in ("conv1", "up", "head"))
    assert net["table"].weight.grad is None


def test_every_gate_of_a_parametrized_recurrent_layer_is_covered():
    lstm = nn.LSTM(3, 2)
    nn.utils.parametrizations.orthogonal(lstm, "weight_hh_l0")
    term = MHE(lstm, hidden=1.0, output=0)
    assert term.report().keys() == {f"weight_{kind}_l0.{gate}" for kind in ("ih", "hh") for gate in "ifgo"}
    assert term.skipped == {}
    rows = lstm.weight_hh_l0[2:4].detach()
    assert term.report()["weight_hh_l0.f"] == pytest.approx(slow_energy(rows.double()), rel=1e-5)  # float32
    term().backward()
    assert lstm.parametrizations.weight_hh_l0.original.grad.any()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body, self.distilled = nn.Linear(4, 3), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3))

    def get_classifier(self):
        return self.head, self.distilled


def test_the_output_layer_is_found():
    def outputs(model, **settings):
        return [layer.name for layer in select(model, **settings).output]

    assert outputs(timm.create_model("resnet20_cifar")) == ["fc"]
    assert outputs(timm.create_model("resnet20_cifar", num_classes=0)) == []
    assert outputs(TwoHeads()) == ["head", "distilled.0"]
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Linear(2, 3), nn.Embedding(3, 2), nn.ReLU())
    assert outputs(plain) == ["1"] and outputs(torch.compile(plain)) == ["1"]
    plain = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(3, 2, 1))
    assert outputs(plain) == []  # the head is a convolution
    assert [layer.name for layer in select(plain).hidden] == ["0", "1"]
    with pytest.raises(InputError, match="no output layer.*name it in output_layer"):
        MHE(plain, hidden=1.0, output=1.0)
    assert outputs(plain, output_layer="1") == ["1"]
    assert [layer.name for layer in select(plain, output_layer="1").hidden] == ["0"]
    assert outputs(nn.Linear(4, 3)) == ["weight"]
    tied = nn.ModuleDict(dict(table=nn.Embedding(5, 3), decoder=nn.Linear(3, 5)))
    tied["decoder"].weight = tied["table"].weight
    assert outputs(tied) == ["decoder"]
    assert select(tied).skipped == {"table": "the same tensor as decoder"}


def test_layers_are_chosen_by_words():
    model = timm.create_model("spherenet20")
    everything = [layer.name for layer in select(model).hidden]
    assert len(everything) == 19 + 2 and len(select(model).output) == 1  # shortcuts are convolutions too
    block = [layer.name for layer in select(model, layers="layer2").hidden]
    assert block == [name for name in everything if name.startswith("layer2.")]
    spheres = [layer.name for layer in select(model, layers="type:SphereConv2d").hidden]
    assert len(spheres) == 19  # all but the two shortcuts
    rest = [layer.name for layer in select(model, exclude=["layer2", "conv1"]).hidden]
    assert rest == [name for name in everything if not name.startswith("layer2.") and name != "conv1"]
    with pytest.raises(UnknownNameError, match="layer9"):
        MHE(model, hidden=1.0, output=1.0, layers="layer9")


def test_frozen_layers_are_left_out_and_it_is_said():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    term = MHE(net, hidden=1.0, output=1.0)
    assert term.skipped == {"0": "frozen"}
    assert "0: skipped, frozen" in repr(term) and "1: 1" in repr(term)
    assert "2 (output): 1" in repr(term)
    assert list(term.report()) == ["1", "2"]
    net[1].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"no hidden layer.*0 \(frozen\), 1 \(frozen\)"):
        MHE(net, hidden=1.0, output=1.0)
    assert list(MHE(net, hidden=0, output=1.0).report()) == ["2"]


class Quantized(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)
        del self.weight
        self.register_buffer("weight", torch.ones(4, 3, dtype=torch.int8))


@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: nn.LazyLinear(4), "0 is lazy"),
        (Quantized, "0 holds torch.int8"),
        (lambda: nn.Linear(3, 4).requires_grad_(False), "no hidden layer"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", [MHE, MinimumAngle])
def test_unfit_weights_are_refused(layer, message, kind):
    net = nn.Sequential(layer(), nn.Linear(4, 2))
    with pytest.raises(InputError, match=message):
        kind(net, hidden=1.0, output=1.0)


class FullyShardedDataParallel(nn.Sequential):
    """A stand-in with the name of torch's wrapper, which needs several processes."""


def test_a_sharded_model_is_refused():
    with pytest.raises(InputError, match=r"the model is sharded \(FSDP\).*Use DDP"):
        MHE(nn.Sequential(FullyShardedDataParallel(nn.Linear(3, 4)), nn.Linear(4, 2)), hidden=1.0, output=1.0)


def test_weights_that_are_not_finite_are_refused_unless_left_out():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].weight.data[1, 2] = float("nan")
    with pytest.raises(InputError, match="0 has NaN"):
        MHE(net, hidden=1.0, output=1.0)
    assert list(MHE(net, hidden=0, output=1.0, exclude="0").report()) == ["1"]
