"""Controlled comparisons: many runs of one definition, their records, figures and tables."""
