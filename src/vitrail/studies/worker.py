"""Another process of a study on this machine: `python -m vitrail.studies.worker`.

It reads one line of JSON, which says where the study's folder and its data are, takes up runs until
none is left, and stops after the run that it is at once its standard input ends: then the process
that started it is gone.
"""

import json
import os
import select
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others


def main() -> int:
    """Do what is asked; returns the exit status."""
    from vitrail.kit.errors import Error
    from vitrail.studies.folder import StudyFolder
    from vitrail.studies.runner import device_for, take_runs
    from vitrail.studies.study import decoded, open_data

    asked = json.loads(sys.stdin.readline())

    def alone() -> bool:
        ready, _, _ = select.select([sys.stdin], [], [], 0)
        return bool(ready) and not os.read(sys.stdin.fileno(), 1)

    try:
        folder = StudyFolder(asked["out"])
        definition = folder.definition()
        opened = open_data(
            asked["data"], definition.held_out, definition.most_test, **asked["columns"]
        )
        take_runs(
            definition,
            decoded(opened, definition),
            folder,
            device=device_for(asked["device"], asked["place"]),
            keep=asked["keep"],
            alone=alone,
        )
    except Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
