"""The table of faults counts each test once, and a fault as survived only where its test passed."""

from types import SimpleNamespace

import conftest
import pytest


def report(outcome, when="call", kind="kill", count=1):
    flags = {"passed": outcome == "passed", "failed": outcome == "failed"}
    return SimpleNamespace(when=when, user_properties=[("fault", [kind, count]), ("other", 1)], **flags)


def lines(**stats):
    said = []
    terminal = SimpleNamespace(stats=stats, section=said.append, line=said.append)
    conftest.pytest_terminal_summary(terminal)
    return [" ".join(line.split()) for line in said]


def test_counts():
    passed = [report("passed", count=200), report("passed", kind="bad header")]
    failed = [report("failed"), report("failed", when="setup", kind="bad header")]
    around = [report("passed", when="setup"), report("passed", when="teardown")]
    assert lines(passed=passed, failed=failed, warnings=[object()], **{"": around}) == [
        "faults tried and survived",
        "2 1 bad header",
        "201 200 kill",
        "203 201 in all",
    ]


def test_no_table_without_faults():
    assert lines(passed=[SimpleNamespace(when="call", passed=True, failed=False, user_properties=[])]) == []


def test_a_mark_goes_with_the_report(request):
    request.applymarker(pytest.mark.fault("kill", 3))
    request.applymarker(pytest.mark.fault("bad header"))
    item = request.node
    before, item.user_properties = item.user_properties, []
    conftest.pytest_collection_modifyitems([item])
    found, item.user_properties = item.user_properties, before
    assert sorted(found) == [("fault", ("bad header", 1)), ("fault", ("kill", 3))]
