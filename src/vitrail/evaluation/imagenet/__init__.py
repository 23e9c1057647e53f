"""The 1,000 classes of ImageNet (ILSVRC 2012-2017) as WordNet ids, in the order of every model.

The order is that of the sorted ids. `wnids.txt` is the list as timm publishes it
(`timm/data/_info/imagenet_synsets.txt`, Apache 2.0); the ids are WordNet's.
"""

import functools
from importlib.resources import files


@functools.cache
def wnids() -> tuple[str, ...]:
    """The ids, such as ``n01440764``; place = the model's class number."""
    return tuple(files(__name__).joinpath("wnids.txt").read_text("utf-8").split())
