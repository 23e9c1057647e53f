"""The 19 tasks as data: groups, files and where they are published, slices, classes, exceptions.

Slices and label rules are those of task_adaptation/data/*.py; the exceptions to flips and crops are
those of BiT (arXiv 1912.11370, section 3.3 and its VTAB scripts), which the ViT paper keeps.
"""

from dataclasses import dataclass

from vitrail.kit.errors import Error, did_you_mean

GROUPS = ("natural", "specialised", "structured")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: what it is called here.
        group: one of `GROUPS`.
        folder: where its files lie under the root.
        classes: how many.
        train, val, test: slices of the published splits: 800, 200 and all test examples.
        files: what the publisher hands out and we read, in words.
        published: where.
        note: in what the selection or the pictures differ from VTAB's own, if they do.
        flip, crop: whether training may mirror and crop; else it would change the label.
    """

    name: str
    group: str
    folder: str
    classes: int
    train: str
    val: str
    test: str
    files: str
    published: str
    note: str = ""
    flip: bool = True
    crop: bool = True


_FIRST = "train[:800]"
_VALIDATION = "validation[:200]"
_CLEVR = ("CLEVR_v1.0.zip, or CLEVR_v1.0/", "https://cs.stanford.edu/people/jcjohns/clevr/")
_DSPRITES = (
    "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "https://github.com/google-deepmind/dsprites-dataset",
)
_NORB = (
    "smallnorb-5x46789x9x18x6x2x96x96-training-{dat,info}.mat and "
    "smallnorb-5x01235x9x18x6x2x96x96-testing-{dat,info}.mat, gzipped or not",
    "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/",
)

TASKS = (
    Task(
        *("caltech101", "natural", "caltech101", 102, _FIRST, "train[90%:+200]", "test"),
        "caltech-101.zip, 101_ObjectCategories.tar.gz, or 101_ObjectCategories/",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "TensorFlow Datasets draws 30 images a class for train from files in the order in which "
        "the file system lists them; here they are sorted first, then drawn by the same generator",
    ),
    Task(
        *("cifar100", "natural", "cifar100", 100, _FIRST, "train[90%:+200]", "test"),
        "cifar-100-binary.tar.gz, or cifar-100-binary/",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    Task(
        *("dtd", "natural", "dtd", 47, _FIRST, _VALIDATION, "test"),
        "dtd-r1.0.1.tar.gz, or dtd/",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    Task(
        *("flowers102", "natural", "flowers102", 102, _FIRST, _VALIDATION, "test"),
        "102flowers.tgz (or jpg/), imagelabels.mat, setid.mat",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    Task(
        *("pets", "natural", "pets", 37, _FIRST, "train[80%:+200]", "test"),
        "images.tar.gz (or images/), annotations.tar.gz (or annotations/)",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    Task(
        *("sun397", "natural", "sun397", 397, _FIRST, _VALIDATION, "test"),
        "SUN397/ (unpacked, 39 GB) or SUN397.tar; and, for the published splits, "
        "sun397_tfds_{tr,va,te}.txt of TensorFlow Datasets",
        "https://vision.princeton.edu/projects/2010/SUN/",
        "without the three lists the splits are a seeded 70/10/20 % of all images",
    ),
    Task(
        *("svhn", "natural", "svhn", 10, _FIRST, "train[90%:+200]", "test"),
        "train_32x32.mat, test_32x32.mat",
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    Task(
        *("camelyon", "specialised", "camelyon", 2, _FIRST, _VALIDATION, "test"),
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, gunzipped",
        "https://zenodo.org/records/2546921",
    ),
    Task(
        *("eurosat", "specialised", "eurosat", 10, _FIRST, "train[60%:+200]", "train[80%:]"),
        "EuroSAT.zip, or 2750/",
        "https://github.com/phelber/EuroSAT",
    ),
    Task(
        *("resisc45", "specialised", "resisc45", 45, _FIRST, "train[60%:+200]", "train[80%:]"),
        "NWPU-RESISC45/ (unpacked), or NWPU-RESISC45.zip",
        "https://gcheng-nwpu.github.io/#Datasets",
    ),
    Task(
        *("retinopathy", "specialised", "retinopathy", 5, _FIRST, _VALIDATION, "test"),
        "train/*.jpeg, test/*.jpeg, trainLabels.csv, retinopathy_solution.csv",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection",
    ),
    Task(
        *("clevr_count", "structured", "clevr", 8, _FIRST, "train[90%:+200]", "validation"),
        *_CLEVR,
        crop=False,
    ),
    Task(
        *("clevr_distance", "structured", "clevr", 6, _FIRST, "train[90%:+200]", "validation"),
        *_CLEVR,
        crop=False,
    ),
    Task(
        *("dmlab", "structured", "dmlab", 6, _FIRST, _VALIDATION, "test"),
        "dmlab-{train,validation,test}.tfrecord*, unpacked from dmlab.tar.gz",
        "https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz",
        crop=False,
    ),
    Task(
        *("kitti_distance", "structured", "kitti", 4, _FIRST, _VALIDATION, "test"),
        "data_object_image_2.zip, data_object_label_2.zip, devkit_object.zip",
        "https://www.cvlibs.net/datasets/kitti/eval_object.php",
        crop=False,
    ),
    Task(
        *("dsprites_location", "structured", "dsprites", 16),
        *(_FIRST, "train[80%:+200]", "train[90%:]"),
        *_DSPRITES,
        flip=False,
        crop=False,
    ),
    Task(
        *("dsprites_orientation", "structured", "dsprites", 16),
        *(_FIRST, "train[80%:+200]", "train[90%:]"),
        *_DSPRITES,
        flip=False,
    ),
    Task(
        *("smallnorb_azimuth", "structured", "smallnorb", 18),
        *(_FIRST, "test[:200]", "test[50%:]"),
        *_NORB,
        flip=False,
    ),
    Task(
        *("smallnorb_elevation", "structured", "smallnorb", 9),
        *(_FIRST, "test[:200]", "test[50%:]"),
        *_NORB,
    ),
)


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        Error: there is none (the nearest is named).
    """
    names = {task.name: task for task in TASKS}
    if name not in names:
        near = did_you_mean(name, names) or f"; there are {', '.join(names)}"
        raise Error(f"VTAB has no task {name!r}{near}")
    return names[name]
