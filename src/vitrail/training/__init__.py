"""Training: a recipe, an objective and a source go in; a model folder comes out."""
