"""Mixups at the edges: batches of another dtype than the model, empty images, alphas without samples, odd seeds."""

import pytest
import torch
from torch import nn

from hyperzoo.errors import InputError
from hyperzoo.mixup import CutMix, ManifoldMixup, Mixup
from hyperzoo.regularizers import MHE, PER


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


LABELS = torch.arange(6) % 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.fault("batch that no mixing fits")
def test_a_half_precision_batch_is_mixed_for_a_float32_model_under_autocast(dtype):
    """The batch is mixed before the `with` of autocast, where the model itself would refuse it."""
    model, x = net(), torch.randn(6, 4).to(dtype)
    mixing = ManifoldMixup(model, 3, layers=("1",))
    with mixing:
        x, targets = mixing(x, LABELS)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
    assert (x.dtype, targets.dtype, out.dtype) == (dtype, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [Mixup, CutMix])
@pytest.mark.fault("batch that no mixing fits")
def test_the_batch_keeps_its_dtype_and_targets_have_full_precision(kind, dtype):
    x, targets = kind(3)(torch.ones(6, 3, 4, 4, dtype=dtype), LABELS)
    assert (x.dtype, targets.dtype) == (dtype, torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool((x == 1).all())  # a combination of ones


@pytest.mark.parametrize("shape", [(6, 3, 0, 8), (6, 3, 8, 0), (6, 0, 8, 8), (0, 3, 8, 8)])
@pytest.mark.parametrize("kind", [Mixup, CutMix])
@pytest.mark.fault("batch that no mixing fits")
def test_images_without_pixels_are_refused(kind, shape):
    with pytest.raises(InputError, match="the batch is empty"):
        kind(3)(torch.zeros(shape), LABELS[: shape[0]])


@pytest.mark.parametrize("alpha", [1e-300, 5e-324, 1e-3, 1e308, float("inf"), float("nan"), -1.0, None])
@pytest.mark.parametrize("kind", [Mixup, CutMix])
@pytest.mark.fault("number out of range")
def test_an_alpha_that_cannot_be_sampled_is_refused(kind, alpha):
    """Python's sampler returns 0 for nearly all tiny alphas and never ends at 1e308; float32 makes 1e-300 a 0."""
    with pytest.raises(InputError, match="alpha must be"):
        kind(3, alpha=alpha)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 1e6])
def test_lambda_is_symmetric_at_the_limits_of_alpha(alpha):
    mixing = Mixup(3, alpha=alpha)
    mixing.seed(0)
    draws = torch.stack([mixing._draw(torch.zeros(2, 1), ("input",)).lam for _ in range(400)])
    spread = (1 / (8 * alpha + 4)) ** 0.5  # variance of Beta(a, a): 1 / (4 (2 a + 1))
    assert abs(draws.mean() - 0.5) < 4 * spread / 20
    assert abs(draws.std() - spread) < 0.15 * spread


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "a", None, True])
@pytest.mark.fault("number out of range")
def test_a_seed_that_no_generator_takes_is_refused(seed):
    model = net()
    for term in (Mixup(3), PER(model, strength=1.0, layers="1"), MHE(model, hidden=1.0, output=1.0)):
        before = getattr(term, "generator", getattr(term, "_generator", None)).get_state()
        with pytest.raises(InputError, match="seed must be a whole number"):
            term.seed(seed)
        assert torch.equal(getattr(term, "generator", getattr(term, "_generator", None)).get_state(), before)
    for kind in (
        lambda: PER(model, strength=1.0, layers="1", seed=seed),
        lambda: MHE(model, hidden=1, output=1, seed=seed),
    ):
        with pytest.raises(InputError, match="seed must be a whole number"):
            kind()


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seeds_of_generators_are_taken(seed):
    Mixup(3).seed(seed)


def test_cutmix_takes_a_whole_number_as_alpha():
    x, targets = CutMix(3, alpha=2)(torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 0]))
    assert x.shape == (4, 3, 5, 5) and torch.allclose(targets.sum(1), torch.ones(4))


def test_labels_on_another_device_are_not_read():
    """Reading a value makes the program wait for the device; of the meta device, it is an error."""
    x, y = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    mixed, targets = Mixup(3)(x, y)
    assert (mixed.shape, targets.shape, targets.device.type) == (x.shape, (4, 3), "meta")
