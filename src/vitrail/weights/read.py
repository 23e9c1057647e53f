"""Opening weights: a file, a folder or a mapping becomes plain tensors, or one clear sentence.

Files are known by their first bytes, not by their name, and nothing in a file is ever run:
safetensors hold no code, `.npz` is read without pickles and `.pth` by torch's restricted reader.
What an archive says about its own size is checked before anything is unpacked.
"""

import argparse
import contextlib
import hashlib
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.kit.errors import Error, WeightsError, did_you_mean, listing
from vitrail.kit.files import sha256_of
from vitrail.models import zoo
from vitrail.models.base import checked_config
from vitrail.weights import timm, transformers_config, transformers_vit
from vitrail.weights.hub import downloaded, is_hub_name
from vitrail.weights.unwrap import Checkpoint, to_tensor, unwrapped

MODEL_FILE, BEST_FILE = "model.safetensors", "best.safetensors"
DIGESTS = {MODEL_FILE: "sha256", BEST_FILE: "best_sha256"}
GOLDEN = {MODEL_FILE: "golden", BEST_FILE: "best_golden"}
FORMAT = 1
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".tar", ".ckpt")
SAFE_INDEX = "model.safetensors.index.json"
PICKLED_INDEX, PICKLED_FILE = "pytorch_model.bin.index.json", "pytorch_model.bin"


def open_checkpoint(source: Path | str | Mapping[str, Any], which: str = "final") -> Checkpoint:
    """Read all tensors of a source.

    Args:
        source: a file, a folder (a model folder, or one with weights, sharded or not), or a
            mapping of tensors or arrays, wrapped as checkpoints are.
        which: ``best`` takes a model folder's `best.safetensors`, where it has one.

    Raises:
        Error: nothing there, nothing readable, damaged, or holding code.
    """
    if isinstance(source, Mapping):
        return unwrapped(Checkpoint("the mapping", {}, live=True), source)
    path = existing(source)
    if not path.is_dir():
        return _open_file(path)
    config = read_config(path) if (path / "config.json").exists() else {}
    if "vitrail" in config:
        return open_model_folder(path, which)
    checkpoint = _open_loose_folder(path, pickles=not is_hub_name(source))
    checkpoint.timm = _said_beside(path, config)
    return checkpoint


def existing(source: Path | str) -> Path:
    """The path of a source on disk; a name on the hub is downloaded.

    Raises:
        Error: there is none; a hub's name is told from a slip.
    """
    if is_hub_name(source):
        return downloaded(str(source))
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
        if near and not path.is_absolute():  # the whole of it can be typed again
            near = did_you_mean(str(path), [str(p) for p in path.parent.iterdir()]) or near
    except OSError:
        near = ""
    text = str(source)
    if re.match(r"https?:", text):
        raise Error(f"{text}: addresses are not opened: download the file, or give hf-hub:org/name")
    if not near and re.fullmatch(r"[\w-]+/[\w.-]+", text) and not path.suffix:
        raise Error(f"no file or folder {text}; for the repository of the hub write hf-hub:{text}")
    raise Error(f"no file or folder {text}{near}")


def read_config(folder: Path | str) -> dict[str, Any]:
    """The `config.json` of a model folder, whole; Vitrail's part is under ``vitrail``.

    Raises:
        Error: no such folder or file, not JSON, or of a newer format.
    """
    path = existing(folder)
    if not path.is_dir():
        raise Error(f"{path} is a file, not a model folder")
    if not (path / "config.json").exists():
        raise Error(_no_model(path))
    config = _json(path / "config.json")
    if "vitrail" in config:
        _check_format(config["vitrail"], path / "config.json")
    return config


def _no_model(path: Path) -> str:
    """What a folder without a `config.json` is instead, and what is needed."""
    if (path / "bundle.json").exists():
        return (
            f"{path} is a bundle of `vitrail export`: give the model folder that it was made from, "
            "which is what this needs"
        )
    if (path / "arrays.npz").exists() and (path / "report.html").exists():
        return (
            f"{path} is what `vitrail inspect` wrote and no model folder: give the model that was "
            "inspected"
        )
    return f"{path} is no model folder: it has no config.json"


def read_section(folder: Path | str) -> dict[str, Any]:
    """The ``vitrail`` section of a model folder.

    Raises:
        Error: as `read_config`, or the folder is another library's.
    """
    config = read_config(folder)
    if "vitrail" in config:
        return config["vitrail"]
    named = config.get("architecture")
    hint = f" (config.json says {named!r})" if isinstance(named, str) else ""
    raise Error(
        f"{folder} is another library's folder of a model that is not in the zoo as it stands"
        f"{hint}: to load its weights, give the name of a model that they fit"
    )


def _said_beside(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON files of another library's folder say of its weights."""
    if "model_type" not in config:
        return timm.read_config(config) if config else {}
    processor = path / "preprocessor_config.json"
    return transformers_vit.read_config(config, _json(processor) if processor.exists() else {})


def foreign_model(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The model that timm's or transformers' `config.json` is of.

    Returns:
        A name of the zoo or a family, and config fields; None where the zoo has no such model.
    """
    if "model_type" in config:
        return transformers_config.describe(config)
    return timm.describe(config)


def open_model_folder(path: Path, which: str = "final") -> Checkpoint:
    """The weights of a model folder, checked against the hash in its `config.json`.

    Raises:
        Error: no weights there, or other bytes than those that were saved.
    """
    about = read_section(path)
    if which not in ("final", "best"):
        raise Error(f"which is 'final' or 'best', not {which!r}")
    name = MODEL_FILE
    if which == "best" and (path / BEST_FILE).exists():
        name = BEST_FILE
    file = path / name
    if not file.exists():
        other = ""
        if (path / BEST_FILE).exists():
            other = f"; it has {BEST_FILE}, which which='best' opens (did the run end?)"
        raise Error(f"{path} has a config.json but no {name}{other}")
    recorded = [about.get(DIGESTS[name]), about.get("incoming", {}).get(name)]
    if any(recorded) and sha256_of(file) not in recorded:
        raise Error(
            f"{file} is damaged or was replaced: its sha256 is not the one in "
            f"{path / 'config.json'}; take another copy of the folder"
        )
    checkpoint = _open_file(file)
    checkpoint.name, checkpoint.about = str(path), about
    return checkpoint


def labels_of(source: Path | str) -> list[str] | None:
    """The class names that go with weights on disk, or None where nothing says them.

    Raises:
        Error: nothing there, or a description that cannot be read.
    """
    path = existing(source)
    if path.is_dir():
        if not (path / "config.json").exists():
            return None
        config = read_config(path)
        said = config["vitrail"] if "vitrail" in config else _said_beside(path, config)
        return said.get("labels")
    with path.open("rb") as file:
        head = file.read(9)
    return _read_safetensors(path)[1].get("labels") if head[8:] == b"{" else None


def fingerprint_of(source: Path | str) -> str:
    """One hash over all weight files of a source, by their contents.

    Raises:
        Error: there is no such source.
    """
    path = existing(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def description_of(source: Path | str) -> dict[str, Any] | None:
    """What a folder or file says of its model (family, config, name); None where it says nothing.

    Raises:
        Error: nothing there, or a description that cannot be read.
    """
    path = existing(source)
    if path.is_dir():
        config = read_config(path) if (path / "config.json").exists() else {}
        return config.get("vitrail") or _foreign_description(config)
    with path.open("rb") as file:
        head = file.read(9)
    return (_read_safetensors(path)[1] or None) if head[8:] == b"{" else None


def _foreign_description(config: Mapping[str, Any]) -> dict[str, Any] | None:
    found = foreign_model(config)
    if found is None:
        return None
    name, fields = found
    family = name
    if name in zoo.ENTRIES:
        family, fields = zoo.ENTRIES[name].family, {**zoo.ENTRIES[name].config, **fields}
    built: Any = checked_config(zoo.FAMILIES[family][0], fields)
    return {"family": family, "config": asdict(built), "name": name}


def _check_format(about: Any, where: Path) -> None:
    found = about.get("format") if isinstance(about, Mapping) else None
    if not isinstance(found, int) or not isinstance(about.get("config"), Mapping):
        raise Error(f"{where} is damaged: its vitrail section does not say which model it is")
    if found > FORMAT:
        raise Error(
            f"{where} is of format {found} and this version of Vitrail reads formats up to "
            f"{FORMAT}: update Vitrail"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Error(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise Error(f"{path} is not a JSON object")
    return content


# Folders without a vitrail section


def _open_loose_folder(path: Path, pickles: bool) -> Checkpoint:
    """The weights in a folder; ``pickles`` says whether files of that kind are considered."""
    ways = {SAFE_INDEX: _open_shards, MODEL_FILE: _open_file}
    if pickles:
        ways |= {PICKLED_INDEX: _open_shards, PICKLED_FILE: _open_file}
    for name, open_it in ways.items():
        if (path / name).exists():
            return open_it(path / name)
    suffixes = SUFFIXES if pickles else SUFFIXES[:1]
    found = sorted(p for p in path.iterdir() if p.suffix in suffixes and p.is_file())
    if not found:
        raise Error(f"{path} holds no weights (none of {', '.join(suffixes)})")
    if len(found) > 1:
        names = [p.name for p in found]
        raise Error(f"{path} holds several files of weights ({listing(names)}): name one of them")
    return _open_file(found[0])


def _open_shards(where: Path) -> Checkpoint:
    path, index = where.parent, where.name
    places = _json(where).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise Error(f"{where} has no weight_map from tensors to files")
    content: dict[str, Any] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise Error(f"{where} names the file {shard!r}, which is not in its own folder")
        if not (path / shard).exists():
            raise Error(f"{where} names {shard}, which is not there")
        content |= _contents(path / shard)[0]
    absent = [name for name in places if name not in content]
    if absent:
        raise WeightsError(f"{path} lacks {listing(absent)}, which {index} lists", missing=absent)
    return unwrapped(Checkpoint(str(path), {}), content)


# Files


def open_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one of our own weight files, whatever its header says of the model.

    Raises:
        Error: it is cut short or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Error(f"{path} is cut short or damaged ({error})") from None


def _open_file(path: Path) -> Checkpoint:
    content, about = _contents(path)
    return unwrapped(Checkpoint(path.name, {}, about=about), content)


def _contents(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What a file holds, and the ``vitrail`` section in it if there is one."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise Error(f"{path} cannot be read ({error.strerror})") from None
    if not head:
        raise Error(f"{path} is empty")
    if head[:4] == b"PK\x03\x04":
        return _read_archive(path), {}
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return _read_pickle(path), {}
    if head[8:9] == b"{":
        return _read_safetensors(path)
    told = ""
    with contextlib.suppress(UnicodeDecodeError):
        lines = head[:200].decode("ascii").strip().splitlines()
        told = f": it is text that begins {lines[0][:60]!r}" if lines else ""
    raise Error(f"{path} is no checkpoint (safetensors, .npz or .pth){told}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    about: dict[str, Any] = {}
    tensors = open_weights(path)
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get("vitrail")
    if told is not None:
        try:
            about = json.loads(told)
        except ValueError:
            about = {}
        _check_format(about, path)
    return tensors, about


def _read_archive(path: Path) -> Mapping[str, Any]:
    """A zip file: numpy's `.npz` or torch's own."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_bomb(path, sum(member.file_size for member in members))
            if members and all(member.filename.endswith(".npy") for member in members):
                return {m.filename.removesuffix(".npy"): _read_array(archive, m) for m in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise Error(f"{path} is cut short or damaged ({error})") from None
    if any(member.filename.endswith("/data.pkl") for member in members):
        return _read_pickle(path)
    raise Error(f"{path} is a zip file, but neither .npz nor a torch checkpoint")


def _check_bomb(path: Path, declared: int) -> None:
    if declared > 100 * path.stat().st_size and declared > 2**24:
        raise Error(
            f"{path} would unpack from {path.stat().st_size:,} to {declared:,} bytes, "
            "which no file of weights does: not opened"
        )


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """One `.npy`, its header checked against the size of the member before memory is taken."""
    name = member.filename.removesuffix(".npy")
    where = f"{archive.filename}: {name}"
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = (
                np.lib.format.read_array_header_1_0(file)
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0(file)
            )
        except ValueError as error:
            raise Error(f"{where} is no array ({error})") from None
        if dtype.hasobject:
            raise Error(f"{where} holds Python objects, which could run code: not opened")
        count = 1
        for side in shape:
            count *= side
        rest = file.read(member.file_size)
        if min(shape, default=0) < 0 or len(rest) != count * dtype.itemsize:
            raise Error(f"{where} is damaged: {len(rest)} bytes for shape {list(shape)}")
    return to_tensor(
        np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C"), where
    )


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # timm, DeiT and MAE keep their arguments beside the weights: a bag of plain values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the reader fail in any way
        told = str(error)
        if "eights" in told and "only" in told:
            found = re.search(r"GLOBAL ([\w.]+)", told)
            what = f" ({found[1]})" if found else ""
            raise Error(
                f"{path} holds Python objects besides tensors{what}, which could run code: nothing "
                "in it was run; where it was made, save the state dict alone"
            ) from None
        reason = (told.splitlines() or [""])[0].split(". ")[0][:120]
        raise Error(
            f"{path} is cut short, damaged or no checkpoint ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(content, Mapping):
        raise Error(f"{path} holds {_article(content)}, not a state dict")
    return content


def _article(content: Any) -> str:
    return "a single tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
