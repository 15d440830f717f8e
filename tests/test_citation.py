"""The citation file has what its format requires, and it, the BibTeX and the package name the same papers."""

import re
from pathlib import Path

from ruamel.yaml import YAML

import hyperzoo
from hyperzoo import names

ROOT = Path(__file__).parent.parent
CITATION = YAML(typ="safe", pure=True).load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PAPERS = {paper for method in names.METHODS.values() for paper in method.papers}


def test_the_citation_file_has_the_required_keys_and_the_version():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["message"] and CITATION["title"].startswith("hyperzoo")
    assert CITATION["authors"] == [{"name": "The hyperzoo authors"}]
    assert CITATION["version"] == hyperzoo.__version__ and CITATION["license"] == "MIT"
    for reference in CITATION["references"]:
        assert reference["type"] == "conference-paper" and reference["title"] and reference["authors"]
        assert isinstance(reference["year"], int) and reference["conference"]["name"]


def test_citation_bibtex_and_methods_name_the_same_papers():
    numbers = [
        value["value"].removeprefix("arXiv:") for paper in CITATION["references"] for value in paper["identifiers"]
    ]
    bibtex = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert sorted(numbers) == sorted(re.findall(r"eprint = \{([\d.]+)\}", bibtex)) == sorted(PAPERS)
    titles = [re.sub(r"[{}]", "", title) for title in re.findall(r"  title = \{(.*)\},\n", bibtex)]
    assert titles == [*(paper["title"] for paper in CITATION["references"]), CITATION["title"]]
