import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.kit.reading import check_readable, check_self_contained, read
from vitrail.data.loader import Batch
from vitrail.evaluation.accuracy import evaluate
from vitrail.kit.page import show
from vitrail.models.vit import VisionTransformer, ViTConfig
from vitrail.training.report import attention_looks, write_report

SETTINGS = {
    "name": "scratch",
    "batch_size": 64,
    "ema": None,
    "compile": False,
    "duration": {"value": 30.0, "unit": "epochs"},
    "model": {"name": "vit_tiny", "config": {"patch_size": 7}},
    "optim": {"lr": 0.0015, "betas": [0.9, 0.999]},
    "schedule": {"kind": "cosine", "warmup": {"value": 5, "unit": "percent"}},
}
LEDGER = {
    "device": "CPU",
    "images": 69_248,
    "seconds": 125.4,
    "flops": 8.7e12,
    "images_per_second": 552.2,
}


def a_result(classes=10, side=28, n=60, skipped=(), names=None):
    """A small ViT's answers to random pictures."""
    model = VisionTransformer(
        ViTConfig(
            patch_size=side // 4,
            depth=2,
            width=16,
            heads=2,
            mlp_width=16,
            num_classes=classes,
            image_size=side,
        )
    ).set_labels(names or [f"class {i}" for i in range(classes)])
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        images=torch.randint(0, 256, (n, side, side, 3), generator=generator, dtype=torch.uint8),
        labels=torch.arange(n) % classes,
        keys=[f"test/{i % classes}/{i:05}.png" for i in range(n)],
        indices=torch.arange(n),
        skipped=list(skipped),
    )
    return model, evaluate(model, [batch])


def records_of(steps=100):
    yield {"kind": "start", "step": 0}
    for step in range(1, steps + 1):
        yield {
            "kind": "step",
            "step": step,
            "epoch": step / 50,
            "loss": 2 / step,
            "accuracy": 1 - 1 / step,
            "lr": 1e-3,
            "images_per_second": 500.0,
            "grad_norm": None if step == 7 else 1.5,
        }
        if step % 25 == 0:
            yield {"kind": "eval", "step": step, "top1": 0.8, "top5": 0.99, "loss": 0.5}


def text_of(page: str) -> str:
    body = next(element for element in read(page) if element.tag == "body")
    return " ".join(body.text.replace("\N{NO-BREAK SPACE}", " ").split())


def sections_of(page: str) -> dict[str, str]:
    found = {}
    for section in [element for element in read(page) if element.tag == "section"]:
        heading = section.children[0].text
        found[heading] = " ".join(section.text.replace("\N{NO-BREAK SPACE}", " ").split())
    return found


def test_a_whole_report_says_what_was_measured(tmp_path):
    model, result = a_result(skipped=[("test/1/bad.png", "cut short")])
    path = tmp_path / "a run" / "report.html"
    path.parent.mkdir()
    content = {
        "model": "vit_tiny",
        "records": list(records_of()),
        "result": result,
        "weights": "the averaged weights of the last step",
        "parameters": 1_216_906,
        "attention": attention_looks(model, result),
        "data": {
            "name": "demo:fashion",
            "classes": 10,
            "splits": {"train": 9000, "val": 1000, "test": 2000},
            "unreadable": [{"key": "train/0/a.png", "reason": "no image"}],
            "skipped": [("train/3/b.png", "empty")],
        },
        "settings": SETTINGS,
        "ledger": LEDGER,
        "command": "vitrail train demo:fashion --out 'a run'",
        "footer": "Vitrail 0.1",
    }
    write_report(path, **content)
    page = path.read_text()
    check_self_contained(page)
    check_readable(page)
    assert len(page) < 400_000
    percent = f"{100 * result.top1:.2f} %"
    assert f"vit_tiny: {percent} on test images" in text_of(page)
    assert "Measured on 60 test images with the averaged weights of the last step" in text_of(page)
    assert "1.22 million" in text_of(page)
    said = sections_of(page)
    assert list(said) == [
        *("Accuracy", "Mistakes", "Attention", "Training"),
        *("Data", "Settings", "Compute", "Going on"),
    ]
    assert all(f"class {i} 6 " in said["Accuracy"] for i in range(10))
    assert "100 steps (2.0 epochs)" in said["Training"]
    assert "2 min 5 s" in said["Compute"]
    assert "69,248" in said["Compute"]
    assert "vitrail train demo:fashion --out 'a run'" in said["Going on"]
    assert f"vitrail predict '{path.parent}' IMAGES" in said["Going on"]
    for name, reason in (
        *(("train/0/a.png", "no image"), ("train/3/b.png", "empty")),
        ("test/1/bad.png", "cut short"),
    ):
        assert f"{name} {reason}" in said["Data"]
    assert "Files left out3" in said["Data"]
    for setting in ("0.0015", "0.9, 0.999", "30 epochs", "5 percent", "config.patch_size", "none"):
        assert setting in said["Settings"]
    charts = [element for element in read(page) if element.tag == "svg"]
    assert len(charts) == 5
    before = path.read_bytes()
    write_report(path, **content)
    assert path.read_bytes() == before


def test_the_numbers_shown_are_the_results_own(tmp_path):
    _, result = a_result()
    write_report(tmp_path / "r.html", model="m", records=[], result=result)
    elements = read((tmp_path / "r.html").read_text())
    tables = [element for element in elements if element.tag == "table"]
    rows = [
        [c.text for c in e.children] for e in elements if e.tag == "tr" and tables[0] in e.inside
    ]
    shown = {row[0]: row[1:] for row in rows[1:]}
    for one in result.per_class:
        figures = [f"{100 * x:.1f}\N{NO-BREAK SPACE}%" for x in (one.recall, one.precision, one.f1)]
        assert shown[one.label] == [str(one.n), *figures]
    cells = [e.text for e in elements if e.tag == "td" and tables[1] in e.inside]
    assert cells == [show(n) if n else "" for n in result.confusion.flatten().tolist()]


def test_mistakes_and_attention_show_their_pictures(tmp_path):
    model, result = a_result()
    looks = attention_looks(model, result)
    assert len({look.label for look in looks}) == 10
    write_report(tmp_path / "r.html", model="m", records=[], result=result, attention=looks)
    page = (tmp_path / "r.html").read_text()
    pictures = [element for element in read(page) if element.tag == "img"]
    assert len(pictures) == len(result.mistakes()) + 2 * len(looks)
    said = sections_of(page)
    worst = result.mistakes()[0]
    assert (
        f"{worst.label} taken for {worst.prediction}, {100 * worst.probability:.1f} %"
        in said["Mistakes"]
    )
    assert worst.key in said["Mistakes"]
    assert looks[0].key in said["Attention"]


def test_what_is_missing_is_left_out_with_a_sentence(tmp_path):
    write_report(tmp_path / "r.html", model="m", records=[])
    page = (tmp_path / "r.html").read_text()
    check_readable(page)
    said = sections_of(page)
    assert "neither test nor validation" in said["Accuracy"]
    assert "Mistakes" not in said
    assert "no attention pictures" in said["Attention"]
    assert "no curves" in said["Training"]
    assert "not recorded" in said["Settings"]
    assert "not recorded" in said["Compute"]
    write_report(tmp_path / "r.html", model="m", records=records_of())
    assert "80.00 % at step 100" in sections_of((tmp_path / "r.html").read_text())["Accuracy"]


def test_validation_images_are_not_sold_as_test_images(tmp_path):
    _, result = a_result()
    write_report(tmp_path / "r.html", model="m", records=[], result=result, split="val")
    page = (tmp_path / "r.html").read_text()
    assert "on validation images" in text_of(page)
    assert "flatters" in sections_of(page)["Accuracy"]


def test_steps_that_were_not_finite_are_told_with_their_images(tmp_path):
    records = [*records_of(), {"kind": "skip", "step": 9, "loss": None, "keys": ["a/1.png"]}]
    write_report(tmp_path / "r.html", model="m", records=records)
    training = sections_of((tmp_path / "r.html").read_text())["Training"]
    assert "1 steps were not finite" in training
    assert "9 a/1.png" in training


def test_hostile_names_are_only_names(tmp_path):
    names = [f"<script>{i}</script>" for i in range(4)]
    model, result = a_result(classes=4, names=names, skipped=[("<b>.png", "'><script>")])
    write_report(
        tmp_path / "r.html",
        model="<img src=x onerror=1>",
        records=[],
        result=result,
        attention=attention_looks(model, result),
        command="vitrail train '<script>'",
    )
    check_self_contained((tmp_path / "r.html").read_text())


@pytest.mark.parametrize(("classes", "side"), [(100, 28), (10, 224)])
def test_many_classes_and_large_pictures_stay_one_small_file(tmp_path, classes, side):
    model, result = a_result(classes=classes, side=side, n=150 if side == 28 else 40)
    looks = attention_looks(model, result)
    records = list(records_of(3000))
    write_report(tmp_path / "r.html", model="m", records=records, result=result, attention=looks)
    page = (tmp_path / "r.html").read_text()
    check_self_contained(page)
    check_readable(page)
    assert len(page) < 2_000_000  # although random pictures are the worst to compress


def test_a_model_without_mistakes(tmp_path):
    model, result = a_result(n=1)
    right = Batch(
        images=torch.from_numpy(np.stack([result.examples[0].picture])),
        labels=result.predictions,
        keys=["a.png"],
        indices=torch.arange(1),
    )
    perfect = evaluate(model, [right])
    write_report(tmp_path / "r.html", model="m", records=[], result=perfect)
    assert "every image was classified rightly" in text_of((tmp_path / "r.html").read_text())
