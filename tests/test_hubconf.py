"""torch.hub sees one documented entry point per architecture, and `load`."""

import inspect
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support.published import ARCH, MHE, PLAIN, publish, withdraw

import hyperzoo

ROOT = str(Path(__file__).parent.parent)


def hub(entry, *args, **kwargs):
    return torch.hub.load(ROOT, entry, *args, source="local", **kwargs)


@pytest.fixture
def entries(monkeypatch):
    """The entry points that torch.hub lists; this folder replaces the download, because `list` has no local source."""
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: ROOT)
    return torch.hub.list("owner/hyperzoo:v1", trust_repo=True)


def test_one_entry_per_architecture_and_load(entries):
    assert sorted(entries) == sorted([*hyperzoo.list_models(), "load"])


def test_every_entry_has_a_help_text(entries):
    for name in entries:
        text = torch.hub.help("owner/hyperzoo:v1", name, trust_repo=True)
        assert text and inspect.cleandoc(text)
        for weight in hyperzoo.list_weights(name) if name != "load" else []:
            info = hyperzoo.weight_info(weight)
            line = next(line for line in text.splitlines() if line.strip().startswith(info.tag))
            for part in (f"{info.score.mean:.2f}", f"n = {info.score.n}", info.dataset.id):
                assert part in line
            assert info.license in line


def test_every_architecture_builds_from_the_local_repository():
    for name in hyperzoo.list_models():
        assert type(hub(name, num_classes=5, device="meta")).__module__.startswith("hyperzoo.models."), name


def test_weights_load_and_are_described(tmp_path, monkeypatch):
    zoo = publish(tmp_path, monkeypatch)
    try:
        plain, mhe = hub(ARCH, pretrained=True), hub(ARCH, pretrained=True, tag="mhe_c10", num_classes=7)
        assert torch.equal(plain.fc.weight, zoo.tensors[PLAIN]["fc.weight"])
        assert torch.equal(mhe.conv1.weight, zoo.tensors[MHE]["conv1.weight"]) and mhe.num_classes == 7
        assert hub("load", PLAIN).classes[3] == "class 3"
        monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *args, **kwargs: ROOT)
        text = torch.hub.help("owner/hyperzoo:v1", ARCH, trust_repo=True)
        line = "plain_c10 (default): accuracy 91.25 % (n = 1) on uoft-cs/cifar10, license mit"
        assert line in text and "mhe_c10: accuracy" in text
    finally:
        withdraw(monkeypatch)


@pytest.mark.parametrize("name", hyperzoo.list_weights())
def test_each_weight_of_the_package_loads(name):
    arch, _, tag = name.partition(".")
    state = hub(arch, pretrained=True, tag=tag).state_dict()
    expected = hyperzoo.load(name).model.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.fixture
def github():
    """The address of a server that returns this commit as a GitHub archive for every request, and the request paths."""
    folder = ["git", "archive", "--format=zip", "--prefix=owner-hyperzoo-0123456/", "HEAD"]
    content, asked = subprocess.run(folder, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


FROM_ARCHIVE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file

address, folder = sys.argv[1:]
torch.hub._git_archive_link = lambda owner, name, ref: f"{address}/{owner}/{name}/zipball/{ref}"
torch.hub.set_dir(folder)

def load(entry, *args, **kwargs):
    return torch.hub.load("owner/hyperzoo:v1", entry, *args, trust_repo=True, skip_validation=True, **kwargs)

model = load("spherenet20", pretrained=True).eval()
root = Path(folder, "owner_hyperzoo_v1")
import hyperzoo
assert Path(hyperzoo.__file__) == root / "hyperzoo" / "__init__.py", hyperzoo.__file__
golden = load_file(root / "tests" / "golden" / "spherenet20.sphere_c10.safetensors")
x = golden["input"]
from hyperzoo.publishing.verify import agree
assert agree(model(x), golden["output"])
loaded = load("load", "spherenet20.sphere_c10")
assert torch.equal(loaded.model(x), model(x)) and len(loaded.classes) == 10

def same(other, key):
    return torch.equal(other.state_dict()[key], model.state_dict()[key])

other = load("spherenet20", pretrained=True, tag="sphere_c10", num_classes=7)
assert other(x).shape == (4, 7) and same(other, "conv1.weight")
gray = load("spherenet20", pretrained=True, in_chans=1)
assert gray(x[:, :1]).shape == (4, 10) and same(gray, "fc.weight")
features = load("spherenet20", pretrained=True, features_only=True)
assert [m.shape[1] for m in features(x)] == [16, 32, 64] and same(features, "conv1.weight")
assert "spherenet20" in torch.hub.list("owner/hyperzoo:v1", skip_validation=True, trust_repo=True)
"""


@pytest.mark.full
def test_an_archive_of_the_repository_is_enough(github, tmp_path):
    address, asked = github
    command = [sys.executable, "-c", FROM_ARCHIVE, address, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert asked == ["/owner/hyperzoo/zipball/v1"], "the unpacked folder is used again"
