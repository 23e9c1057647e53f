"""Learning without labels: the ViT paper's masked patch prediction, and MAE.

Both leave a folder that holds the encoder and no head; `vitrail train --weights FOLDER` fine-tunes
from it. The labels of the data are not looked at, and a run is watched by its own loss.
"""

from vitrail.data.transforms import Augment
from vitrail.recipes.situation import Situation, no_variants, root
from vitrail.training.recipe import Duration, Masked, Optim, Recipe, Schedule


def masked_patch(situation: Situation) -> Recipe:
    """Masked patch prediction (ViT paper, arXiv 2010.11929, section 4.6, appendix B.1.2).

    Half of the patch embeddings are corrupted (80 % masked, 10 % another patch's, 10 % as they
    are), and their mean colour of 3 bits a channel is to be found. Adam at 2e-4 for 4096 images,
    a million steps (the paper found little more after 100,000), no decay (none is stated). Variants
    are its targets: ``color`` (the default), ``color4x4`` and ``pixels``; its ablation is ``--set
    masked.share=0.15``.
    Command: ``vitrail train DATA --model vit_base_patch16_224 --recipe masked_patch --out DIR``.
    Expected: B/16 79.9 on ImageNet after fine-tuning, 2 points above scratch and 4 below supervised
    pre-training (paper, section 4.6). Ours: see docs/recipes.md for CIFAR-10 at CPU size.
    """
    targets = {"color": "color", "color4x4": "color4x4", "pixels": "pixels"}
    predict = situation.choose("masked_patch", targets, "color")
    batch_size = situation.batch(4096)
    duration = situation.length(1_000_000, "steps")
    return Recipe(
        name="masked_patch",
        variant=predict,
        model=situation.model,
        masked=Masked(kind="patch", share=0.5, predict=predict),
        optim=Optim(lr=2e-4 * root(batch_size, 4096), weight_decay=0.0),
        schedule=Schedule(
            kind="cosine", warmup=situation.warmup(Duration(10_000), duration, batch_size)
        ),
        augment=_views(situation),
        duration=duration,
        batch_size=batch_size,
        ema=None,
    )


def mae(situation: Situation) -> Recipe:
    """Masked autoencoder (He et al., arXiv 2111.06377, Table 8; PRETRAIN.md).

    The encoder sees 25 % of the patches; a decoder of 8 blocks, 512 wide, draws the rest, each
    normalised by itself. AdamW (0.9, 0.95) at 1.5e-4 for 256 images, batch 4096, 40 epochs of
    warm-up, 800 epochs. Positions are fixed sin-cos, and the pooling is the mean of the normed
    tokens, for the fine-tuning that follows (`finetune:mae`).
    Command: ``vitrail train DATA --model vit_base_patch16_224 --recipe mae --out DIR``.
    Expected: ImageNet top-1 after fine-tuning B 83.6, L 85.9, H 86.9 at 224 (1,600 epochs; paper).
    Ours not measured.
    """
    no_variants(situation, "mae")
    batch_size = situation.batch(4096)
    duration = situation.length(800)
    fields = {"position": "sincos2d_mae", "pool": "mean", "class_token": True}
    return Recipe(
        name="mae",
        model=situation.with_model(**fields),
        masked=Masked(kind="mae", share=0.75),
        optim=Optim(
            lr=1.5e-4 * batch_size / 256, betas=(0.9, 0.95), weight_decay=0.05, clip_norm=None
        ),
        schedule=Schedule(
            kind="cosine", warmup=situation.warmup(Duration(40, "epochs"), duration, batch_size)
        ),
        augment=_views(situation),
        duration=duration,
        batch_size=batch_size,
        ema=None,
    )


def _views(situation: Situation) -> Augment:
    if situation.image_side < 96:  # a crop of a small picture has too few pixels left
        return Augment(crop="pad", pad=max(1, situation.image_side // 8), flip=0.5)
    return Augment(crop="inception", area=(0.2, 1.0), flip=0.5)
