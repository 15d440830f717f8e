"""The page: the manifest, the cards and the pictures beside them, as one HTML file that loads nothing.

Jinja escapes every value that it inserts. The Content Security Policy allows exactly the scripts and styles that are
written into the file, by their hashes, and nothing from elsewhere.
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
from hyperzoo.publishing import cards, checkout
from hyperzoo.publishing.checkout import Checkout
from hyperzoo.publishing.site import demo as demos
from hyperzoo.publishing.site.demo import Demo, png_url
from hyperzoo.zoo import weight_files
from hyperzoo.zoo.manifest import Manifest, WeightInfo

COLUMNS = {  # heading -> classes of its cells; a narrow window leaves out the wide ones, a phone also the middle ones
    "Weight": "",
    "Family": "wide",
    "Method": "middle",
    "Data set": "middle",
    "Result": "number",
    "Runs": "wide number",
    "Parameters": "middle number",
    "File": "wide number",
}
SNIPPETS = {  # the routes of the README
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
_HEAD = re.compile(r"\A---\n.*?\n---\n(?:<!--.*?-->\n)?(?:# [^\n]*\n)?", re.DOTALL)  # of a card: data, origin, name
_logger = logging.getLogger(__name__)


def write(folder: Path, *, runtime: Path | None = None, demo: bool = True, place: Checkout | None = None) -> Path:
    """Write `folder/index.html`, whole or not at all; returns it.

    Where the demo cannot be made, for want of its runtime or of the extra [export], the page says so and a warning why.

    Args:
        runtime: the npm package onnxruntime-web, see `demo.build`; fetched with npm without it.
        demo: False leaves the demo out: about 100 kB instead of 7 MB.
        place: the checkout whose cards and pictures are shown; the one that the package is imported from, without it.
    Raises:
        SiteError: the folder cannot be written, or `runtime` is not the package that is expected.
    """
    place = place or checkout.here()
    shown = None
    if demo:
        try:
            shown = demos.build(runtime, place)
        except (SiteError, ExportError, MissingExtraError) as error:
            if runtime is not None:
                raise
            _logger.warning("the page has no demo: %s", error)
    text = html(weight_files.MANIFEST, place, shown)
    page = folder / "index.html"
    try:
        write_whole({page: text.encode()})
    except OSError as error:
        raise SiteError(f"cannot write {page}: {error}") from error
    return page


def html(manifest: Manifest, place: Checkout | None, demo: Demo | None) -> str:
    """The text of the page."""
    shown = [_weight(manifest.weights[name], place) for name in manifest.names()]
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


def _weight(info: WeightInfo, place: Checkout | None) -> dict[str, Any]:
    """What a row shows beside its manifest entry."""
    parsed = names.parse(info.name)
    return {
        "info": info,
        "family": info.recipe.partition("/")[0],
        "method": names.METHODS[parsed.method].title,
        "score": cards.score(info),
        "rank": info.score.mean if info.metric == "accuracy" else -info.score.mean,  # more is better
        "snippets": {
            route: code.format(name=info.name, arch=info.arch, tag=info.tag) for route, code in SNIPPETS.items()
        },
        "card": _card(place.card(info.name)) if place else None,
        "pictures": _pictures(place.card(info.name, ".png")) if place else {},
    }


def _card(file: Path) -> Markup | None:
    """A card as HTML, a level of headings lower. Its own HTML becomes text; its links and pictures are left out."""
    if not file.is_file():
        return None
    parser = MarkdownIt("js-default")
    tokens = parser.parse(_HEAD.sub("", file.read_text(encoding="utf-8")))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        if token.type == "table_open":
            token.attrSet("tabindex", "0")  # on a phone it scrolls, also by keyboard
        kept = [child for child in token.children or () if child.type not in ("image", "link_open", "link_close")]
        token.children = kept
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _pictures(curve: Path) -> dict[str, str]:
    """The pictures beside a card by their titles: `<name>.png` is the learning curve, `<name>.energy.png` "Energy"."""
    others = sorted(curve.parent.glob(f"{curve.stem}.*.png"))
    titles = {curve: "Learning curve", **{path: path.suffixes[-2][1:].capitalize() for path in others}}
    return {title: png_url(path.read_bytes()) for path, title in titles.items() if path.is_file()}


def _asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


def _policy(style: str, table: str, demo: str | None) -> str:
    """These very texts, pictures inside the page, the module that the demo unpacks, and nothing else."""
    scripts = f"{_hash(table)} {_hash(demo)} blob: 'wasm-unsafe-eval'" if demo else _hash(table)
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {scripts}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
