"""Choosing a device, in one place and with clear words."""

import torch

from vitrail.kit.errors import Error


def pick_device(name: str | None) -> torch.device:
    """``cpu``, ``cuda`` (or ``cuda:1``), or None for the best there is.

    Raises:
        Error: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise Error(f"unknown device {name!r}: it is cpu or cuda")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise Error(f"no device {name} is to be found here; use cpu")
    return torch.device(name)
