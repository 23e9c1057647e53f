"""How fast is an exported bundle beside its peers, on the same threads?

    python benchmarks/inference.py [--quick] [--model NAME] [--threads 2] [--work DIR]

Times one forward pass of a plain ViT at batch 1 and 8: our bundles (OpenVINO and ONNX Runtime in
float32, OpenVINO in int8, and the folded model in torch) beside timm eager and compiled,
transformers eager, ONNX Runtime and OpenVINO on timm's export, and NNCF's int8 of that. All are
at their best: inference mode, fused attention, the same threads, float32 and no bfloat16. Peers
are fed floats that are normalised already; ours take bytes. Rounds are interleaved, and a figure is
the median over the rounds of theirs/ours: above 1 where ours is faster. Loading and memory are
measured in a process for each, ours through `vitrail.Classifier`, which checks every file's hash
first; memory after one picture, beside the leanest peer of the same precision. Weights are random:
nothing here depends on them. With
`--merge-tokens R` there are bundles too that merge R tokens in each block, which is not exact.
`--work DIR` keeps what was exported for the next run.
The last line of stdout is one JSON object; everything else is for people.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: a spinning pool starves others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference

import numpy as np

PAUSE = 0.1  # seconds: ONNX Runtime's threads spin for a while after each of its calls
Run = Callable[[np.ndarray], object]
OURS = ("vitrail openvino", "vitrail onnx", "vitrail openvino int8", "vitrail torch folded")
MERGING = ("vitrail openvino merging", "vitrail onnx merging", "vitrail torch merging")
PEERS = (
    *("timm eager", "timm compiled", "transformers eager"),
    *("timm onnxruntime", "timm openvino", "timm openvino nncf int8"),
)
PLAIN = dict(
    zip(MERGING, ("vitrail openvino", "vitrail onnx", "vitrail torch folded"), strict=True)
)
INT8 = ("vitrail openvino int8", "timm openvino nncf int8")
LOADED = {  # ours: the same runtime on timm's export
    "vitrail openvino": "timm openvino",
    "vitrail onnx": "timm onnxruntime",
    "vitrail openvino int8": "timm openvino nncf int8",
}


LEANEST = {  # of which peers the leanest is what ours is compared with
    "vitrail openvino": ("timm onnxruntime", "timm openvino", "timm eager", "transformers eager"),
    "vitrail onnx": ("timm onnxruntime", "timm openvino", "timm eager", "transformers eager"),
    "vitrail openvino int8": ("timm openvino nncf int8",),
}


def timm_model(name: str):
    import tests.reference.torchvision_stub  # noqa: F401  (before timm)
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=1000).eval()


def our_model(name: str):
    import torch

    import vitrail

    torch.manual_seed(0)
    model = vitrail.create_model(name, num_classes=1000)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    return model


def transformers_model(name: str):
    from transformers import ViTConfig, ViTForImageClassification

    c = our_model(name).config
    config = ViTConfig(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_labels=1000,
        attn_implementation="sdpa",
    )
    return ViTForImageClassification(config).eval()


def side_of(name: str) -> int:
    return int(name.rsplit("_", 1)[1])


def prepare(name: str, work: Path, those: list[str], merge: int) -> None:
    """Export ours and timm's once, as far as they are asked for."""
    from vitrail.export.graph import quiet
    from vitrail.export.make import GraphWriter
    from vitrail.export.quantize import quantisable

    side = side_of(name)
    pictures = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
    for who, to, precision in (
        ("vitrail openvino", "openvino", "fp32"),
        ("vitrail onnx", "onnx", "fp32"),
        ("vitrail openvino int8", "openvino", "int8"),
        ("vitrail openvino merging", "openvino", "fp32"),
        ("vitrail onnx merging", "onnx", "fp32"),
    ):
        folder = folder_of(who, merge)
        if who in those and not (work / folder).exists():
            started = time.perf_counter()
            made = work / f"{folder}.partial"
            made.mkdir(exist_ok=True)
            writer = GraphWriter(
                our_model(name),
                to,
                pictures=pictures if precision == "int8" else None,
                merge=merge if who in MERGING else 0,
            )
            writer.write(made, precision, quantisable(writer.folded))
            made.rename(work / folder)
            print(f"{folder}: exported in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        if (work / folder).exists() and not (work / folder / "bundle.json").exists():
            describe(work / folder, name, to, precision)
    if any(who in those for who in ("timm onnxruntime", *LOADED.values())):
        with quiet():
            prepare_peers(name, work, pictures)


def folder_of(who: str, merge: int) -> str:
    """Where a bundle of ours is kept."""
    return f"{who} {merge}" if who in MERGING else who


def describe(folder: Path, name: str, to: str, precision: str) -> None:
    """Make a bundle of a folder with a graph: what a user opens."""
    from vitrail.export.bundle import Manifest, labels_of, write_manifest
    from vitrail.kit.files import sha256_of
    from vitrail.kit.preprocess import Preprocessing

    side = side_of(name)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        runtime=to,
        precision=precision,
        labels=labels_of(None, 1000),
        preprocessing=Preprocessing(size=(side, side)),
        files=files,
    )
    write_manifest(folder, manifest)


def prepare_peers(name: str, work: Path, pictures: np.ndarray) -> None:
    """timm's export for ONNX Runtime and OpenVINO, and NNCF's int8 of that."""
    import openvino
    import torch

    exported, side = work / "timm.onnx", side_of(name)
    if not exported.exists():
        torch.onnx.export(
            timm_model(name),
            (torch.zeros(2, 3, side, side),),
            exported,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            verbose=False,
        )
    if not (work / "timm.xml").exists():
        openvino.save_model(
            openvino.convert_model(exported), work / "timm.xml", compress_to_fp16=False
        )
    if not (work / "timm-int8.xml").exists():
        import nncf

        floats = [np.float32(p.transpose(2, 0, 1)[None] / 127.5 - 1) for p in pictures]
        quantised = nncf.quantize(
            openvino.Core().read_model(work / "timm.xml"),
            nncf.Dataset(floats, lambda batch: {"x": batch}),
            subset_size=len(floats),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )
        openvino.save_model(quantised, work / "timm-int8.xml", compress_to_fp16=False)


def opened(who: str, name: str, work: Path, threads: int, merge: int = 0) -> Run:
    """A contender, ready to be fed with bytes (ours) or normalised floats (peers)."""
    if who.startswith("vitrail") and not who.startswith("vitrail torch"):
        from vitrail.export.runtime import OnnxRuntime, OpenVinoRuntime

        folder = work / folder_of(who, merge)
        if who.startswith("vitrail onnx"):
            return OnnxRuntime(folder / "model.onnx", threads).logits
        return OpenVinoRuntime(folder / "model.xml", threads).logits
    if who == "timm onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(work / "timm.onnx"), options)
        return lambda x: session.run(None, {"x": x})
    if who.startswith("timm openvino"):
        import openvino

        path = work / ("timm-int8.xml" if who.endswith("int8") else "timm.xml")
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda x: request.infer({0: x}, share_inputs=True)
    return in_torch(who, name, threads, merge)


def in_torch(who: str, name: str, threads: int, merge: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    if who.startswith("vitrail torch"):
        from vitrail.export.merging import fold_merging

        model = fold_merging(our_model(name), merge if who in MERGING else 0)
    else:
        model = transformers_model(name) if who == "transformers eager" else timm_model(name)
    if who == "timm compiled":
        model = torch.compile(model)

    def run(x: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(x))

    return run


def fed(who: str, bytes_: np.ndarray) -> np.ndarray:
    if who.startswith("vitrail"):
        return bytes_
    return np.ascontiguousarray(np.float32(bytes_.transpose(0, 3, 1, 2)) / 127.5 - 1)


def timed(run: Run, x: np.ndarray) -> float:
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def alone(who: str, name: str, work: Path, threads: int) -> None:
    """Load one contender in this process and say what that took."""
    x = fed(who, np.zeros((1, side_of(name), side_of(name), 3), np.uint8))

    def load() -> Run:
        if who in LOADED:
            import vitrail

            return vitrail.Classifier(work / who, threads=threads, device="cpu").forward
        return opened(who, name, work, threads)

    run = load()
    run(x)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize() // 1024
    seconds = []  # what was imported the first time is there now
    for _ in range(3):
        del run  # before the clock starts
        start = time.perf_counter()
        run = load()
        seconds.append(time.perf_counter() - start)
    del run
    print(json.dumps({"load": min(seconds), "peak": peak, "resident": resident}))


def in_a_process(who: str, name: str, work: Path, threads: int) -> dict[str, float]:
    words = ["--alone", who, "--model", name, "--work", work.parent, "--threads", threads]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def speed(runs: dict[str, Run], side: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by who ran it."""
    numbers = np.random.default_rng(1)
    images = numbers.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    inputs = {who: fed(who, images) for who in runs}
    for who, run in runs.items():  # once to warm up
        run(inputs[who])
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    order, shuffle = list(runs), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)  # nobody always goes first, or after the same one
        for who in order:
            time.sleep(PAUSE)
            seconds[who].append(timed(runs[who], inputs[who]))
    return seconds


def compared(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(
        [peer / mine for peer, mine in zip(theirs, ours, strict=True)], n=4
    )
    return low, middle, high


def report(seconds: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Print a table; ratios of every peer, and of the fastest, by name."""
    print(f"\nbatch {batch:2}                 median ms   of ours: theirs/ours (quartiles)")
    ratios: dict[str, float] = {}
    for who, times in seconds.items():
        print(f"  {who:24} {1e3 * statistics.median(times):8.1f}")
    for ours in ("vitrail openvino", "vitrail onnx", "vitrail openvino int8"):
        if ours not in seconds:
            continue
        best = None
        for peer in (who for who in PEERS if who in seconds):
            low, middle, high = compared(seconds[peer], seconds[ours])
            ratios[f"{ours}/batch {batch}/{peer}"] = round(middle, 3)
            print(f"  {ours:22} to {peer:24} {middle:6.3f} ({low:.3f} to {high:.3f})")
            if peer not in INT8:
                best = middle if best is None else min(best, middle)
        if best is not None:
            ratios[f"{ours}/batch {batch}/fastest float32 peer"] = round(best, 3)
    for merging in (who for who in MERGING if who in seconds):
        whole = PLAIN[merging]
        if whole in seconds:
            low, middle, high = compared(seconds[whole], seconds[merging])
            ratios[f"{merging}/batch {batch}/{whole}"] = round(middle, 3)
            print(f"  {merging:24} to {whole:22} {middle:6.3f} ({low:.3f} to {high:.3f})")
    return ratios


def loading(name: str, work: Path, threads: int, those: list[str]) -> dict[str, float]:
    """Load times and resident memory, each in a process of its own."""
    print("\n                          load s   resident MB   peak MB")
    found = {}
    pairs = {ours: peer for ours, peer in LOADED.items() if ours in those}
    rivals = (rival for ours in pairs for rival in LEANEST[ours])
    for who in (*pairs, *dict.fromkeys((*pairs.values(), *rivals))):
        found[who] = in_a_process(who, name, work, threads)
        load, resident, peak = (found[who][key] for key in ("load", "resident", "peak"))
        print(f"  {who:24} {load:6.2f} {resident / 1024:12.0f} {peak / 1024:9.0f}")
    ratios = {}
    for ours, peer in pairs.items():
        ratios[f"{ours}/load/{peer}"] = round(found[peer]["load"] / found[ours]["load"], 3)
        print(f"  {ours} loads in {found[ours]['load'] / found[peer]['load']:.2f} of {peer}'s time")
        for key in ("resident", "peak"):
            leanest = min(LEANEST[ours], key=lambda who, key=key: found[who][key])
            share = found[ours][key] / found[leanest][key]
            ratios[f"{ours}/{key}/leanest peer"] = round(1 / share, 3)
            print(f"  {ours}: {key} {share:.3f} of the leanest peer's ({leanest})")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="ViT-Ti/16, under 2 minutes")
    parser.add_argument("--model", help="a plain ViT of timm's name; ViT-B/16 at 224 by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="9 with --quick, else 7")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--work", type=Path, help="where exported files are kept")
    parser.add_argument("--no-memory", action="store_true", help="without loading and memory")
    parser.add_argument("--only-memory", action="store_true", help="loading and memory alone")
    every = (*OURS, *PEERS, *MERGING)
    parser.add_argument("--only", nargs="+", choices=every, help="of the contenders")
    parser.add_argument("--merge-tokens", type=int, default=0, metavar="R", help="bundles that do")
    parser.add_argument("--only-prepare", action="store_true", help="export, and stop")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    chosen = parser.parse_args()

    name = chosen.model or ("vit_tiny_patch16_224" if chosen.quick else "vit_base_patch16_224")
    with tempfile.TemporaryDirectory() as temporary:
        work = (chosen.work or Path(temporary)) / name
        work.mkdir(parents=True, exist_ok=True)
        if chosen.alone:
            alone(chosen.alone, name, work, chosen.threads)
            return
        prepare(name, work, contenders(chosen), chosen.merge_tokens)
        if chosen.only_prepare:
            return
        measured(name, work, chosen)


def contenders(chosen: argparse.Namespace) -> list[str]:
    every = (*OURS, *PEERS, *(MERGING if chosen.merge_tokens else ()))
    return [who for who in every if not chosen.only or who in chosen.only]


def measured(name: str, work: Path, chosen: argparse.Namespace) -> None:
    import onnxruntime
    import openvino
    import torch

    rounds = chosen.rounds or (9 if chosen.quick else 7)
    print(
        f"{name}, {chosen.threads} threads, float32 (no bfloat16) and int8, {rounds} interleaved "
        f"rounds; torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, openvino "
        f"{openvino.__version__.split('-')[0]}, OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}"
    )
    ratios: dict[str, float] = {}
    if not chosen.no_memory:
        ratios |= loading(name, work, chosen.threads, contenders(chosen))
    if chosen.only_memory:
        print(json.dumps({"benchmark": "inference", "ratios": ratios}))
        return
    runs = {
        who: opened(who, name, work, chosen.threads, chosen.merge_tokens)
        for who in contenders(chosen)
    }
    for batch in chosen.batches:
        ratios |= report(speed(runs, side_of(name), batch, rounds), batch)
    print(json.dumps({"benchmark": "inference", "ratios": ratios}))


if __name__ == "__main__":
    main()
