"""Write a guide as a notebook: text as Markdown cells, Python blocks as code cells, commands as lines with a !.

    python tools/notebook.py docs/own_images.md examples/own_images.ipynb

The tests compare both, and run the notebook.
"""

import json
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r'(?:Path\("|--\w+ )(\w+\.png)')  # that a block writes


def notebook(guide: str) -> str:
    """The text of a notebook with the content of a guide; links to other guides lead to docs/.

    A cell that shows it follows each picture that a block writes.
    """
    cells, end = [], 0
    for match in [*BLOCK.finditer(guide), None]:
        text = guide[end : match.start() if match else len(guide)].strip()
        if text:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": _links(text)})
        if match:
            kind, code = match[1], match[2].rstrip()
            end = match.end()
            cells.append(_code("\n".join("!" + line for line in code.splitlines()) if kind == "sh" else code))
            cells += [
                _code(f'from IPython import display\n\ndisplay.Image(filename="{picture}")')
                for picture in PICTURE.findall(code)
            ]
    for number, cell in enumerate(cells):
        cell |= {"id": f"cell-{number}", "source": cell["source"].splitlines(keepends=True)}
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def _code(source: str) -> dict[str, object]:
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


def _links(text: str) -> str:
    return re.sub(r"\]\((\w+\.md)\)", r"](../docs/\1)", text)


if __name__ == "__main__":
    guide, book = map(Path, sys.argv[1:])
    book.write_text(notebook(guide.read_text(encoding="utf-8")), encoding="utf-8")
