"""Figures of the papers, drawn from our own code: one file each, whose `draw` writes a PNG and returns it."""

from hyperzoo.figures import hidden_states, operators, spectrum, spiral

FIGURES = {  # the help of `hyperzoo plot` names them too
    "hidden_states": hidden_states.draw,
    "operators": operators.draw,
    "spectrum": spectrum.draw,
    "spiral": spiral.draw,
}
