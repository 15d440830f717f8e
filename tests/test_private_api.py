"""Private API of torch and timm stands in one file each; a release that drops a piece of it fails here, by name."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hyperzoo.layers import _torch
from hyperzoo.models import _timm

ROOT = Path(__file__).parent.parent
DOORS = ("hyperzoo/layers/_torch.py", "hyperzoo/models/_timm.py")
PRIVATE = re.compile(r"(torch|timm|accelerate|huggingface_hub|safetensors)(\.\w+)*\._[A-Za-z]\w*")
OF_OBJECTS = re.compile(r"(?!self\.)[\w.]+\._(version|modules|parameters|buffers|(forward|backward)(_pre)?_hooks)")


def private(source: str) -> list[str]:
    """Private names of other packages that a source imports, or reaches through a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    return sorted({name for name in found if PRIVATE.match(name) or OF_OBJECTS.fullmatch(name)})


def test_no_other_file_uses_private_names():
    files = [*(ROOT / "hyperzoo").rglob("*.py"), *(ROOT / "examples").glob("*.py"), ROOT / "hubconf.py"]
    users = {str(file.relative_to(ROOT)) for file in files if private(file.read_text(encoding="utf-8"))}
    assert users == set(DOORS)


@pytest.mark.parametrize(
    "source",
    [
        "from timm.models._features import FeatureInfo",
        "import torch._dynamo",
        "import torch\ntorch.ops.mkldnn._is_mkldnn_bf16_supported()",
        "from accelerate.utils import _private",
        "def f(x): return x._version",
        "from torch.nn.modules.conv import _ConvNd",
        "def f(x): return x.inner._forward_pre_hooks",
    ],
)
def test_a_private_name_is_seen(source):
    assert len(private(source)) == 1
    assert private("import hyperzoo.models._timm\nself._version_of\nself._modules\ntorch.nn") == []


def test_torch_knows_whether_torch_func_is_running():
    """`torch._C._are_functorch_transforms_active`: inside `torch.func`, `SphereConv2d` takes its plain backward."""
    seen = []
    torch.func.grad(lambda x: (seen.append(_torch.is_in_functorch()), x)[1])(torch.tensor(1.0))
    assert seen == [True] and _torch.is_in_functorch() is False


def test_torch_knows_the_instructions_of_the_processor():
    """`torch.ops.mkldnn._is_mkldnn_bf16_supported`: `precision: auto` of a recipe."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").is_file() else set()
    assert isinstance(_torch.cpu_computes_bf16(), bool)
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        assert _torch.cpu_computes_bf16()


def test_torch_counts_writes_in_place():
    """`Tensor._version`: terms of activations refuse an output that was overwritten."""
    x = torch.zeros(2)
    before = _torch.writes_to(x)
    x[:1].add_(1)
    assert _torch.writes_to(x) == before + 1


def test_torch_knows_the_hooks_of_a_module():
    """`Module._forward_hooks` and its kin: `sphereize` and `fold` keep a layer that has hooks."""
    for register in ("forward_pre", "forward", "full_backward_pre", "full_backward"):
        inner = nn.Linear(2, 2)
        outer = nn.Sequential(inner)
        handle = getattr(inner, f"register_{register}_hook")(lambda *_: None)
        assert _torch.has_hooks(inner) and not _torch.has_hooks(outer), register
        handle.remove()
        assert not _torch.has_hooks(inner)


def test_torch_wraps_a_compiled_model_as_orig_mod():
    """`Module._modules["_orig_mod"]`: hooks are attached to the model inside."""
    model = nn.Linear(2, 2)
    assert _torch.uncompiled(torch.compile(model)) is model is _torch.uncompiled(model)


def test_timm_resolves_the_indices_of_features():
    """`timm.models._features.feature_take_indices`: `forward_intermediates` and `prune_intermediate_layers`."""
    assert _timm.feature_take_indices(4, None) == ([0, 1, 2, 3], 3)
    assert _timm.feature_take_indices(4, 2) == ([2, 3], 3)
    assert _timm.feature_take_indices(4, [0, -2]) == ([0, 2], 2)
