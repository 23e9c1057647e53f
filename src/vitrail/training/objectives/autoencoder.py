"""The masked autoencoder (He et al., MAE, arXiv 2111.06377; models_mae.py).

The encoder is the model itself and sees a quarter of the patches; a small decoder, which is
thrown away afterwards, sees those and a mask token for each of the rest, and draws the rest.
Names and order are the authors' own. What is taken away is a function of (seed, epoch, index).
The encoder begins as its family does; the authors begin q, k and v as one Xavier matrix, and the
class token with a deviation of 0.02.
"""

from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.grid import patchify, sincos2d_mae
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.cost import cost
from vitrail.models.parts import Block
from vitrail.models.vit import VisionTransformer
from vitrail.training.objectives.base import Example, Loss, Objective, full_precision
from vitrail.training.objectives.masked_patch import (
    as_transformer,
    draws_of,
    freeze_after_tokens,
)

NORM_EPS = 1e-6


class MaskedAutoencoder(Objective):
    """Draw the patches that the encoder did not see.

    Args:
        model: a plain ViT whose positions are added at the input.
        share: of the patches that are taken away.
        normalize_pixels: whether a patch is to be drawn less its own mean and over its deviation.
        decoder: its width, depth and heads.
        seed: of what is taken away, and of the decoder's first weights.

    Raises:
        Error: another kind of model.
    """

    labelled = False

    def __init__(
        self,
        model: ImageClassifier,
        share: float = 0.75,
        normalize_pixels: bool = True,
        decoder: tuple[int, int, int] = (512, 8, 16),
        seed: int = 0,
    ):
        super().__init__()
        vit = as_transformer(model, "a masked autoencoder")
        c = vit.config
        if c.position_at != "input" or c.position == "relative":
            raise Error("a masked autoencoder needs positions that are added at the input")
        freeze_after_tokens(vit)
        width, depth, heads = decoder
        self.share, self.normalize_pixels, self.seed = share, normalize_pixels, seed
        self.patch_size, self.prefix = c.stride, c.prefix
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_embed = nn.Linear(c.width, width)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, 4 * width, norm_eps=NORM_EPS) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, self.patch_size**2 * c.in_channels)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight, generator=generator)
                nn.init.zeros_(part.bias)

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """The mean squared error over the pixels of the patches that were taken away."""
        vit = cast(VisionTransformer, model)
        picture = vit.project(batch.images)
        patches = picture.shape[-2] * picture.shape[-1]
        noise = draws_of(batch, self.seed, patches, picture.device)
        drawn, removed = self.draw(vit, picture, noise)
        return Loss(self.compare(drawn, removed, batch.images))

    def macs(self, model: ImageClassifier) -> int:
        """Multiply-adds of one picture, forward: the encoder on what it sees, and the decoder."""
        c = as_transformer(model, "a masked autoencoder").config
        patches = prod(c.grid_of(height_width(model.image_size)))
        pixels = self.patch_size**2 * c.in_channels
        stem = sum(one.macs for one in cost(model).layers if one.name.startswith("patch_embed."))
        seen = int(patches * (1 - self.share)) + self.prefix
        drawn, narrow = patches + self.prefix, self.decoder_norm.normalized_shape[0]
        inner = (3 if c.gated_mlp else 2) * c.width * c.mlp_width
        encoder = c.depth * (seen * (4 * c.width**2 + inner) + 2 * seen**2 * c.width)
        decoder = len(self.decoder_blocks) * (drawn * 12 * narrow**2 + 2 * drawn**2 * narrow)
        between = seen * c.width * narrow + drawn * narrow * pixels
        return stem + encoder + decoder + between

    def draw(
        self, model: VisionTransformer, picture: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode what has the least noise, and draw everything: arguments as of `encode`.

        Returns:
            All patches, [b n p*p*c], and which were removed, float [b n].
        """
        seen, removed, restore = self.encode(model, picture, noise)
        return self.decode(seen, restore, (picture.shape[-2], picture.shape[-1])), removed

    def compare(self, drawn: Tensor, removed: Tensor, images: Tensor) -> Tensor:
        """The loss of what `draw` gave for normalised images [b c h w]."""
        drawn = full_precision(drawn)
        wanted = self.targets(images).to(drawn.dtype)
        each = (drawn - wanted).square().mean(dim=-1)
        return (each * removed).sum() / removed.sum()

    def encode(
        self, model: VisionTransformer, picture: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The encoder on the patches with the least noise.

        Args:
            model: the encoder.
            picture: projected patches [b d rows columns].
            noise: [b n] in 0..1.

        Returns:
            Its tokens [b prefix+kept d]; which patches were removed, float [b n], 1 where removed;
            and where each patch stands in the order kept-then-removed, int64 [b n].
        """
        n = noise.shape[1]
        shuffle = noise.argsort(dim=1, stable=True)
        restore = shuffle.argsort(dim=1)
        kept = shuffle[:, : int(n * (1 - self.share))]
        removed = torch.ones_like(noise).scatter_(1, kept, 0.0)
        tokens = model.embed(picture)
        patches = tokens[:, self.prefix :]
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        x = model.norm_pre(torch.cat([tokens[:, : self.prefix], patches], dim=1))
        for block in model.blocks:
            x = model.through(block, x, None)
        return model.norm(x), removed, restore

    def decode(self, seen: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encoded tokens [b prefix+kept d] to all patches, [b n p*p*c] in (row, column, channel)
        order."""
        x = self.decoder_embed(seen)
        b, n = restore.shape
        hidden = self.mask_token.to(x.dtype).expand(b, n - (x.shape[1] - self.prefix), -1)
        patches = torch.cat([x[:, self.prefix :], hidden], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        where = sincos2d_mae(grid, x.shape[-1]).to(x)
        x = torch.cat([x[:, : self.prefix], patches + where], dim=1)  # the prefix stands nowhere
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, self.prefix :]

    def targets(self, images: Tensor) -> Tensor:
        """Normalised images [b c h w] to what is to be drawn, [b n p*p*c]."""
        wanted = patchify(images, self.patch_size)
        if not self.normalize_pixels:
            return wanted
        variance, mean = torch.var_mean(wanted, dim=-1, keepdim=True)  # unbiased, as the authors'
        return (wanted - mean) / (variance + 1e-6).sqrt()
