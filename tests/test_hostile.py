"""The hostile set: inputs of seven kinds, from a seed, end with a right value or with a typed error."""

import pytest
from support import hostile

COUNTS = {  # inputs of each kind in `make test`, and in `make test-all`
    "weight file": (40, 500),
    "config.json": (30, 400),
    "recipe": (40, 500),
    "data set": (25, 300),
    "run folder": (30, 400),
    "answer of the Hub": (10, 120),
    "number": (60, 600),
}


def cases():
    for kind, (few, many) in COUNTS.items():
        fault = f"hostile {kind}"
        yield pytest.param(kind, few, 0, marks=pytest.mark.fault(fault, few), id=f"{kind}-{few}")
        yield pytest.param(kind, many, 1, marks=[pytest.mark.full, pytest.mark.fault(fault, many)], id=f"{kind}-{many}")


def test_the_set_has_at_least_2000_inputs_of_seven_kinds():
    assert COUNTS.keys() == hostile.KINDS.keys() and len(COUNTS) == 7
    assert sum(many for _, many in COUNTS.values()) >= 2_000 and sum(few for few, _ in COUNTS.values()) >= 200


@pytest.mark.parametrize("kind, count, seed", [*cases()])
def test_every_input_works_or_is_refused(kind, count, seed, tmp_path, monkeypatch):
    outcomes = hostile.campaign(kind, count, seed, tmp_path, monkeypatch)
    assert outcomes.total() == count and min(outcomes["refused"], outcomes["worked"]) >= count / 50


def test_a_finding_names_kind_number_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile.Weights, "attempt", lambda self, rng: [][0])
    with pytest.raises(AssertionError, match="weight file 0 of seed 3: IndexError: "):
        hostile.campaign("weight file", 9, 3, tmp_path, monkeypatch)
