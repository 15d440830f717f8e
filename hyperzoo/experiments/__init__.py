"""From a recipe to run folders: where models, data, losses and the engine meet."""
