"""How long is a training step of ours beside our peers' models in their usual loops?

    python benchmarks/train.py [--quick] [--rounds N] [--only NAME ...]

1. ViT-S/16 beside timm and transformers, CvT-13 beside transformers (timm has none): the same
   pictures, batch, precision and threads. Each peer runs twice, with the optimiser that its own
   library makes by default and with ours. Ours is the loop's own step: forward, backward,
   clipping, fused AdamW, the average of the weights, the loss and the accuracy as numbers.
   timm's is that of its train.py (no clipping, no average; `create_optimizer_v2(opt="adamw")`),
   transformers' that of its Trainer (clipping to 1, `adamw_torch_fused`).
2. Stochastic depth of a constant rate of 0.5 in every block, beside none.
3. On a GPU, where there is one: ViT-B/16 and L/16 in bf16, compiled: images a second, MFU, memory.

Rounds are interleaved, so that a busy machine slows all of them alike; the figure is the median
over the rounds of theirs/ours, above 1 where ours is faster. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.peak import matmul_peak
from vitrail.models.base import ImageClassifier
from vitrail.models.cost import cost
from vitrail.models.cost.memory import Step
from vitrail.models.zoo import config_of, create_model
from vitrail.training.ema import EMA
from vitrail.training.objectives import Example, Learner, Supervised
from vitrail.training.optim import make_optimizer
from vitrail.training.recipe import Optim
from vitrail.training.trial import trial

CLASSES = 1000
RATE, DECAY = 1e-4, 0.05
Run = Callable[[Tensor, Tensor], None]


def ours(model: ImageClassifier, average: bool = True) -> Run:
    """A step of our loop."""
    model.train()
    learner = Learner(model, Supervised())
    optimizer = make_optimizer(model, Optim(lr=RATE, weight_decay=DECAY))
    ema = EMA(model, 0.9999) if average else None
    trained = list(model.parameters())

    def run(images: Tensor, labels: Tensor) -> None:
        loss = learner(Example(images, labels))
        float(loss.value.detach())
        loss.value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(100_000)
        float(loss.parts["accuracy"])

    return run


def fused(model: nn.Module) -> torch.optim.Optimizer:
    """Our optimiser for anybody's model."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)


def timm_default(model: nn.Module) -> torch.optim.Optimizer:
    """What timm makes of ``--opt adamw``."""
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=DECAY)


def trainer_default(model: nn.Module) -> torch.optim.Optimizer:
    """What transformers' Trainer makes by default: torch's fused AdamW, norms and biases apart."""
    from dataclasses import fields

    from transformers import TrainingArguments

    default = next(field.default for field in fields(TrainingArguments) if field.name == "optim")
    if default != "adamw_torch_fused":
        raise RuntimeError(f"transformers' default optimiser is {default} now: look it up")
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, DECAY), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=RATE, fused=True)


def theirs(model: nn.Module, optimizer: torch.optim.Optimizer, clip: bool) -> Run:
    """A step of a peer's loop."""
    model.train()

    def run(images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return run


class _Logits(nn.Module):
    """transformers' output objects as plain logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def from_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def from_transformers(name: str) -> nn.Module:
    """The same architecture in transformers, its attention as that library chooses it."""
    from transformers import CvtConfig, CvtForImageClassification, ViTConfig
    from transformers import ViTForImageClassification as HFViT

    if name.startswith("cvt"):
        return _Logits(CvtForImageClassification(CvtConfig(num_labels=CLASSES)))
    c = config_of(name)
    config = ViTConfig(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        num_labels=CLASSES,
    )
    return _Logits(HFViT(config))


# Who has the model, how it is made, whether the usual loop clips, the library's own optimiser.
PEERS = {
    "timm": (from_timm, False, timm_default),
    "transformers": (from_transformers, True, trainer_default),
}
CASES = {
    "vit_small_patch16_224": ("timm", "transformers"),
    "cvt_13_224": ("transformers",),
}


def interleaved(runs: dict[str, Run], batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by who ran it."""
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(CLASSES, (batch,))
    for run in runs.values():  # once to warm up
        run(images, labels)
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    order = list(runs)
    for _ in range(rounds):
        for who in order:
            began = time.perf_counter()
            runs[who](images, labels)
            seconds[who].append(time.perf_counter() - began)
        order = order[1:] + order[:1]  # nobody always goes first
    return seconds


def beside(name: str, peers: tuple[str, ...], batch: int, rounds: int) -> dict[str, float]:
    """Our step beside the peers', a table, and the ratios."""
    model = create_model(name, num_classes=CLASSES)
    runs: dict[str, Run] = {"vitrail": ours(model)}
    count = sum(p.numel() for p in model.parameters())
    for peer in peers:
        make, clip, default = PEERS[peer]
        for kind, optimizer in (("default", default), ("our optimiser", fused)):
            other = make(name)
            if abs(sum(p.numel() for p in other.parameters()) - count) > 0.001 * count:
                raise RuntimeError(f"{peer} has another {name}")
            runs[f"{peer}, {kind}"] = theirs(other, optimizer(other), clip)
    seconds = interleaved(runs, batch, rounds)
    rate = batch / statistics.median(seconds["vitrail"])
    used = 6 * cost(model).macs * rate / matmul_peak("cpu", "fp32", torch.get_num_threads())
    print(f"\n{name}, batch {batch}, fp32, ours at {100 * used:.0f} % of the matrix product's peak")
    return shown(name, seconds, batch)


def shown(name: str, seconds: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Print a table of which the first row is ours; the median of theirs/ours by name."""
    ratios, (first, mine) = {}, next(iter(seconds.items()))
    for who, times in seconds.items():
        median = statistics.median(times)
        line = f"  {who:30} {1e3 * median:9.1f} ms {batch / median:8.1f} images/s"
        if who != first:
            paired = [other / own for other, own in zip(times, mine, strict=True)]
            low, middle, high = statistics.quantiles(paired, n=4)
            ratios[f"{name}, {who}"] = round(middle, 3)
            line += f"   {middle:.3f} ({low:.3f} to {high:.3f})"
        print(line, flush=True)
    return ratios


def stochastic_depth(batch: int, rounds: int) -> dict[str, float]:
    """Half of all residual branches dropped, beside none."""
    name = "vit_tiny_patch16_224"
    dropping = create_model(name, drop_path=0.5, drop_path_rule="constant")
    runs = {"rate 0.5": ours(dropping), "without": ours(create_model(name))}
    print(f"\nstochastic depth at a constant rate of 0.5, {name}, batch {batch}, fp32")
    return shown("stochastic depth 0.5", interleaved(runs, batch, rounds), batch)


def on_a_gpu() -> dict[str, float]:
    """bf16, compiled: images a second, MFU and memory of ours, beside timm's model."""
    ratios = {}
    for name, batch in (("vit_base_patch16_224", 256), ("vit_large_patch16_224", 128)):
        step = Step(batch_size=batch, precision="bf16")
        mine = trial(name, step, device="cuda", steps=12, compile=True)
        peak = matmul_peak("cuda", "bf16", 0)
        used = 6 * cost(config_of(name)).macs * mine.images_per_second / peak
        seconds = timm_on_a_gpu(name, batch)
        ratios[f"{name}, timm, bf16 compiled"] = round(seconds / mine.seconds, 3)
        print(
            f"\n{name}, batch {batch}, bf16, compiled, {torch.cuda.get_device_name()}\n"
            f"  vitrail  {mine.images_per_second:8.0f} images/s   MFU {100 * used:.1f} % of "
            f"{peak / 1e12:.0f} TFLOP/s measured   {(mine.bytes or 0) / 2**30:.1f} GiB\n"
            f"  timm     {batch / seconds:8.0f} images/s   "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )
    return ratios


def timm_on_a_gpu(name: str, batch: int) -> float:
    """Seconds of the quickest of some compiled steps of timm's model, with our optimiser."""
    torch.cuda.reset_peak_memory_stats()
    model = from_timm(name).cuda().train()
    optimizer, compiled = fused(model), torch.compile(model)
    images = torch.randn(batch, 3, 224, 224, device="cuda")
    labels = torch.randint(CLASSES, (batch,), device="cuda")
    quickest = float("inf")
    for number in range(12):
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if number:
            quickest = min(quickest, time.perf_counter() - began)
    return quickest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller batches, fewer rounds")
    parser.add_argument("--rounds", type=int, help="4 with --quick, else 15")
    parser.add_argument("--batch-size", type=int, help="4 with --quick, else 16")
    parser.add_argument("--only", nargs="+", choices=[*CASES, "depth", "gpu"], metavar="NAME")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (4 if chosen.quick else 15)
    batch = chosen.batch_size or (4 if chosen.quick else 16)
    wanted = chosen.only or [*CASES, "depth", "gpu"]
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds, "
        "median theirs/ours (quartiles)"
    )
    ratios: dict[str, float] = {}
    for name, peers in CASES.items():
        if name in wanted:
            ratios |= beside(name, peers, batch, rounds)
    if "depth" in wanted:
        ratios |= stochastic_depth(16 if chosen.quick else 64, rounds)
    if "gpu" in wanted and torch.cuda.is_available():
        ratios |= on_a_gpu()
    print(json.dumps({"benchmark": "train", "ratios": ratios}))


if __name__ == "__main__":
    main()
