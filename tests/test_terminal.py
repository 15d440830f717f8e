"""What comes from files and arguments is printed as it is: a terminal obeys none of it, and rich reads no markup."""

import json
import sys

import pytest
import timm

from hyperzoo.analysis import generate
from hyperzoo.cli import main, tables
from hyperzoo.errors import InputError
from hyperzoo.training.progress import Progress
from hyperzoo.zoo.model_folder import save_model

HOSTILE = "a\x1b]0;title\x07\x9b31m\r\x7f\ud800"
ESCAPED = "a\\u001b]0;title\\u0007\\u009b31m\\u000d\\u007f\\ud800"


@pytest.mark.fault("control characters for a terminal", 4)
def test_control_characters_are_escaped(capsys, monkeypatch):
    tables.write(HOSTILE + "\tb\nc")
    tables.note(HOSTILE)
    assert capsys.readouterr() == (f"{ESCAPED}\tb\nc\n", f"{ESCAPED}\n")
    tables.show_json({"a": HOSTILE})
    assert json.loads(capsys.readouterr().out) == {"a": HOSTILE}
    assert main._fail(InputError(HOSTILE)) == 1
    assert capsys.readouterr().err == f"InputError: {ESCAPED}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    tables.show(["x"], [[HOSTILE]])
    assert ESCAPED in capsys.readouterr().out


@pytest.mark.fault("markup of rich in a name", 2)
def test_markup_in_names_is_text(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tables.show(["a [b]"], [["x[/red]"], ["[bold]y"], [":smile:"]])
    out = capsys.readouterr().out
    assert "a [b]" in out and "x[/red]" in out and "[bold]y" in out and ":smile:" in out
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured output for a terminal
    progress = Progress("some[/red]", 1)
    with progress:
        progress.say("runs/x[/red]")
    progress.say("-> runs/y[/red]")
    out = capsys.readouterr().out
    assert all(name in out for name in ("some[/red]", "runs/x[/red]", "-> runs/y[/red]"))


@pytest.mark.fault("damaged vocabulary")
@pytest.mark.parametrize("words, missing", [("ab", "<eos> and <unk>"), (("a", "<eos>"), "<unk>")])
def test_a_vocabulary_without_its_marks_is_refused(tmp_path, words, missing):
    save_model(timm.create_model("lstm200", num_classes=2, width=8), tmp_path, classes=tuple(words), args={"width": 8})
    with pytest.raises(InputError, match=f"the vocabulary of .* lacks {missing}; it is not that of a trained text"):
        generate.run(f"local-dir:{tmp_path}", "a b")
