"""The page: manifest, cards and figures in one HTML file that loads nothing.

Jinja escapes every inserted value. The Content Security Policy allows only the scripts and styles inside the file, by
their hashes.
"""

import base64
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from hyperzoo import __version__, names
from hyperzoo.errors import ExportError, MissingExtraError, SiteError
from hyperzoo.files import write_whole
from hyperzoo.publishing import cards
from hyperzoo.publishing.checkout import Checkout, find_checkout
from hyperzoo.publishing.site import demo as demos
from hyperzoo.publishing.site.demo import Demo, png_url
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest
from hyperzoo.zoo.weight_description import WeightInfo

COLUMNS = {  # head -> CSS classes of its cells; narrow windows hide the wide columns, phones the middle ones too
    "Weight": "",
    "Family": "wide",
    "Method": "middle",
    "Data set": "middle",
    "Test metric": "number",
    "Runs": "wide number",
    "Parameters": "middle number",
    "File": "wide number",
}
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
_logger = logging.getLogger(__name__)


def write(folder: Path, *, runtime: Path | None = None, demo: bool = True, checkout: Checkout | None = None) -> Path:
    """Write `folder/index.html`, whole or not at all; returns its path.

    If the demo lacks its runtime or the extra [export], the page omits it, and a warning gives the reason.

    Args:
        runtime: npm package onnxruntime-web as .tgz, see `demo.build` [default: download with npm].
        demo: False omits the demo, which takes about 7 MB.
        checkout: source of the cards and figures [default: the checkout that this package is imported from].
    Raises:
        SiteError: the folder cannot be written, or `runtime` is not the expected package.
    """
    checkout = checkout or find_checkout()
    shown = None
    if demo:
        try:
            shown = demos.build(runtime, checkout)
        except (SiteError, ExportError, MissingExtraError) as error:
            if runtime is not None:
                raise
            _logger.warning("the page has no demo: %s", error)
    text = html(weight_files.MANIFEST, checkout, shown)
    page = folder / "index.html"
    try:
        write_whole({page: text.encode()})
    except OSError as error:
        raise SiteError(f"cannot write {page}: {error}") from error
    return page


def html(manifest: Manifest, checkout: Checkout | None, demo: Demo | None) -> str:
    """The text of the page."""
    shown = [_weight(manifest.weights[name], checkout) for name in manifest.names()]
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
        filters={
            "Family": sorted({weight["family"] for weight in shown}),
            "Method": sorted({weight["method"] for weight in shown}),
            "Data set": sorted({weight["info"].dataset.id for weight in shown}),
        },
        weights=shown,
        demo=demo,
    )


def _weight(info: WeightInfo, checkout: Checkout | None) -> dict[str, Any]:
    """The values of a row: its manifest entry, and what is derived from it."""
    parsed = names.parse(info.name)
    return {
        "info": info,
        "family": info.recipe.partition("/")[0],
        "method": names.METHODS[parsed.method].title,
        "score": cards.score(info),
        "rank": info.score.mean if info.metric == "accuracy" else -info.score.mean,  # larger is better
        "snippets": {
            route: code.format(name=info.name, arch=info.arch, tag=info.tag) for route, code in SNIPPETS.items()
        },
        "card": _card(checkout.card(info.name)) if checkout else None,
        "pictures": _pictures(checkout.card(info.name, ".png")) if checkout else {},
    }


def _card(file: Path) -> Markup | None:
    """A card as HTML with headings one level lower. HTML in the card becomes text; links and images are removed."""
    if not file.is_file():
        return None
    parser = MarkdownIt("js-default")
    tokens = parser.parse(_HEAD.sub("", file.read_text(encoding="utf-8")))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        if token.type == "table_open":
            token.attrSet("tabindex", "0")  # scrollable by keyboard in narrow windows
        kept = [child for child in token.children or () if child.type not in ("image", "link_open", "link_close")]
        token.children = kept
    return Markup(parser.renderer.render(tokens, parser.options, {}))


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
