"""PER in every mode: in-place modules, half precision, compile, checkpointing, accumulation, several processes."""

import copy
import os
import subprocess
import sys
from collections import namedtuple

import pytest
import timm
import torch
from test_per_term import LAYERS, gradients, images, net, outputs, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperzoo.errors import InputError
from hyperzoo.regularizers import PER, projected_error


def test_in_place_modules_do_not_overwrite_what_was_recorded():
    x = images()
    model = net(inplace=True)
    term = PER(model, strength=1.0, layers=["0", "1", "3", "4"], slices=None)  # before, at and after the layer
    found = gradients(model, step(model, term, x))
    plain = net(inplace=False)
    expected = plain(x).square().mean() + sum(
        projected_error(h, slices=None) for h in outputs(plain, x, ["0", "1", "3", "4"]).values()
    )
    for got, wanted in zip(found, gradients(plain, expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert model[1].inplace and model[2].inplace and model[4].inplace


class Fc(nn.Module):
    """A linear layer that also uses its input and output."""

    def __init__(self, then):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.then = then

    def forward(self, x):
        return self.then(x, self.fc(x))


@pytest.mark.parametrize("slices", [None, 4])
def test_in_place_code_of_the_model_is_an_error_that_names_the_layer(slices):
    model = Fc(lambda x, y: y.add_(x))
    term = PER(model, strength=1.0, layers="fc", slices=slices)
    with pytest.raises(InputError, match="output of 'fc' was overwritten"):
        step(model, term, torch.randn(2, 3))
    assert not model.fc._forward_hooks


Pair = namedtuple("Pair", "hidden twice")


@pytest.mark.parametrize("make", [lambda *two: two, lambda *two: list(two), Pair])
@pytest.mark.parametrize("slices", [None, 4])
def test_the_first_of_several_outputs_counts_and_the_others_stay(make, slices):
    layer, x = Fc(lambda x, h: make(h, 2 * h)), torch.randn(4, 3)
    model = nn.Sequential(layer)
    term = PER(model, strength=1.0, layers="0", slices=slices)
    with term:
        out = model(x)
        loss = out[0].square().sum() + out[1].sum() + term()
    assert type(out) is type(make(1, 2))
    h = layer.fc(x)
    draws = torch.Generator().manual_seed(0)
    expected = h.square().sum() + 2 * h.sum() + projected_error(h, slices=slices, generator=draws)
    for got, wanted in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(got, wanted)


def test_accumulated_parts_equal_the_whole_batch():
    model, x = net(), images(8)
    for reduce, factor in (("mean", 1), ("batch", 1), ("sum", 2)):
        whole = PER(model, strength=0.5, layers=LAYERS, slices=None, reduce=reduce)
        parts = PER(model, strength=0.5 * factor, layers=LAYERS, slices=None, reduce=reduce)
        expected = gradients(model, step(model, whole, x))
        model.zero_grad()
        for part in x.chunk(2):
            (step(model, parts, part) / 2).backward()
        for p, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6)


def test_half_precision_leaves_the_term_in_float32():
    model, x = net(), images()
    term = PER(model, strength=1.0, layers=LAYERS, slices=None)
    exact = step(model, term, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = step(model, term, x)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.02)  # activations with 8 significant bits
    assert all(grad.isfinite().all() for grad in gradients(model, half))
    double = copy.deepcopy(model).double()
    assert step(double, PER(double, strength=1.0, layers=LAYERS), x.double()).dtype == torch.float64


@pytest.mark.parametrize("slices", [None, 4])
def test_a_compiled_model_has_the_same_term(slices):
    model, x = net(), images()
    expected = gradients(model, step(model, PER(model, strength=1.0, layers=LAYERS, slices=slices), x))
    compiled = copy.deepcopy(model)
    compiled(x)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(x)  # compiled before the hooks are attached
    term = PER(compiled, strength=1.0, layers=LAYERS, slices=slices)
    for _ in range(2):
        term.seed(0)
        for got, wanted in zip(gradients(compiled, step(compiled, term, x)), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
        compiled.eval()
        with term:
            compiled(x)
            assert float(term()) == 0
        compiled.train()
        compiled(x)


@pytest.mark.parametrize("slices", [None, 4])
def test_torch_func_has_the_gradient_of_eager(slices):
    model, x = net(), images()
    term = PER(model, strength=1.0, layers=LAYERS, slices=slices)
    expected, report = gradients(model, step(model, term, x)), term.report()
    term.seed(0)

    def loss(parameters):
        with term:
            return torch.func.functional_call(model, parameters, (x,)).square().mean() + term()

    found = torch.func.grad(loss)(dict(model.named_parameters()))
    for got, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert term.report() == pytest.approx(report)


@pytest.mark.parametrize("slices", [None, 16])
@pytest.mark.parametrize("inside", [False, True])
def test_gradient_checkpointing_changes_nothing(inside, slices):
    torch.manual_seed(0)
    plain = timm.create_model("resnet20_cifar")
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the recomputation would update the statistics twice
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    found = []
    for model in (plain, saving):
        for layers in ("type:ReLU", "stages"):
            term = PER(model, strength=1.0, layers=layers, slices=slices)
            with term:
                loss = model(images(2, 8)).square().mean() + term()
                if inside:
                    found.append(gradients(model, loss))
            if not inside:
                found.append(gradients(model, loss))
    for first, second in zip(found[:2], found[2:], strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b)


def test_reentrant_checkpointing_is_an_error():
    model = net()

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=True)

    saving = Saving()
    term = PER(saving, strength=1.0, layers="net.1")
    with pytest.raises(InputError, match="'net.1' ran without gradients.*use_reentrant=False"):
        step(saving, term, images())
    with torch.no_grad():
        assert step(saving, term, images()).item() > 0  # a value without gradients is fine


def test_sum_is_multiplied_by_the_number_of_processes(monkeypatch):
    model, x = net(), images()
    alone = {r: PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=r) for r in ("sum", "mean", "batch")}
    values = {reduce: (step(model, term, x) - model(x).square().mean()).item() for reduce, term in alone.items()}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for reduce, term in alone.items():
        factor = 3 if reduce == "sum" else 1
        got = (step(model, term, x) - model(x).square().mean()).item()
        assert got == pytest.approx(factor * values[reduce], rel=1e-5)


TWO = """
import sys
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_per_term import LAYERS, images, net
from torch.nn.parallel import DistributedDataParallel
from hyperzoo.regularizers import PER

torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
for reduce in ("mean", "sum"):
    model = net()
    term = PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=reduce)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    with term:
        logits = wrapped(images(4).chunk(2)[dist.get_rank()])
        (term() + 0 * logits.sum()).backward()  # DDP waits for every parameter that the output reaches
    if dist.get_rank() == 0:
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file(found, f"{sys.argv[1]}/{reduce}.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.full
def test_two_processes_have_the_gradient_of_one(tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([*command, tmp_path / "two.py", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for reduce in ("mean", "sum"):
        model = net()
        term = PER(model, strength=1.0, layers=LAYERS, slices=None, reduce=reduce)
        with term:
            model(images(4))
            term().backward()
        found = load_file(tmp_path / f"{reduce}.safetensors")
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)  # summed in another order
