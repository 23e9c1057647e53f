"""The layers of a plain ViT."""

from math import prod

from vitrail.kit.grid import check_divides
from vitrail.models.cost.anatomy import Anatomy, Layer
from vitrail.models.vit import ViTConfig


def vit_layers(config: ViTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a plain ViT for pictures of a size (height, width)."""
    c = config
    check_divides(size, c.patch_size)
    grid = (size[0] // c.patch_size, size[1] // c.patch_size)
    anatomy = Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    pixels = prod(size) * c.in_channels
    anatomy.convolution("patch_embed.proj", (c.in_channels, c.width), c.patch_size, grid, pixels)
    anatomy.add("patches", (prod(grid), c.width))
    _vit_tokens(anatomy, c, prod(grid))
    tokens = (prod(grid) + c.prefix,)
    for i in range(c.depth):
        _vit_block(anatomy, c, f"blocks.{i}", tokens)
    _vit_head(anatomy, c, tokens)
    return list(anatomy)


def _vit_tokens(anatomy: Anatomy, c: ViTConfig, patches: int) -> None:
    """From patches to the sequence that enters the blocks."""

    def positions(tokens: int) -> None:
        if c.position != "none":
            learned = c.position == "learned"
            rows = prod(c.grid) + (c.prefix if c.position_on_prefix else 0)
            anatomy.add("pos_embed", (tokens, c.width), parameters=rows * c.width * learned)

    if not c.position_on_prefix:
        positions(patches)
    tokens = patches
    if c.has_class_token:
        tokens += 1
        anatomy.add("cls_token", (tokens, c.width), parameters=c.width)
    if c.registers:
        tokens += c.registers
        anatomy.add("reg_token", (tokens, c.width), parameters=c.registers * c.width)
    if c.position_on_prefix:
        positions(tokens)
    if c.dropout:
        anatomy.add("embedded", (tokens, c.width), activations=tokens * c.width)


def _vit_block(anatomy: Anatomy, c: ViTConfig, name: str, tokens: tuple[int]) -> None:
    """One block; everything has as many ``tokens``."""
    (n,) = tokens
    dropped = n * c.width if c.dropout else 0

    def scaled(which: str) -> None:
        if c.layer_scale is not None:
            kept = n * c.width
            anatomy.add(f"{name}.{which}", (n, c.width), parameters=c.width, activations=kept)

    anatomy.norm(f"{name}.norm1", tokens, c.width)
    anatomy.linear(
        f"{name}.attn.qkv", tokens, c.width, 3 * c.width, kept=n * c.width, bias=c.qkv_bias
    )
    anatomy.attention(f"{name}.attention", c.heads, n, n, c.width)
    anatomy.linear(f"{name}.attn.proj", tokens, c.width, c.width, kept=dropped)
    scaled("ls1")
    anatomy.norm(f"{name}.norm2", tokens, c.width)
    anatomy.mlp(f"{name}.mlp", tokens, (c.width, c.mlp_width), c.activation, c.dropout > 0)
    scaled("ls2")


def _vit_head(anatomy: Anatomy, c: ViTConfig, tokens: tuple[int]) -> None:
    """From the last block's tokens to the logits."""
    (n,) = tokens
    if not c.norm_after_pool:
        anatomy.norm("norm", tokens, c.width)
    if c.pool == "map":
        _attention_pool(anatomy, c, n - c.prefix)
    left = tokens if c.pool == "none" else ()
    if c.pool != "none":
        anatomy.add("pooled", (c.width,))
    if c.norm_after_pool:
        anatomy.norm("fc_norm", left, c.width)
    # The class token is a view of all tokens, which therefore are kept until it is used.
    viewed = c.pool == "token" and not c.norm_after_pool
    kept = n * c.width if viewed else prod(left) * c.width
    if c.pre_logits:
        anatomy.linear("pre_logits.fc", left, c.width, c.width, kept=kept)
        kept = prod(left) * c.width
    if c.num_classes:
        anatomy.linear("head", left, c.width, c.num_classes, kept=kept)


def _attention_pool(anatomy: Anatomy, c: ViTConfig, n: int) -> None:
    """Attention pooling over n patches; the query is the same for every image of a batch."""
    d, one = c.width, (1,)
    anatomy.add("attn_pool.latent", (1, d), parameters=d)
    anatomy.linear("attn_pool.q", one, d, d, kept=0)
    anatomy.linear("attn_pool.kv", (n,), d, 2 * d, kept=n * d)
    anatomy.attention("pool.attention", c.heads, 1, n, d)
    anatomy.linear("attn_pool.proj", one, d, d, kept=0)
    anatomy.norm("attn_pool.norm", one, d)
    anatomy.mlp("attn_pool.mlp", one, (d, c.mlp_width), c.activation)
