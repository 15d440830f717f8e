"""Mixup and CutMix mix images and labels by the formula with their own generator, and reject bad input."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.mixing import K, by_loop, close, draw, fixed, generator, oracle, tiny, traces
from torch.utils.data import DataLoader, default_collate

from hyperzoo.errors import InputError
from hyperzoo.mixup import CutMix, ManifoldMixup, Mixup
from hyperzoo.mixup.mix import mix


def test_rule_of_the_sheet():
    inputs, expected, tolerance = oracle("mix_rule_permutation")
    mixup = fixed(Mixup(inputs["num_classes"]), "input", inputs["lam"], inputs["perm"])
    x, targets = mixup(torch.tensor(inputs["x"], dtype=torch.float64), torch.tensor(inputs["labels"]))
    close(x, expected["x"], tolerance)
    close(targets, expected["targets"], tolerance)


def test_smoothing_comes_before_mixing():
    inputs, expected, tolerance = oracle("mix_timm_flip_smoothing")
    mixup = fixed(
        Mixup(inputs["num_classes"], smoothing=inputs["smoothing"]), "input", inputs["lam"], [3, 2, 1, 0]
    )  # timm's partner
    x, targets = mixup(torch.tensor(inputs["x"], dtype=torch.float64), torch.tensor(inputs["labels"]))
    close(x, expected["x"], tolerance)
    close(targets, expected["targets"], tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_multi_label_targets_are_mixed_as_they_are(dtype):
    inputs, expected, _ = oracle("mix_multilabel_targets")
    mixup = fixed(Mixup(3), "input", inputs["lam"], [1, 0])
    _, targets = mixup(torch.zeros(2, 4, dtype=torch.float64), torch.tensor(inputs["targets"]).to(dtype))
    assert targets.dtype == torch.float64
    close(targets, expected)


def test_lambda_of_zero_one_and_half_and_fixed_points_are_exact():
    inputs, expected, _ = oracle("mix_degenerate_lambda")
    x = torch.tensor(inputs["x"], dtype=torch.float64)
    for lam in inputs["lam"]:
        got = mix(x, draw("input", lam, inputs["perm_identity_check"]))
        assert got.tolist() == expected[f"lam{lam:g}_x"]
    mixup = fixed(Mixup(3), "input", 0.5, inputs["perm_identity_check"])
    assert mixup(x, torch.tensor(inputs["labels"]))[1].tolist() == expected["lam0.5_targets"]
    x = torch.randn(3, 1000, generator=generator()) * 1e3
    for lam in (0.3, 0.7, 1e-3):
        assert torch.equal(mix(x, draw("input", lam, [0, 2, 1]))[0], x[0])
    assert torch.equal(mix(x, draw("input", 1.0, [1, 2, 0])), x)
    assert torch.equal(mix(x, draw("input", 0.0, [1, 2, 0])), x[[1, 2, 0]])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-15), (torch.float32, 2e-7), (torch.bfloat16, 2e-2)])
def test_loop_dtype_memory_format_and_no_change_in_place(dtype, tolerance):
    d = draw("input", 0.3, [2, 4, 1, 0, 3], torch.float32)
    for like in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(5, 3, 6, 6, generator=generator()).to(dtype).contiguous(memory_format=like)
        before = x.clone()
        got = mix(x, d)
        assert got.dtype == dtype and got.is_contiguous(memory_format=like) and torch.equal(x, before)
        torch.testing.assert_close(got.double(), by_loop(x, d), rtol=0, atol=tolerance * 5)


def test_gradients_first_and_second():
    d = draw("input", 0.3, [2, 0, 1, 3])
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mix(x, d).sin(), x)
    assert torch.autograd.gradgradcheck(lambda x: mix(x, d).sin(), x)


def test_moments_of_lambda():
    inputs, expected, _ = oracle("mix_beta_moments")
    for i, alpha in enumerate(inputs["alpha"]):
        mixup = Mixup(2, alpha=alpha, generator=generator(i))
        lam = torch.stack([mixup._draw(torch.zeros(2, 1), ("input",)).lam for _ in range(3000)])
        assert abs(lam.mean() - expected["mean"][i]) < 0.025
        assert abs(lam.var() - expected["variance"][i]) < 0.01
        assert abs(lam.maximum(1 - lam).mean() - expected["E_max_lam_1_minus_lam"][i]) < 0.015


def test_partners_are_permutations_and_layers_are_uniform():
    mixup = Mixup(2, generator=generator())
    counts, partners = {"input": 0, "a": 0, "b": 0}, torch.zeros(5, 5)
    for _ in range(900):
        d = mixup._draw(torch.zeros(5, 1), tuple(counts))
        counts[d.layer] += 1
        partners[torch.arange(5), d.partner] += 1
        assert sorted(d.partner.tolist()) == [0, 1, 2, 3, 4] and d.inverse[d.partner].tolist() == [0, 1, 2, 3, 4]
    assert all(abs(count - 300) < 60 for count in counts.values())  # four standard deviations
    assert (partners - 180).abs().max() < 55


@pytest.mark.parametrize("kind", [Mixup, CutMix])
def test_draws_come_from_the_own_generator(kind):
    x, y = torch.randn(6, 3, 8, 8, generator=generator()), torch.arange(6) % K
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = kind(K), kind(K, generator=generator(3))
    results = [first(x, y), second(x, y)]
    assert torch.equal(torch.get_rng_state(), state)  # the order of the data is unchanged
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(first(x, y)[0], results[0][0])
    first.seed(3)
    assert torch.equal(first(x, y)[0], results[0][0])
    first.seed(4)  # another process, another epoch
    assert not torch.equal(first(x, y)[0], results[0][0])


def mixed_samples(mixup, samples):
    return mixup(*default_collate(samples))


def seed_five(mixup, _):
    mixup.seed(5)


def batches_of_two_epochs(kind, order, worker_init=None, **args):
    """Each epoch has four batches of the same four images, two from each worker."""
    images = torch.randn(4, 3, 16, 16, generator=generator())
    samples = [(image, i) for i, image in enumerate(images)] * 4
    mixup = kind(K, generator=generator(3))
    loader = DataLoader(
        samples,
        batch_size=4,
        num_workers=2,
        collate_fn=partial(mixed_samples, mixup),
        worker_init_fn=worker_init and partial(worker_init, mixup),
        generator=generator(order),
        **args,
    )
    return [x for _ in range(2) for x, _ in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core, by torch
@pytest.mark.parametrize("kind, args", [(Mixup, {}), (CutMix, {}), (Mixup, dict(persistent_workers=True))])
def test_workers_and_epochs_draw_differently_and_reproducibly(kind, args):
    batches = torch.stack(batches_of_two_epochs(kind, 0, **args))
    assert len(batches.flatten(1).unique(dim=0)) == 8
    assert torch.equal(torch.stack(batches_of_two_epochs(kind, 0, **args)), batches)
    assert not torch.equal(torch.stack(batches_of_two_epochs(kind, 1, **args)), batches)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_seed_given_in_a_worker_counts():
    """Both workers ask for seed 5 in both epochs, so only the two batches of a worker differ."""
    batches = torch.stack(batches_of_two_epochs(Mixup, 0, seed_five))
    assert len(batches.flatten(1).unique(dim=0)) == 2


def test_alpha_of_zero_mixes_nothing_and_one_row_is_its_own_partner():
    x, y = torch.randn(7, 3, 8, 8, generator=generator()), torch.arange(7) % K
    for mixup in (Mixup(K, alpha=0), CutMix(K, alpha=0)):
        got, targets = mixup(x, y)
        assert torch.equal(got, x) and torch.equal(targets, F.one_hot(y, K).float())
    for mixup in (Mixup(K), CutMix(K)):
        got, targets = mixup(x[:1], y[:1])
        assert torch.equal(got, x[:1])
        torch.testing.assert_close(targets, F.one_hot(y[:1], K).float())
        with mixup as same:
            assert same is mixup


def test_cutmix_labels_follow_the_area_that_was_pasted():
    y = torch.tensor([0, 1, 2, 3, 4])
    x = y.float()[:, None, None, None].expand(5, 1, 12, 10)
    mixup, shares = CutMix(K, generator=generator(1)), set()
    for _ in range(20):
        got, targets = mixup(x, y)
        for i in range(5):
            own = (got[i] == i).float().mean()
            assert set(got[i].unique().tolist()) <= {float(i), float((i - 1) % 5)}
            torch.testing.assert_close(targets[i], own * F.one_hot(y, K)[i] + (1 - own) * F.one_hot(y, K)[i - 1])
            shares.add(round(own.item(), 4))
    assert len(shares) > 5
    assert torch.allclose(CutMix(K, smoothing=0.1)(x, y)[1].sum(1), torch.ones(5))


@pytest.mark.parametrize(
    "args, message",
    [
        (dict(num_classes=1), "num_classes .* at least 2; got 1"),
        (dict(num_classes=2.0), "got 2.0"),
        (dict(num_classes=3, alpha=-0.1), "alpha must be a finite number of at least 0; got -0.1"),
        (dict(num_classes=3, alpha=float("nan")), "got nan"),
        (dict(num_classes=3, alpha="1"), "got '1'"),
        (dict(num_classes=3, smoothing=1.5), "smoothing must be .* got 1.5"),
    ],
)
@pytest.mark.parametrize("kind", [Mixup, CutMix, lambda **args: ManifoldMixup(tiny(), layers="layer1", **args)])
def test_wrong_arguments(kind, args, message):
    with pytest.raises(InputError, match=message):
        kind(**args)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 5]), "labels must be from 0 to 4; got 0 to 5"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([-1, 2]), "got -1 to 2"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0]), r"integers; got float32 \(2,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([True, False]), "integers; got bool"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64), "the batch is empty"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1, 2]), r"B = 2, as x; got int64 \(3,\)"),
        (torch.zeros(2, 3, 4, 4), torch.tensor(1), r"got int64 \(\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), r"targets must be \(B, 5\).* got float32 \(2, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), 1.5), "targets must be from 0 to 1; got 1.5"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), torch.nan), "got nan"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), r"floating-point .* uint8 \(2, 3, 4, 4\)"),
        (torch.zeros(2), torch.tensor([0, 1]), r"got float32 \(2,\)"),
    ],
)
def test_wrong_batches(x, y, message):
    model = tiny().train()
    before = traces(model)
    for mixup in (Mixup(K), CutMix(K), ManifoldMixup(model, K, layers="layer1")):
        with pytest.raises(InputError, match=message), mixup:
            mixup(x, y)
    assert traces(model) == before


def test_smoothing_of_shares_and_cutmix_of_rows():
    with pytest.raises(InputError, match="smoothing applies to class indices"):
        Mixup(K, smoothing=0.1)(torch.zeros(2, 3), torch.zeros(2, K))
    with pytest.raises(InputError, match=r"\(B, C, H, W\); got float32 \(2, 3\)"):
        CutMix(K)(torch.zeros(2, 3), torch.tensor([0, 1]))
