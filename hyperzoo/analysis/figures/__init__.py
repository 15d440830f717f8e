"""Figures of the papers, recomputed: one module per figure, whose `draw` writes a PNG and returns its path."""

from hyperzoo.analysis.figures import (
    clouds,
    half_space,
    hidden_states,
    operators,
    overview,
    rare_class,
    softmax_features,
    spectrum,
    spiral,
)

FIGURES = {
    "clouds": clouds.draw,
    "half_space": half_space.draw,
    "hidden_states": hidden_states.draw,
    "operators": operators.draw,
    "overview": overview.draw,
    "rare_class": rare_class.draw,
    "softmax_features": softmax_features.draw,
    "spectrum": spectrum.draw,
    "spiral": spiral.draw,
}
