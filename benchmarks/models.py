"""How fast are our models beside their peers' own, in the same loop?

    python benchmarks/models.py [--quick] [--peers timm transformers] [--models NAME ...]

Times a forward pass and a training step (forward, backward, AdamW) of each model and of the same
architecture in each peer, on the same pictures, with the same threads and with fused attention in
all. The rounds are interleaved, so that a busy machine slows all of them alike, and the figure is
the median over the rounds of theirs/ours: above 1 where ours is faster.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrail
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.cost import cost
from vitrail.models.zoo import create_model

CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A model of ours, the batch that it is timed at, and who else has it."""

    model: str
    batch: int
    peers: tuple[str, ...] = ("timm",)


QUICK = [Case("vit_tiny_patch16_224", 8, ("timm", "transformers"))]
FULL = [
    Case("vit_tiny_patch16_224", 16, ("timm", "transformers")),
    Case("vit_small_patch16_224", 16, ("timm", "transformers")),
    Case("vit_base_patch32_224", 16, ("timm", "transformers")),
]


def from_timm(model: ImageClassifier, name: str) -> nn.Module:
    """timm's model of the same name, its attention fused."""
    import tests.reference.torchvision_stub  # noqa: F401  (before timm)
    import timm

    theirs = timm.create_model(name, num_classes=CLASSES)
    for part in theirs.modules():
        if getattr(part, "fused_attn", True) is False:
            raise RuntimeError(f"timm does not fuse {type(part).__name__}")
    return theirs


def from_transformers(model: ImageClassifier, name: str) -> nn.Module:
    """transformers' ViT of the same configuration, its attention fused."""
    from transformers import ViTConfig, ViTForImageClassification

    c = model.config
    config = ViTConfig(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )
    return _Logits(ViTForImageClassification(config))


class _Logits(nn.Module):
    """transformers' output objects as plain logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


PEERS = {"timm": from_timm, "transformers": from_transformers}


def forward_pass(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """One forward pass in eval mode."""

    def run(images: Tensor, labels: Tensor) -> None:
        with torch.inference_mode():
            model.eval()(images)

    return run


def training_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """One step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def run(images: Tensor, labels: Tensor) -> None:
        model.train()
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


TASKS = {"forward": forward_pass, "step": training_step}


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


def measure(
    case: Case, peers: list[str], rounds: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by task and then by who ran it."""
    ours = create_model(case.model, num_classes=CLASSES)
    models = {"vitrail": ours, **{peer: PEERS[peer](ours, case.model) for peer in peers}}
    sizes = {who: sum(p.numel() for p in model.parameters()) for who, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"not the same model: {sizes}")
    images = torch.randn(case.batch, 3, *height_width(ours.image_size), device=device)
    labels = torch.randint(CLASSES, (case.batch,), device=device)
    seconds: dict[str, dict[str, list[float]]] = {}
    for task, prepare in TASKS.items():
        runs = {who: prepare(model.to(device)) for who, model in models.items()}
        for run in runs.values():  # once to warm up
            run(images, labels)
        seconds[task] = {who: [] for who in runs}
        order = list(runs)
        for _ in range(rounds):
            for who in order:
                seconds[task][who].append(timed(runs[who], images, labels))
            order = order[1:] + order[:1]  # nobody always goes first
    return seconds


def report(case: Case, seconds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Print a table; the median of theirs/ours by name."""
    gmacs = cost(create_on_meta(case.model)).macs / 1e9
    print(f"\n{case.model}, batch {case.batch}, {gmacs:.2f} GMACs an image")
    print(f"  {'':8} {'':14} {'median ms':>10} {'images/s':>9}   theirs/ours (quartiles)")
    ratios = {}
    for task, by_whom in seconds.items():
        ours = by_whom["vitrail"]
        for who, times in by_whom.items():
            median = statistics.median(times)
            line = f"  {task:8} {who:14} {1e3 * median:10.1f} {case.batch / median:9.1f}"
            if who != "vitrail":
                paired = [theirs / mine for theirs, mine in zip(times, ours, strict=True)]
                low, middle, high = statistics.quantiles(paired, n=4)
                ratios[f"{case.model}/{task}/{who}"] = round(middle, 4)
                line += f"   {middle:.3f} ({low:.3f} to {high:.3f})"
            print(line)
    return ratios


def create_on_meta(name: str) -> ImageClassifier:
    """The model without its weights."""
    with torch.device("meta"):
        return create_model(name, num_classes=CLASSES)


def settings(device: torch.device, rounds: int) -> str:
    """What a figure depends on, in a line."""
    where = platform.processor() or platform.machine()
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return (
        f"vitrail {vitrail.__version__}, torch {torch.__version__}, float32 on {device} ({where}), "
        f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}, "
        f"fused attention, AdamW, {rounds} interleaved rounds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small model, under 2 minutes")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="plain ViTs of timm's names")
    parser.add_argument("--batch-size", type=int, help="instead of each case's own")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["timm"])
    parser.add_argument("--rounds", type=int, help="15 with --quick, else 25")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()

    cases = QUICK if chosen.quick else FULL
    if chosen.models:
        cases = [Case(name, 8 if chosen.quick else 16, tuple(PEERS)) for name in chosen.models]
    rounds = chosen.rounds or (15 if chosen.quick else 25)
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    print(settings(device, rounds))
    ratios: dict[str, float] = {}
    for case in cases:
        case = Case(case.model, chosen.batch_size or case.batch, case.peers)
        peers = [peer for peer in chosen.peers if peer in case.peers]
        ratios |= report(case, measure(case, peers, rounds, device))
    print(json.dumps({"benchmark": "models", "ratios": ratios}))


if __name__ == "__main__":
    main()
