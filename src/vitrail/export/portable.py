"""Parts written again in operations that every exporter carries over exactly.

Each of them was found by comparing the exported file with the model. The optimiser behind
`torch.onnx.export` takes an addition of 1e-8 for one of nothing, which is a Performer's guard
against dividing by too little; it cannot decompose fused attention with the bias of relative
positions; and pooling to a fixed number of places is beyond it where windows differ in size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.models.parts import Attention, attend, offset_bias
from vitrail.models.pyramid import POOLED, Grid, ReducedAttention, to_map, to_tokens
from vitrail.models.t2t import TokenPerformer
from vitrail.models.tape import Tape, record

GUARD = 1e8  # over the 1e-8 of `TokenPerformer.attend`


class PortablePerformer(nn.Module):
    """A Performer whose quotient is expanded, so that what is added below the line is 1."""

    def __init__(self, part: TokenPerformer):
        super().__init__()
        self.norm1, self.kqv, self.proj = part.norm1, part.kqv, part.proj
        self.norm2, self.mlp = part.norm2, part.mlp
        self.register_buffer("w", part.w.detach().T.contiguous())

    def forward(self, x: Tensor, *where: object) -> Tensor:
        """[b n d] to [b n e]."""
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        query, key = self.phi(query) * GUARD, self.phi(key)
        seen = query @ key.sum(dim=1, keepdim=True).transpose(1, 2)
        x = value + self.proj(query @ (key.transpose(1, 2) @ value) / (seen + 1))
        return x + self.mlp(self.norm2(x))

    def phi(self, z: Tensor) -> Tensor:
        """As `TokenPerformer.phi`."""
        half_square = z.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(z @ self.w - half_square) * self.w.shape[1] ** -0.5


class RelativeAttention(nn.Module):
    """`Attention` with keys of offsets, its softmax explicit."""

    def __init__(self, part: Attention):
        super().__init__()
        self.qkv, self.proj = part.qkv, part.proj
        self.heads, self.scale = part.heads, part.scale

    def forward(
        self, x: Tensor, tape: Tape | None, offset_keys: Tensor, rows: None = None
    ) -> Tensor:
        """[b n d] to [b n d]; records ``attention`` [b h n n]."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        query = query * self.scale
        logits = query @ key.transpose(-2, -1) + offset_bias(query, offset_keys)
        weights = record(tape, "attention", logits.softmax(dim=-1))
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class PooledAttention(nn.Module):
    """PVT v2's linear attention on one grid, its pooling as a matrix a direction."""

    def __init__(self, part: ReducedAttention, grid: Grid):
        super().__init__()
        self.q, self.kv, self.proj, self.sr, self.norm = (
            part.q, part.kv, part.proj, part.sr, part.norm,
        )  # fmt: skip
        self.heads, self.scale, like = part.heads, part.scale, part.q.weight
        self.register_buffer("down", pooling(grid[0]).to(like))
        self.register_buffer("across", pooling(grid[1]).T.contiguous().to(like))

    def forward(self, x: Tensor, tape: Tape | None, grid: Grid) -> Tensor:
        """[b n d] on the grid to [b n d]; records ``attention`` [b h n m]."""
        pooled = self.down @ to_map(x, grid) @ self.across
        seen = functional.gelu(self.norm(to_tokens(self.sr(pooled))))
        query = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pairs = self.kv(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = pairs.unbind(0)
        mixed = attend(query, key, value, self.scale, tape)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def pooling(length: int) -> Tensor:
    """The mean over each of `POOLED` windows of a length, as `adaptive_avg_pool2d` cuts them."""
    matrix = torch.zeros(POOLED, length, dtype=torch.float64)
    for place in range(POOLED):
        begin, end = place * length // POOLED, -(-(place + 1) * length // POOLED)
        matrix[place, begin:end] = 1 / (end - begin)
    return matrix
