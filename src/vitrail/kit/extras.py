"""Optional packages: asked for where they are used, with the command that installs them."""

import importlib.util

from vitrail.kit.errors import Error


def needed(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are there.

    Raises:
        Error: one is not, with the command that installs it.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Error(
            f"this needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed: pip install 'vitrail[{extra}]'"
        )
