"""A run's folder: one that a process was killed in before the run began is free for it again."""

import numpy as np
import pytest

from vitrail.data.fingerprint import fingerprint
from vitrail.data.sources import ArraySource
from vitrail.kit.errors import Error
from vitrail.training.output import Output

SETTINGS = {"recipe": {"optim": {"lr": 0.1}}}


@pytest.fixture
def data():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(6) % 2, ("a", "b"))
    return {"train": fingerprint(source), "val": fingerprint(source)}


@pytest.mark.parametrize(
    "there", [(), ("data-train.gz",), ("data-train.gz", "data-val.gz", ".saving")]
)
def test_killed_while_the_folder_was_taken_the_same_command_begins(tmp_path, data, there):
    """What a kill leaves of `claim`: it makes checkpoints/, then the listings, then run.json."""
    whole, folder = Output(tmp_path / "whole"), tmp_path / "run"
    whole.path.mkdir()
    whole.claim(SETTINGS, data)
    (folder / "checkpoints").mkdir(parents=True)
    for name in there:
        if name == ".saving":
            (folder / "checkpoints" / name).mkdir()
            (folder / "checkpoints" / name / "run.json").write_text('{"half')
        else:
            listing = (whole.path / "checkpoints" / name).read_bytes()
            (folder / "checkpoints" / name).write_bytes(listing[:10])
    output = Output(folder)
    assert not output.continues(SETTINGS, data)
    output.claim(SETTINGS, data)
    assert output.continues(SETTINGS, data)
    made = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (whole.path / "checkpoints").iterdir()}


@pytest.mark.parametrize("name", ["checkpoints/step-00000004.json", "model.safetensors"])
def test_what_a_run_left_is_never_taken_for_nothing(tmp_path, data, name):
    output = Output(tmp_path / "run")
    output.path.mkdir()
    output.claim(SETTINGS, data)
    (output.path / "checkpoints" / "run.json").unlink()
    (output.path / name).write_text("mine")
    with pytest.raises(Error, match="no run of this kind can continue"):
        output.continues(SETTINGS, data)
    assert (output.path / name).read_text() == "mine"
