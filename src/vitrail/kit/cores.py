"""How many cores there are for this process; without torch, so that a server can ask."""

import os


def cores() -> int:
    """As many as this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
