"""The learning rate depends on the number of updates alone; weight decay spares biases and norms."""

import json
import math

import pytest
import torch
from support.tiny import network

from hyperzoo.errors import InputError
from hyperzoo.training import checkpoint
from hyperzoo.training.recipe import Optim
from hyperzoo.training.schedule import Schedule, make_optimizer
from hyperzoo.training.step import TrainStep


def rates(epochs=4, updates=5, **settings):
    optim = Optim(lr=0.4, **settings)
    optimizer = make_optimizer(TrainStep(network(), torch.nn.CrossEntropyLoss()), optim)
    schedule = Schedule(optimizer, optim, epochs=epochs, updates_per_epoch=updates)
    forward = [schedule.apply(i) for i in range(epochs * updates)]
    assert [schedule.apply(i) for i in reversed(range(epochs * updates))][::-1] == forward  # no state
    return forward


def test_cosine_with_warmup():
    # 5 updates up from 0, then half a cosine over the remaining 15
    expected = [0.4 * i / 5 for i in range(5)] + [0.2 * (1 + math.cos(math.pi * i / 15)) for i in range(15)]
    assert rates(warmup_epochs=1.0) == pytest.approx(expected, abs=1e-12)


def test_cosine_with_restarts():
    # 5 updates up from 0, then two half cosines of 10 updates, the second from 0.25 of the rate
    fall = [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    expected = [0.4 * i / 5 for i in range(5)] + [0.4 * f for f in fall] + [0.1 * f for f in fall]
    found = rates(epochs=5, warmup_epochs=1.0, cycles=2, cycle_decay=0.25)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[:15] == rates(epochs=3, warmup_epochs=1.0)  # a longer run begins like the shorter one


def test_multistep_counts_epochs_from_the_start_of_the_run():
    # timm's rule: the rate of an update falls when the update after it reaches the milestone, 10 and 15 here
    expected = [0.4] * 9 + [0.04] * 5 + [0.004] * 6
    assert rates(schedule="multistep", milestones=[2.0, 3.0]) == pytest.approx(expected, abs=1e-12)


def test_linear_decay_and_constant():
    assert rates(schedule="poly") == pytest.approx([0.4 * (1 - i / 20) for i in range(20)], abs=1e-12)
    assert rates(schedule="constant") == [0.4] * 20


def test_groups():
    step = TrainStep(network(), torch.nn.CrossEntropyLoss())
    optimizer = make_optimizer(step, Optim(lr=0.1, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in step.named_parameters()} == {
        name: 0.01 if p.dim() > 1 else 0.0 for name, p in step.named_parameters()
    }
    assert (
        optimizer.defaults["nesterov"]
        and not make_optimizer(step, Optim(lr=0.1, optimizer="momentum")).defaults["nesterov"]
    )
    assert make_optimizer(step, Optim(lr=0.1, optimizer="adamw", betas=[0.8, 0.9])).defaults["betas"] == (0.8, 0.9)


def test_patterns_choose_what_decays_and_scale_the_rate():
    step = TrainStep(network(), torch.nn.CrossEntropyLoss())
    assert [
        name for name, _ in step.model.named_parameters()
    ] == "0.weight 0.bias 1.weight 1.bias 6.weight 6.bias".split()
    optim = Optim(lr=0.4, weight_decay=0.5, decay=["1.*", "6.weight"], lr_scale={"6.bias": 0.5, "*.bias": 0.1})
    optimizer = make_optimizer(step, optim)
    schedule = Schedule(optimizer, optim, epochs=2, updates_per_epoch=5)
    for update, rate in ((0, 0.4), (5, 0.2)):
        assert schedule.apply(update) == pytest.approx(rate)
        found = {id(p): (g["lr"] / rate, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
        got = {name: found[id(p)] for name, p in step.model.named_parameters()}
        assert got == {
            "0.weight": (pytest.approx(1.0), 0.0),
            "0.bias": (pytest.approx(0.1), 0.0),
            "1.weight": (pytest.approx(1.0), 0.5),
            "1.bias": (pytest.approx(0.1), 0.5),
            "6.weight": (pytest.approx(1.0), 0.5),
            "6.bias": (pytest.approx(0.5), 0.0),
        }
    for wrong in ({"decay": ["7.*"]}, {"lr_scale": {"7.*": 2.0}}):
        with pytest.raises(
            InputError, match=r"pattern '7\.\*' of optim matches no parameter. Parameters: 0.weight, 0.bias"
        ):
            make_optimizer(step, Optim(lr=0.1, **wrong))


def test_a_model_may_spare_parameters():
    model = network()
    model.no_weight_decay = lambda: {"6.weight"}
    optimizer = make_optimizer(TrainStep(model, torch.nn.CrossEntropyLoss()), Optim(lr=0.1, weight_decay=0.01))
    assert [p is model[0].weight for g in optimizer.param_groups for p in g["params"] if g["weight_decay"]] == [True]


def test_further_arguments_reach_timms_optimizer():
    step = TrainStep(network(), torch.nn.CrossEntropyLoss())
    optimizer = make_optimizer(step, Optim(lr=0.1, optimizer="muon", args=dict(adjust_lr_fn="original", ns_steps=3)))
    assert {(group["adjust_lr_fn"], group["ns_steps"]) for group in optimizer.param_groups} == {("original", 3)}
    with pytest.raises(InputError, match="muon refuses.*ns_stepz"):
        make_optimizer(step, Optim(lr=0.1, optimizer="muon", args=dict(ns_stepz=3)))


@pytest.mark.parametrize("optimizer", ["muon", "lookahead_muon", "lookahead_sgd"])
def test_resuming_between_two_slow_steps_changes_nothing(optimizer):
    def started():
        torch.manual_seed(0)
        step = TrainStep(network(), torch.nn.CrossEntropyLoss())
        return step, make_optimizer(step, Optim(lr=0.05, optimizer=optimizer, momentum=0.6))

    def train(step, optimizer, first, last):
        for number in range(first, last):
            torch.manual_seed(number)  # of the images and of dropout
            optimizer.zero_grad()
            step(torch.randn(4, 3, 8, 8), torch.arange(4) % 2).loss.backward()
            optimizer.step()

    step, through = started()
    train(step, through, 0, 4)
    tensors, rest = checkpoint.pack_optimizer(through)
    rest, weights = json.loads(json.dumps(rest)), {key: value.clone() for key, value in step.state_dict().items()}
    tensors = {key: value.clone() for key, value in tensors.items()}
    train(step, through, 4, 10)  # Lookahead moves after 6
    again, resumed = started()
    again.load_state_dict(weights)
    checkpoint.unpack_optimizer(resumed, tensors, rest)
    train(again, resumed, 4, 10)
    assert all(torch.equal(value, step.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_warmup_of_one_update_would_waste_it_and_is_left_out():
    for updates, warmup in ((1, 1.0), (1, 0.5), (5, 0.2)):
        assert rates(updates=updates, warmup_epochs=warmup) == rates(updates=updates)
    assert rates(updates=2, warmup_epochs=1.0)[:3] == [0.0, 0.2, 0.4]  # as in the recipes of the published weights
