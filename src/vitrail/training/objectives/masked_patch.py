"""Masked patch prediction, the ViT paper's self-supervision (section 4.6, appendix B.1.2).

Half of the patch embeddings are corrupted: 80 % of those become a learned mask, 10 % another
patch's embedding, 10 % stay. At each corrupted place the mean colour of the patch is to be found,
3 bits a channel. No code was released, so the choices that the paper leaves open are ours, and
stand with the functions. What is corrupted, and how, is a function of (seed, epoch, index).
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitrail.data.draws import mask_draws
from vitrail.kit.errors import Error
from vitrail.kit.grid import check_divides, patchify
from vitrail.models.base import ImageClassifier
from vitrail.models.vit import VisionTransformer
from vitrail.training.objectives.base import Example, Loss, Objective, full_precision

MASKED, OTHER = 0.8, 0.1  # of the corrupted; the rest stay as they are (BERT's shares)
CELLS = 4  # along each side of a patch, for ``color4x4``


def mean_color_classes(images: Tensor, patch_size: int, bits: int = 3) -> Tensor:
    """The class of each patch's mean colour.

    Args:
        images: float [b 3 h w] in 0..1, not normalised.
        patch_size: pixels; must divide both sides.
        bits: a channel; 3 gives 8 levels and 512 classes.

    Returns:
        int64 [b n], patches in row-major order: with levels L = 2**bits, a channel's level is
        min(L - 1, floor(L * mean)), and the class is L*L*red + L*green + blue.
    """
    levels = 2**bits
    check_divides((images.shape[-2], images.shape[-1]), patch_size)
    means = F.avg_pool2d(images, patch_size)
    red, green, blue = (means * levels).floor().clamp(0, levels - 1).long().unbind(dim=1)
    return ((red * levels + green) * levels + blue).flatten(1)


def corrupt(
    tokens: Tensor, mask_token: Tensor, generator: torch.Generator, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Corrupt exactly round(share * n) tokens of every picture.

    Args:
        tokens: float [b n d].
        mask_token: [d], or with leading axes of 1.
        generator: on the device of the tokens.
        share: of the tokens of each picture.

    Returns:
        The tokens, and which of them were chosen, bool [b n]. Each chosen one became the mask with
        probability 0.8, another token of the same picture (never itself) with 0.1, and stayed as
        it was with 0.1, independently of the rest.
    """
    b, n, _ = tokens.shape
    draws = torch.rand(b, 3, n, generator=generator, device=tokens.device)
    return corrupt_by(tokens, mask_token, draws, share)


def corrupt_by(
    tokens: Tensor, mask_token: Tensor, draws: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """`corrupt` by given draws, float [b 3 n] in 0..1: which tokens, what of them, which other."""
    b, n, d = tokens.shape
    order = draws[:, 0].argsort(dim=1, stable=True)
    chosen = torch.zeros(b, n, dtype=torch.bool, device=tokens.device)
    chosen.scatter_(1, order[:, : round(share * n)], True)
    masked = chosen & (draws[:, 1] < MASKED)
    swapped = chosen & (draws[:, 1] >= MASKED) & (draws[:, 1] < MASKED + OTHER)
    # A step of 1 to n-1 places around the picture ends at every other place alike.
    steps = 1 + (draws[:, 2] * (n - 1)).long().clamp(max=max(0, n - 2))
    places = (torch.arange(n, device=tokens.device) + steps) % n
    others = tokens.gather(1, places[..., None].expand(b, n, d))
    mask = mask_token.reshape(1, 1, d).to(tokens.dtype)
    tokens = torch.where(masked[..., None], mask, tokens)
    return torch.where(swapped[..., None], others, tokens), chosen


class MaskedPatchPrediction(Objective):
    """Find out what the corrupted patches looked like, from their places in the last layer.

    Args:
        model: a plain ViT or a hybrid; whatever stands after its tokens is frozen.
        share: of the patches that are corrupted: 0.5, and 0.15 for the paper's ablation.
        predict: ``color`` (512 classes), ``color4x4`` (16 cells of 512 classes) or ``pixels`` (L2
            of the normalised patch).
        seed: of what is corrupted.

    Raises:
        Error: another kind of model, or a patch that 4x4 cells do not divide.
    """

    labelled = False

    def __init__(
        self, model: ImageClassifier, share: float = 0.5, predict: str = "color", seed: int = 0
    ):
        super().__init__()
        vit = as_transformer(model, "masked patch prediction")
        freeze_after_tokens(vit)
        c = vit.config
        self.share, self.predict, self.seed = share, predict, seed
        self.patch_size, self.prefix = c.stride, c.prefix
        if predict == "color4x4" and self.patch_size % CELLS:
            raise Error(
                f"color4x4 needs patches of a multiple of {CELLS} pixels, not {self.patch_size}"
            )
        outputs = {
            "color": 512,
            "color4x4": CELLS**2 * 512,
            "pixels": self.patch_size**2 * c.in_channels,
        }
        self.mask_token = nn.Parameter(torch.zeros(c.width))
        self.head = nn.Linear(c.width, outputs[predict])
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """The mean loss over the corrupted places."""
        # A compiled twin gives its parts too; they run as they are.
        vit = cast(VisionTransformer, model)
        picture = vit.project(batch.images)
        tokens = rearrange(picture, "b d h w -> b (h w) d")
        draws = draws_of(batch, self.seed, 3 * tokens.shape[1], tokens.device)
        draws = rearrange(draws, "b (k n) -> b k n", k=3)
        tokens, chosen = corrupt_by(tokens, self.mask_token, draws, self.share)
        picture = rearrange(tokens, "b (h w) d -> b d h w", h=picture.shape[-2])
        encoded = vit.transform(picture)[:, self.prefix :]
        answers = full_precision(self.head(encoded[chosen]))
        wanted = self.targets(batch)[chosen]
        if self.predict == "pixels":
            return Loss(F.mse_loss(answers, wanted.to(answers.dtype)))
        return Loss(F.cross_entropy(answers.reshape(-1, 512), wanted.flatten()))

    def targets(self, batch: Example) -> Tensor:
        """What each patch of a batch is: int64 [b n], [b n 16], or float [b n p*p*c]."""
        if self.predict == "pixels":
            return patchify(batch.images, self.patch_size)
        if batch.pixels is None:
            raise ValueError("masked patch prediction needs the pixels of its examples")
        colors = batch.pixels.permute(0, 3, 1, 2).float() / 255
        if self.predict == "color":
            return mean_color_classes(colors, self.patch_size)
        cells = mean_color_classes(colors, self.patch_size // CELLS)
        columns = colors.shape[-1] // self.patch_size
        return rearrange(cells, "b (h p w q) -> b (h w) (p q)", p=CELLS, q=CELLS, w=columns)


def as_transformer(model: ImageClassifier, who: str) -> VisionTransformer:
    """The model, if it is a plain ViT or a hybrid.

    Raises:
        Error: it has no single sequence of patches.
    """
    if not isinstance(model, VisionTransformer):
        raise Error(f"{who} needs a plain ViT or a hybrid, not a {type(model).__name__}")
    return model


def freeze_after_tokens(model: VisionTransformer) -> None:
    """Freeze what stands after the tokens, which an objective on tokens does not train."""
    for name in ("fc_norm", "attn_pool", "pre_logits", "head", "head_dist"):
        part = getattr(model, name, None)
        if part is not None:
            part.requires_grad_(False)


def draws_of(batch: Example, seed: int, count: int, device: torch.device) -> Tensor:
    """Random numbers in 0..1 for each sample of a batch, float32 [b count]."""
    size = len(batch.images)
    epochs = [0] * size if batch.epochs is None else [int(epoch) for epoch in batch.epochs]
    indices = range(size) if batch.indices is None else [int(index) for index in batch.indices]
    repeats = None if batch.repeats is None else [int(repeat) for repeat in batch.repeats]
    return torch.from_numpy(mask_draws(seed, epochs, indices, count, repeats)).to(device)
