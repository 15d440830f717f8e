"""Hook of mkdocs (see `mkdocs.yml`): the guides, cards and generated reference pages, in the tree of the repository.

Relative links of a page therefore work here as they do in a checkout. Generated pages come from what they describe:
docstrings, the pydantic models of recipes, sweeps and queues, the dataclasses of the manifest, and click's commands.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import io
import json
import re
import tokenize
import typing
from pathlib import Path
from typing import Any

import click
from house_style import google_style
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
OTHERS = (
    "LICENSE",
    "examples/*",
    "recipes/**/*.yaml",
    "results/*",
    "benchmarks/README.md",
    "tests/assets/README.md",
    "tools/*.md",
)
PACKAGES = ("layers", "losses", "regularizers", "mixup", "data")
ANALYSIS = """
    evaluate calibration comparison confusion robustness neuron_energy activation_statistics predict generate plots
""".split()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    guides = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    config.nav = [
        {"Home": "README.md"},
        {"Guides": ["docs/README.md", *(f"docs/{name}" for name in guides)]},
        {"Reference": [f"reference/{name}.md" for name in pages()]},
        {"Weights": [{path.stem: f"model_cards/{path.name}"} for path in cards()]},
        {"Project": [*PROJECT, "examples/README.md", "benchmarks/README.md", "results/README.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of the folder docs by all that the site holds, at their places in the repository."""
    for file in [
        file for file in files if file.abs_src_path and Path(file.abs_src_path).is_relative_to(config.docs_dir)
    ]:
        files.remove(file)
    found = [ROOT / "README.md", *(ROOT / name for name in PROJECT), *ROOT.glob("docs/*.*"), *cards()]
    found += [path for path in ROOT.glob("model_cards/*.*") if path.suffix != ".md"]
    found += [path for pattern in OTHERS for path in ROOT.glob(pattern) if path.is_file()]
    for path in sorted({*found}):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name in ("iframe-worker.js", "style.css"):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(HERE / name)))
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links to folders, which the site does not list, become text."""
    here = (ROOT / page.file.src_uri).parent
    return re.sub(r"\[([^\]]+)\]\(([^)#:]+)\)", lambda m: m[1] if (here / m[2]).is_dir() else m[0], markdown)


def cards() -> list[Path]:
    """The model cards, without their templates."""
    return sorted(path for path in ROOT.glob("model_cards/*.md") if not path.name.startswith("TEMPLATE"))


@functools.cache
def pages() -> dict[str, str]:
    """Name and Markdown of each page of the reference, in the order of the navigation."""
    return {
        "index": index(),
        "hyperzoo": package_page("hyperzoo", public_names("hyperzoo")),
        **{name: package_page(f"hyperzoo.{name}", public_names(f"hyperzoo.{name}")) for name in PACKAGES},
        "models": models_page(),
        "training": training_page(),
        "analysis": modules_page("Analysis", [f"hyperzoo.analysis.{name}" for name in ANALYSIS]),
        "errors": modules_page("Errors", ["hyperzoo.errors"]),
        "recipes": recipes_page(),
        "sweeps": sweeps_page(),
        "commands": commands_page(),
        "manifest": manifest_page(),
    }


def docstring(described: object) -> str:
    """The docstring of a module or class as Markdown."""
    return google_style(inspect.getdoc(described) or "")


def index() -> str:
    return """# Reference

- [`hyperzoo`](hyperzoo.md), [`layers`](layers.md), [`losses`](losses.md), [`regularizers`](regularizers.md),
  [`mixup`](mixup.md), [`data`](data.md), [`models`](models.md): the public names, from their docstrings
- [Training](training.md) and [analysis](analysis.md): the functions behind the commands
- [Errors](errors.md): every exception and the builtin it also is
- [Recipes](recipes.md), [sweeps and queues](sweeps.md): every key with type, default and meaning
- [Command line](commands.md): every command and option
- [Manifest](manifest.md): the fields of `weights.json`
"""


def public_names(package: str) -> list[str]:
    """The names that a package offers: what its `__init__.py` imports as itself."""
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    found = [alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    packages = (f"hyperzoo.{name}" for name in (*PACKAGES, "models"))
    hidden = {name.rpartition(".")[2] for name in packages} if package == "hyperzoo" else set()
    return sorted(name for name in found if name and not name.startswith("_") and name not in hidden)


def package_page(package: str, names: list[str]) -> str:
    """The public names of a package under the modules that define them, whose docstrings have the formulas."""
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(getattr(importlib.import_module(package), name).__module__, []).append(name)
    blocks = [f"::: {module}\n    options: {{members: [{', '.join(listed)}]}}\n" for module, listed in owners.items()]
    return "\n".join([f"# {package}\n", docstring(importlib.import_module(package)), "", *blocks])


def modules_page(title: str, modules: list[str]) -> str:
    return "\n".join([f"# {title}\n", *(f"::: {module}\n" for module in modules)])


def training_page() -> str:
    listed = ("hyperzoo.training.load_recipe", "hyperzoo.training.Recipe", "hyperzoo.experiments.train")
    own = ("hyperzoo.experiments.build", "hyperzoo.experiments.pretrained", "hyperzoo.experiments.queue")
    return modules_page("Training", [*listed, *own])


def models_page() -> str:
    import hyperzoo
    from hyperzoo.zoo.architectures import architecture

    rows = [architecture(name) for name in hyperzoo.list_models()]
    lines = ["# hyperzoo.models", "", "`timm.create_model` and `hyperzoo.load` take these names.", ""]
    for family in sorted({row.family for row in rows}):
        lines += [f"## {family}", "", docstring(importlib.import_module(f"hyperzoo.models.{family}")), ""]
        cells = [
            (f"`{row.name}`", row.description, f"{row.parameters:,}", " × ".join(map(str, row.input_size)),
             ", ".join(f"[`{weight}`](../model_cards/{weight}.md)" for weight in row.weights))
            for row in rows if row.family == family
        ]  # fmt: skip
        lines += [*table(("architecture", "description", "parameters", "input", "weights"), cells), ""]
    return "\n".join(lines)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def comments(block: type) -> dict[str, str]:
    """The comment of each field of a class: after it and on the lines below it."""
    source = inspect.getsource(block)
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    notes = {
        token.start[0]: re.sub(r"^# (type: ignore\[.*?\](  # )?)?", "", token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            end = after.lineno if after else len(source.splitlines()) + 1
            end = min([end, *(decorator.lineno for decorator in getattr(after, "decorator_list", ()))])
            found[node.target.id] = " ".join(text for line, text in notes.items() if node.lineno <= line < end).strip()
    return found


def settings_rows(block: type[BaseModel], prefix: str = "") -> list[tuple[str, ...]]:
    """(key, type, default, meaning) of each key of a block of settings and of the blocks in it."""
    schema, meanings, rows = block.model_json_schema(), comments(block), []
    for key, field in block.model_fields.items():
        inner = next((kind for kind in (field.annotation, *typing.get_args(field.annotation)) if is_block(kind)), None)
        default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
        if inner:
            meaning = meanings[key] or docstring(inner).partition("\n\n")[0]
            default = "required" if field.is_required() else "none"
            rows += [(f"`{prefix}{key}`", "block", default, " ".join(meaning.split()))]
            rows += settings_rows(inner, f"{prefix}{key}.")
        else:
            kind = type_text(schema["properties"][key], schema.get("$defs", {}))
            rows.append((f"`{prefix}{key}`", kind, default, meanings[key]))
    return rows


def is_block(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def type_text(schema: dict[str, Any], blocks: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_text(kind, blocks) for kind in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value) if not isinstance(value, str) else value}`" for value in values)
    kind = schema.get("type", "any value")
    if kind == "array":
        length = f"{schema['minItems']} " if schema.get("minItems") == schema.get("maxItems", -1) else ""
        return f"list of {length}{type_text(schema['items'], blocks)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {type_text(values, blocks)}" if isinstance(values, dict) else "mapping"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]}" for key, sign in bounds.items() if schema.get(key, 2**63) != 2**63]
    words = {"null": "`null`", "string": "text", "boolean": "`true` or `false`"}
    return ", ".join([words.get(kind, kind), *limits])


SETTINGS = ("key", "type", "default", "meaning")


def recipes_page() -> str:
    from hyperzoo.training.recipe import Recipe

    lines = ["# Recipes", "", "A recipe is a YAML file; `hyperzoo train FILE block.key=value ...` changes keys.", ""]
    for key, field in Recipe.model_fields.items():
        block = next((kind for kind in (field.annotation, *typing.get_args(field.annotation)) if is_block(kind)), None)
        if block:
            lines += [f"## {key}", "", docstring(block), ""]
            lines += [*table(SETTINGS, settings_rows(block, f"{key}.")), ""]
    return "\n".join(lines)


def sweeps_page() -> str:
    from hyperzoo.training import sweep_file

    lines = ["# Sweeps and queues", "", fenced(docstring(sweep_file)), "", "## Sweep", ""]
    lines += [*table(SETTINGS, settings_rows(sweep_file.Sweep)), "", "## Queue", ""]
    lines += [docstring(sweep_file.Queue), "", *table(SETTINGS, settings_rows(sweep_file.Queue)), ""]
    return "\n".join(lines)


def fenced(text: str) -> str:
    """A docstring whose second paragraph is YAML, with that as a block of code."""
    first, code, *rest = text.split("\n\n")
    return "\n\n".join([first, f"```yaml\n{code}\n```", *rest])


def commands_page() -> str:
    """The help of every command, as the terminal shows it."""
    from hyperzoo.cli.commands import cli

    lines, group = ["# Command line", ""], click.Context(cli, info_name="hyperzoo", help_option_names=["-h", "--help"])
    commands = {"hyperzoo": group} | {
        name: click.Context(cli.get_command(group, name), info_name=name, parent=group)
        for name in cli.list_commands(group)
    }
    for name, context in commands.items():
        context.terminal_width = 90
        lines += [f"## {name}", "", f"```text\n{context.get_help()}\n```", ""]
    return "\n".join(lines)


def manifest_page() -> str:
    from hyperzoo.zoo import weight_description

    lines = [
        "# Manifest",
        "",
        "`hyperzoo/weights.json` has one entry per weight; `hyperzoo.weight_info` returns it.",
        "",
    ]
    kinds = [kind for kind in vars(weight_description).values() if dataclasses.is_dataclass(kind)]
    for kind in [typing.cast(type, kind) for kind in reversed(kinds)]:
        lines += [f"## {kind.__name__}", "", docstring(kind), ""]
        meanings = comments(kind)
        rows = [(f"`{f.name}`", f"`{annotation(f.type)}`", meanings[f.name]) for f in dataclasses.fields(kind)]
        lines += [*table(("field", "type", "meaning"), rows), ""]
    return "\n".join(lines)


def annotation(kind: Any) -> str:
    return (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace("hyperzoo.zoo.weight_description.", "")
    )
