"""Weights: from other people's files into our models, and our models into folders.

`read` opens files and takes wrappers off, a family (`google`, `timm`) says with two-way `rules`
what its names mean, `fit` and `positions` fit the tensors to a model, `load` copies them and
makes the `report`, `folder` writes and opens model folders.
"""
