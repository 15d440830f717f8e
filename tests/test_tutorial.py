"""The tutorial on own images: its notebook has the same cells, and they run one after the other."""

import csv
import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import notebook
import torch
from click.testing import CliRunner

from hyperzoo.cli.commands import cli

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "own_images.md"
NOTEBOOK = ROOT / "examples" / "own_images.ipynb"


def test_the_notebook_is_made_from_the_guide():
    made = notebook.notebook(GUIDE.read_text(encoding="utf-8"))
    assert NOTEBOOK.read_text(encoding="utf-8") == made, "python tools/notebook.py docs/own_images.md " + str(NOTEBOOK)


def test_text_code_commands_and_pictures_become_cells():
    guide = '# A\n\n[b](b.md)\n\n```python\ndraw(Path("x.png"))\n```\n\n```sh\nhyperzoo eval r --confusion c.png\n```\n'
    guide += "End\n"
    cells = json.loads(notebook.notebook(guide))["cells"]
    show = [f'from IPython import display\n\ndisplay.Image(filename="{name}.png")' for name in "xc"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "# A\n\n[b](../docs/b.md)"),
        ("code", 'draw(Path("x.png"))'),
        ("code", show[0]),
        ("code", "!hyperzoo eval r --confusion c.png"),
        ("code", show[1]),
        ("markdown", "End"),
    ]
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_every_cell_runs_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERZOO_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    seen: list[str] = []
    display = SimpleNamespace(Image=lambda filename: seen.append(filename) or Path(filename).stat())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display, version_info=(9, 0)))
    space: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and code.startswith("!"):
            for line in code.splitlines():
                program, *words = shlex.split(line[1:])
                result = CliRunner().invoke(cli, words, standalone_mode=False)
                assert program == "hyperzoo" and result.exception is None and not result.return_value, result.output
        elif cell["cell_type"] == "code":
            exec(compile(code, "own_images.ipynb", "exec"), space)
    assert seen == ["training_images.png", "confusion.png", "highest_loss.png", "predictions.png"]
    out = capsys.readouterr().out
    assert "48 training images of ('circle', 'square', 'triangle')" in out  # 80 % of 20, for each class
    assert out.count(" - plain: ") == 2 and [len(scores) for scores in space["scores"].values()] == [3, 3, 3]
    rows = list(csv.DictReader(io.StringIO(Path("predictions.csv").read_text())))
    assert [row["file"] for row in rows] == [f"new/{i // 3}.png" for i in range(18)]  # three classes a file
    assert rows[0]["class"] == space["loaded"].classes[int(space["probabilities"].argmax())]
    assert out.rstrip().endswith("['circle', 'square', 'triangle']")  # from the exported file
    model = space["program"].module()
    with torch.inference_mode():
        images = space["images"].images[:2].float() / 255
        config = space["model"].pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        assert torch.allclose(model((images - mean) / std), space["outputs"][:2], atol=1e-4)
