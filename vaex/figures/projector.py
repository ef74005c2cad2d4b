"""Codes of test images for TensorBoard's embedding projector, with their classes and small copies of the images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vaex.errors import printable
from vaex.figures.figure import FigureKind, Files, Subject
from vaex.figures.sheet import encode_png, mosaic

SPRITE = 64  # pixels of the longer side of an image at most: TensorBoard reads sheets of up to 8192 × 8192

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


def projector(subject: Subject) -> Files:
    """Tables of codes and classes, a sheet of the images, and the config file in which TensorBoard finds these."""
    images = subject.dataset.test[: subject.count or 1000]
    z = subject.codes(len(images))[0]
    rows = ("\t".join(f"{value:.6g}" for value in row) for row in z.tolist())
    files: Files = {"projector/codes.tsv": "".join(f"{row}\n" for row in rows).encode()}
    metadata = ""
    if names := subject.dataset.source.class_names or subject.class_names:
        files["projector/classes.tsv"] = "".join(f"{printable(names[n])}\n" for n in images.labels.tolist()).encode()
        metadata = '  metadata_path: "projector/classes.tsv"\n'
    sprites = _shrunk(images.pixels.cpu())
    height, width = sprites.shape[-2:]
    side = math.ceil(math.sqrt(len(sprites)))  # TensorBoard expects a square sheet
    files["projector/sprites.png"] = encode_png(mosaic(sprites, columns=side, rows=side))
    files["projector_config.pbtxt"] = CONFIG.format(metadata=metadata, width=width, height=height).encode()
    return files


def _shrunk(pixels: Tensor) -> Tensor:
    """uint8 [N, C, H, W], with sides of at most SPRITE pixels."""
    factor = SPRITE / max(pixels.shape[-2:])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(side * factor)) for side in pixels.shape[-2:])
    return F.interpolate(pixels.float(), size=(height, width), mode="area").round().to(torch.uint8)


PROJECTOR = FigureKind("projector", projector, on_request=True, beside_events=True)
