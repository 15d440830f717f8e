"""The page works in a browser: sorting, filters, rows, copying, themes, and a demo that agrees with Python."""

import dataclasses
import re

import pytest
import torch
from PIL import Image
from support.chromium import Page

import hyperzoo
from hyperzoo import data
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.publishing.site import page
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import TextMetrics, ThisText

pytestmark = pytest.mark.full
NAME = "fast_cnn8.plain_c10"
MADE = {  # name -> accuracy or perplexity, parameters, data set
    "cnn11_elu.per_c10": (88.3, 1_434_000, "uoft-cs/cifar10"),
    "preact_resnet18.mixup_c10": (94.8, 11_164_362, "uoft-cs/cifar10"),
    "spherenet32_wide_sigmoid.mhe_c100": (70.1, 1_900_000, "uoft-cs/cifar100"),
    "resnet20_cifar.mhe_c100": (9.5, 278_324, "uoft-cs/cifar100"),
    "resnet20_cifar.plain_c100": (65.9, 278_324, "uoft-cs/cifar100"),
    "lstm200.per_ptb": (110.2, 2_650_000, "ptb-text-only/ptb_text_only"),
}
NAMES = "[...document.querySelectorAll('tbody:not([hidden]) [scope=row]')].map((head) => head.dataset.value)"
ANSWER = "document.getElementById('answer').textContent"
LINKING = "resnet20_cifar.mhe_c100"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory):
    """The page as the command writes it, with the runtime from npm or its cache."""
    written = page.write(tmp_path_factory.mktemp("demo"))
    assert 'id="facts"' in written.read_text(), (
        "the demo needs npm, and once the network: npm pack onnxruntime-web@1.30.0"
    )
    return written.as_uri()


@pytest.fixture(scope="module")
def made_page(tmp_path_factory):
    """A page with a published weight and made-up hostile ones, without the demo."""
    folder = tmp_path_factory.mktemp("made")
    manifest, checkout = Manifest(find_checkout().package), Checkout(folder)
    entry = manifest.info(NAME)
    manifest.weights = {NAME: entry}
    for name, (mean, parameters, dataset) in MADE.items():
        spread = dataclasses.replace(entry.score, mean=mean)
        text = TextMetrics(spread, ThisText(mean, 4.7, 20_000, 82_430))
        manifest.weights[name] = dataclasses.replace(
            entry,
            name=name,
            parameters=parameters,
            recipe=f"{name.partition('.')[0]}/{name}.yaml",
            license=EVIL,
            metrics=text if "lstm" in name else dataclasses.replace(entry.metrics, accuracy=spread),
            dataset=dataclasses.replace(entry.dataset, id=dataset),
        )
        checkout.card(name).parent.mkdir(exist_ok=True)
        checkout.card(name).write_text(f"# Card\n\n{EVIL}\n\n[other]({NAME}.md)\n")
    (folder / "index.html").write_text(page.html(manifest, checkout, None), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture
def opened(tmp_path):
    """Open pages; the test fails if one of them logs an error."""
    pages = []

    def open_page(url, **arguments):
        pages.append(Page(url, tmp_path / f"profile{len(pages)}", **arguments))
        return pages[-1]

    yield open_page
    for shown in pages:
        shown.run("0")  # collect the events so far
        shown.close()
    assert [fault for shown in pages for fault in shown.faults] == []


def grouped(made, key, *, reverse=False):
    """Names by data set, within it by a key."""
    order = ("_c10", "_c100", "_ptb")
    groups = [sorted((n for n in made if n.endswith(end)), key=key, reverse=reverse) for end in order]
    return [name for group in groups for name in group]


def test_columns_are_sorted_within_a_data_set_by_mouse_and_keyboard(made_page, opened):
    shown = opened(made_page)
    own = hyperzoo.weight_info(NAME)
    made = {**MADE, NAME: (own.score.mean, own.parameters, own.dataset.id)}
    state = "[...document.querySelectorAll('thead th')].map((head) => head.getAttribute('aria-sort'))"
    by_metric = grouped(made, lambda name: made[name][0], reverse=True)  # as text, 9.5 would be large
    assert shown.run(NAMES) == by_metric and shown.run(state) == [None, None, "descending", *[None] * 4]
    shown.click("thead th:nth-child(3) button")
    assert shown.run(NAMES) == grouped(made, lambda name: made[name][0])
    shown.press("Enter")  # the button is focused
    assert shown.run(NAMES) == by_metric and shown.run(state)[2] == "descending"
    shown.run("document.querySelector('thead button').focus()")
    shown.press("Space")
    assert shown.run(NAMES) == grouped(made, str)
    shown.press("Space")
    found = grouped(made, str, reverse=True)
    assert shown.run(NAMES) == found and shown.run(state) == ["descending", *[None] * 6]
    shown.click("thead th:nth-child(2) button")  # the data sets in reverse, and in each the order that was
    assert shown.run(NAMES) == sorted(found, key=lambda name: name.rpartition("_")[2], reverse=True)


def choose(shown, column, choice):
    shown.run(
        f"(() => {{ const s = document.querySelector('select[data-filter=\"{column}\"]'); s.value = '{choice}';"
        "s.dispatchEvent(new Event('change')) })()"
    )


def test_filters_keep_weights_that_match_all_of_them(made_page, opened):
    shown = opened(made_page)
    total = len(MADE) + 1
    choose(shown, "Data set", "CIFAR-100")
    assert sorted(shown.run(NAMES)) == sorted(name for name in MADE if name.endswith("_c100"))
    choose(shown, "Method", "none (baseline)")
    assert shown.run(NAMES) == ["resnet20_cifar.plain_c100"]
    assert shown.run("document.getElementById('count').textContent") == f"1 of {total} weights"
    choose(shown, "Method", "projected error function")
    assert shown.run(NAMES) == [] and not shown.run("document.getElementById('none').hidden")
    shown.click("#reset")
    assert len(shown.run(NAMES)) == total and shown.run("document.getElementById('none').hidden")
    assert shown.run("document.activeElement.dataset.filter") == "Method"


def test_a_row_opens_and_closes(made_page, opened):
    shown = opened(made_page)
    rows = "[...document.querySelectorAll('tr.opened')].filter((row) => row.checkVisibility()).map((row) => row.id)"
    assert shown.run(rows) == []
    shown.click(f'[aria-controls="{min(MADE)}"]')
    assert shown.run(rows) == [min(MADE)]
    assert EVIL in shown.run(f"document.getElementById('{min(MADE)}').innerText")
    assert shown.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    shown.press("Space")
    assert shown.run(rows) == [] and shown.run("document.activeElement.getAttribute('aria-expanded')") == "false"
    other = opened(f"{made_page}#{NAME}")
    assert other.run(rows) == [NAME]


def test_a_link_to_another_card_opens_its_row_even_if_it_is_filtered_out(made_page, opened):
    shown = opened(f"{made_page}#{LINKING}")
    choose(shown, "Data set", "CIFAR-100")
    assert NAME not in shown.run(NAMES)
    shown.click(f"[id='{LINKING}'] a[href='#{NAME}']")
    shown.wait(f"document.getElementById('{NAME}').checkVisibility()")
    assert NAME in shown.run(NAMES)


def test_all_controls_are_reachable_by_tab(made_page, opened):
    shown = opened(f"{made_page}#{min(MADE)}")
    visible = "[...document.querySelectorAll('a, button, select, summary')].filter((e) => e.checkVisibility())"
    shown.run(f"window.wanted = {visible}; wanted[0].focus(); window.met = []")
    for _ in range(shown.run("wanted.length")):
        assert shown.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
        shown.run("met.push(document.activeElement)")
        shown.press("Tab")
    assert shown.run("wanted.length === new Set(met).size && wanted.every((e) => met.includes(e))")


def test_a_snippet_is_copied(made_page, opened):
    shown = opened(f"{made_page}#{NAME}")
    shown.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    button = f'[id="{NAME}"] .copy'
    code = page.SNIPPETS["timm"].format(name=NAME)
    shown.click(button)
    shown.wait(f"document.querySelector('{button}').textContent === 'Copied'")
    assert shown.run("navigator.clipboard.readText()") == code
    shown.wait(f"document.querySelector('{button}').textContent === 'Copy'")
    shown.run("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    shown.click(button)
    shown.wait(f"document.querySelector('{button}').textContent === 'Selected'")
    assert shown.run("getSelection().toString()").strip() == code.strip()


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(made_page, opened, dark):
    shown = opened(made_page, dark=dark)
    colors = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    bright = f"{colors}.map((color) => color.match(/\\d+/g).every((value) => value > 128))"  # background and text
    name = "document.getElementById('theme').textContent"
    assert (shown.run(bright), shown.run(name)) == (([False, True], "Light") if dark else ([True, False], "Dark"))
    shown.click("#theme")
    turned = ([True, False], "Dark") if dark else ([False, True], "Light")
    assert (shown.run(bright), shown.run(name)) == turned
    shown.open(made_page)
    assert (shown.run(bright), shown.run(name)) == turned


@pytest.mark.parametrize("width", [320, 390, 820, 1160, 1190, 1280])
def test_nothing_overflows_the_window(demo_page, made_page, opened, width):
    for url in (f"{demo_page}#{NAME}", f"{made_page}#{NAME}"):
        shown = opened(url, width=width)
        assert shown.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        assert shown.run(f"document.getElementById('{NAME}').checkVisibility()")


def test_without_javascript_every_row_is_open(made_page, opened):
    shown = opened(made_page)
    shown.send("Emulation.setScriptExecutionDisabled", value=True)
    shown.open(made_page)
    root = shown.send("DOM.getDocument", depth=-1)["root"]["nodeId"]
    html = shown.send("DOM.getOuterHTML", nodeId=root)["outerHTML"]
    assert html.count('class="opened"') == len(MADE) + 1
    assert not re.search(r'class="opened"[^>]* hidden', html) and "Without JavaScript" in html


def shares(shown):
    """The percentages of the bars, by class."""
    pairs = shown.run(
        "[...document.querySelectorAll('#classes li')].map((line) => [...line.children].map((e) => e.textContent))"
    )
    return {word: float(percent.removesuffix(" %")) for word, _, percent in pairs}


def test_the_demo_agrees_with_python(demo_page, opened, data_mirror):
    shown = opened(demo_page)
    loaded = hyperzoo.load(NAME)
    images = data.load_images("c10", "test")
    firsts = torch.stack([images.images[images.labels == k][0] for k in range(10)])
    with torch.inference_mode():
        wanted = loaded.model(hyperzoo.preprocess(NAME)(firsts)).softmax(1)
    for k, row in enumerate(wanted):
        shown.click(f".sample:nth-child({k + 1})")
        best = loaded.classes[int(row.argmax())]
        assert k > 0 or best == images.classes[0]  # the first picture is a good example
        true = " This matches its label." if best == images.classes[k] else f" Its label is {images.classes[k]}."
        shown.wait(f"{ANSWER} === '{best}, {100 * row.max():.1f} %.{true}'")
        assert shares(shown) == pytest.approx(
            {word: 100 * float(p) for word, p in zip(loaded.classes, row, strict=True)},
            abs=0.06,  # one decimal is shown
        )
    assert shown.run("document.querySelectorAll('.sample[aria-pressed=true]').length") == 1


def give(shown, file):
    node = shown.send("DOM.querySelector", nodeId=shown.send("DOM.getDocument")["root"]["nodeId"], selector="#own")
    shown.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node["nodeId"])


@pytest.mark.parametrize("size", [(32, 32), (101, 75), (75, 101), (64, 66), (20, 27), (640, 480)], ids=str)
def test_an_uploaded_image_is_preprocessed_as_in_python(demo_page, opened, tmp_path, size):
    noise = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise[None], size=size[::-1], mode="bicubic")[0].clamp(0, 1)
    picture = Image.fromarray((smooth * 255).byte().permute(1, 2, 0).numpy())
    picture.save(tmp_path / "own.png")
    shown = opened(demo_page)
    give(shown, tmp_path / "own.png")
    shown.wait("!document.getElementById('result').hidden")
    seen = shown.run(
        "[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 32, 32).data]"
        ".filter((_, i) => i % 4 < 3)"
    )
    inputs = hyperzoo.preprocess(NAME)(picture)
    given = weight_files.MANIFEST.info(NAME).input
    std, mean = (torch.tensor(x).view(3, 1, 1) for x in (given.std, given.mean))
    wanted = ((inputs * std + mean) * 255).round().permute(1, 2, 0).flatten()
    difference = (torch.tensor(seen) - wanted).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.02  # Pillow rounds its coefficients to 22 bits
    loaded = hyperzoo.load(NAME)
    with torch.inference_mode():
        best = loaded.classes[int(loaded.model(inputs[None]).argmax())]
    assert shown.run(ANSWER).startswith(f"{best}, ")


def test_a_file_that_is_not_an_image_is_reported(demo_page, opened, tmp_path):
    (tmp_path / "own.png").write_text("no picture")
    shown = opened(demo_page)
    give(shown, tmp_path / "own.png")
    shown.wait(f"{ANSWER} === 'The browser cannot read this file as an image.'")
    shown.click(".sample")
    shown.wait(f"{ANSWER}.endsWith('%. This matches its label.') || {ANSWER}.includes('%. Its label is')")


@pytest.mark.parametrize("missing", ["DecompressionStream", "WebAssembly"])
def test_an_unsupported_browser_is_reported(demo_page, opened, missing):
    shown = opened("about:blank")
    shown.send("Page.addScriptToEvaluateOnNewDocument", source=f"delete globalThis.{missing}")
    shown.open(demo_page)
    shown.click(".sample")
    shown.wait(f"{ANSWER}.startsWith('The demo cannot run in this browser')")
    shown.click("[scope=row] button")
    assert shown.run("document.querySelector('tr.opened').checkVisibility()")


def test_a_changed_script_does_not_run(tmp_path):
    """The policy blocks a script that was inserted into the file, and the console logs an error."""
    text = page.html(weight_files.MANIFEST, None, None).replace(
        "</main>", "<script>document.title = 'changed'</script></main>"
    )
    (tmp_path / "changed.html").write_text(text)
    with Page((tmp_path / "changed.html").as_uri(), tmp_path / "profile") as shown:
        assert shown.run("document.title") == "hyperzoo: weights"
        assert any("Content Security Policy" in fault for fault in shown.faults)
