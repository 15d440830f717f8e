"""The site of the documentation builds without a warning or a foreign address, and describes every name and key."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hyperzoo
from hyperzoo import errors
from hyperzoo.cli.commands import COMMANDS
from hyperzoo.training.recipe import Recipe
from hyperzoo.zoo import weight_description

sys.path.append(str(Path(__file__).parent.parent / "tools" / "reference"))
import house_style
import pages

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference():
    return pages.pages()


def keys(block, prefix=""):
    """The dotted keys of a pydantic model and of the models in it."""
    for key, value in block["properties"].items():
        yield prefix + key
        for kind in (value, *value.get("anyOf", ())):
            if "$ref" in kind:
                yield from keys(SCHEMA["$defs"][kind["$ref"].rpartition("/")[2]], f"{prefix}{key}.")


SCHEMA = Recipe.model_json_schema()


def test_every_recipe_key_has_a_type_a_default_and_a_meaning(reference):
    rows = [line.replace("\\|", "/").split(" | ") for line in reference["recipes"].splitlines() if line[:3] == "| `"]
    described = {row[0].strip("| `"): row[1:] for row in rows}
    expected = {key for key in keys(SCHEMA) if "." in key}
    assert len(expected) > 90 and described.keys() == expected
    assert [key for key, cells in described.items() if not all(cell.strip("| ") for cell in cells)] == []


def test_keys_are_described_as_they_are(reference):
    text = reference["recipes"]
    assert "| `optim.lr` | number, > 0 | required | peak learning rate |" in text
    assert "| `data.crop_px` | integer, ≥ 0 | `4` | border on each side before the random crop; 0: no crop." in text
    assert "| `optim.betas` | list of 2 number, ≥ 0, < 1 or `null` | `null` | of Adam and its variants |" in text


def test_sweeps_queues_and_the_manifest_are_described(reference):
    for page in ("sweeps", "manifest"):
        rows = [line.strip("| ").split(" | ") for line in reference[page].splitlines() if line[:3] == "| `"]
        assert len(rows) > 8 and all(len(row) == (4 if page == "sweeps" else 3) and row[-1].strip("- ") for row in rows)
    for kind in vars(weight_description).values():
        if dataclasses.is_dataclass(kind):
            assert all(f"| `{field.name}` |" in reference["manifest"] for field in dataclasses.fields(kind))


@pytest.mark.parametrize("package", ["", "layers", "losses", "regularizers", "mixup", "data"])
def test_every_public_name_is_in_the_reference(reference, package):
    module = getattr(hyperzoo, package) if package else hyperzoo
    packages = {"data", "layers", "losses", "mixup", "models", "regularizers"}
    source = Path(module.__file__).read_text(encoding="utf-8")
    names = {*re.findall(r"import \w+ as (\w+)", source)} - (packages if not package else set())
    text = reference[package or "hyperzoo"]
    listed = {name for members in re.findall(r"members: \[(.*)\]", text) for name in members.split(", ")}
    assert names and listed == names


def test_models_commands_and_errors_are_in_the_reference(reference):
    assert all(f"| `{name}` |" in reference["models"] for name in hyperzoo.list_models())
    assert all(f"\n## {name}\n" in reference["commands"] for name in COMMANDS)
    assert "--allow-change" in reference["commands"]
    assert "::: hyperzoo.errors\n" in reference["errors"] and errors.HyperzooError.__doc__


def test_the_index_of_the_guides_names_each_once():
    named = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted({path.name for path in ROOT.glob("docs/*.md")} - {"README.md"})


def test_docstrings_in_the_style_of_the_package_become_google_style():
    before = "Sum.\n\n    E = <x>\n\nShapes:\n    x: (B, <n>).   return: ().\nArgs:\n    a, b: [default: 1]\n"
    before += "Example:\n    >>> 1 < 2"
    after = house_style.google_style(before)
    for section in ("\n\n    E = <x>\n", "\n\nShapes:\n    - x: (B, &lt;n>).\n    - return: ().\n"):
        assert section in after
    assert after.endswith("\n\nArgs:\n    a, b: \\[default: 1]\n\nExamples:\n    >>> 1 < 2")


@pytest.mark.full
def test_the_site_builds_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        "tools/reference/mkdocs.yml",
        "-d",
        str(tmp_path / "site"),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    site = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(site) > 35
    for path, page in site.items():
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)", page)
        assert loaded and not [address for address in loaded if re.match(r"(https?:)?//", address)], path
    text = site[tmp_path / "site" / "reference" / "layers.html"]
    for name in ("SphereConv2d", "sphereize", "whiten_"):
        assert re.search(rf'id="hyperzoo\.layers\.\w+\.{name}"', text), name
    assert "SphereNet" in (tmp_path / "site" / "search" / "search_index.js").read_text(encoding="utf-8")
