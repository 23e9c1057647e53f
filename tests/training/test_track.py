"""TensorBoard's files hold the very numbers of metrics.jsonl, also of a run that went on."""

import json

import pytest

import vitrail
from vitrail import Error
from vitrail.kit.records import Records
from vitrail.training.output import Output
from vitrail.training.track import tracked

EXTRA = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def shown(folder):
    """{tag: [(step, number)]} of a folder of event files."""
    from tensorboard.util import tensor_util

    events = EXTRA.EventAccumulator(str(folder), size_guidance={EXTRA.TENSORS: 0})
    events.Reload()
    return {
        tag: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }


def recorded(path):
    found = {}
    for record in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()):
        group = {"step": "train", "eval": "val"}.get(record["kind"])
        for name, value in record.items() if group else ():
            if isinstance(value, int | float) and name not in ("step", "time"):
                found.setdefault(f"{group}/{name}", []).append((record["step"], value))
    return found


def test_the_numbers_are_those_of_the_records(tmp_path):
    run = vitrail.train(
        "demo:fashion",
        model="vit_mu_patch7_28",
        out=tmp_path / "run",
        steps=5,
        batch_size=8,
        track="tensorboard",
        set={"eval_every": 2},
    )
    expected = recorded(run.folder)
    assert {"train/loss", "train/lr", "train/grad_norm", "val/top1"} <= set(expected)
    found = shown(run.folder / "tensorboard")
    assert {tag: found[tag] for tag in expected} == expected
    assert found["final test/top1"] == [(5, run.metrics["test"]["top1"])]
    # the same command again: the folder is the run's own
    again = vitrail.train(
        "demo:fashion",
        model="vit_mu_patch7_28",
        out=tmp_path / "run",
        steps=5,
        batch_size=8,
        track="tensorboard",
        set={"eval_every": 2},
    )
    assert again.steps_this_run == 0


def test_what_was_rewound_is_not_shown(tmp_path):
    output = Output(tmp_path)
    with tracked(output, "tensorboard"):
        for step in range(1, 6):
            output.metrics.write("step", step=step, loss=1 / step)
        output.metrics.write("step", step=6, loss=float("nan"))
    assert type(output.metrics) is Records
    output.rewind(3)
    with tracked(output, "tensorboard"):
        output.metrics.write("step", step=4, loss=7.25)
    assert shown(tmp_path / "tensorboard")["train/loss"] == [
        (1, 1.0),
        (2, 1 / 2),
        (3, 1 / 3),
        (4, 7.25),
    ]


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(Error, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        vitrail.train("demo:fashion", out=tmp_path / "run", track="tensorbord")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Error, match=r"pip install 'vitrail\[track\]'"):
        vitrail.train("demo:fashion", out=tmp_path / "run", track="tensorboard")
    assert not (tmp_path / "run").exists()
