"""The layers of a plain ViT."""

from math import prod

from vitrail.models.cost.anatomy import Anatomy, Layer, keeping
from vitrail.models.positions import FIXED_TABLES, table_shapes
from vitrail.models.vit import ViTConfig


def vit_layers(config: ViTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a plain ViT for pictures of a size (height, width)."""
    c = config
    grid = c.grid_of(size)
    anatomy = Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    pixels = prod(size) * c.in_channels
    channels, bias = (c.in_channels, c.width), not c.pre_norm
    anatomy.convolution("patch_embed.proj", channels, c.patch_size, grid, pixels, bias)
    sequence_layers(anatomy, c, grid)
    return list(anatomy)


def sequence_layers(anatomy: Anatomy, c: ViTConfig, grid: tuple[int, int]) -> None:
    """From projected patches to the logits."""
    anatomy.add("patches", (prod(grid), c.width))
    _vit_tokens(anatomy, c, prod(grid))
    tokens = (prod(grid) + c.prefix,)
    for i in range(c.depth - 1):
        _vit_block(anatomy, c, f"blocks.{i}", tokens)
    _vit_last(anatomy, c, f"blocks.{c.depth - 1}", tokens)
    _vit_head(anatomy, c, tokens)


def _vit_last(anatomy: Anatomy, c: ViTConfig, name: str, tokens: tuple[int]) -> None:
    """The last block, and the norm after it; where one token is read, the others keep nothing."""
    whole, lean = Anatomy(), Anatomy()
    read = (c.read_rows or tokens[0],)
    for one, n in ((whole, tokens), (lean, read)):
        _vit_block(one, c, name, n)
        if not c.norm_after_pool:
            one.norm("norm", n, c.width)
    for i, layer in enumerate(whole):
        if layer.name == f"{name}.attn.proj":
            break
        # Keys and values are of all tokens, queries of those that are read: not so the relative.
        relative = c.position == "relative"
        if layer.name == f"{name}.attention" and not relative:
            lean[i] = Layer("", (), activations=_attended(c, read[0], tokens[0]))
        else:
            lean[i] = layer
    anatomy.extend(keeping(whole, lean))


def _attended(c: ViTConfig, queries: int, keys: int) -> int:
    one = Anatomy()
    one.attention("", c.heads, queries, keys, c.width)
    return one[0].activations


def _vit_tokens(anatomy: Anatomy, c: ViTConfig, patches: int) -> None:
    """From patches to the sequence that enters the blocks."""

    def positions(tokens: int) -> None:
        learned = c.position not in FIXED_TABLES
        for name, shape in table_shapes(c).items():
            anatomy.add(name, (tokens, c.width), parameters=prod(shape) * learned)

    if not c.position_on_prefix:
        positions(patches)
    tokens = patches
    if c.has_class_token:
        tokens += 1
        anatomy.add("cls_token", (tokens, c.width), parameters=c.width)
    if c.distilled:
        tokens += 1
        anatomy.add("dist_token", (tokens, c.width), parameters=c.width)
    if c.registers:
        tokens += c.registers
        anatomy.add("reg_token", (tokens, c.width), parameters=c.registers * c.width)
    if c.position_on_prefix:
        positions(tokens)
    if c.dropout:
        anatomy.add("embedded", (tokens, c.width), activations=tokens * c.width)
    if c.pre_norm:
        anatomy.norm("norm_pre", (tokens,), c.width)


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
    if c.position == "relative":
        # Queries with the keys of all offsets, of which n x n are picked out; attention with a bias
        # keeps its weights, and not the n sums of a fused one.
        products, kept = n * (2 * n - 1) * c.width, n * c.width + c.heads * n * (3 * n - 2)
        anatomy.add(f"{name}.offsets", (c.heads, n, 2 * n - 1), macs=products, activations=kept)
    anatomy.linear(f"{name}.attn.proj", tokens, c.width, c.width, kept=dropped)
    scaled("ls1")
    anatomy.norm(f"{name}.norm2", tokens, c.width)
    mlp = (c.width, c.mlp_width)
    anatomy.mlp(f"{name}.mlp", tokens, mlp, c.activation, c.dropout > 0, c.gated_mlp)
    scaled("ls2")


def _vit_head(anatomy: Anatomy, c: ViTConfig, tokens: tuple[int]) -> None:
    """From the last block's tokens to the logits."""
    (n,) = tokens
    if c.pool == "map":
        _attention_pool(anatomy, c, n - c.prefix)
    left = tokens if c.pool == "none" else ()
    if c.pool != "none":
        anatomy.add("pooled", (c.features_width,))
    if c.norm_after_pool:
        anatomy.norm("fc_norm", left, c.features_width)
    # The class token is a view of the tokens that are computed, kept until it is used.
    width = c.features_width
    viewed = c.pool == "token" and not c.norm_after_pool
    kept = (c.read_rows or n) * width if viewed else prod(left) * width
    if c.pre_logits:
        anatomy.linear("pre_logits.fc", left, width, width, kept=kept)
        kept = prod(left) * width
    if c.num_classes:
        anatomy.linear("head", left, width, c.num_classes, kept=kept)
    if c.num_classes and c.distilled:
        anatomy.linear("head_dist", left, width, c.num_classes, kept=0)


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
