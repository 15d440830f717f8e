"""Helpers of the tests: doubles, tiny runs, slow forms of formulas; no test."""
