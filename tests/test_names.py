"""Names are checked before any file is touched, unknown names list close ones, and taken names are refused."""

import subprocess
import sys
import threading
import warnings
from importlib.metadata import version

import pytest
import timm
from support.published import ARCH, PLAIN, publish, withdraw

import hyperzoo
from hyperzoo import errors, names
from hyperzoo.models import resnet_cifar
from hyperzoo.models._create import register

HOSTILE = [
    "../secret.plain_c10",
    "../../etc/passwd",
    "/etc/passwd",
    "/etc/passwd.plain_c10",
    "C:\\weights.plain_c10",
    "c:weights.plain_c10",
    "\\\\server\\share.plain_c10",
    "//server/share.plain_c10",
    "file:///etc/passwd",
    "hf-hub:someone/x.plain_c10",
    "hf-hub:../x.plain_c10",
    "hf-hub:someone/../../x",
    "hf-hub:/etc/passwd",
    "local-dir:/tmp",
    " local-dir:/tmp",
    "spherenet20.sphere_c10\0.bin",
    "spherenet20.sphere_c10\n",
    " spherenet20.sphere_c10",
    "spherenet20.sphere_c10/../x",
    "spherenet20..sphere_c10",
    "spherenet20.sphere_c10@main",
    "Spherenet20.sphere_c10",
    "sphеrenet20.sphere_c10",  # a Cyrillic letter
    "spherenet２０.sphere_c10",  # full-width digits
    "spherenet20.sphere_c¹⁰",
    "~.plain_c10",
    "$HOME.plain_c10",
    "spherenet20.*_c10",
    "a" * 10_000 + ".plain_c10",
    "",
    ".",
    "..",
    None,
    7,
    b"spherenet20.sphere_c10",
    ["spherenet20"],
]
DOORS = [names.parse, hyperzoo.load, hyperzoo.weight_info, hyperzoo.preprocess, hyperzoo.list_weights]

_opened: list[str] = []
_watching = threading.Event()


def _audit(event, args, watching=_watching):  # bound: at the end of the process globals go before the hook
    if watching.is_set() and event in ("open", "os.listdir", "os.scandir", "socket.connect"):
        _opened.append(f"{event} {args[0]}")


sys.addaudithook(_audit)


@pytest.mark.fault("hostile name")
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_hostile_names_touch_no_file(name):
    doors = [door for door in DOORS if not (name is None and door is hyperzoo.list_weights)]  # None means all there
    if name in (
        "local-dir:/tmp",
        "hf-hub:someone/x.plain_c10",
    ):  # a folder or repository that the caller names, to these
        doors = [door for door in doors if door not in (hyperzoo.load, hyperzoo.preprocess)]
    _opened.clear()
    _watching.set()
    try:
        for door in doors:
            with pytest.raises(errors.InvalidNameError) as caught:
                door(name)
            assert isinstance(caught.value, ValueError) and len(str(caught.value)) < 300
    finally:
        _watching.clear()
    assert _opened == []


def test_the_audit_hook_sees_an_opened_file():
    _opened.clear()
    _watching.set()
    try:
        open(__file__).close()
    finally:
        _watching.clear()
    assert _opened == [f"open {__file__}"]


def test_parse_returns_the_parts_of_a_name():
    name = names.parse("resnet20_cifar.mhe_c100")
    assert (name.arch, name.method, name.dataset, name.tag) == ("resnet20_cifar", "mhe", "c100", "mhe_c100")
    assert str(name) == "resnet20_cifar.mhe_c100"
    longest = "a" * (names.MAX_LENGTH - len(".plain_c10")) + ".plain_c10"
    assert str(names.parse(longest)) == longest
    with pytest.raises(errors.InvalidNameError, match="at most 80"):
        names.parse("a" + longest)


@pytest.mark.parametrize("name, close", [("resnet20_cifar.spere_c10", "sphere"), ("resnet20_cifar.plain_c11", "c10")])
def test_words_outside_the_tables_name_the_closest(name, close):
    with pytest.raises(errors.InvalidNameError, match=f"Closest: .*{close}"):
        names.parse(name)


def test_unknown_names_list_up_to_three_close_ones(tmp_path, monkeypatch):
    publish(tmp_path, monkeypatch)
    try:
        with pytest.raises(errors.UnknownNameError) as caught:
            hyperzoo.load("resnet20_cifar.mhe_c100")
    finally:
        withdraw(monkeypatch)
    text = str(caught.value)
    assert text.startswith("no weight 'resnet20_cifar.mhe_c100'. Closest: resnet20_cifar.mhe_c10, ")
    assert text.endswith("See: hyperzoo list") and text.count("resnet20_cifar.") == 4
    with pytest.raises(errors.UnknownNameError, match=r"no architecture 'sphernet20'\. Closest: spherenet20"):
        hyperzoo.load("sphernet20")
    assert PLAIN.startswith(ARCH)


def fake(name, module):
    def entry(pretrained=False, **kwargs):
        raise AssertionError("never called")

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = module
    return entry


@pytest.mark.parametrize("name, module", [("resnet18", "hyperzoo.models.x"), ("spherenet20", "another.package")])
def test_a_taken_name_is_refused_and_keeps_its_entry_point(name, module):
    holder, cfgs = timm.model_entrypoint(name), timm.list_pretrained(f"{name}.*")
    with pytest.raises(errors.RegistrationError, match=f"{name}.*{holder.__module__} has this name"):
        register(fake(name, module))
    assert timm.model_entrypoint(name) is holder and timm.list_pretrained(f"{name}.*") == cfgs
    assert len(cfgs) > 1 or name != "resnet18"  # timm alone would have wiped these tags


def test_a_name_that_breaks_the_grammar_is_refused():
    with pytest.raises(errors.InvalidNameError):
        register(fake("ResNet20", "hyperzoo.models.x"))


def test_registering_the_same_function_again_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register(resnet_cifar.resnet20_cifar) is resnet_cifar.resnet20_cifar
    assert timm.model_entrypoint(ARCH) is resnet_cifar.resnet20_cifar


HYGIENE = """
import sys
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
import timm
before, opened = set(sys.modules), []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import hyperzoo
after = set(sys.modules)
files = [f for f in opened if not f.endswith((".py", ".pyc")) and ".pyc." not in f]
print([m for m in ("accelerate", "datasets", "hyperzoo.data", "hyperzoo.training", "click", "rich") if m in after])
print(sorted({m.partition(".")[0] for m in after - before if m.startswith(("huggingface_hub", "pydantic", "ruamel"))}))
print(asked)
print([f.rpartition("/")[2] for f in files])
import importlib, warnings
warnings.simplefilter("error")
for module in (hyperzoo.models.resnet_cifar, hyperzoo.models.spherenet):
    importlib.reload(module)
print(len(hyperzoo.list_models()) == len(set(hyperzoo.list_models())) > 10)
"""


def test_import_is_light_and_a_reload_is_silent():
    done = subprocess.run([sys.executable, "-c", HYGIENE], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    heavy, foreign, sockets, files, registered = done.stdout.splitlines()
    assert heavy == foreign == sockets == "[]"
    assert files == "['weights.json']"  # no checkpoint is opened
    assert registered == "True"


@pytest.mark.full
def test_a_torchvision_of_another_torch_is_one_sentence(tmp_path):
    (tmp_path / "torchvision").mkdir()
    stub = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision" / "__init__.py").write_text(stub)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport hyperzoo"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280)
    said = [line for line in done.stderr.splitlines() if line.startswith("hyperzoo.errors.PackagePairError: ")]
    assert len(said) == 1 and "torchvision::nms does not exist" in said[0], done.stderr
    pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
    assert pair in said[0] and "Install the pair" in said[0]
