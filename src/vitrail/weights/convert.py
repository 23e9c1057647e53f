"""Writing weights in another library's layout: timm's, transformers', Google's.

What was written is read back by our own reader, as the other library would take it, and its
logits for one picture are compared with the model's: a layout that has no place for a part of the
model is refused, and numerics that it cannot say (an eps, a form of GELU) are told with what they
change.
"""

from pathlib import Path

from safetensors.torch import save_file

from vitrail.kit.errors import Error, WeightsError
from vitrail.kit.files import settle, staging
from vitrail.kit.preprocess import HALF
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.vit import ViTConfig
from vitrail.weights import google, google_resnets
from vitrail.weights.folder import TIMM, timm_part
from vitrail.weights.golden import TOLERANCE, relative_gap
from vitrail.weights.load import NUMERICS, load_weights
from vitrail.weights.read import MODEL_FILE
from vitrail.weights.transformers_write import write_transformers
from vitrail.weights.written import SOFT, Written, ready_to_save, refusal, twin_of, write_json

LAYOUTS = ("timm", "hf", "google")
# What every ViT in Google's layout is.
GOOGLES = {
    "attention_scale": "head",
    "position_at": "input",
    "gated_mlp": False,
    "qkv_bias": True,
}


def convert(
    model: ImageClassifier, layout: str, out: Path | str, overwrite: bool = False
) -> Written:
    """Write a model in another library's layout, whole or not at all.

    Args:
        model: any model of the zoo.
        layout: ``timm`` (a folder that `timm.create_model("local-dir:...")` opens), ``hf`` (a
            folder for transformers' `from_pretrained`) or ``google`` (an `.npz` file).
        out: the folder or file to be made.
        overwrite: replace the files of that name; others in the folder stay.

    Raises:
        Error: the layout does not exist for this model, ``out`` is there already, or it cannot be
            written.
    """
    if layout not in LAYOUTS:
        raise Error(f"a layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    out = Path(out).expanduser()
    check_out(out, layout, overwrite)
    write = {"timm": _write_timm, "hf": write_transformers, "google": _write_google}[layout]
    out.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    with staging(out.parent, needed) as work:
        stage = work / out.name
        done, twin = write(model, stage)
        done.path = out
        _check(done, model, twin, stage)
        _put(stage, out)
    return done


def check_out(out: Path, layout: str, overwrite: bool) -> None:
    """Refuse a place that is taken, or that is not of the layout's kind.

    Raises:
        Error: as above.
    """
    if layout == "google":
        if out.suffix != ".npz":
            raise Error(
                f"Google's layout is one file: call it {out.name or 'model'}.npz, not {out}"
            )
        if out.is_dir():
            raise Error(f"{out} is a folder, and Google's layout is one file")
        if out.exists() and not overwrite:
            raise Error(f"{out} is there already: --overwrite replaces it")
        return
    if out.exists() and not out.is_dir():
        raise Error(f"{out} is a file, and this layout is a folder")
    if (out / "checkpoints").exists() or (out / "metrics.jsonl").exists():
        raise Error(f"{out} holds a training run: give another folder")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise Error(f"{out} is there already and not empty: --overwrite replaces its files")


def _put(stage: Path, out: Path) -> None:
    """Move what is finished to its place; a new folder appears whole."""
    if stage.is_file():
        settle(stage, out)
    elif not out.exists():
        for file in stage.iterdir():
            settle(file, file)
        stage.rename(out)
    else:  # the weights first: a config never speaks of weights that are not there
        for file in sorted(stage.iterdir(), key=lambda path: path.suffix == ".json"):
            settle(file, out / file.name)


def _check(done: Written, model: ImageClassifier, twin: ImageClassifier, stage: Path) -> None:
    """Read back what was written and compare; numerics that the layout lost are told."""
    before = {name: getattr(twin.config, name, None) for name in NUMERICS}
    load_weights(twin, stage)
    done.gap = relative_gap(model, twin)
    lost = [
        f"{name} is {value!r} here and {getattr(twin.config, name)!r} there"
        for name, value in before.items()
        if name in SOFT and value != getattr(twin.config, name, None)
    ]
    if lost:
        done.notes.append(
            f"the layout does not say every number: {', '.join(lost)}; that changes logits by "
            f"{done.gap:.0e} of the largest"
        )
    elif done.gap > TOLERANCE:
        raise Error(
            f"{done.path} was not written: read back, its logits differ by {done.gap:.1e} (a bug "
            "in Vitrail: please report it)"
        )


# timm


def _write_timm(model: ImageClassifier, stage: Path) -> tuple[Written, ImageClassifier]:
    config, family = model.config, zoo.describe(model)["family"]
    if type(config) not in TIMM:
        raise refusal("timm", [f"the architecture of our family {family!r}"])
    name, _, beyond = TIMM[type(config)](config)
    hard = [what for what in beyond if what.partition("=")[0] not in SOFT]
    if hard:
        raise refusal("timm", hard)
    name = name.removeprefix("vitrail:")
    stage.mkdir()
    save_file(ready_to_save(model.state_dict()), stage / MODEL_FILE, metadata={"format": "pt"})
    about = {"labels": model.labels, "family": family}
    write_json(stage / "config.json", {**timm_part(model, about), "architecture": name})
    return Written(stage, "timm", name, [MODEL_FILE, "config.json"]), twin_of(config, family)


# Google


def _write_google(model: ImageClassifier, stage: Path) -> tuple[Written, ImageClassifier]:
    config, family = model.config, zoo.describe(model)["family"]
    if isinstance(config, (BiTConfig, HybridConfig)):
        write, name = google_resnets.write_npz, "BiT" if isinstance(config, BiTConfig) else "hybrid"
    elif isinstance(config, ViTConfig):
        write, name = google.write_npz, "ViT"
    else:
        raise refusal("Google", [f"the architecture of our family {family!r}"])
    beyond = [
        f"{name}={getattr(config, name)!r}"
        for name, value in GOOGLES.items()
        if isinstance(config, ViTConfig) and getattr(config, name) != value
    ]
    if beyond or (isinstance(config, ViTConfig) and config.pool == "token_mean"):
        raise refusal("Google", beyond or ["pool='token_mean'"])
    try:
        write(model, stage)
    except WeightsError as error:
        kinds = sorted({name.split(".")[0] for name in error.unexpected})
        raise refusal("Google", kinds or [str(error)]) from None
    done = Written(stage, "google", name, [stage.name])
    usual = (HALF, HALF)
    if (model.preprocessing.mean, model.preprocessing.std) != usual:
        done.notes.append(
            "a Google file does not say how pictures go in, and its readers take mean and std 0.5: "
            f"these weights want mean {model.preprocessing.mean} and std {model.preprocessing.std}"
        )
    if model.labels is not None:
        done.notes.append("the names of the classes have no place in the file")
    return done, twin_of(config, family)
