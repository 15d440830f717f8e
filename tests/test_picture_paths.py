"""A picture that cannot be written is refused before the work that it would show."""

import pytest

from hyperzoo import zoo
from hyperzoo.cli import main

COMMANDS = {
    "energy": ["energy", "spherenet20"],
    "activations": ["activations", "spherenet20"],
    "eval": ["eval", "spherenet20", "--robustness"],
    "plot": ["plot", "operators"],
}


@pytest.mark.fault("picture that cannot be written", 3)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path, command, monkeypatch, capsys):
    def work(*args, **kwargs):
        raise AssertionError("the work began")

    monkeypatch.setattr(zoo, "any_network", work)
    (tmp_path / "folder.png").mkdir()
    for out in ("missing/x.png", "folder.png", "x.txt"):
        assert main._exit_code([*COMMANDS[command], "--out", str(tmp_path / out)]) == 2
        assert out in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
