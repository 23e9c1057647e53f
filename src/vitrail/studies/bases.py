"""The models that comparisons are put to where the user names none, for pictures of a size.

Each is one that minutes on a CPU are enough for, or, for large pictures, the smallest published.
"""

SMALL_SIDE = 96  # pixels, up to which pictures count as small
TOKENS_A_SIDE = 7  # of a plain ViT on small pictures, at the least


def small_vit(side: int) -> str:
    """A plain ViT of four blocks of width 96, as the paper has it: class token, learned table."""
    if side > SMALL_SIDE:
        return "vit_tiny_patch16_224"
    largest = max(1, side // TOKENS_A_SIDE)
    patch = next(p for p in range(largest, 0, -1) if side % p == 0)
    return f"vit_nano_patch{patch}_{side}"


def small_cvt(side: int) -> str:
    """CvT-13 with three stages of one, one and two blocks, a third as wide."""
    if side > SMALL_SIDE:
        return "cvt_13_224"
    return f"cvt_13_{side}:depths=[1,1,2]:widths=[24,64,128]:heads=[1,2,4]"


def small_botnet(side: int) -> str:
    """BoT50's last stage behind two stages, a quarter as wide."""
    if side > SMALL_SIDE:
        return "botnet50_224"
    return f"botnet50_{side}:depths=[1,1,2]:widths=[64,128,256]:stem_width=32"


def small_t2t(side: int) -> str:
    """T2T-ViT-7; small pictures are enlarged, since a token stands for 16 pixels."""
    return f"t2t_vit_7_{side if side > SMALL_SIDE else 96}:width=128:mlp_width=256:depth=4"
