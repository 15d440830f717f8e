"""A run resumes bit for bit, makes no update on NaN, and stops cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.tiny import equal
from torch import nn

from hyperzoo.data import ImageBatches
from hyperzoo.errors import NonFiniteError
from hyperzoo.training import checkpoint
from hyperzoo.training.loop import Stopped

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw"}, {"ema": 0.9}, {"accumulate": 2, "clip_norm": 0.5}, {"resize_px": {1: 4, 3: 8}}],
    ids=str,
)
def test_resuming_at_every_epoch_end_changes_no_bit(tmp_path, settings):
    plan = tiny.recipe(4, **settings)
    expected = tiny.run(tmp_path / "straight", plan)
    kept = tmp_path / "straight" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["epoch-00003", "epoch-00004"]
    for stop in (1, 2, 3):
        folder = tmp_path / str(stop)
        saved = []

        def stopping(row, saved=saved, stop=stop):
            saved.append(row)
            if row["epoch"] == stop:
                raise KeyboardInterrupt

        first = tiny.trainer(folder, plan)
        first.progress.epoch_done = stopping
        with pytest.raises(KeyboardInterrupt):
            first.run()
        assert checkpoint.newest(folder / "checkpoints").epoch == stop
        assert equal(tiny.run(folder, plan), expected)
        rows, straight = (
            [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
            for place in (folder, tmp_path / "straight")
        )
        for row in (*rows, *straight):
            del row["seconds"], row["images_per_s"]
        assert rows == straight and [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_the_seed_decides(tmp_path):
    one, same, other = (tiny.run(tmp_path / str(i), tiny.recipe(1, seed=seed)) for i, seed in enumerate((0, 0, 1)))
    assert equal(one, same) and not equal(one, other)


def test_training_learns_and_reports_what_a_slow_loop_finds(tmp_path):
    """The first update reports loss and accuracy of the untouched net; a warm-up of less than an update is left out."""
    plan = tiny.recipe(1)
    run = tiny.trainer(tmp_path, plan, model=tiny.network(dropout=0.0), count=16)
    batch = next(iter(run.batches.epoch(1)))
    with torch.no_grad():
        logits = run.step.model(batch.images)
    losses = [-torch.log_softmax(row, 0)[label] for row, label in zip(logits, batch.labels, strict=True)]
    run.run()
    assert run.rows[0]["loss"] == pytest.approx(float(sum(losses)) / 16, rel=1e-5)  # float32 sums in another order
    assert run.rows[0]["train_accuracy"] == 100 * float((logits.argmax(1) == batch.labels).sum()) / 16
    assert run.rows[0]["lr"] == plan.optim.lr and run.rows[0]["size_px"] == 8


def test_accumulation_is_the_whole_batch(tmp_path):
    whole, parts = (
        tiny.run(tmp_path / str(n), tiny.recipe(2, accumulate=n), model=copy_of(tiny.network(dropout=0.0)))
        for n in (1, 4)
    )
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-6)  # float32 sums in another order


def copy_of(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def test_ema_is_the_average_that_is_published(tmp_path):
    """After update t, counted from 0, the decay is min(0.9, 1 - t^(-2/3)), and 0 after the first (timm's warm-up)."""
    run = tiny.trainer(tmp_path, tiny.recipe(2, ema=0.9))
    update, weights = run.optimizer.step, []

    def step():
        update()
        weights.append({name: p.detach().clone() for name, p in run.step.model.named_parameters()})

    run.optimizer.step = step
    published = dict(run.run().named_parameters())
    average = weights[0]
    for t, now in enumerate(weights):
        decay = min(0.9, 1 - t ** (-2 / 3)) if t else 0.0
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    assert len(weights) == 8 and not equal(average, weights[-1])
    for name, value in average.items():
        torch.testing.assert_close(published[name], value, rtol=1e-5, atol=1e-6)


class Poisoned:
    """The batches of a set, with a NaN in one image of one batch."""

    def __init__(self, batches: ImageBatches, number: int) -> None:
        self.batches, self.number = batches, number

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch):
        for i, batch in enumerate(self.batches.epoch(epoch)):
            if epoch == 2 and i == self.number:
                batch.images[3, 0, 0, 0] = float("nan")
                self.sample = int(batch.indices[3])
            yield batch


class BadLoss(nn.CrossEntropyLoss):
    calls = 0

    def forward(self, logits, labels):
        self.calls += 1
        return super().forward(logits, labels) * (float("inf") if self.calls == 7 else 1.0)


class BadGradient(nn.CrossEntropyLoss):
    """A finite loss whose gradient is not: sqrt at 0."""

    calls = 0

    def forward(self, logits, labels):
        self.calls += 1
        loss = super().forward(logits, labels)
        return loss + ((logits.sum() * 0).sqrt() if self.calls == 7 else 0)


class SteepLoss(nn.CrossEntropyLoss):
    def forward(self, logits, labels):
        return 1000 * super().forward(logits, labels)


@pytest.mark.fault("NaN in a training run")
@pytest.mark.parametrize("fault", ["image", "loss", "gradient"])
def test_no_step_on_nonsense(tmp_path, fault):
    run = tiny.trainer(tmp_path, tiny.recipe(3))
    if fault == "image":
        run.batches = Poisoned(run.batches, 2)
    else:
        run.step.criterion = {"loss": BadLoss, "gradient": BadGradient}[fault]()
    before = {}
    update = run.optimizer.step

    def remember():
        update()
        before.update({name: value.clone() for name, value in run.step.state_dict().items()})

    run.optimizer.step = remember
    with pytest.raises(NonFiniteError) as caught:
        run.run()
    message = str(caught.value)
    assert message.startswith("epoch 2, step 3: loss terms: task") and "Last good checkpoint: epoch 1" in message
    if fault == "image":
        assert f"images with NaN or infinity: [{run.batches.sample}]" in message
    assert equal(before, run.step.state_dict())
    assert checkpoint.newest(tmp_path / "checkpoints").epoch == 1


def overflow_of_the_weights(run):
    """An update that overflows, as the last of an epoch: no loss sees it."""
    with torch.no_grad():
        run.step.model[0].weight.mul_(float("inf"))


def overflow_of_a_running_mean(run):
    run.step.model[1].running_mean.fill_(float("nan"))


def overflow_of_the_average(run):
    """Weights that are finite, and an average that is not."""
    run._ema.module[0].weight.data.fill_(float("inf"))


def overflow_of_the_optimizer(run):
    next(iter(run.optimizer.state.values()))["momentum_buffer"].fill_(float("nan"))


@pytest.mark.fault("NaN in the state of a training run")
@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (overflow_of_the_weights, "step.model.0.weight"),
        (overflow_of_a_running_mean, "step.model.1.running_mean"),
        (overflow_of_the_average, "ema.0.weight"),
        (overflow_of_the_optimizer, "optimizer.0.momentum_buffer"),
    ],
)
@pytest.mark.parametrize("epoch", [2, 3], ids=["middle", "end"])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, fault, named, epoch):
    plan = tiny.recipe(3, ema=0.9 if fault is overflow_of_the_average else 0.0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *tiny.network()[3:])
    run = tiny.trainer(tmp_path, plan, model=network)
    epoch_of, seen = run._epoch, []

    def trained(number):
        row = epoch_of(number)
        if number == epoch:
            fault(run)
        return row

    run._epoch, run.evaluate = trained, lambda _: seen.append(len(seen) + 1) or {}
    expected = rf"epoch {epoch}, after its last step: NaN or infinity in {named}; .* checkpoint: epoch {epoch - 1}\."
    with pytest.raises(NonFiniteError, match=expected):
        run.run()
    assert seen == list(range(1, epoch)) and len(run.rows) == epoch - 1  # nothing is measured on it
    assert checkpoint.newest(tmp_path / "checkpoints").epoch == epoch - 1


@pytest.mark.fault("NaN in the state of a training run")
def test_a_rate_too_large_for_the_only_update_of_an_epoch(tmp_path):
    plan = tiny.recipe(2)
    plan = plan.model_copy(update={"optim": plan.optim.model_copy(update={"lr": 3e38, "warmup_epochs": 0.0})})
    run = tiny.trainer(tmp_path, plan, count=16)
    run.step.criterion = SteepLoss()
    with pytest.raises(NonFiniteError, match="epoch 1, after its last step: NaN or infinity in step.model.0.weight"):
        run.run()
    assert checkpoint.newest(tmp_path / "checkpoints") is None


@pytest.mark.fault("signal in a training run")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_a_whole_step_and_it_resumes(tmp_path, number):
    plan, before = tiny.recipe(3), signal.getsignal(number)
    run = tiny.trainer(tmp_path / "run", plan)
    update, steps = run.optimizer.step, []

    def step():
        update()
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), number)

    run.optimizer.step = step
    with pytest.raises(Stopped, match=f"{number.name}; the run resumes after epoch 1") as caught:
        run.run()
    assert caught.value.exit_code == 128 + number and len(steps) == 6
    assert signal.getsignal(number) is before
    assert equal(tiny.run(tmp_path / "run", plan), tiny.run(tmp_path / "straight", plan))


KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
from support import tiny
from support.tiny import equal
from hyperzoo.training import checkpoint
folder, seed, plan = Path(sys.argv[1]), int(sys.argv[3]), tiny.recipe(200)
moments, kills, before = random.Random(seed), 0, 0
while kills < 20:
    pid = os.fork()
    if not pid:
        tiny.run(folder, plan)
        os._exit(0)
    time.sleep(moments.uniform(0.02, 0.2))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status):
        break                                  # it ended before the kill
    kills += 1
    found = checkpoint.newest(folder / "checkpoints")
    epoch = found.epoch if found else 0
    assert epoch >= before, (epoch, before)    # never back
    before = epoch
print("kills", kills, "epoch", before, flush=True)
from safetensors.torch import save_file
save_file(tiny.run(folder, plan), sys.argv[1] + "/end.safetensors")
"""


@pytest.mark.full
@pytest.mark.fault("kill -9 in a training run", 20)
def test_twenty_kills_at_random_moments_end_bit_equal(tmp_path):
    seed = int(time.time())
    command = [sys.executable, "-W", "ignore", "-c", KILLS, tmp_path / "killed", HERE, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.stderr)
    assert done.stdout.startswith("kills 20 "), (seed, done.stdout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = tiny.run(tmp_path / "straight", tiny.recipe(200))
    finally:
        torch.set_num_threads(threads)
    assert equal(load_file(tmp_path / "killed" / "end.safetensors"), expected), seed


def test_a_signal_after_the_last_update_stops_before_the_test(tmp_path):
    run = tiny.trainer(tmp_path, tiny.recipe(2))

    def signalled(_):
        run._pending = signal.SIGTERM
        return {}

    run.evaluate = signalled
    with pytest.raises(Stopped) as stopped:
        run.run()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert checkpoint.newest(tmp_path / "checkpoints").epoch == 1  # the first epoch was kept, the second not begun


def test_all_processes_validate_with_the_buffers_that_are_saved(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(2, 3, 8, 8))
    run, sent = tiny.trainer(tmp_path, tiny.recipe(1), model=model), []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, source: sent.append((buffer, source)))
    run._share_buffers()
    assert sent == []
    monkeypatch.setattr(type(run.accelerator), "num_processes", 2)
    run._ema = None
    run._share_buffers()
    assert [(id(buffer), source) for buffer, source in sent] == [(id(buffer), 0) for buffer in model.buffers()]
