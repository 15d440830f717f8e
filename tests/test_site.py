"""The page lists every weight, escapes hostile values, allows only its own scripts, and is written whole."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
import resource
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import hyperzoo
from hyperzoo import data, errors, names
from hyperzoo.cli import main
from hyperzoo.publishing import weight_table
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.publishing.export import Exported
from hyperzoo.publishing.site import demo, page
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest

CHECKOUT = find_checkout()
NAME = "fast_cnn8.plain_c10"
HOSTILE = """</td></script><script>alert(1)</script><img src=x onerror=alert(2)>"' onclick=alert(3) {{ 7 * 7 }} &amp;"""
FACTS = {"label_names": ["cat", "dog"], "input_size": [3, 4, 4], "mean": [0.5] * 3, "std": [0.25] * 3}
VOID = {"meta", "link", "img", "input", "wbr", "hr", "br"}


class Parsed(HTMLParser):
    """Tags with their attributes in order, and the text of each element including its children."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.tags) - 1)

    def handle_endtag(self, tag):
        assert self.tags[self._open.pop()][0] == tag

    def handle_data(self, text):
        for i in self._open:
            self.texts[i] += text

    def of(self, tag, **attributes):
        """Texts of the elements with these attributes."""
        wanted = attributes.items()
        return [x for (t, a), x in zip(self.tags, self.texts, strict=True) if t == tag and wanted <= a.items()]

    @property
    def shape(self):
        """Tags and the names of their attributes, which no value may change."""
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]


def made_demo(**facts):
    info = weight_files.MANIFEST.info(NAME)
    sample = demo.SampleImage(demo.png_url(b"picture"), facts.get("label_names", FACTS["label_names"])[0])
    return demo.Demo(info, {**FACTS, **facts}, (sample,), {"runtime": "YQ==", "wasm": "Yg==", "model": "Yw=="})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A runtime package with other content and matching integrity; the network is not exported."""
    file = tmp_path / "onnxruntime-web-1.30.0.tgz"
    with tarfile.open(file, "w:gz") as archive:
        for member in demo.RUNTIME_FILES.values():
            entry = tarfile.TarInfo(f"package/dist/{member}")
            entry.size = len(member)
            archive.addfile(entry, io.BytesIO(member.encode()))
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    monkeypatch.setattr(demo, "RUNTIME_INTEGRITY", f"sha512-{digest}")

    def export(name, out):
        assert (name, out.suffix) == ("fast_cnn8", ".onnx")
        out.write_bytes(b"a network")
        return Exported(out, FACTS, 0.0)

    monkeypatch.setattr(demo, "export", export)
    return file


def test_every_weight_is_listed_with_its_manifest_entry():
    parsed = Parsed(page.html(weight_files.MANIFEST, CHECKOUT, None))
    rows = parsed.of("th", scope="row")
    listed = [info.name for info in weight_table.listed(weight_files.MANIFEST.weights)]
    assert [row.split()[0] for row in rows] == listed and sorted(listed) == hyperzoo.list_weights()
    for name in hyperzoo.list_weights():
        info = hyperzoo.weight_info(name)
        (opened,) = parsed.of("tr", id=name)
        shown = (info.files["model.safetensors"], info.recipe, info.license, info.dataset_terms, *info.paper)
        assert all(value in opened for value in shown)
        assert f"{info.metrics.this_file.nll:.4f}" in opened  # in the card
        assert "![" not in opened and "<!--" not in opened and "library_name" not in opened
        assert any(f"{info.score.mean:.2f}" in cell for cell in parsed.of("td", **{"class": "number"}))
        assert f"{info.training.epochs}" in parsed.of("td", **{"class": "middle number"})
        assert opened.count("import timm") == 1  # the snippets of the page stand for those of the card
    assert parsed.of("option").count("SphereNet") == 1 and parsed.of("option").count("CIFAR-100") == 1
    curves = [attributes for tag, attributes in parsed.tags if attributes.get("alt") == f"Learning curve of {NAME}"]
    assert [a["src"] for a in curves] == [demo.png_url(CHECKOUT.card(NAME, ".png").read_bytes())]


@pytest.mark.parametrize("route", page.SNIPPETS)
def test_the_snippets_load_the_weight(route, monkeypatch):
    monkeypatch.chdir(CHECKOUT.root)
    codes = Parsed(page.html(weight_files.MANIFEST, CHECKOUT, None)).of("code")
    parsed = names.parse(NAME)
    code = page.SNIPPETS[route].format(name=NAME, arch=parsed.arch, tag=parsed.tag)
    assert code in codes
    space = {}
    exec(compile(code, route, "exec"), space)
    wanted = hyperzoo.load(NAME).model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in space["model"].state_dict().items())


def hostile(info):
    """A manifest entry with every unchecked text replaced by a hostile one."""
    texts = dict.fromkeys(("license", "dataset_terms"), HOSTILE)
    return dataclasses.replace(
        info,
        **texts,
        recipe=f"{HOSTILE.replace('/', '|')}/x.yaml",
        paper=(HOSTILE,) * len(info.paper),
        dataset=dataclasses.replace(info.dataset, id=HOSTILE),
        files={file: HOSTILE for file in info.files},
    )


def test_hostile_values_are_text(monkeypatch):
    manifest = Manifest(CHECKOUT.package)
    manifest.weights = {NAME: manifest.info(NAME)}
    harmless = Parsed(page.html(manifest, None, made_demo()))
    manifest.weights = {NAME: hostile(manifest.info(NAME))}
    shown = dataclasses.replace(made_demo(label_names=[HOSTILE, "dog"]), info=manifest.info(NAME))
    text = page.html(manifest, None, shown)
    parsed = Parsed(text)
    more = (("option", ()), ("wbr", ()))  # choices of the filters, and line-break opportunities
    assert [x for x in parsed.shape if x not in more] == [x for x in harmless.shape if x not in more]
    assert "alert(2)>" not in re.sub(r"&[a-z#0-9]+;", "", text).replace("alert(2)&gt;", "")
    assert HOSTILE in parsed.of("tr", id=NAME)[0]
    assert any(attributes.get("alt") == HOSTILE for _, attributes in parsed.tags)
    assert [json.loads(x)["label_names"][0] for x in parsed.of("script", id="facts")] == [HOSTILE]
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert all(link.startswith(("https://arxiv.org/abs/", "#")) for link in links)


def test_a_hostile_card_is_text(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.card(NAME).parent.mkdir()
    other = "resnet20_cifar.plain_c10"
    links = (
        f"[click](https://example.org) [js](javascript:alert(4)) ![p](p.png) [other]({other}.md) [none](x.plain_c10.md)"
    )
    links += " [paper](https://arxiv.org/abs/1711.03189)"
    evil = f"# {HOSTILE}\n\n{HOSTILE}\n\n{links}\n\n| a |\n|-|\n| <b>bold</b> |\n"
    checkout.card(NAME).write_text(f"---\nlicense: mit\n---\n<!-- made -->\n# {NAME}\n\n{evil}")
    parsed = Parsed(page.html(weight_files.MANIFEST, checkout, None))
    (card,) = [x for x in parsed.of("article") if "alert(1)" in x]
    assert card.count("<script>alert(1)</script><img src=x onerror=alert(2)>") == 2 and "<b>bold</b>" in card
    assert "license: mit" not in card and NAME not in card and "click [js](javascript:alert(4))" in card
    followed = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert all(link.startswith(("https://arxiv.org/abs/", "#")) for link in followed)
    assert f"#{other}" in followed and "#x.plain_c10" not in followed
    assert sum(link == "https://arxiv.org/abs/1711.03189" for link in followed) == 1 + sum(
        "1711.03189" in info.paper for info in weight_files.MANIFEST.weights.values()
    )
    tags = [tag for tag, _ in parsed.tags]
    assert not {"b", "iframe"} & set(tags) and tags.count("script") == 1
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    assert {attributes["src"][:5] for tag, attributes in parsed.tags if tag == "img"} <= {"data:"}


@pytest.mark.parametrize("shown", [None, made_demo()], ids=["bare", "demo"])
def test_the_policy_allows_only_the_embedded_scripts_and_styles(shown):
    parsed = Parsed(page.html(weight_files.MANIFEST, CHECKOUT, shown))
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digests = {
        tag: {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for (t, a), text in zip(parsed.tags, parsed.texts, strict=True)
            if t == tag and a.get("type", "module") == "module"
        }
        for tag in ("script", "style")
    }
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules["style-src"].split()) == digests["style"] and len(digests["style"]) == 1
    assert set(rules["script-src"].split()) == digests["script"] | ({"blob:", "'wasm-unsafe-eval'"} if shown else set())
    assert len(digests["script"]) == (2 if shown else 1) and rules["img-src"] == "data: blob:"
    assert not [a for _, attributes in parsed.tags for a in attributes if a == "style"]
    places = [a.get(key, "") for tag, a in parsed.tags if tag != "a" for key in ("src", "href")]
    assert all(url.startswith("data:") for url in places if url)


def test_the_demo_is_complete_and_the_page_is_reproducible(package, tmp_path, data_mirror):
    first = page.write(tmp_path / "a", runtime=package).read_bytes()
    assert page.write(tmp_path / "b", runtime=package).read_bytes() == first
    assert str(CHECKOUT.root).encode() not in first and [p.name for p in (tmp_path / "a").iterdir()] == ["index.html"]
    parsed = Parsed(first.decode())
    packed = {
        attributes["id"]: base64.b64decode(text)
        for (_, attributes), text in zip(parsed.tags, parsed.texts, strict=True)
        if attributes.get("type") == "application/octet-stream"
    }
    assert {part[4:8] for part in packed.values()} == {bytes(4)}  # the time stamp in the gzip header
    found = {name: gzip.decompress(part) for name, part in packed.items()}
    assert found == {**{k: v.encode() for k, v in demo.RUNTIME_FILES.items()}, "model": b"a network"}
    images = data.load_images("c10", "test")
    buttons = [a for tag, a in parsed.tags if tag == "img" and a.get("width") == "64"]
    assert [a["alt"] for a in buttons] == list(images.classes)
    for label, attributes in enumerate(buttons):
        with Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))) as picture:
            assert torch.equal(pil_to_tensor(picture), images.images[images.labels == label][0])


def test_another_package_is_refused_and_nothing_is_written(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(errors.SiteError) as caught:
        page.write(tmp_path / "out", runtime=package)
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    assert f"sha512-{digest}" in str(caught.value) and demo.RUNTIME_INTEGRITY in str(caught.value)
    with pytest.raises(errors.SiteError, match="cannot read the package"):
        page.write(tmp_path / "out", runtime=tmp_path / "none.tgz")
    assert not (tmp_path / "out").exists()


def npm(folder, monkeypatch, script):
    """Make this script the only npm on the path; without a script there is none."""
    folder.mkdir()
    if script:
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin" if script else str(folder))


@pytest.mark.parametrize(
    "script, word", [("", "the demo, is not installed"), ("echo no route >&2; exit 1", "no route")]
)
def test_without_the_runtime_the_page_has_no_demo(tmp_path, monkeypatch, caplog, script, word):
    npm(tmp_path / "bin", monkeypatch, script)
    text = page.write(tmp_path / "out").read_text()
    parsed = Parsed(text)
    assert word in caplog.text and "npm pack onnxruntime-web@1.30.0" in caplog.text and "--runtime" in caplog.text
    (said,) = parsed.of("section", id="try")
    assert "generated without ONNX Runtime Web and has no demo" in said and word not in text
    assert "#try" not in [a.get("href") for _, a in parsed.tags]
    assert len(parsed.of("th", scope="row")) == len(hyperzoo.list_weights())


def test_npm_downloads_the_pinned_version(package, tmp_path, monkeypatch):
    npm(tmp_path / "bin", monkeypatch, f'echo "$@" > {tmp_path}/asked; cp {package} .')
    found = demo.build(None, None)
    assert set(found.parts) == {"runtime", "wasm", "model"} and found.samples == ()
    assert (tmp_path / "asked").read_text().startswith(f"pack onnxruntime-web@{demo.RUNTIME_VERSION} ")


def test_without_a_checkout_there_are_no_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "find_checkout", lambda: None)
    text = page.write(tmp_path, demo=False).read_text()
    assert f"model_cards/{NAME}.md" in text and "Learning curve" not in text
    assert hyperzoo.weight_info(NAME).files["model.safetensors"] in text


def test_links_within_the_page_lead_somewhere():
    parsed = Parsed(page.html(weight_files.MANIFEST, CHECKOUT, made_demo()))
    places = {a["id"] for _, a in parsed.tags if "id" in a}
    inner = {a["href"] for tag, a in parsed.tags if tag == "a" and a["href"].startswith("#")}
    assert {"#weights", "#try", "#resnet20_cifar.plain_c10"} <= inner and {link[1:] for link in inner} <= places


def test_baselines_stand_beside_their_weights():
    base = hyperzoo.weight_info("resnet20_cifar.plain_c10")
    parsed = Parsed(page.html(weight_files.MANIFEST, CHECKOUT, None, baselines={"spherenet20.sphere_c10": base}))
    shown = [" ".join(text.split()) for text in parsed.of("td", **{"class": "wide"})]
    assert "91.98 % resnet20_cifar.plain_c10" in shown
    methods = [names.parse(name).method for name in hyperzoo.list_weights()]
    assert shown.count("no method") == methods.count("plain")
    assert shown.count("no baseline of the same budget") == len(methods) - methods.count("plain") - 1


def test_the_page_links_to_documentation_and_repository(tmp_path):
    text = page.write(tmp_path, demo=False, docs="docs/index.html", repository="https://example.org/h").read_text()
    links = {a["href"] for tag, a in Parsed(text).tags if tag == "a"}
    assert {"docs/index.html", "https://example.org/h"} <= links
    assert 'pip install "hyperzoo @ git+https://example.org/h"' in Parsed(text).of("code")
    assert "pip install ." in Parsed(page.html(weight_files.MANIFEST, None, None)).of("code")
    for wrong in ("javascript:alert(1)", "//example.org", "https://a b", "data:text/html,x", ""):
        with pytest.raises(errors.SiteError, match="is not an address for a link"):
            page.write(tmp_path / "none", demo=False, docs=wrong)
    assert not (tmp_path / "none").exists()


def test_each_step_is_reported(package, tmp_path):
    steps = []
    page.write(tmp_path, runtime=package, report=steps.append)
    assert [step.partition(":")[0] for step in steps] == ["demo", "demo", "page"]
    assert str(package) in steps[0] and demo.ARCH in steps[1] and str(len(hyperzoo.list_weights())) in steps[2]


def test_figures_next_to_a_card_are_shown(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.card(NAME).parent.mkdir()
    for suffix in (".png", ".energy.png", ".calibration.png", "_other.png"):
        checkout.card(NAME, suffix).write_bytes(suffix.encode())
    parsed = Parsed(page.html(weight_files.MANIFEST, checkout, None))
    shown = {a["alt"]: a["src"] for tag, a in parsed.tags if tag == "img"}
    assert shown == {
        f"Learning curve of {NAME}": demo.png_url(b".png"),
        f"Energy of {NAME}": demo.png_url(b".energy.png"),
        f"Calibration of {NAME}": demo.png_url(b".calibration.png"),
    }


def test_a_full_disk_changes_nothing(tmp_path):
    before = page.write(tmp_path, demo=False).read_bytes()
    (tmp_path / "index.html").write_bytes(before[:-1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # Python raises OSError instead
    try:
        with pytest.raises(errors.SiteError, match=r"cannot write .*index\.html"):
            page.write(tmp_path, demo=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_bytes() == before[:-1]
    with pytest.raises(errors.SiteError, match="cannot write"):
        page.write(tmp_path / "index.html", demo=False)


def test_the_command(tmp_path, capsys):
    for words, code, out, err in (
        (["site", str(tmp_path), "--no-demo"], 0, f"{tmp_path / 'index.html'}\t", ""),
        (["site", str(tmp_path), "--runtime", "none.tgz"], 1, "", "SiteError: cannot read the package"),
        (["site"], 2, "", "OUT"),
    ):
        with pytest.raises(SystemExit) as end:
            main.main(words)
        found = capsys.readouterr()
        assert (
            end.value.code == code and found.out.startswith(out) and err in found.err and bool(found.out) == bool(out)
        )
    assert Path(tmp_path / "index.html").is_file()
