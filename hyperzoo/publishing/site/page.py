"""The page: manifest, cards and figures in one HTML file that loads nothing.

Jinja escapes every inserted value. The Content Security Policy allows only the scripts and styles inside the file, by
their hashes.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from hyperzoo import __version__, names
from hyperzoo.errors import ExportError, MissingExtraError, SiteError
from hyperzoo.files import write_whole
from hyperzoo.publishing import weight_table
from hyperzoo.publishing.baselines import baselines
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.publishing.site import demo as demos
from hyperzoo.publishing.site.demo import Demo, png_url
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import WeightInfo

COLUMNS = {  # head -> CSS classes of its cells; narrow windows hide the wide columns, phones the middle ones too
    "Weight": "",
    "Data set": "middle",
    "Test metric": "number",
    "Epochs": "middle number",
    "Baseline, same budget": "wide",
    "Minutes to retrain": "wide number",
    "Size": "wide number",
}
GROUP = "Data set"  # the column by which rows stay together, whatever they are sorted by
SNIPPETS = {  # the same routes as in the README
    "timm": """import hyperzoo  # registers the models with timm
import timm

model = timm.create_model("{name}", pretrained=True).eval()
""",
    "hyperzoo": """import hyperzoo

loaded = hyperzoo.load("{name}")
model, classes = loaded.model, loaded.classes
""",
    "torch.hub, in a clone": """import torch

model = torch.hub.load(".", "{arch}", tag="{tag}", source="local", pretrained=True)
""",
}
_ASSETS = Path(__file__).parent
_HEAD = re.compile(
    r"\A---\n.*?\n---\n(?:<!--.*?-->\n)?(?:# [^\n]*\n)?", re.DOTALL
)  # of a card: metadata, comment, name
_REPEATED = re.compile(  # sections of a card that the page writes itself
    r"^## (?:Use|License and terms|Papers|Hashes and versions)\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE
)
_ARXIV = re.compile(r"https://arxiv\.org/abs/[\d.]+")
_ADDRESS = re.compile(r"(?!\w*:|//)[\w./-]+|https?://[^\s\"'<>]+")  # of links: relative, or to the web
_logger = logging.getLogger(__name__)


def write(
    folder: Path,
    *,
    runtime: Path | None = None,
    demo: bool = True,
    docs: str | None = None,
    repository: str | None = None,
    checkout: Checkout | None = None,
    report: Callable[[str], None] = _logger.info,
) -> Path:
    """Write `folder/index.html`, whole or not at all; returns its path.

    If the demo lacks its runtime or the extra [export], the page omits it, and a warning gives the reason.

    Args:
        runtime: npm package onnxruntime-web as .tgz, see `demo.build` [default: download with npm].
        demo: False omits the demo, most of the page's bytes.
        docs: address of the documentation, relative to the page or with https:// [default: no link].
        repository: address of the git repository; the page then shows how to install from it [default: no link].
        checkout: source of the cards and figures [default: the checkout that this package is imported from].
        report: called with one line before each step, since the demo takes up to a minute.
    Raises:
        SiteError: the folder cannot be written, an address is not one, or `runtime` is not the expected package.
    """
    for address in (docs, repository):
        if address is not None and not _ADDRESS.fullmatch(address):
            raise SiteError(
                f"{names.cut(repr(address))} is not an address for a link; write https://... or a relative path"
            )
    checkout = checkout or find_checkout()
    shown = None
    if demo:
        try:
            shown = demos.build(runtime, checkout, report)
        except (SiteError, ExportError, MissingExtraError) as error:
            if runtime is not None:
                raise
            _logger.warning("the page has no demo: %s", error)
    report(f"page: the cards of {len(weight_files.MANIFEST.weights)} weights")
    compared = baselines(weight_files.MANIFEST, checkout) if checkout else None
    text = html(weight_files.MANIFEST, checkout, shown, baselines=compared, docs=docs, repository=repository)
    page = folder / "index.html"
    try:
        write_whole({page: text.encode()})
    except OSError as error:
        raise SiteError(f"cannot write {page}: {error}") from error
    return page


def html(
    manifest: Manifest,
    checkout: Checkout | None,
    demo: Demo | None,
    *,
    baselines: Mapping[str, WeightInfo | None] | None = None,
    docs: str | None = None,
    repository: str | None = None,
) -> str:
    """The text of the page; without a checkout it has no cards and pictures, and without `baselines` none of these."""
    shown = [_weight(info, manifest, checkout, baselines) for info in weight_table.listed(manifest.weights)]
    style, table, script = (_asset(name) for name in ("page.css", "table.js", "demo.js"))
    engine = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template("index.html").render(
        version=__version__,
        policy=_policy(style, table, script if demo else None),
        style=style,
        table_script=table,
        demo_script=script,
        columns=COLUMNS,
        group=GROUP,
        filters={
            "Method": sorted({weight["method"] for weight in shown}),
            "Data set": sorted({weight["dataset"] for weight in shown}),
        },
        weights=shown,
        demo=demo,
        docs=docs,
        repository=repository,
    )


def _weight(
    info: WeightInfo,
    manifest: Manifest,
    checkout: Checkout | None,
    baselines: Mapping[str, WeightInfo | None] | None,
) -> dict[str, Any]:
    """The values of a row: its manifest entry, and what is derived from it."""
    parsed = names.parse(info.name)
    return {
        "info": info,
        "method": names.METHODS[parsed.method].title,
        "dataset": weight_table.dataset_title(info),
        "score": weight_table.score(info),
        "rank": weight_table.rank(info),
        "baseline": _baseline(info, baselines),
        "minutes": weight_table.minutes(info),
        "size": weight_table.size(info),
        "snippets": {
            route: code.format(name=info.name, arch=info.arch, tag=info.tag) for route, code in SNIPPETS.items()
        },
        "card": _card(checkout.card(info.name), manifest) if checkout else None,
        "pictures": _pictures(checkout.card(info.name, ".png")) if checkout else {},
    }


def _baseline(info: WeightInfo, baselines: Mapping[str, WeightInfo | None] | None) -> tuple[str, str]:
    """The metric of the baseline and its name, or a remark and nothing."""
    if baselines is None:
        return "see the repository", ""
    base = baselines.get(info.name)
    return (weight_table.mean(base), base.name) if base else (weight_table.without_baseline(info), "")


def _card(file: Path, manifest: Manifest) -> Markup | None:
    """A card as HTML with headings one level lower, without the sections that the page writes itself.

    HTML in the card becomes text. Links to papers stay and links to other cards open their rows. Other links and images
    are removed: their files are not in the page.
    """
    if not file.is_file():
        return None
    parser = MarkdownIt("js-default")
    tokens = parser.parse(_REPEATED.sub("", _HEAD.sub("", file.read_text(encoding="utf-8"))))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        if token.type == "table_open":
            token.attrSet("tabindex", "0")  # scrollable by keyboard in narrow windows
        if token.children:
            token.children = list(_kept(token.children, manifest))
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _kept(children: Sequence[Token], manifest: Manifest) -> Iterator[Token]:
    """The parts of a line without images and without links that lead nowhere."""
    leads = False
    for child in children:
        if child.type == "link_open":
            target = str(child.attrs["href"])
            name = target.removesuffix(".md")
            leads = name in manifest.weights or bool(_ARXIV.fullmatch(target))
            child.attrs = {"href": f"#{name}" if name in manifest.weights else target}
        if child.type != "image" and (leads or child.type not in ("link_open", "link_close")):
            yield child


def _pictures(curve: Path) -> dict[str, str]:
    """The figures next to a card, by title: `<name>.png` is "Learning curve", `<name>.energy.png` is "Energy"."""
    others = sorted(curve.parent.glob(f"{curve.stem}.*.png"))
    titles = {curve: "Learning curve", **{path: path.suffixes[-2][1:].capitalize() for path in others}}
    return {title: png_url(path.read_bytes()) for path, title in titles.items() if path.is_file()}


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


def _policy(style: str, table: str, demo: str | None) -> str:
    """Allow these texts, embedded images and the module that the demo unpacks, and nothing else."""
    scripts = f"{_hash(table)} {_hash(demo)} blob: 'wasm-unsafe-eval'" if demo else _hash(table)
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {scripts}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
