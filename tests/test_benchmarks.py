"""The scripts of benchmarks/ that gather the others: every table has its place, and curves get their exponent."""

import importlib
import math
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_a_block_is_replaced_alone(module, tmp_path):
    page, blocks = tmp_path / "page.md", module("blocks")
    page.write_text(
        "a\n<!-- bench: x -->\nold\n<!-- end of bench -->\nb\n<!-- bench: xy -->\n\\1\n<!-- end of bench -->\n"
    )
    blocks.replace(page, "x", "new \\2\n\n")
    assert page.read_text() == (
        "a\n<!-- bench: x -->\nnew \\2\n<!-- end of bench -->\nb\n<!-- bench: xy -->\n\\1\n<!-- end of bench -->\n"
    )
    before = page.read_bytes()
    with pytest.raises(SystemExit, match="needs one block <!-- bench: z -->"):
        blocks.replace(page, "z", "new")
    assert page.read_bytes() == before


def test_every_benchmark_has_its_file_and_its_place_in_a_page(module):
    run_all, scaling = module("run_all"), module("scaling")
    readme = (BENCHMARKS / "README.md").read_text()
    page = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    for name, command in run_all.COMMANDS.items():
        assert (BENCHMARKS / f"{command.split()[0]}.py").is_file(), name
        assert readme.count(f"<!-- bench: {name} -->") == (name != "scaling"), name
    for name in (*(curve.name for curve in scaling.CURVES), "engine"):
        assert page.count(f"<!-- bench: {name} -->") == 1, name
    for curve in scaling.CURVES:
        assert f"](scaling_{curve.name}.png)" in page


def test_calls_alternate_and_are_timed_apart(module, monkeypatch):
    measure, calls, clock = module("measure"), [], [0.0]

    def call(name, *seconds):
        left = iter(seconds)

        def run():
            calls.append(name)
            clock[0] += next(left)

        return run

    times = measure.rounds(call("a", 9, 1, 2, 8), call("b", 9, 4, 4, 24), repeats=3, now=lambda: clock[0])
    assert calls == ["a", "b"] * 4
    assert times == [(1, 4), (2, 4), (8, 24)]
    assert measure.medians(times) == [2, 4]
    assert measure.ratio(times) == 3  # of 4, 2 and 3
    monkeypatch.setattr(measure, "LONGEST_S", 0.0)
    assert len(measure.rounds(lambda: None, repeats=100)) == measure.LEAST


def test_the_memory_of_a_call_is_its_peak(module):
    measure, held = module("measure"), []
    grown = measure.growth(lambda: held.append(torch.ones(20 * 2**20)))
    if math.isnan(grown):
        pytest.skip("this kernel does not reset the peak of a process")
    assert grown == pytest.approx(80 * 2**20, rel=0.1)


def test_what_was_not_measured_has_not_reached_its_limit(module):
    verdict = module("measure").verdict
    assert [verdict(value, 1.1) for value in (1.1, 1.2, math.nan)] == ["ok", "MISSED", "not measured"]


def test_the_exponent_is_the_slope_of_the_upper_half(module):
    exponent = module("scaling").exponent
    assert exponent([1, 10, 100, 1000], [1.0, 5e-3 * 10**3, 5e-3 * 100**3, 5e-3 * 1000**3]) == pytest.approx(3)
    assert exponent([1, 2, 4, 8, 16, 32], [9.0, 7.0, 5.0, 0.5 * 8**2, 0.5 * 16**2, 0.5 * 32**2]) == pytest.approx(2)


def test_a_table_has_times_ratios_memory_and_exponents(module):
    scaling = module("scaling")
    sleepless = {"once": lambda n: lambda: work(n), "twice": lambda n: lambda: work(2 * n)}
    times, table = scaling.time_of(scaling.Curve("x", "size", (1, 2, 4, 8), sleepless, memory=True))
    assert [len(found) for found in times.values()] == [4, 4]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert lines[0] == ["size", "once (ms)", "twice (ms)", "twice: ratio", "memory of twice (MB)"]
    assert len(lines) == 2 + 4 + 1 and all(1.5 < float(line[3]) < 2.7 for line in lines[2:6])
    assert [0.8 < float(value) < 1.2 for value in lines[6][1:3]] == [True, True]


def work(n):
    """Busy for n milliseconds of CPU time."""
    started = time.thread_time()
    while time.thread_time() - started < 0.001 * n:
        pass
