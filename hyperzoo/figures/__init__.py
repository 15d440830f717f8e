"""Figures of the papers, drawn from our own code: one file each, whose `draw` writes a PNG and returns it."""

from hyperzoo.figures import operators

FIGURES = {"operators": operators.draw}  # the help of `hyperzoo plot` names them too
