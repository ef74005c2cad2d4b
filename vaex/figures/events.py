"""Pictures in TensorBoard's event files."""

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor


def picture_summary(name: str, sheet: Tensor, png: bytes) -> Summary:
    """Of a sheet uint8 [1 or 3, height, width] and the same as PNG, so that it is encoded once."""
    channels, height, width = sheet.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=name, image=image)])
