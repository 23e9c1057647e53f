"""The parts of a Transformer, from the smallest up: activations, drop path, attention, block.

What is special here: attention has one branch (fused without a tape, an explicit softmax when a
tape wants the map), and the random draws of drop path can be handed in, so that a training step
can be repeated bit for bit. Attribute names are timm's, because they are the state-dict names.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.models.tape import Tape, inside, record


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): CLIP's and CvT's activation.

    As silu(1.702 x) / 1.702, which keeps one tensor for the way back where the product keeps two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return F.silu(1.702 * x) / 1.702


# JAX's nn.gelu is the tanh form; torch ports use the exact one. They differ by up to 4.7e-4.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class DropPath(nn.Module):
    """Stochastic depth: a sample's residual branch is dropped with probability ``rate``.

    While training, ``draws`` (float [b] in 0..1, set by `set_drop_path_draws`) decides which
    samples are dropped; where it is None, fresh random numbers do. `around` computes the branch
    of the kept samples alone; `forward` is for branches that must see the whole batch.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[b ...] to the same shape; kept samples are divided by the probability of keeping."""
        if not self.training or self.rate == 0:
            return x
        kept = self._kept(x).to(x.dtype) / (1 - self.rate)
        return x * kept.view(-1, *[1] * (x.ndim - 1))

    def around(
        self,
        x: Tensor,
        branch: Callable[[Tensor], Tensor],
        *,
        shortcut: Tensor | None = None,
        whole: bool = False,
    ) -> Tensor:
        """``shortcut + forward(branch(x))``, without computing what would be dropped.

        In a compiled graph, whose shapes are fixed, the branch is computed whole and masked.

        Args:
            x: [b ...], what the branch takes.
            branch: takes [s ...] for any number of samples, each by itself.
            shortcut: [b ...], what the branch is added to; None for x itself.
            whole: the branch mixes samples (batch norm) or is recorded, so it needs all of them.
        """
        shortcut = x if shortcut is None else shortcut
        if not self.training or self.rate == 0:
            return shortcut + branch(x)
        if whole or x.is_meta or torch.compiler.is_compiling():
            return shortcut + self(branch(x))
        kept = self._kept(x).nonzero().flatten()
        factor = 1 / (1 - self.rate)
        if len(kept) == len(x):
            return torch.add(shortcut, branch(x), alpha=factor)
        if len(kept) == 0:
            # One sample for nothing: its weights get the gradients of zero that masks would give.
            kept, factor = kept.new_zeros(1), 0.0
        computed = branch(x.index_select(0, kept))
        dtype = torch.promote_types(shortcut.dtype, computed.dtype)
        return shortcut.to(dtype).index_add(0, kept, computed.to(dtype), alpha=factor)

    def _kept(self, x: Tensor) -> Tensor:
        """Which samples are kept, bool [b]."""
        draws = torch.rand(x.shape[0], device=x.device) if self.draws is None else self.draws
        return draws >= self.rate

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate}"


def drop_paths(model: nn.Module) -> list[DropPath]:
    """The drop paths of a model that can drop anything, in order."""
    return [part for part in model.modules() if isinstance(part, DropPath) and part.rate > 0]


def set_drop_path_draws(model: nn.Module, draws: Tensor | None) -> None:
    """Hand the next forward pass its draws, float [b sites], one column a drop path in order."""
    for site, part in enumerate(drop_paths(model)):
        part.draws = None if draws is None else draws[:, site]


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (CaiT, DeiT-III, DINOv2)."""

    def __init__(self, width: int, value: float):
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """[... d] to the same shape."""
        return x * self.gamma


class ScaledAttention(nn.Module):
    """What every attention has: heads, and the factor on its query-key products.

    Args:
        width, heads: d and h; h must divide d.
        scale: ``head`` is (d/h)**-0.5, ``width`` is d**-0.5.
    """

    def __init__(self, width: int, heads: int, scale: str):
        super().__init__()
        self.width = width
        self.heads = heads
        self.rescale(scale)

    def rescale(self, scale: str) -> None:
        """Set the factor, as at the start."""
        self.scale = (self.width // self.heads if scale == "head" else self.width) ** -0.5


class Attention(ScaledAttention):
    """Multi-head self-attention with q, k and v in one matrix, in that order.

    Args:
        width: d.
        heads: h; must divide the width.
        qkv_bias: whether the q, k and v projections have biases.
        scale: the factor on the query-key products: ``head`` is (d/h)**-0.5, ``width`` is d**-0.5.
        dropout: after the output projection. The attention weights have none, as in every
            published configuration (vit_jax/configs/models.py).
    """

    def __init__(self, width: int, heads: int, qkv_bias: bool, scale: str, dropout: float):
        super().__init__(width, heads, scale)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        tape: Tape | None = None,
        offset_keys: Tensor | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """[b n d] to [b n d], or to the first ``rows`` of it; records ``attention`` [b h n n].

        ``offset_keys`` [2n-1 d/h], where there are any, add to each logit the product of its query
        with the key of its offset: see `offset_bias`.
        """
        if rows is not None and offset_keys is None and type(self.qkv) is nn.Linear:
            query, key, value = self._of_first(x, rows)
        else:
            query, key, value = self._split(self.qkv(x), 3)
        bias = None if offset_keys is None else offset_bias(query * self.scale, offset_keys)
        mixed = attend(query, key, value, self.scale, tape, bias).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(mixed[:, :rows]))

    def _of_first(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The queries [b h rows e] of the first tokens, and keys and values of all."""
        weight, bias, d = self.qkv.weight, self.qkv.bias, self.width
        first, rest = (None, None) if bias is None else (bias[:d], bias[d:])
        (query,) = self._split(F.linear(x[:, :rows], weight[:d], first), 1)
        key, value = self._split(F.linear(x, weight[d:], rest), 2)
        return query, key, value

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[b n parts*d] to so many [b h n e]."""
        b, n, _ = x.shape
        return x.reshape(b, n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    tape: Tape | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention over [b h n e]; explicit when the tape wants ``attention``.

    ``bias``, of any shape that spreads to [b h n m], is added to the scaled products.
    """
    if tape is None or not tape.wants("attention"):
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
    logits = query * scale @ key.transpose(-2, -1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return record(tape, "attention", weights) @ value


def offset_bias(query: Tensor, keys: Tensor) -> Tensor:
    """Logits of 1-D relative attention (ViT paper, appendix D.4): queries with keys of offsets.

    Args:
        query: [b h n e], scaled.
        keys: [2n-1 e], one for each offset (query's place - key's place) from -(n-1) to n-1.

    Returns:
        [b h n n], to be added to the logits of the attention by content.
    """
    n = query.shape[-2]
    places = torch.arange(n, device=query.device)
    rows = places[:, None] - places + n - 1
    return (query @ keys.T).gather(-1, rows.expand(*query.shape[:-1], n))


class Mlp(nn.Module):
    """Linear, activation, linear, with dropout after each linear layer.

    A gated one (SwiGLU, where the activation is ``silu``) has two inner layers, stacked in `fc1`
    with the gate first: activation(gate) times the other goes on (DINOv2 layers/swiglu_ffn.py).
    """

    def __init__(
        self, width: int, hidden: int, activation: str, dropout: float, gated: bool = False
    ):
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(width, hidden * (2 if gated else 1))
        self.act = ACTIVATIONS[activation]()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b n d]; records ``hidden`` [b n m]."""
        hidden = self.fc1(x)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * hidden
        else:
            hidden = self.act(hidden)
        hidden = record(tape, "hidden", hidden)
        return self.drop2(self.fc2(self.drop1(hidden)))


class Block(nn.Module):
    """A pre-norm Transformer block (ViT paper, equations 2 and 3).

    Args:
        width, heads, hidden: d, h and the MLP's inner width.
        drop_path: this block's rate of stochastic depth.
        layer_scale: the initial value, or None for a block without LayerScale.
        norm_eps: of both LayerNorms.
        The rest: as for `Attention` and `Mlp`.
    """

    RECORDS = ("attention", "mlp.hidden", "out")

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        attention_scale: str = "head",
        activation: str = "gelu",
        gated_mlp: bool = False,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ):
        super().__init__()

        def scaled() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias, attention_scale, dropout)
        self.ls1 = scaled()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, activation, dropout, gated_mlp)
        self.ls2 = scaled()
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        tape: Tape | None = None,
        offset_keys: Tensor | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """[b n d] to [b n d]; records ``attention``, ``mlp.hidden`` and ``out``.

        ``offset_keys`` are those of relative attention, as for `Attention`. With ``rows`` only the
        first so many tokens are computed, from all of them: [b rows d].
        """
        whole = tape is not None
        x = self.drop_path1.around(
            x,
            lambda kept: self.ls1(self.attn(self.norm1(kept), tape, offset_keys, rows)),
            shortcut=x[:, :rows],
            whole=whole,
        )
        x = self.drop_path2.around(
            x, lambda kept: self.ls2(self.mlp(self.norm2(kept), inside(tape, "mlp"))), whole=whole
        )
        return record(tape, "out", x)


class AttentionPool(nn.Module):
    """Attention pooling: one learned query looks at the patches (big_vision models/vit.py MAPHead).

    State-dict names are timm's ``attn_pool.{latent,q,kv,proj,norm,mlp}``.
    """

    def __init__(self, width: int, heads: int, hidden: int, activation: str, norm_eps: float):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, activation, 0.0)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b d]; records ``attention`` [b h 1 n]."""
        b, n, d = x.shape
        split = (self.heads, d // self.heads)
        query = self.q(self.latent).expand(b, -1, -1).reshape(b, 1, *split).transpose(1, 2)
        key, value = self.kv(x).reshape(b, n, 2, *split).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, self.scale, tape)
        pooled = self.proj(mixed.transpose(1, 2).reshape(b, 1, d))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


def lecun_normal_(weight: Tensor, fan_in: int) -> None:
    """Flax's default kernel: a normal cut at two deviations, corrected so that its deviation is
    fan_in**-0.5 (torch's trunc_normal_ makes no such correction)."""
    deviation = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def xavier_qkv_(weight: Tensor) -> None:
    """Xavier uniform on each of the d-by-d matrices stacked in [3d d] (or [2d d]) by itself.

    On the stacked matrix as a whole it would come out smaller by the root of two.
    """
    bound = math.sqrt(6 / (2 * weight.shape[1]))
    nn.init.uniform_(weight, -bound, bound)
