"""Weights: from other people's files into our models, and our models into folders.

`read` opens files and takes wrappers off, a family (`google`, `timm`) says with two-way rules
what its names mean, `load` fits the tensors into a model and reports, `folder` writes and opens
model folders.
"""
