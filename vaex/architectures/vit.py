"""Vision transformer (Dosovitskiy et al. 2021) as encoder and decoder, for images of any number of channels.

The encoder turns patches into tokens with fixed sine and cosine positions and reads the code off one more, learned
token. The decoder starts from the latent, the same at every position.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def patch_grid(image_shape: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Number of patches down and across.

    Raises:
        ValueError: the patches don't fill the image.
    """
    _, height, width = image_shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        fitting = [size for size in range(1, min(height, width) + 1) if height % size == 0 and width % size == 0]
        raise ValueError(
            f"architecture.patch_size={patch_size}: doesn't divide images of {height} × {width}; "
            f"{', '.join(map(str, fitting))} would"
        )
    return height // patch_size, width // patch_size


def positions(grid: tuple[int, int], features: int) -> Tensor:
    """[down · across, features]: sine and cosine of the row in one half of the features, of the column in the other.

    Vaswani et al. 2017, section 3.5, for each of the two coordinates.

    Raises:
        ValueError: features isn't a multiple of four.
    """
    if features % 4:
        raise ValueError(
            f"architecture.hidden={features}: must be a multiple of 4, for sines and cosines of two coordinates"
        )
    frequencies = 10_000 ** -(torch.arange(features // 4, dtype=torch.float64) / (features // 4))

    def of(count: int) -> Tensor:
        angles = torch.outer(torch.arange(count, dtype=torch.float64), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = of(grid[0])[:, None], of(grid[1])[None]
    both = torch.cat([rows.expand(*grid, -1), columns.expand(*grid, -1)], dim=2)
    return both.flatten(0, 1).float()


def transformer(hidden: int, depth: int, heads: int, mlp_ratio: int) -> nn.Sequential:
    """Pre-norm blocks and a last norm, [B, tokens, hidden] -> the same.

    Raises:
        ValueError: a number out of its range, or hidden can't be shared among the heads.
    """
    for name, value in (("depth", depth), ("heads", heads), ("mlp_ratio", mlp_ratio)):
        if value < 1:
            raise ValueError(f"architecture.{name}={value}: must be >= 1")
    if hidden % heads:
        raise ValueError(f"architecture.heads={heads}: must divide architecture.hidden={hidden}")
    blocks = [
        nn.TransformerEncoderLayer(
            hidden, heads, mlp_ratio * hidden, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks, nn.LayerNorm(hidden))


class Encoder(nn.Module):
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


class Decoder(nn.Module):
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
