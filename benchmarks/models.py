"""How fast are our models beside their peers' own, in the same loop, and what memory do they take?

    python benchmarks/models.py [--quick] [--families vit cvt ...] [--models NAME ...]

Times a forward pass (inference mode) and a forward with its backward pass of one model of every
family, and of the same architecture in each library that has it, on the same pictures, with the
same threads and with fused attention wherever the peer has it. The rounds are interleaved, so that
a busy machine slows all of them alike, and the figure is the median over the rounds of theirs/ours:
above 1 where ours is faster. Memory is the peak of what torch allocates during one such pass, by
its own profiler, beside the weights: theirs/ours too.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference

import torch
import torch.nn.functional as F
from benchmarks.peers.models import NONE, PEERS, attention_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import vitrail
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.cost import cost
from vitrail.models.zoo import create_model

CLASSES = 1000
BOTH = ("timm", "transformers")
LEAST_SPEED, LEAST_MEMORY = 0.97, 1 / 1.05


@dataclass(frozen=True)
class Case:
    """A model of ours, the batch and size that it is timed at, and who else has it."""

    family: str
    model: str
    peers: tuple[str, ...]
    batch: int = 8
    image_size: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def create(self) -> ImageClassifier:
        """Our model."""
        size = self.image_size
        return create_model(self.model, num_classes=CLASSES, image_size=size, **self.fields)


CASES = [
    Case("vit", "vit_tiny_patch16_224", BOTH),
    Case("vit", "vit_small_patch16_224", BOTH),
    Case("deit", "deit_tiny_distilled_patch16_224", BOTH),
    Case("dinov2", "vit_small_patch14_dinov2", ("timm",), 4, 224),
    # its head reads the mean patch too
    Case("dinov2", "vit_small_patch14_dinov2", ("transformers",), 4, 224, {"pool": "token_mean"}),
    Case("hybrid", "vit_tiny_r_s16_p8_224", ("timm",)),
    Case("hybrid", "vit_small_r26_s32_224", ("timm",)),
    Case("bit", "resnetv2_50x1_bit", BOTH, 4),
    Case("resnet", "resnet50", BOTH, 4),
    Case("botnet", "botnet50_224", ("timm",), 4),
    # transformers' CvT has the exact GELU
    Case("cvt", "cvt_13_224", ("transformers",), 4, None, {"activation": "gelu"}),
    Case("t2t", "t2t_vit_7", ()),
    Case("pvt", "pvt_tiny", ("transformers",)),
    Case("pvt_v2", "pvt_v2_b0", BOTH),
    Case("pvt_v2", "pvt_v2_b2_li", BOTH, 4),
]
# One of each family, on small pictures: about what the libraries put around the arithmetic.
QUICK = {
    "vit_tiny_patch16_224": (4, None),
    "deit_tiny_distilled_patch16_224": (2, None),
    "vit_small_patch14_dinov2": (1, 154),
    "vit_tiny_r_s16_p8_224": (4, None),
    "resnetv2_50x1_bit": (1, 128),
    "resnet50": (2, 96),
    "botnet50_224": (2, 96),
    "cvt_13_224": (1, 128),
    "t2t_vit_7": (1, None),
    "pvt_tiny": (1, 160),
    "pvt_v2_b0": (2, 160),
}


def forward_pass(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """A forward pass in eval mode."""

    def run(images: Tensor, labels: Tensor) -> None:
        with torch.inference_mode():
            model.eval()(images)

    return run


def backward_pass(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """A forward and backward pass in training mode."""

    def run(images: Tensor, labels: Tensor) -> None:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return run


TASKS = {"forward": forward_pass, "backward": backward_pass}


def timed(run: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor) -> float:
    """Seconds of one call."""
    on_cuda = images.device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    run(images, labels)
    if on_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def peak_bytes(run: Callable[[Tensor, Tensor], None], images: Tensor, labels: Tensor) -> int:
    """The most memory beside what was there before, in one call."""
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        run(images, labels)
        torch.cuda.synchronize(images.device)
        return torch.cuda.max_memory_allocated(images.device) - before
    with (
        without_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        run(images, labels)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def without_stderr() -> Iterator[None]:
    """The profiler's library says when it starts and stops, whatever it is told."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass
class Measured:
    """Seconds of every round and peak bytes, by task and then by who ran it."""

    seconds: dict[str, dict[str, list[float]]]
    memory: dict[str, dict[str, int]]


def models_of(case: Case, peers: list[str]) -> dict[str, nn.Module]:
    """Our model and each peer's, of the same size."""
    ours = case.create()
    models = {"vitrail": ours, **{peer: PEERS[peer](ours, case.model) for peer in peers}}
    sizes = {who: sum(p.numel() for p in model.parameters()) for who, model in models.items()}
    if max(sizes.values()) > 1.001 * min(sizes.values()):  # a mask token more is the same model
        raise RuntimeError(f"not the same model: {sizes}")
    return models


def measure(case: Case, models: dict[str, nn.Module], rounds: int, device: str) -> Measured:
    """Time the rounds, and take the memory of one more pass."""
    size = height_width(case.image_size or create_on_meta(case).image_size)
    images = torch.randn(case.batch, 3, *size, device=device)
    labels = torch.randint(CLASSES, (case.batch,), device=device)
    measured = Measured({}, {})
    for task, prepare in TASKS.items():
        runs = {who: prepare(model.to(device)) for who, model in models.items()}
        for run in runs.values():  # twice to warm up
            run(images, labels)
            run(images, labels)
        seconds: dict[str, list[float]] = {who: [] for who in runs}
        order = list(runs)
        for _ in range(rounds):
            for who in order:
                seconds[who].append(timed(runs[who], images, labels))
            order = order[1:] + order[:1]  # nobody always goes first
        for model in models.values():
            model.zero_grad()
        measured.seconds[task] = seconds
        measured.memory[task] = {}
        for who, run in runs.items():
            measured.memory[task][who] = peak_bytes(run, images, labels)
            models[who].zero_grad()
    return measured


def report(case: Case, measured: Measured) -> dict[str, float]:
    """Print a table; the ratios of theirs/ours by name."""
    ratios = {}
    print(f"  {'':8} {'':14} {'median ms':>10} {'images/s':>9} {'peak MB':>8}   theirs/ours: time")
    for task, by_whom in measured.seconds.items():
        ours = by_whom["vitrail"]
        for who, times in by_whom.items():
            median, peak = statistics.median(times), measured.memory[task][who]
            line = f"  {task:8} {who:14} {1e3 * median:10.1f} {case.batch / median:9.1f}"
            line += f" {peak / 1e6:8.1f}"
            if who != "vitrail":
                paired = [theirs / mine for theirs, mine in zip(times, ours, strict=True)]
                low, middle, high = statistics.quantiles([*paired, *paired], n=4)
                space = peak / measured.memory[task]["vitrail"]
                ratios[f"{case.model}/{task}/{who}"] = round(middle, 4)
                ratios[f"{case.model}/{task}-memory/{who}"] = round(space, 4)
                line += f"   {middle:.3f} ({low:.3f} to {high:.3f}), memory {space:.3f}"
                line += "" if middle >= LEAST_SPEED else "  SLOWER"
                line += "" if space >= LEAST_MEMORY else "  MORE MEMORY"
            print(line, flush=True)
    return ratios


def create_on_meta(case: Case) -> ImageClassifier:
    """The model without its weights."""
    with torch.device("meta"):
        return case.create()


def settings(device: str, rounds: int) -> str:
    """What a figure depends on, in a line."""
    where = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name(device)
    return (
        f"vitrail {vitrail.__version__}, torch {torch.__version__}, float32 on {device} ({where}), "
        f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, "
        f"forward in inference mode, {rounds} interleaved rounds, medians"
    )


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    """The cases that the arguments ask for."""
    cases = CASES
    if chosen.quick:
        cases = [
            replace(case, batch=QUICK[case.model][0], image_size=QUICK[case.model][1])
            for case in CASES
            if case.model in QUICK
        ]
    if chosen.families:
        cases = [case for case in cases if case.family in chosen.families]
    if chosen.models:
        known = {case.model: case for case in [*CASES, *cases]}
        usual = Case("vit", "", ("timm",))
        cases = [known.get(name, replace(usual, model=name)) for name in chosen.models]
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    families = list(dict.fromkeys(case.family for case in CASES))
    parser.add_argument("--quick", action="store_true", help="small pictures, under 2 minutes")
    parser.add_argument("--families", nargs="+", choices=families)
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--batch-size", type=int, help="instead of each case's own")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()

    torch.manual_seed(0)
    print(settings(chosen.device, chosen.rounds))
    ratios: dict[str, float] = {}
    for case in chosen_cases(chosen):
        case = replace(case, batch=chosen.batch_size or case.batch)
        figures = cost(create_on_meta(case))
        print(
            f"\n{case.model}, {case.image_size or figures_size(case)} pixels, batch {case.batch}, "
            f"{figures.macs / 1e9:.2f} GMACs an image"
        )
        peers = [peer for peer in chosen.peers if peer in case.peers]
        if not case.peers:
            print(f"  {NONE[case.family]}")
        models = models_of(case, peers)
        for peer in peers:
            print(f"  {peer}: attention {attention_of(models[peer])}")
        ratios |= report(case, measure(case, models, chosen.rounds, chosen.device))
    print(json.dumps({"benchmark": "models", "ratios": ratios}))


def figures_size(case: Case) -> object:
    """The size that a model's name stands for."""
    return create_on_meta(case).image_size


if __name__ == "__main__":
    main()
