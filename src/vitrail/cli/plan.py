"""`vitrail plan`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.models.cost.memory import Step
    from vitrail.training.planner import Device, Plan


def plan(
    models: Annotated[tuple[str, ...], arg("MODEL")],
    /,
    *,
    image_size: Annotated[tuple[int, ...], arg("N")] = (),
    batch_size: Annotated[int, arg("N")] = 64,
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32",
    optimizer: Literal["adamw", "sgd", "lamb", "adafactor"] = "adamw",
    checkpointing: bool = False,
    ema: Annotated[bool, arg("")] = True,
    device: Annotated[str | None, arg("NAME")] = None,
    memory: Annotated[float | None, arg("GIB")] = None,
    utilisation: Annotated[float | None, arg("SHARE")] = None,
    images: Annotated[float | None, arg("N")] = None,
    epochs: Annotated[float, arg("N")] = 1,
    gpus: Annotated[tuple[int, ...], arg("N")] = (),
    measure: bool = False,
    json: bool = False,
) -> int:
    """Say what training takes: memory, time and compute, and the micro-batch that fits.

    Example: vitrail plan B/16 --batch-size 512 --precision bf16 --device rtx4090

    Example: vitrail plan L/16 --device h100 --precision bf16 --batch-size 4096 --gpus 8 64 1024

    Example: vitrail plan Ti/16 S/16 --image-size 96 128 --measure --batch-size 8

    Args:
        models: One or more, from `vitrail models`.
        image_size: Pixels, one or more; the model's own by default.
        batch_size: Images of a whole step; of a pass with --measure.
        precision: bf16 and fp16 are autocast over float32 weights.
        optimizer: Decides how much it keeps for each weight.
        checkpointing: Compute blocks again on the way back instead of keeping their insides.
        ema: Do without the average of the weights.
        device: cpu, cuda, or a card by its data sheet: t4, v100, rtx3090, rtx4090, l4, a10, l40s,
            a100-40, a100-80, h100, h200. This machine by default.
        memory: GiB of the device; what it has, or what is free of the CPU's, by default.
        utilisation: Share of the device's peak that is used; 0.4 of a GPU's and 0.5 of a CPU's
            best matrix product are assumed.
        images: Images of an epoch, to say what the whole run takes.
        epochs: How often they are seen.
        gpus: A table over so many GPUs: memory of each, checkpoints, data, communication.
        measure: Run real steps on this machine: images a second, and the largest batch.
        json: Print one JSON value on stdout: an object, or a list where several were asked for.
    """
    from dataclasses import replace

    from vitrail.models.cost.memory import Step
    from vitrail.training.planner import plan as work
    from vitrail.training.planner import scale, this_machine

    if not models:
        raise Error("name a model, such as B/16; `vitrail models` lists them")
    _check(batch_size, memory, utilisation, images, epochs)
    if measure and device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise Error(f"--measure runs on this machine, and {device} is a data sheet")
    target = this_machine(device, precision, memory)
    if utilisation is not None:
        target = replace(target, utilisation=utilisation)
    step = Step(precision=precision, optimizer=optimizer, checkpointing=checkpointing, ema=ema)
    cases = [(name, size) for name in models for size in (image_size or (None,))]
    if measure:
        return _measure(cases, replace(step, batch_size=batch_size), target, device, json)
    seen = None if images is None else images * epochs
    made = [
        work(name, size, batch_size=batch_size, step=step, device=target, images=seen)
        for name, size in cases
    ]
    tables = [[row.to_json() for row in scale(one, gpus, device or "")] for one in made if gpus]
    if json:
        found = [one.to_json() for one in made]
        for one, rows in zip(found, tables, strict=False):
            one["scale"] = rows
        _print(found)
        return 0
    for number, one in enumerate(made):
        if gpus:
            _show_scale(one, tables[number])
        else:
            print("\n".join(_lines(one)))
    return 0


def _measure(
    cases: list[tuple[str, int | None]], step: Step, target: Device, device: str | None, json: bool
) -> int:
    """Run the trials, and show them."""
    from vitrail.training.planner import measure

    found = []
    for name, size in cases:
        print(f"measuring {name}{'' if size is None else f' at {size}'}", file=sys.stderr)
        found.append(measure(name, size, step, target, device).to_json())
    _print(found) if json else _show_measured(found, target)
    return 0


def _check(
    batch_size: int,
    memory: float | None,
    utilisation: float | None,
    images: float | None,
    epochs: float,
) -> None:
    if batch_size < 1:
        raise Error(f"--batch-size must be at least 1, not {batch_size}")
    if memory is not None and not memory > 0:
        raise Error(f"--memory is a number of GiB above 0, not {memory:g}")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise Error(f"--utilisation is a share above 0 and up to 1, not {utilisation:g}")
    if (images is not None and not images > 0) or not epochs > 0:
        raise Error("--images and --epochs are above 0")


def _print(found: list[dict[str, Any]]) -> None:
    print_json(found[0] if len(found) == 1 else found)


def _lines(one: Plan) -> list[str]:
    """A plan for a person."""
    from vitrail.training.display import duration

    takes, step, found = one.takes, one.step, one.to_json()
    passes = "1 pass" if step.accumulation == 1 else f"{step.accumulation:,} passes"
    verdict = "fits" if one.fits else "DOES NOT FIT"
    ema = ", EMA" if step.ema else ""
    again = ", activation checkpointing" if step.checkpointing else ""
    lines = [
        f"{one.model} at {one.image_size[0]}x{one.image_size[1]}: {one.parameters:,} parameters, "
        f"{one.macs / 1e9:.3g} GMACs an image",
        f"  on       {one.device.name}: {_gib(one.device.budget)} for tensors, "
        f"{one.device.peak / 1e12:.3g} TFLOP/s in {step.precision}, of which "
        f"{100 * one.device.utilisation:.0f} % are assumed to be used",
        f"  step     {one.batch_size:,} images, {step.optimizer}{ema}{again}: {passes} of "
        f"{step.batch_size:,}",
        f"  memory   {_gib(one.peak)} at the peak, which {verdict}: weights "
        f"{_gib(takes.weights)}, gradients {_gib(takes.gradients)}, optimiser "
        f"{_gib(takes.states)}, average {_gib(takes.averages)}, activations "
        f"{_gib(takes.activations)}"
        + (f", kept by malloc {_gib(takes.held)}" if one.device.cpu else ""),
    ]
    if takes.evaluation > max(one.peak, one.device.budget):
        lines.append(
            f"           looking at validation images takes more: {_gib(takes.evaluation)}"
        )
    if one.checkpointed is not None:
        lines.append(
            f"           with --checkpointing there is room for {one.checkpointed:,} images a pass"
        )
    lines.append(
        f"  time     {_seconds(one.seconds)} a step, "
        f"{found['images_per_second']:,.3g} images a second"
    )
    if one.images is not None:
        lines.append(
            f"  run      {one.images:,.0f} images, {found['steps']:,} steps: "
            f"{duration(3600 * found['hours'])}, {one.exaflops:,.3g} exaFLOPs, "
            f"{found['tpuv3_core_days']:,.3g} TPUv3-core-days of the ViT paper's"
        )
    return lines


def _show_measured(found: list[dict[str, Any]], device: Device) -> None:
    rows = [
        {
            "model": one["model"],
            "size": "x".join(map(str, one["image_size"])),
            "batch": one["batch_size"],
            "train images/s": one["images_per_second"],
            "infer images/s": one["inference_images_per_second"],
            "memory MiB": _mib(one["peak_bytes"]),
            "formula MiB": _mib(one["predicted_bytes"]),
            "largest batch": "-" if one["largest_batch"] is None else f"{one['largest_batch']:,}",
        }
        for one in found
    ]
    columns = {
        "model": "",
        "size": "",
        "batch": ",d",
        "train images/s": ".1f",
        "infer images/s": ".1f",
        "memory MiB": ".0f",
        "formula MiB": ".0f",
        "largest batch": "",
    }
    print(f"on {device.name}, {_gib(device.budget)} for tensors")
    print_rows(columns, rows)


def _show_scale(one: Plan, rows: list[dict[str, Any]]) -> None:
    print(
        f"{one.model} at {one.image_size[0]}x{one.image_size[1]}, "
        f"{one.batch_size:,} images a step, {one.step.precision}, {one.step.optimizer}, "
        f"{one.device.name} at "
        f"{100 * one.device.utilisation:.0f} % of {one.device.peak / 1e12:,.0f} TFLOP/s"
    )
    shown = [
        {
            "GPUs": row["gpus"],
            "images each": row["images_per_gpu"],
            "DDP GiB": row["ddp_bytes"] / 2**30,
            "FSDP GiB": row["fsdp_bytes"] / 2**30,
            "compute ms": 1e3 * row["compute_seconds"],
            "DDP ms": 1e3 * row["ddp_traffic_seconds"],
            "FSDP ms": 1e3 * row["fsdp_traffic_seconds"],
            "images/s": row["images_per_second"],
            "data MB/s": row["data_bytes_per_second"] / 1e6,
            "checkpoint GB": row["checkpoint_bytes"] / 1e9,
            "write s": row["checkpoint_seconds"],
        }
        for row in rows
    ]
    columns = {"GPUs": ",d", "images each": ",d", "DDP GiB": ".1f", "FSDP GiB": ".1f"}
    columns |= {"compute ms": ",.1f", "DDP ms": ",.1f", "FSDP ms": ",.1f", "images/s": ",.0f"}
    columns |= {"data MB/s": ",.0f", "checkpoint GB": ".2f", "write s": ".1f"}
    print_rows(columns, shown)


def _gib(size: float) -> str:
    small = size < 2**30 / 10
    return f"{size / 2**20:.1f} MiB" if small else f"{size / 2**30:.2f} GiB"


def _mib(size: int | None) -> float:
    return float("nan") if size is None else size / 2**20


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"
