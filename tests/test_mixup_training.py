"""Mixing in full trainings: our engine (resumed, accumulated, two processes), and a loop like timm's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny
from support.mixing import K, batch, generator, traces
from support.mixing import tiny as small
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from hyperzoo.losses import SoftTarget
from hyperzoo.mixup import CutMix, ManifoldMixup, Mixup
from hyperzoo.training import checkpoint

HERE = Path(__file__).parent


def trainer(folder, kind, plan):
    run = tiny.trainer(folder, plan)
    model = run.step.model
    run.step.mixing = ManifoldMixup(model, 10, layers=["input", "2"]) if kind is ManifoldMixup else kind(10)
    run.step.criterion = SoftTarget()
    return run


@pytest.mark.parametrize("kind", [Mixup, CutMix, ManifoldMixup])
def test_a_resumed_run_mixes_as_one_that_was_not_stopped(tmp_path, kind):
    plan = tiny.recipe(3, accumulate=2)
    straight = trainer(tmp_path / "straight", kind, plan).run().state_dict()

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    first = trainer(tmp_path / "stopped", kind, plan)
    first.progress.epoch_done = stop
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert not any(hooks for hooks, *_ in traces(first.step.model))
    second = trainer(tmp_path / "stopped", kind, plan)
    resumed = second.run(checkpoint.newest(tmp_path / "stopped" / "checkpoints")).state_dict()
    assert [row["epoch"] for row in second.rows][-1] == 3
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())
    plain = tiny.run(tmp_path / "plain", plan)
    assert not torch.equal(plain["6.weight"], straight["6.weight"])


def test_a_loop_in_the_form_of_timms_training_script():
    model, loss_fn = small().train(), SoftTargetCrossEntropy()
    mixup_fn = ManifoldMixup(model, K, layers=["layer1", "layer2"], generator=generator())
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), []
    with mixup_fn:  # around an epoch
        for _ in range(8):
            x, target = mixup_fn(*batch(5, 16))
            logits = model(x)
            loss = loss_fn(logits, target)
            torch.testing.assert_close(SoftTarget()(logits, target), loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        x, target = batch(5, 16)
        assert torch.isfinite(nn.functional.cross_entropy(model(x), target))  # a validation inside it
    assert min(losses) < losses[0] and not any(hooks for hooks, *_ in traces(model))


TWO = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from support import tiny
from accelerate import Accelerator
from safetensors.torch import save_file
from hyperzoo.mixup import ManifoldMixup
from test_mixup_training import trainer

folder, rank = Path(sys.argv[2]), Accelerator(cpu=True).process_index
assert Accelerator(cpu=True).num_processes == 2
drawn, real = [], ManifoldMixup._draw
def draw(self, x, layers):
    drawn.append(real(self, x, layers))
    return drawn[-1]
ManifoldMixup._draw = draw
run = trainer(folder, ManifoldMixup, tiny.recipe(2))
run.run()
save_file(run.step.model.state_dict(), folder / f"{rank}.safetensors")
(folder / f"{rank}.json").write_text(json.dumps([(one.layer, float(one.lam), len(one.partner)) for one in drawn]))
"""


@pytest.mark.full
def test_every_process_draws_for_itself_and_all_end_with_equal_weights(tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, tmp_path / "two.py", HERE, tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    draws = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(draws[0]) == len(draws[1]) == 8  # four updates in each of two epochs
    assert {rows for _, _, rows in draws[0] + draws[1]} == {8}  # each process mixes its half of the batch
    assert not {lam for _, lam, _ in draws[0]} & {lam for _, lam, _ in draws[1]}
    weights = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
