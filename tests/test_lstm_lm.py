"""Every language model keeps timm's contract and computes the logits of a slow loop over the words."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import nn

import hyperzoo
from hyperzoo.errors import InputError, UnknownTagError
from hyperzoo.layers import BatchNormLSTM
from hyperzoo.models.lstm_lm import LSTMLanguageModel
from hyperzoo.regularizers import neurons
from hyperzoo.zoo.model_folder import save_model
from hyperzoo.zoo.weight_files import MANIFEST

ARCHS = hyperzoo.list_models("text-generation")
BN = "lstm200, batch_norm=True"  # an argument, not a name
NETS = [*ARCHS, BN]
WORDS = 30
COUNTS = {"ptb": 10_000, "wt2": 33_278}
SHEET = {  # section 3.3 of the fact sheet of PER: (network, text) -> parameters
    ("lstm650_untied", "ptb"): 19_780_400,
    ("lstm650", "ptb"): 13_280_400,
    ("lstm650_untied", "wt2"): 50_065_078,
    ("lstm650", "wt2"): 28_434_378,
}


def make(arch, **args):
    torch.manual_seed(0)
    return create(arch, **{"num_classes": WORDS, "width": 8, **args}).eval()


def create(net, **args):
    return timm.create_model(net.partition(",")[0], **(dict(batch_norm=True) if net == BN else {}), **args)


def words(batch=2, length=5, low=0):
    return torch.randint(low, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


def test_every_registered_model_is_tested_as_image_or_language_model():
    assert sorted(ARCHS + hyperzoo.list_models("image-classification")) == sorted(hyperzoo.list_models())
    assert ARCHS == ["lstm200", "lstm200_untied", "lstm650", "lstm650_untied"]


@pytest.mark.parametrize(("arch", "text"), SHEET)
def test_parameter_counts_of_the_paper(arch, text):
    model = timm.create_model(arch, num_classes=COUNTS[text], device="meta")
    assert sum(p.numel() for p in model.parameters()) == SHEET[arch, text]


@pytest.mark.parametrize("arch", NETS)
def test_parameter_counts_from_the_definition(arch):
    model = create(arch, device="meta")
    width = int(re.search(r"\d+", arch)[0])
    embedding = 10_000 * width * (2 if arch.endswith("_untied") else 1)
    layer = 8 * width**2 + (4 * width + 8 * width + 2 * width if arch == BN else 8 * width)
    assert sum(p.numel() for p in model.parameters()) == embedding + 2 * layer + 10_000
    assert [type(layer) for layer in model.layers] == [BatchNormLSTM if arch == BN else nn.LSTM] * 2
    state = model.state_dict()
    assert not {part for name in state for part in name.split(".")} & {"module", "model", "state_dict", "_orig_mod"}
    assert (model.num_classes, model.num_features, model.head_hidden_size, model.in_chans) == (10_000, width, width, 1)
    cfg = timm.get_pretrained_cfg(arch.partition(",")[0])
    assert cfg.num_classes == 10_000 and cfg.input_size == (1, 1, 35) and cfg.license and cfg.classifier is None


def slow_logits(model, tokens):
    """The definition, word by word, for one sequence."""
    state = model.state_dict()
    layers = range(len(model.layers))
    hidden = [torch.zeros(model.num_features, dtype=torch.float64) for _ in layers]
    cell = [torch.zeros(model.num_features, dtype=torch.float64) for _ in layers]
    rows = []
    for token in tokens.tolist():
        x = state["embedding.weight"][token]
        for n in layers:
            w = {key: state[f"layers.{n}.{key}_l0"] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            gates = w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ hidden[n] + w["bias_hh"]
            i, f, g, o = gates.view(4, -1)
            cell[n] = f.sigmoid() * cell[n] + i.sigmoid() * g.tanh()
            x = hidden[n] = o.sigmoid() * cell[n].tanh()
        rows.append(state.get("decoder.weight", state["embedding.weight"]) @ x + state["decoder_bias"])
    return torch.stack(rows), hidden, cell


@pytest.mark.parametrize("arch", ["lstm200", "lstm200_untied"])
def test_logits_and_state_equal_a_slow_loop(arch):
    model = make(arch, dtype=torch.float64)
    nn.init.normal_(model.decoder_bias)
    tokens = words()
    logits, state = model.run(tokens)
    for row in range(2):
        expected, hidden, cell = slow_logits(model, tokens[row])
        torch.testing.assert_close(logits[row], expected, rtol=1e-10, atol=1e-12)
        for n in range(2):
            torch.testing.assert_close(state[n][0][row], hidden[n], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(state[n][1][row], cell[n], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("arch", NETS)
def test_forward_features_head_and_a_continued_text(arch):
    model = make(arch)
    tokens = words(3, 7)
    logits = model(tokens)
    assert logits.shape == (3, 7, WORDS) and logits.dtype == torch.float32
    features = model.forward_features(tokens)
    assert features.shape == (3, 7, 8) and torch.equal(model.forward_head(features, pre_logits=True), features)
    torch.testing.assert_close(model.forward_head(features), logits)
    if arch != BN:  # whose statistics belong to the steps of a piece
        first, state = model.run(tokens[:, :4])
        assert [tuple(part.shape) for pair in state for part in pair] == [(3, 8)] * 4
        second, _ = model.run(tokens[:, 4:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), logits)
    assert torch.equal(model.run(tokens)[0], logits)
    assert model(words(0)).shape == (0, 5, WORDS) and model(words(1, 1)).shape == (1, 1, WORDS)


@pytest.mark.parametrize("arch", NETS)
def test_every_parameter_learns_and_groups_cover_them(arch):
    model = make(arch).train()
    F.cross_entropy(model(words(4)).flatten(0, 1), words(4).flatten()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    groups = group_parameters(model, model.group_matcher())
    names = sorted(name for members in groups.values() for name in members)
    assert names == sorted(name for name, _ in model.named_parameters())


def test_tied_networks_store_one_matrix_under_one_name():
    model, untied = make("lstm200"), make("lstm200_untied")
    assert model.get_classifier() is model.embedding and untied.get_classifier() is untied.decoder
    for net, count in ((model, 1), (untied, 2)):
        state = net.state_dict()
        assert len({value.data_ptr() for value in state.values()}) == len(state)
        assert sum(value.shape == (WORDS, 8) for value in state.values()) == count
    assert float(model.embedding.weight.abs().max()) <= 0.1


def test_dropout_acts_on_embedding_layers_and_softmax_and_in_training_only():
    model = make("lstm200", drop_rate=0.4)
    assert torch.equal(model(words()), model(words())) and model.drop_rate == 0.4
    model.train()
    ones = torch.ones(50, 40, 8)
    assert sorted(model._drop(ones).unique().tolist()) == pytest.approx([0.0, 1 / 0.6])
    assert float((model._drop(ones) == 0).float().mean()) == pytest.approx(0.4, abs=0.02)  # sd 0.004
    inputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    features = model.forward_features(words(4, 30))
    assert all((x == 0).any() for x in (*inputs, features)) and len(inputs) == 2


def test_variational_dropout_has_one_mask_per_sequence():
    model = make("lstm200", dropout="variational", drop_rate=0.5).train()
    dropped = model._drop(torch.ones(200, 6, 8))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped)) and set(dropped.unique().tolist()) == {0.0, 2.0}
    assert len({tuple(row.tolist()) for row in dropped[:, 0]}) > 100
    model.eval()
    assert torch.equal(model(words()), make("lstm200")(words()))


@pytest.mark.parametrize("arch", ARCHS)
def test_wrong_input_gets_an_error_about_token_ids(arch):
    model = make(arch)
    for bad in (torch.zeros(2, 3, 32, 32), torch.zeros(2, 5), torch.zeros(5, dtype=torch.int64)):
        shape = re.escape(str(tuple(bad.shape)))
        expected = rf"{arch} expects token ids, an integer tensor \(batch, time\); got {bad.dtype} {shape}"
        with pytest.raises(InputError, match=expected):
            model(bad)
    for low, high in ((-1, 2), (0, WORDS)):
        with pytest.raises(InputError, match=rf"token ids of {arch} are 0 to {WORDS - 1}; got {low} to {high}"):
            model(torch.tensor([[low, high]]))
    with pytest.raises(InputError, match="at least one token"):
        model(words(2, 0))


@pytest.mark.parametrize("arch", ARCHS)
def test_features_of_image_models_are_refused(arch):
    with pytest.raises(InputError, match=r"no feature maps; use forward_features\(tokens\)"):
        make(arch, features_only=True)
    name = MANIFEST.default(arch) if MANIFEST.names(arch) else arch
    with pytest.raises(
        InputError, match=f"{name} has a fixed vocabulary of 10000 words; num_classes=5 needs pretrained"
    ):
        timm.create_model(arch, pretrained=True, num_classes=5)
    with pytest.raises(UnknownTagError, match=f"{arch} has no published weight|{arch}"):
        timm.create_model(f"{arch}.no_such", pretrained=True)
    model = make(arch, in_chans=3, global_pool="avg", img_size=32)  # dropped
    with pytest.raises(InputError, match=f"{arch} has a fixed vocabulary of {WORDS} words"):
        model.reset_classifier(5)
    with pytest.raises(InputError, match="gradient checkpointing"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)


@pytest.mark.parametrize(
    "args", [dict(width=0), dict(depth=0), dict(num_classes=0), dict(drop_rate=1.0), dict(dropout="variable")], ids=str
)
def test_arguments_out_of_range(args):
    with pytest.raises(InputError, match="must be"):
        LSTMLanguageModel(**args)


@pytest.mark.parametrize("arch", ["lstm200", "lstm200_untied", BN])
def test_an_exported_folder_loads_through_timm_with_equal_logits(arch, tmp_path):
    args = {"width": 8, "drop_rate": 0.3} | ({"batch_norm": True} if arch == BN else {})
    model = timm.create_model(arch.partition(",")[0], num_classes=WORDS, **args).eval()
    save_model(model, tmp_path, classes=tuple(map(str, range(WORDS))), args=args)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(words()), model(words())) and again.drop_rate == 0.3
    with pytest.raises(InputError, match=f"fixed vocabulary of {WORDS} words"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)


# recurrent batch norm


def slow_norm(rows, weight, bias, eps=1e-5):
    """Batch norm of (B, N) by its definition."""
    out = torch.empty_like(rows)
    for unit in range(rows.shape[1]):
        column = rows[:, unit]
        spread = ((column - column.mean()) ** 2).mean()
        out[:, unit] = (column - column.mean()) / (spread + eps).sqrt() * weight[unit] + bias[unit]
    return out


def test_recurrent_batch_norm_is_its_formula_step_by_step():
    torch.manual_seed(0)
    layer = BatchNormLSTM(3, 4, steps=5, dtype=torch.float64)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x, hidden, cell = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 5, 3), (6, 4), (6, 4)))
    output, (last, last_cell) = layer(x, (hidden[None], cell[None]))
    nothing = torch.zeros(16, dtype=torch.float64)
    for t in range(5):
        gates = layer.bias + slow_norm(hidden @ layer.weight_hh.T, layer.norm_hh.weight, nothing)
        gates = gates + slow_norm(x[:, t] @ layer.weight_ih.T, layer.norm_ih.weight, nothing)
        i, f, g, o = gates.split(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        normed = slow_norm(cell, layer.norm_cell.weight, layer.norm_cell.bias)
        hidden = torch.sigmoid(o) * torch.tanh(normed)
        torch.testing.assert_close(output[:, t], hidden, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.norm_cell.mean[t], 0.1 * cell.mean(0), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.norm_cell.variance[t], 0.9 + 0.1 * cell.var(0), rtol=1e-10, atol=1e-12)
    assert torch.equal(last[0], output[:, -1]) and last_cell.shape == (1, 6, 4)


def test_evaluation_uses_the_statistics_of_each_step_and_then_those_of_the_last():
    torch.manual_seed(0)
    layer = BatchNormLSTM(3, 4, steps=2)
    for _ in range(3):
        layer(torch.randn(8, 2, 3) + 1)
    layer.eval()
    x, kept = torch.randn(1, 4, 3), {key: value.clone() for key, value in layer.state_dict().items()}
    output, _ = layer(x)
    assert all(torch.equal(value, kept[key]) for key, value in layer.state_dict().items())
    layer.norm_ih.mean[0] += 1
    assert not torch.equal(layer(x)[0][:, 0], output[:, 0])
    layer.load_state_dict(kept)
    layer.norm_ih.mean[1] += 1
    changed = layer(x)[0]
    assert torch.equal(changed[:, 0], output[:, 0]) and not (changed[:, 1:] == output[:, 1:]).all(2).any()


def test_recurrent_batch_norm_refuses_a_single_sequence():
    layer = BatchNormLSTM(3, 4)
    with pytest.raises(InputError, match="at least 2 sequences; got 1"):
        layer(torch.zeros(1, 2, 3))
    assert all(
        set(norm.weight.tolist()) == {layer.norm_ih.weight[0].item()} for norm in (layer.norm_hh, layer.norm_cell)
    )
    assert layer.norm_ih.weight[0].item() == pytest.approx(0.1)  # section 4 of its paper
    with pytest.raises(InputError, match="steps must be a whole number of at least 1; got 0"):
        BatchNormLSTM(3, 4, steps=0)


def test_a_classifier_of_angles_is_used():
    tokens = torch.tensor([[1, 2, 3]])
    torch.manual_seed(0)
    model = timm.create_model("lstm200_untied", num_classes=20, head_operator="linear").eval()
    hidden = model.forward_features(tokens)
    torch.testing.assert_close(model(tokens), model.get_classifier()(hidden) + model.decoder_bias)


def test_an_lstm_with_batch_norm_has_neurons_and_needs_a_step():
    model = timm.create_model("lstm200_untied", num_classes=20, batch_norm=True)
    names = {layer.name for layer in neurons.select(model).hidden}
    assert {"layers.0.weight_ih.i", "layers.1.weight_hh.o"} <= names
    with pytest.raises(InputError, match="at least one step"):
        model.layers[0](torch.zeros(2, 0, 200))
