"""A training step adds terms to the loss, mixes, passes features to a criterion, and leaves no hook on the model."""

import json

import pytest
import timm
import torch
from support import tiny
from torch import nn

from hyperzoo.losses import AngularSoftmax, SoftTarget, replace_classifier
from hyperzoo.training import checkpoint
from hyperzoo.training.loop import Trainer
from hyperzoo.training.schedule import make_optimizer
from hyperzoo.training.step import TrainStep


class Noisy:
    """A term with a parameter and a generator: the mean square of the outputs times a random factor times scale."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.scale = model, nn.Parameter(torch.tensor(2.0))
        self.generator, self.seeds = torch.Generator(), []

    def seed(self, number):
        self.seeds.append(number)
        self.generator.manual_seed(number)

    def parameters(self):
        return [self.scale]

    def __enter__(self):
        def keep(module, inputs, output):
            self.output = output

        self.handle = self.model.register_forward_hook(keep)

    def __exit__(self, *_):
        self.handle.remove()

    def __call__(self):
        self.factor = torch.rand((), generator=self.generator)
        return self.output.square().mean() * self.factor * self.scale


class Halves:
    """Mixes every image with its mirror image in the batch, half and half."""

    open = False

    def __enter__(self):
        self.open = True

    def __exit__(self, *_):
        self.open = False

    def __call__(self, x, y):
        targets = nn.functional.one_hot(y, 10).float()
        return (x + x.flip(0)) / 2, (targets + targets.flip(0)) / 2


def batch(count=4):
    images = tiny.image_set(count)
    return images.images.float() / 255, images.labels


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_is_that_of_the_step_also_inside_another(precision, dtype, outside):
    x, y = batch()
    model, seen = tiny.network(dropout=0.0), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        loss = TrainStep(model, nn.CrossEntropyLoss(), precision=precision)(x, y).loss
    assert seen == [dtype] and loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert torch.equal(loss, nn.functional.cross_entropy(model(x).float(), y))


def test_the_loss_is_the_sum_of_its_terms():
    x, y = batch()
    model = tiny.network(dropout=0.0)
    term = Noisy(model)
    step = TrainStep(model, nn.CrossEntropyLoss(), {"noisy": term})
    step.begin_epoch(5)
    result = step(x, y)
    logits = model(x)
    task = -torch.stack([torch.log_softmax(row, 0)[label] for row, label in zip(logits, y, strict=True)]).mean()
    noisy = (logits**2).mean() * term.factor * 2
    assert result.terms.keys() == {"task", "noisy"}
    torch.testing.assert_close(result.loss, task + noisy)
    torch.testing.assert_close(result.terms["noisy"], noisy.detach())
    result.loss.backward()
    assert term.scale.grad is not None and not model._forward_hooks
    assert [name for name, _ in step.named_parameters() if "model" not in name] == ["owned.noisy.0"]


def test_mixed_answers_count_by_their_share():
    x, y = batch()
    model, mixing = tiny.network(dropout=0.0), Halves()
    result = TrainStep(model, SoftTarget(), mixing=mixing)(x, y)
    logits = model((x + x.flip(0)) / 2)
    losses, right = [], 0.0
    for i, row in enumerate(logits):
        pair = (int(y[i]), int(y[len(y) - 1 - i]))
        losses.append(-sum(torch.log_softmax(row, 0)[label] for label in pair) / 2)
        right += sum(int(row.argmax()) == label for label in pair) / 2
    torch.testing.assert_close(result.loss, torch.stack(losses).mean())
    assert float(result.correct) == right and not mixing.open


def test_nothing_stays_open_after_an_error():
    x, y = batch()
    model, mixing = tiny.network(), Halves()
    term = Noisy(model)
    with pytest.raises(RuntimeError):
        TrainStep(model, SoftTarget(), {"noisy": term}, mixing)(x[:, :2], y)
    assert not mixing.open and not model._forward_hooks


class Timms(nn.Sequential):
    def get_classifier(self):
        return self[-1]

    def forward_head(self, x):
        raise NotImplementedError


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.full)])
def test_an_angular_criterion_gets_the_features_and_the_class_rows(compiled):
    x, y = batch()
    torch._dynamo.reset()
    model = Timms(*tiny.network(dropout=0.0))
    criterion = AngularSoftmax("cosine", margin=1)
    classifier = replace_classifier(model, criterion)
    step = TrainStep(model, criterion, angular=True)
    if compiled:
        model.compile(dynamic=False)
    for _ in range(3):
        result = step(x, y)
    features = model[:-1](x)
    rows = classifier.weight / (classifier.weight.square().sum(1, keepdim=True) + 1e-4).sqrt()
    expected = nn.functional.cross_entropy(features @ rows.T, y)
    torch.testing.assert_close(result.loss, expected)
    result.loss.backward()
    assert model[0].weight.grad.abs().sum() > 0 and not classifier._forward_pre_hooks
    assert len({value.data_ptr() for value in step.state_dict().values()}) == len(step.state_dict())


class Weights:
    """A term that reads weights only, and counts how often it is asked."""

    once_per_update, calls = True, 0

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def __call__(self):
        self.calls += 1
        return 0.3 * self.model[0].weight.square().sum()

    def parameters(self):
        return []


def test_a_term_of_the_weights_is_evaluated_once_whatever_the_parts_of_a_batch(tmp_path):
    tensors, logs = [], []
    for accumulate in (1, 4):
        plan = tiny.recipe(2, accumulate=accumulate)
        torch.manual_seed(1)
        run = tiny.trainer(tmp_path / str(accumulate), plan, model=tiny.network(dropout=0.0))
        term = Weights(run.step.model)
        run.step = TrainStep(run.step.model, nn.CrossEntropyLoss(), {"weights": term})
        run.optimizer = make_optimizer(run.step, plan.optim)
        tensors.append({name: value.clone() for name, value in run.run().state_dict().items()})
        logs.append(run.rows)
        assert term.calls == 2 * 64 // 16  # updates
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, msg=name)  # sums in another order
    for one, four in zip(*logs, strict=True):
        for key in ("loss", "loss_task", "loss_weights"):
            assert four[key] == pytest.approx(one[key], rel=1e-5)
    assert logs[0][0]["loss_weights"] > 0.1


def trainer(folder, plan) -> tuple[Trainer, Noisy]:
    torch.manual_seed(1)
    run = tiny.trainer(folder, plan, model=tiny.network(dropout=0.0))
    term = Noisy(run.step.model)
    run.step = TrainStep(run.step.model, SoftTarget(), {"noisy": term}, Halves())
    run.optimizer = make_optimizer(run.step, plan.optim)
    return run, term


@pytest.mark.parametrize("accumulate", [1, 2])
def test_terms_are_trained_logged_saved_resumed_and_never_published(tmp_path, accumulate):
    plan = tiny.recipe(3, accumulate=accumulate)
    run, term = trainer(tmp_path / "straight", plan)
    published = run.run()
    assert term.scale.item() != 2.0 and not [name for name in published.state_dict() if "owned" in name]
    rows = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_task"] + row["loss_noisy"], rel=1e-5)
    assert len(set(term.seeds)) == 3

    first, _ = trainer(tmp_path / "resumed", plan)

    def stop(row):
        raise KeyboardInterrupt

    first.progress.epoch_done = stop
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second, again = trainer(tmp_path / "resumed", plan)
    resumed = second.run(checkpoint.newest(tmp_path / "resumed" / "checkpoints"))
    assert torch.equal(again.scale, term.scale) and again.seeds == term.seeds[1:]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, published.state_dict()[name]), name


def test_frozen_parameters_of_a_root_leave_its_layers_in_training():
    """A ViT owns its class token and positions: frozen, they say nothing about its blocks."""
    model = timm.create_model("test_vit", num_classes=3)
    for name in ("cls_token", "pos_embed"):
        getattr(model, name).requires_grad_(False)
    for parameter in model.blocks[0].norm1.parameters():
        parameter.requires_grad_(False)
    step = TrainStep(model, nn.CrossEntropyLoss()).train()
    assert model.training and not model.blocks[0].norm1.training
    assert model.blocks[0].training and model.blocks[0].attn.training and model.norm.training
    assert not step.eval().model.blocks[0].training
