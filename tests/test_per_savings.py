"""PER for less: every n-th pass, a random part of the vectors, and activations in groups that fit the cache."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_per_term import LAYERS, gradients, images, net, step, traces

from hyperzoo.errors import InputError
from hyperzoo.layers import precision
from hyperzoo.regularizers import PER, exact_error, projections
from hyperzoo.training.recipe_methods import PERSettings


def of_term(model, term, x):
    """The value of a term, and its gradients."""
    with term:
        model(x)
        value = term()
    model.zero_grad()
    if value.requires_grad:
        value.backward()
    return value.item(), [p.grad for p in model.parameters()]


def test_every_third_pass_has_three_times_the_gradient_and_no_hook_otherwise():
    model, x = net(), images()
    value, wanted = of_term(model, PER(model, strength=0.5, layers=LAYERS), x)
    term, plain = PER(model, strength=0.5, layers=LAYERS, every=3), traces(model)
    reports = []
    for number in range(7):
        with term:
            assert (traces(model) == plain) == (number % 3 > 0)
        if number == 4:  # evaluation is no pass
            model.eval()
            assert of_term(model, term, x)[0] == 0
            model.train()
        term._passes -= 1  # the pass above
        got, found = of_term(model, term, x)
        reports.append(term.report())
        assert got == pytest.approx(0 if number % 3 else 3 * value, rel=1e-6)
        for a, b in zip(found, wanted, strict=True):
            if a is None or number % 3:
                assert a is None
            else:
                torch.testing.assert_close(a, 3 * b)
    assert reports[2] == reports[0] and reports[0]  # the last one that acted
    term.seed(0)
    assert of_term(model, term, x)[0] > 0  # counts from the seed: an epoch always starts in the same way
    assert of_term(model.double(), term, x.double())[0] == 0


def test_drawn_vectors_stand_for_all():
    draws = torch.Generator().manual_seed(0)
    for count, share in ((1, 0.1), (7, 0.5), (10, 0.3), (64, 0.125), (1000, 0.9), (5, 1.0)):
        numbers, sizes = projections.draw_rows(count, share, draws)
        assert len(numbers) == max(1, round(share * count)) and int(sizes.sum()) == count
        assert int(sizes.max() - sizes.min()) <= 1
        last = 0
        for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True):
            assert last <= number < last + size  # one of each group of neighbors, which is as probable as the others
            last += size


@pytest.mark.parametrize("shape, view", [((6, 5), "location"), ((3, 4, 5), "location"), ((4, 5, 2, 3), "location"),
                                         ((8, 2, 3), "flatten")])  # fmt: skip
@pytest.mark.parametrize("held", [1, 2**20])
def test_the_gradient_of_drawn_vectors_is_that_of_loops(shape, view, held, monkeypatch):
    monkeypatch.setitem(projections._HELD, "cpu", held)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    vectors, axis = projections.as_vectors(x, view)
    theta = projections.draw_directions(vectors, axis, 7, torch.Generator().manual_seed(2))
    count = vectors.numel() // vectors.shape[axis]
    rows = projections.draw_rows(count, 0.4, torch.Generator().manual_seed(3))
    errors = torch.rand(vectors.movedim(axis, -1).shape[:-1], dtype=torch.float64)
    value = projections.SampledError.apply(vectors, axis, theta, errors, rows)
    assert torch.equal(value, errors)  # the value stays that of all vectors
    incoming = torch.rand_like(errors)
    (found,) = torch.autograd.grad(value, x, incoming)
    flat = vectors.detach().movedim(axis, -1).reshape(count, -1)
    wanted = torch.zeros_like(flat)
    for number, size in rows.T.tolist():
        for k in range(7):
            t = flat[number] @ theta[:, k]
            wanted[number] += incoming.flatten()[number] * size * torch.erf(t / 2**0.5) * theta[:, k] / 7
    found = projections.as_vectors(found, view)[0].movedim(axis, -1).reshape(count, -1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_all_choices_of_vectors_average_to_the_gradient_of_all(monkeypatch):
    model, x = net(), images()
    whole = PER(model, strength=1.0, layers="1", slices=4, seed=5)
    value, wanted = of_term(model, whole, x)
    part, sums = PER(model, strength=1.0, layers="1", slices=4, rows=0.25, seed=5), 0.0
    for choice in range(4):
        monkeypatch.setattr(
            "hyperzoo.regularizers.per.draw_rows",
            lambda count, share, _, choice=choice: torch.stack(
                [torch.arange(choice, count, 4), torch.full((count // 4,), 4)]
            ),
        )
        part.seed(5)
        got, found = of_term(model, part, x)
        assert got == value
        sums = sums + torch.cat([g.flatten() for g in found if g is not None])
    torch.testing.assert_close(sums / 4, torch.cat([g.flatten() for g in wanted if g is not None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_groups_of_samples_change_no_bit(dtype, memory, monkeypatch):
    x = torch.randn(7, 5, 4, 3).to(dtype).contiguous(memory_format=memory).requires_grad_()
    onto, found = torch.randn_like(x), []
    for held in (1, 150, 2**20):  # one sample at a time, two, all
        monkeypatch.setattr(precision, "_HELD", held)
        alias, squares, total = exact_error.SquaredNorm.apply(x, (1,))
        (grad,) = torch.autograd.grad([alias, squares], x, [onto, torch.full_like(squares, 0.3)])
        found.append((squares, total, grad))
    for other in found[:-1]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[-1], strict=True))
    wide = x.detach().double()
    torch.testing.assert_close(found[0][0].double(), wide.square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0][1].double(), wide.sum((1, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 16])
def test_the_chebyshev_sum_is_numpys(terms):
    coefficients = np.random.default_rng(0).standard_normal(terms)
    t = np.linspace(-1, 1, 33)
    found = exact_error._chebyshev(tuple(coefficients.tolist()), torch.from_numpy(t))
    np.testing.assert_allclose(found, np.polynomial.chebyshev.chebval(t, coefficients), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(every=0), "every, .* got 0"),
        (dict(every=1.5), "got 1.5"),
        (dict(slices=4, rows=0.0), "rows, .* above 0 and of at most 1; got 0.0"),
        (dict(slices=4, rows=1.5), "rows, .* above 0 and of at most 1; got 1.5"),
        (dict(rows=0.5), "rows=0.5 needs slices; .* leave rows out"),
    ],
)
def test_bad_savings_are_refused_in_code_and_in_recipes(arguments, message):
    model = net()
    with pytest.raises(InputError, match=message):
        PER(model, strength=1.0, layers=LAYERS, **arguments)
    with pytest.raises(ValidationError):
        PERSettings(strength=1.0, **{"slices": None, **arguments})


def test_the_words_of_a_recipe_reach_the_term():
    block = PERSettings(strength=1.0, layers="type:ReLU", slices=8, every=2, rows=0.5)
    model, x = net(), images()
    term = PER(model, **block.model_dump())
    assert gradients(model, step(model, term, x)) and term.every == 2 and term.rows == 0.5
