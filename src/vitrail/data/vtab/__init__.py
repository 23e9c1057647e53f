"""VTAB-1k: the 19 tasks of the Visual Task Adaptation Benchmark, read from their own archives.

What is special here: no TensorFlow. Each task is read from the files that its publisher hands out,
and the 800 + 200 training images are the published ones: VTAB defines them as slices of the order
in which TensorFlow Datasets writes a split, and that order is a function of the examples' keys
(`selection`). Where the order cannot be derived from what is published, `Task.note` says what is
done instead. Nothing is ever unpacked to the disk.

Source: https://github.com/google-research/task_adaptation (arXiv 1910.04867).
"""

from vitrail.data.vtab.open import Missing, open_task, where
from vitrail.data.vtab.tasks import GROUPS, TASKS, Task, find_task

__all__ = ["GROUPS", "TASKS", "Missing", "Task", "find_task", "open_task", "where"]
