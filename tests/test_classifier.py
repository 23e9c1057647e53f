"""The classifier: one answer whatever a picture comes as, and clear words for what it is not."""

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.weights.folder import update_details


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=4)
    torch.nn.init.normal_(model.head.weight)
    return vitrail.save_model(model, tmp_path_factory.mktemp("m") / "model", labels=list("abcd"))


def pictures(folder):
    numbers = np.random.default_rng(0)
    smooth = Image.fromarray(numbers.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(folder / "turned.jpg", exif=exif)
    smooth.save(folder / "plain.png")
    Image.fromarray(numbers.integers(0, 65536, (40, 40), dtype=np.uint16)).save(folder / "deep.png")
    smooth.convert("CMYK").save(folder / "four.jpg")
    transparent = smooth.convert("RGBA")
    transparent.putalpha(90)
    transparent.save(folder / "clear.png")
    return sorted(folder.glob("*.*g"))


def test_a_file_its_bytes_and_the_open_picture_are_one_thing(folder, tmp_path):
    classify = vitrail.Classifier(folder, batch_size=2)
    paths = pictures(tmp_path)
    assert len(paths) == 5
    from_files = classify.logits(paths)
    assert np.array_equal(from_files, classify.logits([path.read_bytes() for path in paths]))
    assert np.array_equal(from_files, classify.logits([Image.open(path) for path in paths]))
    assert np.array_equal(from_files, classify.logits(str(path) for path in paths))
    assert from_files.dtype == np.float32
    assert len({row.tobytes() for row in from_files}) == 5


def test_probabilities_come_after_the_temperature(folder):
    picture = np.full((32, 32, 3), 200, np.uint8)
    plain = vitrail.Classifier(folder)
    (answer,) = plain(picture, top_k=9)
    assert sorted(label for label, _ in answer) == list("abcd")
    assert sum(chance for _, chance in answer) == pytest.approx(1)
    logits = plain.logits([picture])
    update_details(folder, temperature={"final": 2.5})
    cooler = vitrail.Classifier(folder)
    assert np.array_equal(cooler.logits([picture]), logits)
    expected = torch.softmax(torch.from_numpy(logits) / 2.5, dim=-1).sort(descending=True).values[0]
    assert [chance for _, chance in cooler(picture, 4)[0]] == pytest.approx(expected.tolist())
    update_details(folder, temperature=None)


def test_alone_or_in_a_batch_is_the_same(folder):
    classify = vitrail.Classifier(folder, batch_size=32)
    images = [
        np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8) for k in range(40)
    ]
    together = classify.logits(images)
    alone = np.concatenate([classify.logits([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-5
    assert (together.argmax(1) == alone.argmax(1)).all()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4), np.uint8), "uint8"),
        ("nowhere.jpg", "nowhere.jpg"),
        (b"nothing", "."),
    ],
)
def test_what_is_no_picture_is_said(folder, image, sentence):
    with pytest.raises(vitrail.Error, match=sentence):
        vitrail.Classifier(folder).logits([image])


def test_no_model_there():
    with pytest.raises(vitrail.Error):
        vitrail.Classifier("nowhere")


def test_no_pictures_give_no_rows(folder):
    assert vitrail.Classifier(folder).logits([]).shape == (0, 4)
    assert vitrail.Classifier(folder)([]) == []
