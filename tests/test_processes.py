"""Two processes make one run: equal weights, one error for all, and never two independent runs."""

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

HERE = Path(__file__).parent

TWO = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from support import tiny
from accelerate import Accelerator
from safetensors.torch import save_file
from hyperzoo.errors import NonFiniteError
from test_training import copy_of

folder, rank = Path(sys.argv[2]), Accelerator(cpu=True).process_index
assert Accelerator(cpu=True).num_processes == 2
run = tiny.trainer(folder, tiny.recipe(2), model=copy_of(tiny.network(dropout=0.0)))
published = run.run()
if rank == 0:
    save_file(published.state_dict(), folder / "two.safetensors")
    (folder / "loss").write_text(repr([row["loss"] for row in run.rows]))

class Bad(torch.nn.CrossEntropyLoss):
    def forward(self, logits, labels):
        return super().forward(logits, labels) * (float("nan") if rank == 1 else 1.0)

run = tiny.trainer(folder / "bad", tiny.recipe(2), model=tiny.network())
run.step.criterion = Bad()
try:
    run.run()
except NonFiniteError as error:
    (folder / f"error{rank}").write_text(str(error))
"""


@pytest.mark.full
def test_two_processes_end_like_one_and_stop_together_on_nan(tmp_path):
    from test_training import copy_of

    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, script, HERE, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tiny.trainer(tmp_path / "one", tiny.recipe(2), model=copy_of(tiny.network(dropout=0.0)))
    one = run.run().state_dict()
    two = load_file(tmp_path / "two.safetensors")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)  # gradients are averaged in another order
    assert eval((tmp_path / "loss").read_text()) == pytest.approx([row["loss"] for row in run.rows], rel=1e-5)
    errors = [(tmp_path / f"error{rank}").read_text() for rank in (0, 1)]
    assert all(error.startswith("epoch 1, step 1: loss terms: task") for error in errors)
    assert "task nan" in errors[1]


@pytest.mark.full
def test_two_independent_processes_are_refused_with_exit_code_2(tmp_path):
    """What torchrun without ACCELERATE_USE_CPU starts on a machine without a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1", "CUDA_VISIBLE_DEVICES": ""}
    recipe = HERE.parent / "recipes" / "demo.yaml"
    command = [sys.executable, "-m", "hyperzoo", "train", recipe, "--out", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "LaunchError: the launcher asks for 2 processes, accelerate runs 1" in done.stderr
    assert "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2" in done.stderr
    assert not (tmp_path / "out").exists()


LOST = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch
torch.set_num_threads(1)
from hyperzoo.errors import HyperzooError
from hyperzoo.experiments import train
from hyperzoo.training.recipe import load_recipe

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
train.PATIENCE = timedelta(seconds=15)
(folder / f"pid{rank}").write_text(str(os.getpid()))
try:
    train.run(load_recipe(folder / "small.yaml"), folder / "out")
except HyperzooError as error:
    (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
    sys.exit(1)
"""


@pytest.mark.full
@pytest.mark.fault("process of a run killed or stopped")
@pytest.mark.parametrize(("lost", "number"), [(1, signal.SIGKILL), (0, signal.SIGSTOP)], ids=["killed", "stopped"])
def test_a_run_that_lost_a_process_says_so_and_ends(tmp_path, data_mirror, lost, number):
    (tmp_path / "small.yaml").write_text(
        "model: {arch: plain_cnn3, args: {widths: [8, 8, 8]}}\n"
        "data: {name: c10, batch_size: 64, hold_out: 1}\n"
        "optim: {lr: 0.01}\n"
        "train: {epochs: 100000, precision: fp32, compile: off}\n"
    )
    (tmp_path / "lost.py").write_text(LOST)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([*command, tmp_path / "lost.py", tmp_path], env=environment, stdout=log, stderr=log)
        while run.poll() is None and not (tmp_path / "out" / "metrics.jsonl").exists():
            time.sleep(0.1)
        os.kill(int((tmp_path / f"pid{lost}").read_text()), number)
        assert run.wait(150) == 1, (tmp_path / "log").read_text()  # torchrun grants 30 s to those that it stops
    other = 1 - lost
    error = (tmp_path / f"error{other}").read_text()
    expected = f"RunError: process {other} of 2 lost another one, which ended or did not answer for 0.25 minutes"
    assert error.startswith(expected) and "it resumes after its last whole epoch" in error
