"""The layers of a T2T-ViT.

The Performers' random features count among the parameters, as the authors count them, though they
are not trained. Unfolding keeps nothing.
"""

from math import prod

from vitrail.models.cost.anatomy import Anatomy, Layer, keeping
from vitrail.models.t2t import T2TConfig


def t2t_layers(config: T2TConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a T2T-ViT for pictures of a size (height, width)."""
    c = config
    anatomy = Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    grids = c.grids(size)
    tokens = _performer if c.tokens == "performer" else _transformer
    *between, (grid, width) = zip(grids, c.splits, strict=True)
    for i, (fine, inner) in enumerate(between):
        tokens(anatomy, c, i, prod(fine), inner)
    n = prod(grid)
    anatomy.linear("tokens_to_token.project", (n,), width, c.width, kept=n * width)
    anatomy.add("patches", (n, c.width))
    n += 1
    anatomy.add("cls_token", (n, c.width), parameters=c.width)
    anatomy.add("pos_embed", (n, c.width))
    anatomy.add("embedded", (n, c.width), activations=n * c.width if c.dropout else 0)
    for i in range(c.depth - 1):
        _block(anatomy, c, f"blocks.{i}", n)
    _last(anatomy, c, f"blocks.{c.depth - 1}", n)
    anatomy.add("pooled", (c.width,))
    if c.num_classes:
        anatomy.linear("head", (), c.width, c.num_classes, kept=c.width)
    return list(anatomy)


def _last(anatomy: Anatomy, c: T2TConfig, name: str, n: int) -> None:
    """The last block and the norm after it: of the class token, with keys and values of all."""
    whole, lean = Anatomy(), Anatomy()
    for one, tokens in ((whole, n), (lean, 1)):
        _block(one, c, name, tokens)
        one.norm("norm", (tokens,), c.width)
    one = Anatomy()
    one.attention("", c.heads, 1, n, c.width)
    lean[:3] = [*whole[:2], one[0]]
    anatomy.extend(keeping(whole, lean))


def _performer(anatomy: Anatomy, c: T2TConfig, i: int, n: int, width: int) -> None:
    """Linear attention on n tokens, from ``width`` to the tokens' own width."""
    name, inner = f"tokens_to_token.attention{i + 1}", c.token_width
    features = max(1, inner // 2)
    dropped = n * inner if c.token_dropout else 0
    anatomy.norm(f"{name}.norm1", (n,), width)
    anatomy.linear(f"{name}.kqv", (n,), width, 3 * inner, kept=n * width)
    # Kept: keys, queries and values, each feature before and after its factor, the sums, the
    # products and what they are divided by.
    kept = n * (3 * inner + 4 * features + inner + 1) + features * (inner + 1)
    # Features of queries and keys; keys with values, queries with that; queries with the keys' sum.
    macs = n * features * (4 * inner + 1)
    anatomy.add(f"{name}.features", (n, features), macs=macs, activations=kept, full=kept)
    anatomy.add(f"{name}.w", (features, inner), parameters=features * inner)
    anatomy.linear(f"{name}.proj", (n,), inner, inner, kept=n * inner + dropped)
    anatomy.norm(f"{name}.norm2", (n,), inner)
    anatomy.linear(f"{name}.mlp.0", (n,), inner, inner, kept=n * inner)
    anatomy.linear(f"{name}.mlp.2", (n,), inner, inner, kept=2 * n * inner + dropped)
    anatomy.add(f"tokens.{i}.out", (n, inner))


def _transformer(anatomy: Anatomy, c: T2TConfig, i: int, n: int, width: int) -> None:
    """Attention of one head on n tokens, from ``width`` to the tokens' own width."""
    name, inner = f"tokens_to_token.attention{i + 1}", c.token_width
    anatomy.norm(f"{name}.norm1", (n,), width)
    anatomy.linear(f"{name}.attn.qkv", (n,), width, 3 * inner, kept=n * width, bias=False)
    anatomy.attention(f"tokens.{i}.attention", 1, n, n, inner)
    anatomy.linear(f"{name}.attn.proj", (n,), inner, inner, kept=0)
    anatomy.norm(f"{name}.norm2", (n,), inner)
    anatomy.mlp(f"{name}.mlp", (n,), (inner, inner), "gelu")
    anatomy.add(f"tokens.{i}.out", (n, inner))


def _block(anatomy: Anatomy, c: T2TConfig, name: str, n: int) -> None:
    """One block of the backbone."""
    d = c.width
    anatomy.norm(f"{name}.norm1", (n,), d)
    anatomy.linear(f"{name}.attn.qkv", (n,), d, 3 * d, kept=n * d, bias=c.qkv_bias)
    anatomy.attention(f"{name}.attention", c.heads, n, n, d)
    anatomy.linear(f"{name}.attn.proj", (n,), d, d, kept=n * d if c.dropout else 0)
    anatomy.norm(f"{name}.norm2", (n,), d)
    anatomy.mlp(f"{name}.mlp", (n,), (d, c.mlp_width), c.activation, c.dropout > 0)
