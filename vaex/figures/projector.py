"""Codes of test images for TensorBoard's embedding projector, with their classes and small pictures of them."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from vaex.data.dataset import Images
from vaex.evaluation.bound import ToFloat
from vaex.evaluation.codes import codes
from vaex.figures.sheet import encode_png
from vaex.model import Autoencoder

SPRITE = 64  # pixels, of the largest picture: TensorBoard takes a sheet of 8192 × 8192 at most

CONFIG = """\
embeddings {{
  tensor_name: "codes of test images"
  tensor_path: "projector/codes.tsv"
{metadata}  sprite {{
    image_path: "projector/sprites.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""


def projector(
    model: Autoencoder, images: Images, to_float: ToFloat, count: int = 1000, class_names: Sequence[str] = ()
) -> dict[str, bytes]:
    """Files by name, to lie where TensorBoard finds a run's events."""
    z = codes(model, images[:count], to_float).mean
    files = {
        "projector/codes.tsv": "".join("\t".join(f"{value:.6g}" for value in row) + "\n" for row in z.tolist()).encode()
    }
    metadata = ""
    if class_names:
        names = "".join(f"{class_names[label]}\n" for label in images.labels[:count].tolist())
        files["projector/classes.tsv"] = names.encode()
        metadata = '  metadata_path: "projector/classes.tsv"\n'
    sheet, height, width = _sprites(images[: len(z)].pixels.cpu())
    files["projector/sprites.png"] = encode_png(sheet)
    config = CONFIG.format(metadata=metadata, width=width, height=height)
    return files | {"projector_config.pbtxt": config.encode()}


def _sprites(pixels: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """uint8 [N, C, H, W] -> a square of them without gaps, and the height and width of each."""
    count, channels, height, width = pixels.shape
    if max(height, width) > SPRITE:
        factor = SPRITE / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        pixels = F.interpolate(pixels.float(), size=size, mode="area").round().to(torch.uint8)
        height, width = size
    side = math.ceil(math.sqrt(count))
    blank = torch.full((side * side - count, channels, height, width), 255, dtype=torch.uint8)
    cells = torch.cat([pixels, blank]).view(side, side, channels, height, width)
    return cells.permute(2, 0, 3, 1, 4).reshape(channels, side * height, side * width), height, width
