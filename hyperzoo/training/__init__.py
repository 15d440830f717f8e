"""The training engine and the language of recipes; it knows no model, data set or method by name."""

from hyperzoo.training.recipe import Recipe as Recipe
from hyperzoo.training.recipe import load_recipe as load_recipe
