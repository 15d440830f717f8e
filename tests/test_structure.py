"""The package keeps its layers: imports go down, no pickle is opened, names do not collide with timm's."""

import ast
import pkgutil
import tomllib
from pathlib import Path

import pytest
import timm

import hyperzoo

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hyperzoo"
FILES = sorted(PACKAGE.rglob("*.py"))

# architecture.md, section 5: a unit may import units that it names, the words, and itself; nothing else of hyperzoo.
WORDS = {"names", "errors"}
BRANCHES = {"training", "data", "models", "losses", "regularizers", "mixup"}
ALLOWED = {
    "names": {"errors"},
    "errors": set(),
    "files": set(),
    "gradients": set(),
    "layers": {"gradients"},
    "taps": set(),
    "manifest": set(),
    "hub": set(),
    "weights": {"manifest", "hub"},
    "models": {"layers", "weights"},
    "losses": {"layers"},
    "regularizers": {"taps", "gradients"},
    "mixup": {"taps"},
    "data": set(),
    "training": set(),
    "zoo": {"models", "weights", "manifest"},
    "checkout": set(),
    "tables": set(),
    "attacks": set(),
    "save": set(),
    "build": BRANCHES | {"layers", "taps", "weights", "manifest", "zoo"},
    "evaluate": BRANCHES | {"build", "taps", "weights", "manifest", "zoo"},
    "train": BRANCHES | {"build", "evaluate", "save", "weights", "manifest", "zoo", "cli"},  # run as a module
}
ALLOWED["sweep"] = {"train", "training"}
ALLOWED["parcels"] = {"data"}
ALLOWED["queue"] = {"train", "training", "parcels"}
PRODUCTS = (
    "publish",
    "entry",
    "verify",
    "cards",
    "plots",
    "figures",
    "reproduce",
    "energy",
    "export",
    "robustness",
    "generate",
    "activations",
    "site",
)
ALLOWED |= {unit: {*ALLOWED, *PRODUCTS} for unit in PRODUCTS}
OUTSIDE = {  # packages that only these units may import
    "timm": {
        "models",
        "zoo",
        "training",
        "build",
        "train",
        "evaluate",
        "robustness",
        "publish",
        "entry",
        "save",
        "export",
        "verify",
        "activations",
        "__init__",
    },
    "huggingface_hub": {"hub", "data"},
    "safetensors": {"weights", "data", "training", "publish", "verify", "save", "export"},
    "accelerate": {"training", "build", "train", "evaluate"},
    "datasets": {"data"},
    "pydantic": {"training"},
    "ruamel": {"training"},
    "click": {"cli", "cli_networks", "tables", "__main__"},
    "matplotlib": {"plots"},
    "jinja2": {"site"},
    "markupsafe": {"site"},
    "markdown_it": {"site"},
}
TOP = {"cli", "cli_networks", "__main__", "__init__"}


def unit(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> list[str]:
    """Every imported module, `from a import b` as both a and a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def check(file: Path, source: str) -> list[str]:
    """Faults of one file against the tables above."""
    here, faults = unit(file), []
    for name in imports(ast.parse(source)):
        package, *rest = name.split(".")
        if package in OUTSIDE and here not in OUTSIDE[package]:
            faults.append(f"{file.name}: {here} imports {package}")
        if package != "hyperzoo" or here in TOP:
            continue
        target = rest[0] if rest else "__init__"
        if target == "__version__" or target == here or (target in WORDS and here != "errors"):
            continue
        if target not in ALLOWED.get(here, set()):
            faults.append(f"{file.name}: {here} imports hyperzoo.{target}")
    return faults


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    assert unit(file) in ALLOWED.keys() | TOP, f"{unit(file)} has no place in the table of layers"
    assert check(file, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "where, source",
    [
        ("layers/x.py", "import timm"),
        ("models/x.py", "from hyperzoo.training import loop"),
        ("data/x.py", "from hyperzoo.models.resnet_cifar import ResNetCifar"),
        ("weights.py", "def f():\n    from hyperzoo import models"),
        ("errors.py", "from hyperzoo import names"),
        ("zoo.py", "from huggingface_hub import hf_hub_download"),
    ],
)
def test_the_check_of_imports_sees_a_fault(where, source):
    assert len(check(PACKAGE / where, source)) == 1


def calls(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_pickle_no_star_no_bare_except(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    forbidden = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    assert not forbidden & {name.split(".")[0] for name in imports(tree)}
    banned = ("torch.load", "torch.save", "load_state_dict_from_url", "eval", "exec", "np.load", "numpy.load")
    assert not [call for call in calls(tree) if call in banned or call.endswith(("save_state", "load_state"))]
    names = {name for name in imports(tree) if name.startswith("torch")}
    assert not names & {"torch.load", "torch.save", "torch.hub.load_state_dict_from_url"}
    assert not [name for name in imports(tree) if name.endswith(".*")]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_stay_short_and_are_called_what_they_are(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert file.stem not in {"utils", "helpers", "misc", "common", "new", "final"}
    assert ast.get_docstring(ast.parse("\n".join(lines))) or not lines


def test_model_files_have_names_that_timm_has_not():
    timms = {module.name for module in pkgutil.iter_modules(timm.models.__path__)}
    ours = {file.stem for file in (PACKAGE / "models").glob("*.py")} - {"__init__"}
    assert "resnet" in timms and "resnet_cifar" in ours
    assert not {name for name in ours if not name.startswith("_")} & timms


def test_every_model_file_is_imported_explicitly():
    tree = ast.parse((PACKAGE / "models" / "__init__.py").read_text(encoding="utf-8"))
    files = {file.stem for file in (PACKAGE / "models").glob("[a-z]*.py")}
    assert {name.rpartition(".")[2] for name in imports(tree)} == files


def test_no_module_of_a_model_has_a_name_that_timms_loader_eats():
    for name in hyperzoo.list_models():
        with_meta = timm.create_model(name, device="meta")
        first = {key.partition(".")[0] for key in with_meta.state_dict()}
        assert not first & {"module", "model", "state_dict", "model_ema", "state_dict_ema", "_orig_mod"}, name


def test_the_version_is_stated_once_more_only_in_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", hyperzoo.__version__) == hyperzoo.__version__


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
