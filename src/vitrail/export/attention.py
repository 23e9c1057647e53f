"""Where a model looked, as one small map a picture: what `export --attention` puts into the graph.

It is what the head reads through: the last attention's weights of the class token on the patches,
averaged over heads; for attention pooling those of its learned query; for models that average
their tokens, how much attention each place gets from all of them. Nothing is rescaled, so a map of
a class token sums to what the patches have together, the rest being on the class token itself.
The last attention is chosen over rollout through all layers because it costs next to nothing and
the same in every family: the folded last block has these weights in its hand.
"""

from dataclasses import dataclass

from torch import Tensor

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.botnet import BoTNet, BoTNetConfig
from vitrail.models.cvt import CvT
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.pvt_v2 import PyramidVisionTransformerV2
from vitrail.models.pyramid import POOLED, Pyramid
from vitrail.models.t2t import T2TViT
from vitrail.models.vit import VisionTransformer

Grid = tuple[int, int]


@dataclass(frozen=True)
class AttentionView:
    """How a map is read off a tape.

    Attributes:
        name: of the attention on the tape, [b h q m].
        grid: (rows, columns) of the places; m is a prefix and these.
        first, last: the queries that are read, a slice of the q; None for no end.
    """

    name: str
    grid: Grid
    first: int = 0
    last: int | None = None

    def read(self, attention: Tensor) -> Tensor:
        """[b h q m] to [b rows columns]."""
        prefix = attention.shape[-1] - self.grid[0] * self.grid[1]
        seen = attention[:, :, self.first : self.last, prefix:].mean(dim=(1, 2))
        return seen.reshape(-1, *self.grid)


def attention_view(model: ImageClassifier, size: int | Grid | None = None) -> AttentionView:
    """How a model's map is read for pictures of a size, (height, width); None is the model's own.

    Raises:
        Error: the model has no attention, or attends to one place alone.
    """
    view = _view(model, height_width(model.image_size if size is None else size))
    if view is None:
        raise Error(
            f"{type(model).__name__} has no attention that its head reads, so there is no map of "
            "it: leave --attention out (in Python attention=True)"
        )
    if view.grid == (1, 1):
        raise Error(
            "the last attention of this model has one single place to look at, so there is no map "
            "of it: leave --attention out (in Python attention=True)"
        )
    return view


def _view(model: ImageClassifier, size: Grid) -> AttentionView | None:
    if isinstance(model, VisionTransformer):
        return _plain(model, size)
    if isinstance(model, T2TViT):
        name = f"blocks.{model.config.depth - 1}.attention"
        return AttentionView(name, model.config.grid_of(size), last=1)
    if isinstance(model, CvT):
        return _convolutional(model, size)
    if isinstance(model, Pyramid):
        grid = model.config.grids(size)[-1]
        name = _last_name(model.config.depths)
        if isinstance(model, PyramidVisionTransformer):
            return AttentionView(name, grid, last=1)
        assert isinstance(model, PyramidVisionTransformerV2)
        return AttentionView(name, _reduced(model, grid))
    if isinstance(model, BoTNet):
        c = model.config
        assert isinstance(c, BoTNetConfig)
        return AttentionView(_last_name(c.depths), c.grids(size)[-1])
    return None


def _plain(model: VisionTransformer, size: Grid) -> AttentionView | None:
    c = model.config
    name, grid = f"blocks.{c.depth - 1}.attention", c.grid_of(size)
    if c.pool in ("token", "token_mean"):
        return AttentionView(name, grid, last=1 + c.distilled)
    if c.pool == "map":
        return AttentionView("pool.attention", grid)
    return AttentionView(name, grid, first=c.prefix) if c.pool == "mean" else None


def _convolutional(model: CvT, size: Grid) -> AttentionView:
    c = model.config
    stage, block = len(c.depths) - 1, c.depths[-1] - 1
    rows, columns = c.grids(size)[-1]
    if c.of_stage("projections", stage) == "convolution":  # keys are fewer: padded by one, kernel 3
        stride = c.of_block("kv_strides", stage, block)
        rows, columns = -(-rows // stride), -(-columns // stride)
    last = 1 if c.pool == "token" else None
    return AttentionView(_last_name(c.depths), (rows, columns), last=last)


def _reduced(model: PyramidVisionTransformerV2, grid: Grid) -> Grid:
    """The grid of the keys in the last stage."""
    if model.config.linear:
        return POOLED, POOLED
    by = model.config.reductions[-1]
    return grid[0] // by, grid[1] // by


def _last_name(depths: tuple) -> str:
    return f"stages.{len(depths) - 1}.blocks.{depths[-1] - 1}.attention"
