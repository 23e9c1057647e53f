"""Run by `test_attacks.py` in a process of its own, under an audit hook that cannot be taken off.

    python -m tests.weights.attacks FOLDER

Prints one JSON object: what became of 2,000 mutated safetensors files and of files with code in
them, what the interpreter was seen to do meanwhile, and how far its memory grew.
"""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from vitrail import Error, load_model, load_weights
from vitrail.models.zoo import from_config

FILES = 2000
CONFIG = {
    "patch_size": 4,
    "depth": 2,
    "width": 96,
    "heads": 3,
    "mlp_width": 192,
    "num_classes": 5,
    "image_size": 12,
}
# What loading weights has no business doing.
FORBIDDEN = (
    *(f"os.{verb}" for verb in ("system", "exec", "posix_spawn", "fork", "mkdir", "remove")),
    *(f"os.{verb}" for verb in ("rename", "rmdir", "chmod", "link", "symlink", "truncate")),
    *("subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class"),
    *("shutil.rmtree", "shutil.copyfile", "ctypes.dlopen", "webbrowser.open"),
)
seen: list[str] = []
armed = False


def watch(event: str, arguments: tuple) -> None:
    if not armed:
        return
    written = event == "open" and isinstance(arguments[1], str) and set("wax+") & {*arguments[1]}
    if event in FORBIDDEN or written:
        seen.append(f"{event} {arguments[:1]}")


def loaded(what, *arguments, **keywords) -> str:
    """The outcome of a call under watch: ``loaded``, ``refused``, or the crash."""
    global armed
    armed = True
    try:
        what(*arguments, **keywords)
    except Error as error:
        return "refused" if "\n" not in str(error) else f"two lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        armed = False
    return "loaded"


# Mutated safetensors


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with one of eleven things done to it."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.integers(10)
    if kind == 0:  # bytes of the data: a bare file cannot tell, values that are not finite can
        changed = bytearray(data)
        changed[rng.integers(len(data))] = 0x7F
        return content[: 8 + size] + bytes(changed)
    if kind < 3:  # bytes of the header
        at = rng.integers(0, len(header), rng.integers(1, 8))
        changed = bytearray(header)
        for place in at:
            changed[place] = rng.integers(256)
        return content[:8] + bytes(changed) + data
    if kind == 3:  # the length of the header
        length = int(rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 100_000_001, 99_999_999]))
        return struct.pack("<Q", length) + header + data
    if kind == 4:
        return content[: rng.integers(0, len(content))]
    if kind == 5:
        return content + bytes(rng.integers(1, 4096))
    fields = json.loads(header)
    name = str(rng.choice([key for key in fields if key != "__metadata__"]))
    entry = fields[name]
    begin, end = entry["data_offsets"]
    if kind == 6:
        big = [10**9, 10**9]
        entry["shape"] = [big, [-1], [*entry["shape"], 2], [], [2**63], "x"][rng.integers(6)]
    elif kind == 7:
        offsets = [[0, end], [begin, 2**62], [end, begin], [-1, end], [begin + 1, end + 1], [begin]]
        entry["data_offsets"] = offsets[rng.integers(6)]
    elif kind == 8:
        entry["dtype"] = str(
            rng.choice(["F64", "F16", "I64", "BOOL", "U8", "X", "BF16", "F8_E4M3"])
        )
    else:
        how = rng.integers(3)
        if how == 0:
            del fields[name]
        elif how == 1:
            fields[str(rng.choice(["../x", "", "\u0000", "blocks.99.attn.qkv.weight"]))] = entry
        else:
            fields["__metadata__"] = {
                "vitrail": str(rng.choice(["{", "[]", "null", '{"format": 9}']))
            }
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def memory() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(folder: Path) -> dict:
    model = from_config("vit", CONFIG)
    randomise(model)
    path = folder / "x.safetensors"
    save_file(model.state_dict(), path)
    content = path.read_bytes()
    target = from_config("vit", CONFIG)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    rng = np.random.default_rng(0)
    for _ in range(20):  # what the first loads import is not counted
        path.write_bytes(mutated(content, rng))
        loaded(load_weights, target, path)
    target.load_state_dict(before)
    start, outcomes, half = memory(), {}, 0
    for _ in range(FILES):
        path.write_bytes(mutated(content, rng))
        outcome = loaded(load_weights, target, path)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome == "loaded":
            target.load_state_dict(before)
        elif not all(torch.equal(t, before[n]) for n, t in target.state_dict().items()):
            half += 1
            target.load_state_dict(before)
    grown = memory() - start
    return {"outcomes": outcomes, "half": half, "file": len(content), "grown": grown}


# Files with code in them


class Run:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(folder: Path, marker: Path) -> dict[str, Path]:
    """Files of every format that is accepted, each of which would make the marker if it could."""
    state = from_config("vit", CONFIG).state_dict()
    touch = f"touch {marker}"
    calls = {
        "os.system": Run(os.system, touch),
        "os.mkdir": Run(os.mkdir, str(marker)),
        "exec": Run(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Run(eval, f"open({str(marker)!r}, 'w')"),
        "Popen": Run(subprocess.Popen, ["touch", str(marker)]),
        "torch.load": Run(torch.load, str(folder / "inner.pkl")),
    }
    (folder / "inner.pkl").write_bytes(pickle.dumps(calls["os.mkdir"]))
    made: dict[str, Path] = {}

    def file(name: str) -> Path:
        made[name] = folder / name
        return made[name]

    for name, call in calls.items():
        torch.save({**state, "x": call}, file(f"zip-{name}.pth"))
        old = file(f"old-{name}.pt")
        torch.save({**state, "x": call}, old, _use_new_zipfile_serialization=False)
    for protocol in range(6):
        content = pickle.dumps({"model": calls["os.system"]}, protocol=protocol)
        file(f"protocol-{protocol}.bin").write_bytes(content)
    file("classic.bin").write_bytes(b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.")
    objects = np.array([calls["os.mkdir"]], dtype=object)
    np.save(file("objects.npy"), objects, allow_pickle=True)
    np.savez(file("objects.npz"), x=objects)
    with zipfile.ZipFile(file("object-member.npz"), "w") as archive:
        header = io.BytesIO()
        fields = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_1_0(header, fields)
        archive.writestr("x.npy", header.getvalue() + pickle.dumps(objects))
    for name, members in {
        "exported.pt2": ("archive_format", "models/model.json", "data/weights/x.pt"),
        "script.pt": ("x/data.pkl", "x/code/__torch__.py", "x/constants.pkl"),
        "package.pt": ("x/data.pkl", "x/.data/extern_modules", "x/main.py"),
    }.items():
        with zipfile.ZipFile(file(name), "w") as archive:
            for member in members:
                archive.writestr(member, pickle.dumps(calls["os.system"]))
    file("config.yaml").write_text(f"!!python/object/apply:os.system ['{touch}']\n")
    code = f"open({str(marker)!r}, 'w')\n"
    for name, config in {
        "auto_map": {"model_type": "vit", "auto_map": {"AutoModel": "modeling.Model"}},
        "target": {"architecture": "vit_tiny_patch16_224", "_target_": "modeling.Model"},
        "module": {"architecture": "modeling.Model", "model_args": {"act_layer": "modeling.Model"}},
    }.items():
        inside = file(f"folder-{name}")
        inside.mkdir()
        (inside / "config.json").write_text(json.dumps(config))
        for script in ("modeling.py", "__init__.py", "setup.py", "conftest.py"):
            (inside / script).write_text(code)
        save_file({k: t.contiguous() for k, t in state.items()}, inside / "model.safetensors")
    return made


def code(folder: Path) -> dict:
    marker = folder / "marker"
    model = from_config("vit", CONFIG)
    outcomes: dict[str, str] = {}
    for name, path in payloads(folder, marker).items():
        tried = {
            "load_weights": loaded(load_weights, model, path),
            "load_model": loaded(load_model, path),
            "named": loaded(load_model, path, "vit_tiny_patch16_224"),
        }
        allowed = {"refused", "loaded"} if name.startswith("folder-") else {"refused"}
        bad = {how: outcome for how, outcome in tried.items() if outcome not in allowed}
        outcomes[name] = json.dumps(bad) if bad else "nothing run"
        if marker.exists():
            outcomes[name] = "ran its code"
            os.system(f"rm -rf {marker}")
    return outcomes


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "code").mkdir()
    loaded(load_weights, from_config("vit", CONFIG), folder / "nothing")
    sys.addaudithook(watch)
    result = {"code": code(folder / "code"), "fuzz": fuzz(folder), "seen": sorted(set(seen))}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
