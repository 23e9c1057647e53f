"""The planner: does it fit, how long will it take, what will it cost, before anything is started.

`plan` is formulas alone (`models.cost`), but for this machine's own speed, which is measured in a
fifth of a second. `measure` runs real steps. `scale` writes down the same run on more and more
devices.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import torch

from vitrail.kit.devices import pick_device
from vitrail.kit.errors import Error
from vitrail.kit.peak import matmul_peak
from vitrail.models.base import ModelConfig, Size, height_width
from vitrail.models.cost import cost
from vitrail.models.cost.devices import (
    CARDS,
    FRAGMENTED,
    GIB,
    RESERVED,
    UTILISATION,
    UTILISATION_CPU,
    card,
    training_flops,
)
from vitrail.models.cost.memory import STATES, Memory, Step, memory
from vitrail.models.zoo import config_of, resolve
from vitrail.training.ledger import EXAFLOPS_PER_CORE_DAY
from vitrail.training.trial import Trial, in_a_process, trial

FREE = 0.9  # of the CPU's free memory that a plan may fill


@dataclass(frozen=True)
class Device:
    """What a plan is made for.

    Args:
        name: in words.
        budget: bytes that tensors may have.
        peak: operations a second, in the plan's precision.
        utilisation: the share of it that is assumed to be used.
        cpu: whether it is one, whose process is larger than its tensors (`Memory.held`).
    """

    name: str
    budget: int
    peak: float
    utilisation: float
    cpu: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run is predicted to take on one device.

    Args:
        step: with the micro-batch and the accumulation that were found.
        takes: its memory.
        fits: whether that is within the device's budget.
        batch_size: pictures of a whole step.
        flops: operations of a whole step.
        seconds: of a whole step.
        images: that the run sees in all; None where its length was not said.
        checkpointed: the micro-batch that would fit with activation checkpointing, where that is
            off and would allow a larger one; else None.
    """

    model: str
    image_size: tuple[int, int]
    device: Device
    step: Step
    takes: Memory
    fits: bool
    batch_size: int
    flops: float
    seconds: float
    parameters: int
    macs: int
    images: float | None = None
    checkpointed: int | None = None

    @property
    def peak(self) -> int:
        """Bytes that the device must have: the tensors' on a GPU, the process's on a CPU."""
        return self.takes.peak + self.device.cpu * self.takes.held

    @property
    def exaflops(self) -> float:
        """Of the run; of one step where its length was not said."""
        steps = 1.0 if self.images is None else self.images / self.batch_size
        # What is computed twice is not counted twice: the papers' figure is of the method.
        return training_flops(self.macs, self.batch_size * steps) / 1e18

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint: weights, averages and optimiser states in float32."""
        averages = self.step.ema
        return round(4 * self.parameters * (1 + averages + STATES[self.step.optimizer]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        hours = None if self.images is None else self.images / self.batch_size * self.seconds / 3600
        return {
            "model": self.model,
            "image_size": list(self.image_size),
            "device": self.device.name,
            "precision": self.step.precision,
            "optimizer": self.step.optimizer,
            "checkpointing": self.step.checkpointing,
            "ema": self.step.ema,
            "batch_size": self.batch_size,
            "micro_batch": self.step.batch_size,
            "accumulation": self.step.accumulation,
            "fits": self.fits,
            "peak_bytes": self.peak,
            "tensor_bytes": self.takes.peak,
            "budget_bytes": self.device.budget,
            "evaluation_bytes": self.takes.evaluation,
            "bytes": {
                name: getattr(self.takes, name)
                for name in ("weights", "averages", "states", "gradients", "activations")
            },
            "micro_batch_with_checkpointing": self.checkpointed,
            "seconds_per_step": self.seconds,
            "images_per_second": self.batch_size / self.seconds,
            "peak_flops": self.device.peak,
            "utilisation": self.device.utilisation,
            "parameters": self.parameters,
            "macs": self.macs,
            "checkpoint_bytes": self.checkpoint_bytes,
            "images": self.images,
            "steps": None if self.images is None else ceil(self.images / self.batch_size),
            "hours": hours,
            "exaflops": self.exaflops,
            "tpuv3_core_days": self.exaflops / EXAFLOPS_PER_CORE_DAY,
        }


def plan(
    name: str,
    image_size: Size | None = None,
    *,
    batch_size: int = 64,
    step: Step | None = None,
    device: Device,
    images: float | None = None,
) -> Plan:
    """Find the micro-batch that fits, and say what it takes.

    Args:
        name: of the zoo.
        batch_size: pictures of a whole step.
        step: precision, optimiser, checkpointing, averages.
        device: what it must fit on.
        images: that the run sees in all.

    Raises:
        Error: an unknown model, or a size that it cannot take.
    """
    config = config_for(name, image_size)
    wanted = step or Step()
    found, takes, fits = fitting(config, wanted, batch_size, device)
    checkpointed = None
    if not wanted.checkpointing and found.batch_size < batch_size:
        again = replace(wanted, checkpointing=True)
        other, _, there = fitting(config, again, batch_size, device)
        if there and (not fits or other.batch_size > found.batch_size):
            checkpointed = other.batch_size
    figures = cost(config)
    flops = training_flops(figures.macs, batch_size, wanted.checkpointing)
    return Plan(
        model=resolve(name)[0],
        image_size=height_width(config.image_size),
        device=device,
        step=found,
        takes=takes,
        fits=fits,
        batch_size=batch_size,
        flops=flops,
        seconds=flops / (device.peak * device.utilisation),
        parameters=figures.parameters,
        macs=figures.macs,
        images=images,
        checkpointed=checkpointed,
    )


def config_for(name: str, image_size: Size | None) -> ModelConfig:
    """The config of a name, at another size of picture if one is given."""
    config = config_of(name)
    return config if image_size is None else replace(config, image_size=image_size)


def predicted(config: ModelConfig, step: Step, on_gpu: bool) -> tuple[int, int]:
    """Bytes of a step's tensors, and of what holds them: a process on the CPU is larger."""
    takes = memory(config, step)
    return takes.peak, takes.peak + (0 if on_gpu else takes.held)


def fitting(
    config: ModelConfig, step: Step, batch_size: int, device: Device
) -> tuple[Step, Memory, bool]:
    """The largest micro-batch that divides a batch and fits: the step, its memory, whether it fits.

    Where not even one picture fits, the step of one picture.
    """
    tried = None
    for micro in _divisors(batch_size):
        one = replace(step, batch_size=micro, accumulation=batch_size // micro)
        takes = memory(config, one)
        tried = one, takes, takes.peak + device.cpu * takes.held <= device.budget
        if tried[2]:
            break
    assert tried is not None
    return tried


def _divisors(number: int) -> list[int]:
    """The largest first."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)}, reverse=True)


def this_machine(name: str | None, precision: str, gib: float | None = None) -> Device:
    """A device of this machine, its matrix product measured, or a card by its data sheet.

    Args:
        name: ``cpu``, ``cuda``, a name of `CARDS`, or None for the best there is here.
        precision: of the plan.
        gib: its memory; None for what it has, or what is free of the CPU's.

    Raises:
        Error: an unknown device, or a precision that a card does not have.
    """
    known = None
    if name is not None and name.partition(":")[0] not in ("cpu", "cuda"):
        known = card(name)
    if known is not None:
        if not known.peaks.get(precision):
            have = [word for word, peak in known.peaks.items() if peak]
            raise Error(f"the data sheet of {name} has no {precision}: use {' or '.join(have)}")
        budget = known.usable if gib is None else usable_gpu(round(gib * GIB))
        return Device(str(name).lower(), budget, known.peaks[precision], UTILISATION)
    device = pick_device(name)
    threads = torch.get_num_threads()
    peak = matmul_peak(str(device), precision, threads)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory if gib is None else gib * GIB
        words = torch.cuda.get_device_name(device)
        return Device(words, usable_gpu(round(total)), peak, UTILISATION)
    budget = FREE * free_memory() if gib is None else gib * GIB
    words = f"this CPU, {threads} thread{'s' if threads > 1 else ''}"
    return Device(words, round(budget), peak, UTILISATION_CPU, cpu=True)


def usable_gpu(total: int) -> int:
    """Bytes of a GPU's memory that tensors can have."""
    return max(0, round((total - RESERVED) * (1 - FRAGMENTED)))


def free_memory() -> int:
    """Bytes of main memory that are free here."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class Measured:
    """What was measured of one model at one size: the ViT paper's appendix D.5.

    Args:
        trial: of ``batch_size`` pictures a pass.
        largest: the largest micro-batch that the budget has room for; None where memory could
            not be weighed.
        predicted: bytes of the same trial by formula.
    """

    model: str
    image_size: tuple[int, int]
    batch_size: int
    trial: Trial
    largest: int | None
    predicted: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "image_size": list(self.image_size),
            "batch_size": self.batch_size,
            "images_per_second": self.trial.images_per_second,
            "inference_images_per_second": self.trial.inference_images_per_second,
            "seconds_per_step": self.trial.seconds,
            "peak_bytes": self.trial.bytes,
            "predicted_bytes": self.predicted,
            "largest_batch": self.largest,
        }


def measure(
    name: str, image_size: Size | None, step: Step, device: Device, where: str | None = None
) -> Measured:
    """Run real steps: how many images a second, and how many at a time there is room for.

    The largest batch is the line through two trials, of a batch and of a quarter of it: memory
    grows with the batch by the same amount for each picture.

    Args:
        step: its ``batch_size`` is that of the trial.
        where: ``cpu``, ``cuda``, or None for the best there is.

    Raises:
        Error: the trial itself found no memory.
    """
    config = config_for(name, image_size)
    on_gpu = pick_device(where).type == "cuda"
    run = trial if on_gpu else in_a_process
    less = replace(step, batch_size=max(1, step.batch_size // 4))
    options = {"device": where, "steps": 3}
    small, large = run(name, less, image_size, **options), run(name, step, image_size, **options)
    largest = None
    if small.bytes is not None and large.bytes is not None and step.batch_size > less.batch_size:
        each = (large.bytes - small.bytes) / (step.batch_size - less.batch_size)
        if each > 0:
            room = (device.budget - large.bytes) / each
            largest = max(0, int(step.batch_size + room))
    return Measured(
        name,
        height_width(config.image_size),
        step.batch_size,
        large,
        largest,
        predicted(config, step, on_gpu)[1],
    )


# What a table over many devices assumes beside the card's data sheet.
NETWORK = 25e9  # bytes a second of each GPU to other machines, one way (200 Gbit/s)
A_MACHINE = 8  # GPUs that see each other over the card's own link
STORAGE = 2e9  # bytes a second that a checkpoint is written with, all processes together
PICTURE = 110_000  # bytes of a JPEG, ImageNet's mean


@dataclass(frozen=True)
class Scaled:
    """One run on so many GPUs, by formula. Bytes are of one device unless they say otherwise."""

    gpus: int
    images_per_gpu: int
    ddp: Memory
    fsdp: Memory
    ddp_traffic: float
    fsdp_traffic: float
    ddp_seconds: float
    fsdp_seconds: float
    compute: float
    checkpoint: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        images = self.gpus * self.images_per_gpu / max(self.compute, self.ddp_seconds)
        return {
            "gpus": self.gpus,
            "images_per_gpu": self.images_per_gpu,
            "ddp_bytes": self.ddp.peak,
            "fsdp_bytes": self.fsdp.peak,
            "compute_seconds": self.compute,
            "ddp_traffic_bytes": self.ddp_traffic,
            "ddp_traffic_seconds": self.ddp_seconds,
            "fsdp_traffic_bytes": self.fsdp_traffic,
            "fsdp_traffic_seconds": self.fsdp_seconds,
            "images_per_second": images,
            "data_bytes_per_second": images * PICTURE,
            "checkpoint_bytes": self.checkpoint,
            "checkpoint_seconds": self.checkpoint / STORAGE,
        }


def scale(made: Plan, gpus: Sequence[int], name: str) -> list[Scaled]:
    """A plan's run on more and more GPUs of one kind, its batch shared out over them.

    DDP adds up the gradients of all (a ring passes 2 (n-1)/n of them through each GPU); FSDP
    gathers the weights forward and backward and scatters the gradients' sums ((n-1)/n of each,
    weights in the run's precision, gradients in float32). Within a machine of 8 that goes over the
    card's own link; between machines each GPU sends an eighth of it over the network. Both happen
    while the step computes, so the longer of the two is what a step takes.

    Raises:
        Error: a batch that cannot be shared out, or a device that is no card.
    """
    known = CARDS.get(name.lower())
    if known is None:
        raise Error(f"--gpus needs a card: --device {', '.join(CARDS)}")
    config = config_for(made.model, made.image_size)
    rows = []
    for count in gpus:
        if count < 1 or made.batch_size % count:
            raise Error(f"a batch of {made.batch_size:,} cannot be shared out over {count:,} GPUs")
        each = made.batch_size // count
        step = replace(made.step, batch_size=each, accumulation=1)
        small = 2 if made.step.precision in ("bf16", "fp16") else 4
        share, numbers = (count - 1) / count, made.parameters
        ddp, fsdp = 2 * 4 * numbers, (2 * small + 4) * numbers
        rows.append(
            Scaled(
                gpus=count,
                images_per_gpu=each,
                ddp=memory(config, step),
                fsdp=memory(config, replace(step, shards=count)),
                ddp_traffic=share * ddp,
                fsdp_traffic=share * fsdp,
                ddp_seconds=exchange(ddp, count, known.link),
                fsdp_seconds=exchange(fsdp, count, known.link),
                compute=made.seconds / count,
                checkpoint=made.checkpoint_bytes,
            )
        )
    return rows


def exchange(size: float, gpus: int, link: float) -> float:
    """Seconds in which ``size`` bytes go once around all GPUs, machines of `A_MACHINE` at a time.

    Args:
        size: of what is gathered or scattered; an addition over all is both, so twice that.
        link: bytes a second within a machine.
    """
    inside, machines = min(gpus, A_MACHINE), ceil(gpus / A_MACHINE)
    within = (inside - 1) / inside / link
    between = (machines - 1) / machines / inside / NETWORK
    return size * (within + between)
