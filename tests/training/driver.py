"""Run by torchrun: several vitrail commands one after the other, each by all processes."""

import json
import sys
from pathlib import Path

import torch

from vitrail.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for words in json.loads(Path(sys.argv[1]).read_text()):
        status = main(words)
        if status:
            raise SystemExit(status)
