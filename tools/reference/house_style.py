"""Griffe extension: docstrings of the package, as mkdocstrings (Google style) reads them.

Sections get the blank line between them that the Google style asks for, `Example` becomes its `Examples`, arguments
that share a line get a line each, and `<` and `[` outside code start no tag and no link.
"""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Shapes|Args|Raises|Returns|Attributes|Differs|Example):$", re.MULTILINE)
NEXT_ARGUMENT = re.compile(r"(?<=\S) {3}(?=[\w, ]+: )")
CODE = re.compile(r"(`[^`]*`)")


class HouseStyle(griffe.Extension):
    """Rewrites each docstring when it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = google_style(obj.docstring.value)


def google_style(text: str) -> str:
    """A docstring of the package in the Google style."""
    lines, section, in_code = [], "", False
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = found[1]
            lines += ["", "Examples:" if section == "Example" else line]
            continue
        in_code = (in_code and line != "") or (not section and line.startswith("    ")) or ">>>" in line
        if section in ("Shapes", "Args"):
            line = NEXT_ARGUMENT.sub("\n    ", line)
        if section == "Shapes":
            line = re.sub(r"^    (?=\S)", "    - ", line, flags=re.MULTILINE)
        lines.append(line if in_code else escaped(line))
    return "\n".join(lines)


def escaped(line: str) -> str:
    """A line without tags and links outside code."""
    parts = CODE.split(line)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("[", "\\[") for part in parts)
