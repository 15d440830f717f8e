"""Activation statistics agree with a slow computation, for the selected layers, in evaluation mode."""

import json

import pytest
import timm
import torch
from scipy.stats import norm, wasserstein_distance
from support import texts
from torch import nn

from hyperzoo.analysis import activation_statistics
from hyperzoo.analysis.activation_statistics import layer_activations
from hyperzoo.analysis.figures import clouds
from hyperzoo.cli.main import _exit_code
from hyperzoo.errors import InputError, RunError, UnknownNameError
from hyperzoo.experiments import train
from hyperzoo.layers import hooks
from hyperzoo.regularizers import sliced_wasserstein
from hyperzoo.training.recipe import load_recipe


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 1, 3), nn.ELU(inplace=True)]
    return nn.Sequential(*layers).train()


def test_statistics_agree_with_a_slow_computation():
    model, images = network(), torch.randn(6, 3, 8, 8)
    rows = {row.name: row for row in layer_activations(model, images)}
    assert list(rows) == ["1", "4"] and model.training
    output = model[0](images).relu().detach()
    row, entries = rows["1"], sorted(output.flatten().tolist())
    mean = sum(entries) / len(entries)
    assert row.shape == (6, 4, 6, 6) and row.mean == pytest.approx(mean, abs=1e-6)
    assert row.variance == pytest.approx(sum((x - mean) ** 2 for x in entries) / len(entries), rel=1e-5)
    assert row.quantiles[2] == pytest.approx((entries[431] + entries[432]) / 2, abs=1e-6)
    last = model[4](model[3](output)).flatten().tolist()  # one channel has one direction, up to its sign
    gaussian = norm.ppf((torch.arange(20_000).double() + 0.5) / 20_000)
    assert rows["4"].distance == pytest.approx(wasserstein_distance(last, gaussian), abs=1e-3)  # error of the grid
    assert [len(r.shown()) for r in rows.values()] == [len(activation_statistics.COLUMNS)] * 2


def test_known_distributions_have_known_statistics():
    model = nn.Sequential(nn.Identity())
    (row,) = layer_activations(model, torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)), "0")
    assert row.mean == pytest.approx(0, abs=0.02) and row.variance == pytest.approx(1, abs=0.03)  # at least 4 sd
    assert row.distance < 0.03 and row.quantiles == pytest.approx((-1.645, -0.674, 0, 0.674, 1.645), abs=0.06)
    (zeros,) = layer_activations(model, torch.zeros(100, 8), "0")
    assert zeros.distance == pytest.approx(0.79788, abs=1e-4) and zeros.variance == 0


def test_a_large_layer_is_sampled_at_random_positions():
    stripes = torch.zeros(4, 1, 64, 64)  # 16,384 vectors; every fourth column of the image is 3
    stripes[..., ::4] = 3.0
    (row,) = layer_activations(nn.Sequential(nn.Identity()), stripes, "0")
    gaussian = norm.ppf((torch.arange(20_000).double() + 0.5) / 20_000)
    expected = wasserstein_distance([0.0] * 3 + [3.0], gaussian)
    assert row.distance == pytest.approx(expected, abs=0.06)  # sd of the share of threes is 0.007


def test_layers_of_a_language_model_and_of_timm():
    model = timm.create_model("lstm200", num_classes=20, width=8)
    rows = layer_activations(model, torch.randint(20, (3, 5)))
    assert [(row.name, row.shape) for row in rows] == [("layers.0", (3, 5, 8)), ("layers.1", (3, 5, 8))]
    vit = timm.create_model("test_vit")
    rows = layer_activations(vit, torch.randn(1, 3, 160, 160), "stages")
    assert len(rows) == len(vit.feature_info) and rows[0].shape[-1] == vit.embed_dim
    assert len(layer_activations(nn.Sequential(nn.Linear(3, 3)), torch.zeros(2, 3), ["0"])) == 1


def distance(vectors):
    return float(sliced_wasserstein(vectors, generator=torch.Generator().manual_seed(0)))


def test_the_axis_of_the_vectors():
    torch.manual_seed(0)
    steps = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU())
    x = torch.randn(2, 3, 7)
    (row,) = layer_activations(steps, x, axis=1)
    assert row.distance == pytest.approx(distance(steps(x).detach().movedim(1, -1).reshape(-1, 4)))
    (row,) = layer_activations(steps, x, "0")
    assert row.distance == pytest.approx(distance(steps[0](x).detach().movedim(1, -1).reshape(-1, 4)))
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, depths=(1, 1), num_heads=(1, 1), embed_dim=8
    ).eval()
    images, found = torch.randn(2, 3, 32, 32), []
    with pytest.raises(InputError, match="height, width, channels.*axis=-1"):
        layer_activations(swin, images, "layers.0")
    (row,) = layer_activations(swin, images, "layers.0", axis=-1)
    with hooks.attached({"": swin.layers[0]}, lambda name, output: found.append(output.detach())):
        swin(images)
    assert row.distance == pytest.approx(distance(found[0].reshape(-1, 8)))
    with pytest.raises(InputError, match="axis must be .* got 0"):
        layer_activations(steps, x, axis=0)


def test_invalid_requests_are_refused():
    with pytest.raises(UnknownNameError, match="no layer 'nowhere'"):
        layer_activations(network(), torch.zeros(1, 3, 8, 8), "nowhere")
    silent = network()
    silent.unused = nn.ReLU()
    silent.forward = lambda x: x
    with pytest.raises(InputError, match="called none of the selected layers"):
        layer_activations(silent, torch.zeros(1, 3, 8, 8), "unused")
    with pytest.raises(InputError, match="no layers to draw"):
        activation_statistics.draw([], "x.png", title="x")
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        activation_statistics.load_model_and_batch("resnet20_cifar", batch_size=0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERZOO_DATA", str(texts.mirror(tmp_path / "mirror")))
    (tmp_path / "small.yaml").write_text(texts.RECIPE)
    watched = ["method.per={strength: 0.0, layers: 'type:LSTM', slices: null}"]
    return train.run(load_recipe(tmp_path / "small.yaml", watched), tmp_path / "run").folder


def test_a_run_has_a_figure_of_its_last_state_and_of_its_training(run, tmp_path, capsys, monkeypatch):
    assert _exit_code(["activations", str(run), "--out", str(tmp_path / "a.png")]) == 0
    out, err = capsys.readouterr()
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header == list(activation_statistics.COLUMNS)
    assert [row[0] for row in rows] == ["layers.0", "layers.1"] and rows[0][1] == "20 x 2 x 8"
    batch, *pictures = err.splitlines()
    assert batch.startswith("measured on 20 columns of 2 words of ")
    assert pictures == [str(tmp_path / "a.png"), str(tmp_path / "a_training.png")]
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = []
    monkeypatch.setattr(activation_statistics.plots, "save", lambda figure, picture: drawn.append(figure) or picture)
    activation_statistics.draw_training({"x": run}, tmp_path / "b.png")
    curve = drawn[0].axes[1].lines[0].get_xydata().tolist()
    assert curve == [[row["epoch"], row["reports"]["per"]["layers.0/variance"]] for row in log]
    with pytest.raises(RunError, match="no reports of vcl"):
        activation_statistics.draw_training({"x": run}, tmp_path / "c.png", term="vcl")


def test_images_of_a_data_set_or_noise(data_mirror, tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.png"), "--batch-size", "8"]
    assert _exit_code(["activations", "resnet20_cifar", "--data", "c10", *out]) == 0
    assert "the first 8 images of" in capsys.readouterr().err
    assert _exit_code(["activations", "test_resnet.r160_in1k", "--layers", "stages", *out]) == 0
    assert "8 images of Gaussian noise" in capsys.readouterr().err


def test_clouds_are_equal_to_batch_norm_but_not_to_sliced_w1():
    found = clouds.clouds()
    for cloud in found.values():
        assert cloud.mean(0).abs().max() < 1e-12 and (cloud.var(0, correction=0) - 1).abs().max() < 1e-12
    correlation = {name: float((cloud[:, 0] * cloud[:, 1]).mean()) for name, cloud in found.items()}
    assert correlation.pop("correlated") == pytest.approx(0.9, abs=0.02)
    assert max(map(abs, correlation.values())) < 0.05
    distance = {name: float(clouds.along_directions(cloud).mean()) for name, cloud in found.items()}
    assert distance.pop("Gaussian") < 0.03 and min(distance.values()) > 0.08
    along = clouds.along_directions(found["two modes"])
    assert along[0] > 0.2 and along[30] < 0.03  # 0 and 90 degrees
