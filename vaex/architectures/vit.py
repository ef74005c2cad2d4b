"""Vision transformer (Dosovitskiy et al. 2021) as encoder and decoder, for images of any number of channels.

The encoder turns patches into tokens, adds fixed sine and cosine positions, and reads the output from an additional
learned token. The decoder starts from z, embedded and repeated at every position.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaex.architectures import base


def patch_grid(image_shape: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Number of patches (down, across). Raises ValueError if the patches do not fill the image."""
    _, height, width = image_shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        choices = [size for size in range(1, min(height, width) + 1) if height % size == 0 and width % size == 0]
        raise ValueError(
            f"architecture.patch_size={patch_size}: must divide height and width of the images, {height} × {width}; "
            f"possible are {', '.join(map(str, choices))}"
        )
    return height // patch_size, width // patch_size


def positions(grid: tuple[int, int], features: int) -> Tensor:
    """[down · across, features]: sines and cosines of the row, then of the column. Vaswani et al. 2017, section 3.5.

    Raises:
        ValueError: features is not a multiple of four.
    """
    if features % 4:
        raise ValueError(
            f"architecture.hidden={features}: must be a multiple of 4, for sines and cosines of two coordinates"
        )
    frequencies = 10_000 ** -(torch.arange(features // 4, dtype=torch.float64) / (features // 4))

    def encoding(count: int) -> Tensor:
        angles = torch.outer(torch.arange(count, dtype=torch.float64), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = encoding(grid[0])[:, None], encoding(grid[1])[None]
    return torch.cat([rows.expand(*grid, -1), columns.expand(*grid, -1)], dim=2).flatten(0, 1).float()


class Attention(nn.MultiheadAttention):
    """Attention of tokens [B, tokens, hidden] to themselves, with fewer copies of them and of gradients."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        by_head = projected.view(*x.shape[:2], 3, self.num_heads, -1)
        query, key, value = by_head.permute(2, 0, 3, 1, 4).unbind()
        heads = F.scaled_dot_product_attention(query, key, value)  # [B, heads, tokens, hidden / heads]
        return F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)


class Block(nn.TransformerEncoderLayer):
    """A pre-norm block, without masks.

    Args:
        hidden: features of a token.
        heads: number of heads, which divides `hidden`.
        features: of the hidden layer of the MLP.
    """

    def __init__(self, hidden: int, heads: int, features: int) -> None:
        super().__init__(hidden, heads, features, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True)
        with torch.random.fork_rng([]):  # the initial weights are those of PyTorch's block
            attention = Attention(hidden, heads, batch_first=True)
        attention.load_state_dict(self.self_attn.state_dict())
        self.self_attn = attention

    def _sa_block(self, x: Tensor, *masks: object, **options: object) -> Tensor:
        out: Tensor = self.self_attn(x)
        return out


def transformer(hidden: int, depth: int, heads: int, mlp_ratio: int) -> nn.Sequential:
    """Pre-norm blocks and a final norm, [B, tokens, hidden] -> [B, tokens, hidden].

    Raises:
        ValueError: a number is out of its range, or the heads do not divide hidden.
    """
    for name, value in (("depth", depth), ("heads", heads), ("mlp_ratio", mlp_ratio)):
        if value < 1:
            raise ValueError(f"architecture.{name}={value}: must be >= 1")
    if hidden % heads:
        raise ValueError(f"architecture.heads={heads}: must divide architecture.hidden={hidden}")
    blocks = [Block(hidden, heads, mlp_ratio * hidden) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.LayerNorm(hidden))


class Encoder(base.Encoder):
    positions: Tensor

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        out_features: int,
        condition_features: int = 0,
        patch_size: int,
        hidden: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        grid = patch_grid(image_shape, patch_size)
        self.register_buffer("positions", positions(grid, hidden), persistent=False)
        self.embedding = nn.Linear(image_shape[0] * patch_size**2, hidden)
        self.summary = nn.Parameter(torch.randn(1, 1, hidden) * 0.02)
        self.condition = nn.Linear(condition_features, hidden, bias=False) if condition_features else None
        self.blocks = transformer(hidden, depth, heads, mlp_ratio)
        self.output = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2)
        summary = self.summary.expand(len(x), -1, -1)
        if self.condition is not None:
            summary = summary + self.condition(condition)[:, None]
        tokens = torch.cat([summary, self.embedding(patches) + self.positions], dim=1)
        out: Tensor = self.output(self.blocks(tokens)[:, 0])
        return out


class Decoder(base.Decoder):
    positions: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        image_shape: tuple[int, int, int],
        out_channels: int,
        patch_size: int,
        hidden: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = patch_grid(image_shape, patch_size)
        self.register_buffer("positions", positions(self.grid, hidden), persistent=False)
        self.embedding = nn.Linear(in_features, hidden)
        self.blocks = transformer(hidden, depth, heads, mlp_ratio)
        self.output = nn.Linear(hidden, out_channels * patch_size**2)

    def forward(self, z: Tensor) -> Tensor:
        tokens = self.embedding(z)[:, None] + self.positions
        patches = self.output(self.blocks(tokens)).transpose(1, 2).unflatten(2, self.grid)
        return F.pixel_shuffle(patches, self.patch_size)
