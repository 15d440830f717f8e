"""The engine: it receives built objects and knows no model, data set or method by name."""

from hyperzoo.training.config import Recipe as Recipe
from hyperzoo.training.config import load_recipe as load_recipe
