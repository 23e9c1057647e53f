"""What the command line says of recipes: the plan, the help, and models without a head."""

from PIL import Image

from tests.commands import call
from vitrail.recipes import RECIPES


def test_a_dry_run_prints_the_whole_plan_and_writes_nothing(tmp_path):
    out = tmp_path / "run"
    words = ("train", "demo:fashion", "--recipe", "deit3", "--image-size", "64", "--out", out)
    _, told = call(*words, "--epochs", "100", "--set", "tuning.part=head", "--dry-run")
    for part in (
        *("recipe deit3", "lamb", "lr 0.004", "warmup 5 epochs", "three augment True"),
        *("loss bce", "mixup 0.8", "every image 3 times", "part head", "drop_path 0.05"),
    ):
        assert part in told, part
    assert not out.exists()


def test_a_dry_run_of_a_grid_names_its_rates_once(tmp_path):
    call("train", "demo:fashion", "--tiny", "--out", tmp_path / "base")
    words = ("--weights", tmp_path / "base", "--recipe", "vit_finetune", "--image-size", "64")
    _, told = call("train", "demo:fashion", *words, "--out", tmp_path / "run", "--dry-run")
    assert "rates: 0.001, 0.003, 0.01, 0.03, each as below" in told
    assert told.count("plan:") == 1
    assert not (tmp_path / "run").exists()


def test_the_help_names_every_recipe(capsys):
    told, _ = call("train", "--help")
    for name in set(RECIPES) - {"demo"}:
        assert name in told, name


def test_an_encoder_without_a_head_says_so(tmp_path):
    folder = tmp_path / "masked"
    printed, told = call(
        *("train", "demo:fashion", "--recipe", "masked_patch", "--tiny", "--out", folder)
    )
    assert "labels: not looked at" in told
    assert "top-1" not in printed
    assert "Learned without labels" in (folder / "report.html").read_text()
    picture = tmp_path / "x.png"
    Image.new("RGB", (30, 30)).save(picture)
    for words in (("evaluate", folder, "demo:fashion"), ("predict", folder, picture)):
        _, told = call(*words, status=2)
        assert "without a head: fine-tune from it first" in told


def test_tiny_leaves_what_the_user_said(tmp_path):
    words = ("--tiny", "--steps", "3", "--batch-size", "5", "--image-size", "32")
    _, told = call("train", "demo:fashion", *words, "--out", tmp_path / "run", "--dry-run")
    assert "at 32x32" in told
    assert "3 steps of 5 images" in told
