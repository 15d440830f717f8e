"""From a recipe to run folders: the only room where models, data, methods and the engine meet."""
