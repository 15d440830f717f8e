"""Attacks agree with foolbox step by step, stay within epsilon, and do not change the model."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperzoo.analysis.attacks import fgsm, pgd
from hyperzoo.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports a deprecated module of scipy
    import eagerpy
    import foolbox

MEAN, STD = (0.4, 0.5), (0.2, 0.3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, 4)]
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def network(model):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (MEAN, STD))
    return lambda pixels: model((pixels - mean) / std)


def batch(rows=8):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(rows, 2, 6, 6, generator=generator, dtype=torch.float64)
    pixels[0], pixels[1] = 0, 1
    return pixels, torch.arange(rows) % 4


def foolbox_attack(model, attack, epsilon):
    pixels, labels = batch()
    wrapped = foolbox.PyTorchModel(
        model, bounds=(0, 1), device="cpu", preprocessing=dict(mean=list(MEAN), std=list(STD), axis=-3)
    )
    return attack.run(wrapped, pixels, foolbox.criteria.Misclassification(labels), epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [4 / 255, 8 / 255, 0.3])
def test_fgsm_agrees_with_foolbox(model, network, epsilon):
    expected = foolbox_attack(model, foolbox.attacks.FGSM(), epsilon)
    torch.testing.assert_close(fgsm(network, *batch(), epsilon=epsilon), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("epsilon", "step", "steps"), [(8 / 255, 2 / 255, 20), (0.3, 0.2, 3)])
def test_pgd_agrees_with_foolbox_with_and_without_a_random_start(model, network, epsilon, step, steps):
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=False)
    got = pgd(network, *batch(), epsilon=epsilon, step=step, steps=steps)
    torch.testing.assert_close(got, foolbox_attack(model, attack, epsilon), rtol=0, atol=1e-12)

    def start(x, size):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return x + eagerpy.astensor(size * (2 * noise - 1))

    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=True)
    attack.get_random_start = start
    moved = pgd(network, *batch(), epsilon=epsilon, step=step, steps=steps, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(moved, foolbox_attack(model, attack, epsilon), rtol=0, atol=1e-12)
    assert not torch.equal(moved, got)


def test_pixels_stay_within_epsilon_and_the_loss_grows(network):
    pixels, labels = batch()
    before = pixels.clone()
    for epsilon in (0.0, 0.01, 2.0):
        changed = pgd(
            network, pixels, labels, epsilon=epsilon, step=0.004, steps=5, generator=torch.Generator().manual_seed(0)
        )
        assert (changed - pixels).abs().max() <= epsilon + 1e-12
        assert changed.min() >= 0 and changed.max() <= 1 and not changed.requires_grad
        if epsilon == 0.01:
            assert F.cross_entropy(network(changed), labels) > F.cross_entropy(network(pixels), labels)
    assert torch.equal(pixels, before)


def test_the_model_is_not_changed(model, network):
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    model[0].weight.requires_grad_(False)
    with torch.no_grad():  # as in an evaluation
        expected = fgsm(network, *batch(), epsilon=0.1)
        for p in model.parameters():
            p.requires_grad_(False)
        assert torch.equal(fgsm(network, *batch(), epsilon=0.1), expected)
    assert all(bool((p.grad == 3).all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("pixels", "sizes", "message"),
    [
        (batch()[0] * 255, dict(epsilon=0.1, step=0.1, steps=1), r"pixels must lie in \[0, 1\]"),
        (batch()[0] - 0.1, dict(epsilon=0.1, step=0.1, steps=1), r"pixels must lie in \[0, 1\]"),
        (batch()[0] * torch.nan, dict(epsilon=0.1, step=0.1, steps=1), r"pixels must lie in \[0, 1\]"),
        (batch()[0], dict(epsilon=-0.1, step=0.1, steps=1), "got -0.1, 0.1 and 1"),
        (batch()[0], dict(epsilon=0.1, step=float("nan"), steps=1), "got 0.1, nan and 1"),
        (batch()[0], dict(epsilon=0.1, step=0.1, steps=0), "0.1 and 0"),
    ],
)
def test_bad_input_is_refused(network, pixels, sizes, message):
    with pytest.raises(InputError, match=message):
        pgd(network, pixels, batch()[1], **sizes)


def test_a_gradient_that_is_not_finite_is_refused(model, network):
    model[3].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        fgsm(network, *batch(), epsilon=0.1)
