"""`vitrail train`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

from pathlib import Path
from typing import Annotated, Literal

from vitrail.cli.arguments import again, arg, settings
from vitrail.cli.output import print_json


def train(
    data: Annotated[str, arg("DATA")],
    /,
    *,
    out: Annotated[Path, arg("DIR")],
    model: Annotated[str | None, arg("NAME")] = None,
    weights: Annotated[str | None, arg("SOURCE")] = None,
    recipe: Annotated[str | None, arg("NAME")] = None,
    epochs: Annotated[float | None, arg("N")] = None,
    steps: Annotated[int | None, arg("N")] = None,
    batch_size: Annotated[int | None, arg("N")] = None,
    image_size: Annotated[int | None, arg("PIXELS")] = None,
    lr: Annotated[float | None, arg("X")] = None,
    seed: int = 0,
    workers: int = 0,
    save_every: Annotated[int | None, arg("STEPS")] = None,
    val_fraction: Annotated[float | None, arg("X")] = None,
    classes: Annotated[Path | None, arg("FILE")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    max_corrupt: Annotated[float, arg("SHARE")] = 0.05,
    keep: Annotated[int, arg("N")] = 2,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    parallel: Annotated[Literal["ddp", "fsdp"] | None, arg("ddp|fsdp")] = None,
    accumulate: Annotated[int, arg("N")] = 1,
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32",
    compile: bool = False,
    ema: Annotated[bool, arg("")] = True,
    patience: Annotated[int | None, arg("N")] = None,
    record_keys: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    seeds: Annotated[int, arg("N")] = 1,
    teacher: Annotated[str | None, arg("SOURCE")] = None,
    tiny: bool = False,
    track: Annotated[Literal["tensorboard"] | None, arg("tensorboard")] = None,
    accept_other_data: bool = False,
    json: bool = False,
    set: Annotated[tuple[str, ...], arg("KEY=VALUE")] = (),
) -> int:
    """Train a model on labelled images; the same command again continues or does nothing.

    Example: vitrail train photos/ --model vit_tiny_patch16_224 --out runs/photos

    Recipes for one's own images: scratch (the default), finetune (with --weights the default),
    lora, head_only, head_then_all. The papers': vit_pretrain, vit_finetune, augreg,
    better_plain, deit, deit_distill, deit3, cvt, bit, t2t, pvt. Without labels: masked_patch,
    mae. --dry-run prints the whole plan of one; docs/recipes.md tells them apart.

    Args:
        data: A class folder (or train/, val/, test/ of such), CSV or JSONL, tar shards, parquet,
            hf:NAME, or demo:fashion.
        out: Where the model, the records and the report go. A folder of its own.
        model: From `vitrail models`; by default that of --weights, or vit_tiny_patch16_224.
        weights: A model folder or a checkpoint file to start from.
        recipe: One of those above; some have variants, as augreg:medium1.
        epochs: Length in passes over the training images; fitted to the data by default.
        steps: Length in steps; beats --epochs.
        batch_size: Images a step; the recipe's by default (64 for one's own images).
        image_size: Pixels; the recipe's or the model's own by default.
        lr: Peak learning rate; the recipe's by default.
        seed: Of weights, order, augmentation and split.
        workers: Processes that decode images; 0 decodes in the main one.
        save_every: Steps between checkpoints; a tenth of the run by default, at most 500.
        val_fraction: Share of train to validate on, where there is no val; 0.1 by default.
        classes: Class names in order, one a line, or JSON {name: number}; by default the data's.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        max_corrupt: Share of the training images that may turn out unreadable before it stops.
        keep: How many of the newest checkpoints to keep.
        device: The best there is by default.
        parallel: With torchrun: ddp keeps the whole model in each process, fsdp a share of it.
        accumulate: Pieces that each process cuts its share of a batch into, to fit into memory.
        precision: Of the arithmetic.
        compile: Run the model through torch.compile.
        ema: Do without the average of the weights, which is what is evaluated and saved.
        patience: Stop after this many looks at the validation set without a better one.
        record_keys: Write the order of the images to keys.jsonl.
        dry_run: Say what would be done, and stop.
        overwrite: Replace the run that --out holds.
        seeds: Train so many times with seeds one apart, in DIR/seed-K; mean and deviation.
        teacher: A model folder to learn from besides the labels (deit_distill).
        tiny: Shrink model and run to see on a laptop that a recipe works.
        track: Have the records in TensorBoard's format too, in OUT/tensorboard.
        accept_other_data: Go on with a run whose data have changed, and record the changes.
        json: Print one JSON object on stdout at the end.
        set: Any field of the recipe or of the model: --set model.depth=2 optim.name=sgd.
    """
    from vitrail.recipes.run import train as work
    from vitrail.training.engine import first_process

    run = work(
        data,
        model=model,
        out=out,
        weights=weights,
        recipe=recipe,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        image_size=image_size,
        lr=lr,
        seed=seed,
        workers=workers,
        save_every=save_every,
        val_fraction=val_fraction,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        max_corrupt=max_corrupt,
        keep=keep,
        device=device,
        parallel=parallel,
        accumulate=accumulate,
        precision=precision,
        compile=compile,
        ema=ema,
        patience=patience,
        record_keys=record_keys,
        track=track,
        dry_run=dry_run,
        overwrite=overwrite,
        seeds=seeds,
        teacher=teacher,
        tiny=tiny,
        accept_other_data=accept_other_data,
        set=settings(set),
        quiet=False,
        command=again(),
    )
    if not first_process():
        return 0
    if json:
        print_json(run.to_json())
    elif run.report is not None:
        print(run.summary())
    return 0
