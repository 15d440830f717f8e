"""Generated parts of a Markdown file, between `<!-- bench: NAME -->` and `<!-- end of bench -->`."""

import re
from pathlib import Path


def replace(file: Path, name: str, text: str) -> None:
    """Write a text between the marks of a name.

    Raises:
        SystemExit: the file has no such marks.
    """
    before = file.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- bench: {re.escape(name)} -->\n).*?(<!-- end of bench -->)", re.DOTALL)
    after, count = marks.subn(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", before)
    if count != 1:
        raise SystemExit(f"{file} needs one block <!-- bench: {name} --> ... <!-- end of bench -->; it has {count}")
    file.write_text(after, encoding="utf-8")
