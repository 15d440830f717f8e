"""The package keeps its layers: imports go down, no pickle is opened, names do not collide with timm's."""

import ast
import pkgutil
import sys
import tomllib
from pathlib import Path

import pytest
import timm

import hyperzoo

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hyperzoo"
FILES = sorted(PACKAGE.rglob("*.py"))

# architecture.md, sections 4 and 5. A room imports only rooms above it; `__init__` is what `import hyperzoo` gives.
ROOMS = """
    errors names files pixels layers losses regularizers mixup zoo models data __init__ training analysis experiments
    publishing cli __main__
""".split()
METHODS = {"losses", "regularizers", "mixup"}
MUST_NOT_KNOW = {  # beside the rooms below it
    **{room: METHODS - {room} for room in METHODS},
    "zoo": METHODS | {"layers"},
    "models": METHODS,
    "data": METHODS | {"layers", "zoo", "models"},
    "training": METHODS | {"zoo", "models", "data"},
}
THIRD_PARTY = {  # every package beside torch and the standard library, and the rooms that import it
    "numpy": {"data"},
    "PIL": {"pixels", "zoo", "data", "publishing"},
    "torchvision": {"mixup", "zoo", "data", "publishing"},
    "timm": {"zoo", "models", "__init__", "training", "analysis", "experiments", "publishing"},
    "huggingface_hub": {"zoo", "data"},
    "safetensors": {"zoo", "data", "training", "publishing"},
    "filelock": {"experiments"},
    "accelerate": {"training", "analysis", "experiments"},
    "datasets": {"data"},
    "pyarrow": {"data"},
    "pydantic": {"training"},
    "ruamel": {"training"},
    "matplotlib": {"analysis"},
    "scipy": {"analysis"},
    "rich": {"training", "analysis", "cli"},
    "click": {"cli"},
    "jinja2": {"publishing"},
    "markupsafe": {"publishing"},
    "markdown_it": {"publishing"},
    "onnx": {"publishing"},
    "onnxruntime": {"publishing"},
}


def room(module: str) -> str:
    """The room of a module: the word behind `hyperzoo.`; of `hyperzoo` itself `__init__`."""
    return [*module.split("."), "__init__"][1]


def module_of(file: Path) -> str:
    """The dotted name of a file; a package is called like its folder."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> list[str]:
    """Every imported module, also inside functions; `from a import b` as a.b, be b a module or not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


MODULES = {module_of(file) for file in FILES}


def imported_modules(source: str) -> set[str]:
    """The modules of the package that a source imports: of `from a import b`, a.b if that is a module, else a."""
    names = [name for name in imports(ast.parse(source)) if name.partition(".")[0] == "hyperzoo"]
    return {name if name in MODULES else name.rpartition(".")[0] or name for name in names}


def check(module: str, source: str) -> list[str]:
    """Faults of one file against the tables above."""
    here = room(module)
    above = {*ROOMS[: ROOMS.index(here) + 1]} - MUST_NOT_KNOW.get(here, set())
    faults = [f"{module} imports {name}" for name in imported_modules(source) if room(name) not in above]
    for name in imports(ast.parse(source)):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names | {"torch", "hyperzoo"}:
            continue
        if here not in THIRD_PARTY.get(package, set()):
            faults.append(f"{module} imports {package}")
    return faults


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    assert check(module_of(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("hyperzoo.layers.x", "import timm"),
        ("hyperzoo.layers.x", "import anything"),
        ("hyperzoo.zoo.x", "import click"),
        ("hyperzoo.models.x", "from hyperzoo.training import loop"),
        ("hyperzoo.models.x", "from hyperzoo.losses import SoftTarget"),
        ("hyperzoo.data.x", "from hyperzoo.models.resnet_cifar import ResNetCifar"),
        ("hyperzoo.zoo.x", "def f():\n    from hyperzoo import models"),
        ("hyperzoo.zoo.x", "from hyperzoo.layers.sphere import SphereConv2d"),
        ("hyperzoo.training.x", "import hyperzoo.models.lstm_lm"),
        ("hyperzoo.experiments.x", "from hyperzoo.cli.main import main"),
        ("hyperzoo.errors", "from hyperzoo import names"),
        ("hyperzoo.data.x", "from hyperzoo import __version__"),
    ],
)
def test_the_check_of_imports_sees_a_fault(module, source):
    assert len(check(module, source)) == 1


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or none: what is left when those that import none are taken away."""
    left = dict(arrows)
    while ready := [module for module, targets in left.items() if not targets & left.keys()]:
        left = {module: targets for module, targets in left.items() if module not in ready}
    return sorted(left)


def test_no_modules_import_one_another_in_a_circle():
    arrows = {module_of(file): imported_modules(file.read_text(encoding="utf-8")) for file in FILES}
    assert len(arrows) == len(FILES) and sum(map(len, arrows.values())) > 2 * len(FILES)
    assert circle(arrows) == []


def test_a_circle_is_seen():
    straight = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert circle(straight) == []
    assert circle({**straight, "c": {"b"}}) == ["a", "b", "c"]
    assert circle({**straight, "c": {"c"}}) == ["a", "b", "c"]
    lazy = "def f():\n    from hyperzoo.zoo import hub, load\n    import hyperzoo.names"
    assert imported_modules(lazy) == {"hyperzoo.zoo.hub", "hyperzoo.zoo.load", "hyperzoo.names"}
    assert imported_modules("from hyperzoo.zoo.hub import fetch") == {"hyperzoo.zoo.hub"}
    assert imported_modules("from hyperzoo import __version__") == {"hyperzoo"}


def test_the_root_holds_the_rooms_and_nothing_else():
    found = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert found == {room if (PACKAGE / room).is_dir() else f"{room}.py" for room in ROOMS} | {
        "py.typed",
        "weights.json",
        "checkpoints",
    }


def test_no_two_classes_share_a_name():
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(names) > 100 and sorted(names) == sorted(set(names))


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
    assert {name.rpartition(".")[2] for name in imports(tree)} == files | {"_timm"}  # first, for its check of timm


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
