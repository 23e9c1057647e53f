"""The doctor: duplicates, damage, imbalance, oddities and doubtful labels of a data set."""

from vitrail.evaluation.doctor.findings import Findings, examine

__all__ = ["Findings", "examine"]
