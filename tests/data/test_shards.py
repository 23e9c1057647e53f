"""Tar shards: WebDataset's layout read rightly, and nothing of it believed."""

import gzip
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.layouts import add, write_shard
from tests.data.pictures import encoded, smooth
from vitrail.data.fingerprint import fingerprint
from vitrail.data.scan import scan
from vitrail.data.sources import open_source, open_splits
from vitrail.data.tar import members
from vitrail.kit.errors import Error

PNG = [encoded(smooth(12, 10, seed=k)) for k in range(12)]


def samples(count: int, first: int = 0, **fields) -> list:
    found = []
    for k in range(first, first + count):
        label = {name: str(value(k)) for name, value in fields.items()} or {"cls": str(k % 2)}
        found.append((f"{k:04d}", {"png": PNG[k], **label}))
    return found


def refused(spec, match: str, **options) -> None:
    with pytest.raises(Error, match=match) as caught:
        open_splits(spec, **options)
    assert "\n" not in str(caught.value)


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "a.b/x.jpg", PNG[0])  # dots in a folder do not count
        add(archive, "a.b/x.seg.png", PNG[1])  # a field "seg.png", no second picture
        add(archive, "a.b/x.cls", "0")
        add(archive, "./c/x.CLS", "1\n")  # another folder is another key; fields in any case
        add(archive, "./c/x.JPG", PNG[2])
        add(archive, "README", "no dot, no sample")
        add(archive, "c/.hidden.jpg", PNG[3])
    source = open_source(tmp_path / "s.tar")
    assert list(source.keys) == ["s.tar/a.b/x.jpg", "s.tar/c/x.JPG"]
    assert [source.image(0), source.image(1)] == [PNG[0], PNG[2]]
    assert source.labels.tolist() == [0, 1]
    assert source.ignored == ("*.seg.png",)
    other = open_source(tmp_path / "s.tar", image_column="jpg", label_column="cls")
    assert other.image(1) == PNG[2]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_tar_and_long_names(tmp_path, form):
    long = "/".join(["d" * 60] * (2 if form == tarfile.USTAR_FORMAT else 6)) + "/ä-ü"
    group = [*samples(2), (long, {"png": PNG[5], "cls": "1"})]
    write_shard(tmp_path / "s.tar", group, form)
    source = open_source(tmp_path / "s.tar")
    assert source.keys[2] == f"s.tar/{long}.png"
    assert source.image(2) == PNG[5]
    with tarfile.open(tmp_path / "s.tar") as archive:
        theirs = [(one.name, one.offset_data, one.size) for one in archive]
    assert [(m.name, m.at, m.size) for m in members(tmp_path / "s.tar")] == theirs


def test_numbers_of_gnu_tar_beyond_octal_and_global_pax_headers(tmp_path):
    write_shard(tmp_path / "s.tar", samples(2))
    data = bytearray((tmp_path / "s.tar").read_bytes())
    # The size of the first member in base 256, as GNU tar writes what octal cannot hold.
    data[124:136] = b"\x80" + len(PNG[0]).to_bytes(11)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with tarfile.open(tmp_path / "g.tar", "w", pax_headers={"comment": "made by hand"}):
        pass
    leading = (tmp_path / "g.tar").read_bytes()[:1024]
    (tmp_path / "s.tar").write_bytes(leading + data)
    (tmp_path / "g.tar").unlink()
    assert open_source(tmp_path / "s.tar").image(0) == PNG[0]


def test_splits_patterns_and_folders(tmp_path):
    write_shard(tmp_path / "a" / "train-000.tar", samples(4))
    write_shard(tmp_path / "a" / "train-001.tar", samples(4, 4))
    write_shard(tmp_path / "a" / "flowers_val_0.tar", samples(2, 8))
    write_shard(tmp_path / "a" / "extra.tar", samples(2, 8))
    splits = open_splits(tmp_path / "a")
    assert {name: len(source) for name, source in splits.items()} == {"train": 8, "val": 2}
    assert splits["train"].ignored == ("extra.tar",)
    assert splits["train"].keys[4] == "train-001.tar/0004.png"
    for name in ("train", "validation"):
        write_shard(tmp_path / "b" / name / "0.tar", samples(4))
    assert list(open_splits(tmp_path / "b")) == ["train", "val"]
    assert open_source(tmp_path / "b", "val").keys[0] == "validation/0.tar/0000.png"
    for pattern, count in (
        ("a/train-{000..001}.tar", 8),
        ("a/{train-000,extra}.tar", 4),
        ("*/train-00[01].tar", 8),
        ("a/train-*.tar", 8),
    ):
        assert len(open_source(f"{tmp_path}/{pattern}")) == count, pattern
    refused(f"{tmp_path}/a/train-{{000..002}}.tar", r"no file .*a/train-002\.tar")
    refused(f"{tmp_path}/a/none-*.tar", "no file is called so")
    refused(f"{tmp_path}/{{0..999999}}{{0..9}}.tar", "more than 100,000 files")
    write_shard(tmp_path / "a" / "x" / "y.tar", samples(2))
    (tmp_path / "a" / "x" / "y.parquet").write_bytes(b"?")
    refused(f"{tmp_path}/a/x/y.*", r"stands for \.parquet, \.tar files")


def test_a_class_folder_beside_its_archive_is_a_class_folder(tmp_path):
    write_shard(tmp_path / "train.tar", samples(4))
    for name in ("train/a", "train/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.png").write_bytes(PNG[0])
    assert open_source(tmp_path).classes == ("a", "b")


def test_labels_in_every_field(tmp_path):
    def opened(name: str, **words):
        return open_source(tmp_path / name, **words)

    write_shard(tmp_path / "n.tar", samples(3, cls=lambda k: [10, 2, 0][k]))
    assert opened("n.tar").labels.tolist() == [10, 2, 0]  # numbers are class numbers
    assert opened("n.tar").classes == tuple(map(str, range(11)))
    write_shard(tmp_path / "m.tar", samples(3, cls=lambda k: ["10", "2", "b"][k]))
    assert opened("m.tar").classes == ("10", "2", "b")  # names, sorted by code point
    about = [{"label": "x", "species": 3}, {"label": "y", "species": 1}]
    write_shard(
        tmp_path / "j.tar",
        samples(2, txt=lambda k: "a caption", json=lambda k: json.dumps(about[k])),
    )
    assert opened("j.tar").classes == ("x", "y")  # json's label before a caption
    assert opened("j.tar", label_column="species").labels.tolist() == [3, 1]
    refused(
        tmp_path / "j.tar", "json has no 'specie' .*did you mean 'species'", label_column="specie"
    )
    big = {"padding": "x" * 5000, "label": "z"}
    write_shard(tmp_path / "big.tar", samples(2, json=lambda k: json.dumps({**big, "label": k})))
    assert opened("big.tar").labels.tolist() == [0, 1]
    (tmp_path / "classes.json").write_text(json.dumps({"dog": 1, "cat": 0, "emu": 2}))
    write_shard(tmp_path / "n.tar", samples(3, cls=lambda k: [2, 1, 0][k]))
    assert opened("n.tar").classes == ("cat", "dog", "emu")
    assert opened("n.tar").labels.tolist() == [2, 1, 0]
    write_shard(tmp_path / "n.tar", samples(3, cls=lambda k: k + 1))
    refused(tmp_path / "n.tar", r"a label is 3, but there are 3 classes.*cat, dog, emu")
    write_shard(tmp_path / "n.tar", samples(2, cls=lambda k: ["dog", "eel"][k]))
    refused(tmp_path / "n.tar", "class eel is not among the 3 known ones")


def test_several_labels_in_json(tmp_path):
    lists = [["a", "c"], [], ["b", "b"]]
    write_shard(tmp_path / "s.tar", samples(3, json=lambda k: json.dumps({"labels": lists[k]})))
    source = open_source(tmp_path / "s.tar")
    assert source.multi_label
    assert source.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    lists[1] = "a"
    write_shard(tmp_path / "s.tar", samples(3, json=lambda k: json.dumps({"labels": lists[k]})))
    refused(tmp_path / "s.tar", "sample 0001: its label is one value, and those before it are not")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"cls": "0"}, "sample 0000 has no picture, only cls"),
        ({"png": PNG[0]}, "sample 0000 has no label: no field cls, json or txt, only png"),
        ({"png": PNG[0], "jpg": PNG[1], "cls": "0"}, r"several pictures \(jpg, png\): say --image"),
        ({"png": PNG[0], "cls": ""}, "its cls is empty"),
        ({"png": PNG[0], "cls": "a\nb"}, "its cls is more than one line"),
        ({"png": PNG[0], "cls": b"\xff"}, "its cls is not UTF-8"),
        ({"png": PNG[0], "json": "[1]"}, "its json is no JSON object"),
        ({"png": PNG[0], "json": "{}"}, "its json has no 'label' .there are none"),
        ({"png": PNG[0], "json": '{"label": {}}'}, "label of its json is no label"),
        ({"png": PNG[0], "json": '{"label": [[]]}'}, "a list of something else"),
        ({"png": PNG[0], "txt": b"x" * (2**20 + 1)}, "its txt of 1,048,577 bytes is no label"),
        ({"png": PNG[0], "cls": "0", "pkl": b""}, "a field pkl: such a file can run code"),
        ({"png": PNG[0], "cls": "0", "meta.pyd": b""}, r"a field meta\.pyd: such a file can run"),
    ],
)
def test_wrong_samples(tmp_path, fields, match):
    write_shard(tmp_path / "s.tar", [("0000", fields)])
    refused(tmp_path / "s.tar", match)


# --- what a stranger may send ------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["pipe:touch {0}", "pipe:cat x.tar | touch {0}"])
def test_pipes_are_never_run(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    refused(spec.format(tmp_path / "made"), "pipe: would run a command")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("spec", ["https://x.org/{000..010}.tar", "s3://b/x.tar", "gs://b/x.tar"])
def test_addresses_are_not_opened(spec):
    refused(spec, "DATA is on a disk: download the files first")


HOSTILE = {
    "climbing": ("../x.png", {}, "a path that leads out"),
    "climbing inside": ("a/../../x.png", {}, "a path that leads out"),
    "absolute": ("/tmp/x.png", {}, "a path that leads out"),
    "link": ("x.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "x.png is a link"),
    "hard link": ("x.png", {"type": tarfile.LNKTYPE, "linkname": "y"}, "x.png is a hard link"),
    "device": ("x.png", {"type": tarfile.CHRTYPE}, "x.png is a device"),
    "pipe": ("x.png", {"type": tarfile.FIFOTYPE}, "x.png is a pipe"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_members_that_are_no_plain_files_here(tmp_path, kind):
    name, fields, match = HOSTILE[kind]
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "s.tar", "w") as archive:
        add(archive, "0.png", PNG[0])
        add(archive, "0.cls", "0")
        add(archive, name, **fields)
    refused(folder / "s.tar", match)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "side", "s.tar"]


def test_an_archive_that_is_cut_short_is_named(tmp_path):
    write_shard(tmp_path / "whole.tar", samples(3))
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole)
    ends = [-(-(m.at + m.size) // 512) * 512 for m in members(path)]
    for length in (512, 700, ends[0] + 100, ends[1], ends[-1], ends[-1] + 511):
        path.write_bytes(whole[:length])
        refused(path, r"cut\.tar: the archive is cut short")
        refused(tmp_path, r"cut\.tar: the archive is cut short")
    path.write_bytes(whole[: ends[-1] + 512])  # one block of the end mark will do
    assert len(open_source(path)) == 3


def test_no_archives(tmp_path):
    path = tmp_path / "s.tar"
    for data, match in (
        (b"", "the file is empty"),
        (b"hello", "no tar archive"),
        (b"hello" * 300, "no tar archive"),
        (gzip.compress(b"x" * 5000) + b"x" * 600, "a compressed archive: decompress it"),
    ):
        path.write_bytes(data)
        refused(path, match)
    (tmp_path / "s.tar.gz").write_bytes(b"?")
    refused(tmp_path / "s.tar.gz", "a compressed archive has no places to seek to")
    write_shard(path, samples(3))
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(PNG[0]) // 512) * 512
    data[second + 10] ^= 1
    path.write_bytes(data)
    refused(path, f"the archive is damaged at byte {second:,}")
    write_shard(path, [])
    refused(path, "no samples in s.tar")
    with tarfile.open(path, "w") as archive:
        add(archive, "0.png", PNG[0])
        add(archive, "0.png", PNG[0])
    refused(path, "two members are called 0.png")


def test_headers_made_of_noise_never_do_more_than_raise(tmp_path):
    write_shard(tmp_path / "s.tar", [*samples(2), ("n" * 150, {"png": PNG[2], "cls": "1"})])
    whole = (tmp_path / "s.tar").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        block = 512 * int(random.integers(len(data) // 512))
        for at in random.integers(0, 512, 3):
            data[block + int(at)] = int(random.integers(256))
        if random.random() < 0.7:  # with a checksum that is right again
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
        (tmp_path / "s.tar").write_bytes(data)
        try:
            source = open_source(tmp_path / "s.tar")
        except Error:
            continue
        assert all(len(source.image(i)) == source.size(i) for i in range(len(source)))


def test_a_shard_that_changes_later_is_noticed(tmp_path):
    path = write_shard(tmp_path / "s.tar", samples(6))
    source = open_source(path)
    before = fingerprint(source)
    data = bytearray(path.read_bytes())
    data[512 + len(PNG[0]) - 3] ^= 1
    path.write_bytes(data)
    assert before.changes(fingerprint(open_source(path))) == [
        "1 with other contents (s.tar/0000.png)"
    ]
    path.write_bytes(data[:2000])
    with pytest.raises(Error, match=r"^s\.tar/0005\.png: its shard is shorter than it was"):
        source.example(5)
    path.unlink()
    assert scan(source).unreadable[0] == ("s.tar/0000.png", "no such file or directory")


def test_opening_many_samples_is_quick_and_small(tmp_path):
    count = 8_000
    block, shard = b"\0" * 512, tmp_path / "s.tar"
    with shard.open("wb") as file:
        for k in range(count):
            for field, content in (("png", b"x" * 300), ("cls", b"%d" % (k % 1000))):
                info = tarfile.TarInfo(f"{k:08d}.{field}")
                info.size = len(content)
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0"))
        file.write(block * 2)
    began = time.process_time()
    source = open_source(shard)
    seconds = time.process_time() - began
    assert len(source) == count
    assert seconds / count < 150e-6  # 25e-6 here: a million in half a minute
    kept = source.index.nbytes + source.labels.nbytes + sys.getsizeof(source.keys._block)
    assert kept / count < 100  # bytes


def test_paths_are_names(tmp_path):
    assert isinstance(open_source(write_shard(tmp_path / "s.tar", samples(2))).files[0], str)
    assert Path(open_source(tmp_path / "s.tar").files[0]).is_file()
