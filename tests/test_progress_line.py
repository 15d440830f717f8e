"""The line of progress of a long load: in a terminal, after some seconds, gone at the end."""

import io

import pytest

from hyperzoo.data import progress_line
from hyperzoo.data.progress_line import counted


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that gains a second at each look."""
    now = [0.0]
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    return now


def test_a_long_load_counts_and_clears_its_line(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert list(counted(iter("abcde"), 9, "decoding a\x1b, train", each=2)) == list("abcde")
    *lines, last = screen.getvalue().split("\r")[1:]
    assert [line.removesuffix("\033[K") for line in lines] == [
        "decoding a?, train: 6 of 9, 0:02 left",
        "decoding a?, train: 8 of 9, 0:00 left",
        "decoding a?, train: 9 of 9, 0:00 left",
    ]
    assert last == "\033[K"


def test_a_short_load_and_a_pipe_show_nothing(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert list(counted("ab", 2, "decoding")) == ["a", "b"] and not screen.getvalue()
    monkeypatch.setattr("sys.stderr", pipe := io.StringIO())
    assert len(list(counted(range(9), 9, "decoding"))) == 9 and not pipe.getvalue()


def test_an_error_or_an_early_end_clears_the_line(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    items = counted(range(9), 9, "decoding")
    for _ in range(5):
        next(items)
    items.close()
    assert screen.getvalue().endswith("left\033[K\r\033[K")
