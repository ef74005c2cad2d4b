"""The classifier in whose features generated images are compared with real ones: one small network for each dataset.

It sees images x = k/255, whatever pixels a model was trained on. The weights for the packaged MNIST are part of vaex;
for other data a classifier is trained once and cached. The numbers of two models are comparable only if the hash of the
classifier's weights is the same.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vaex.data.dataset import Images, Source
from vaex.data.stream import IndexStream
from vaex.errors import first_line
from vaex.evaluation.split import fixed_noise
from vaex.runs.writing import replace_file

log = logging.getLogger("vaex")

# Increase this when the network or its training changes, so that cached weights of an older one are not used.
VERSION = 1
MOST_IMAGES = 60_000  # for training
BATCH_SIZE, LEARNING_RATE = 128, 2e-3  # at most; the learning rate rises and falls over the training
CPU = torch.device("cpu")
FEATURES = 128  # width of the penultimate layer
MAX_SHIFT = 2  # pixels by which training images are shifted at most, each way
MNIST_WEIGHTS = Path(__file__).parent / "weights" / "mnist_classifier.safetensors"
MNIST_WEIGHTS_SHA256 = "c6fe3b181f13de117fc0163647e4b4068ce12794cdea9c6382bee16b01ff333b"
MNIST_DATA_SHA256 = "71d3be42f93ad20da73bb4a9744d0bebdaa6832be56dc010e21940e72c4c8b1e"


class Classifier(nn.Module):
    """3 × 3 convolutions that halve the image until it is at most 4 × 4, a layer of features, and a layer of logits.

    There is no normalization layer: faint images must not get the features of crisp ones.

    Args:
        image_shape: channels, height, width.
        classes: number of logits.
        features: width of the penultimate layer.
    """

    def __init__(self, *, image_shape: tuple[int, int, int], classes: int, features: int = FEATURES) -> None:
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        halvings = max(0, math.ceil(math.log2(max(height, width) / 4)))
        for n in range(halvings):
            out_channels = 32 if n == 0 else 64
            layers += [nn.Conv2d(channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            if n == 0:
                layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.ReLU()]
            channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.25)
        self.hidden = nn.Linear(channels * height * width, features)
        self.output = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> the penultimate layer after its activation, [B, features]."""
        h = self.hidden(self.dropout(self.convolutions(x).flatten(1)))
        return F.leaky_relu(h, 0.1)  # under a plain ReLU some features end up zero for every image

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, classes]."""
        out: Tensor = self.output(self.features(x))
        return out


def to_pixels(x: Tensor) -> Tensor:
    """Generated images in [0, 1] -> the nearest of 256 levels, uint8, as real images are stored."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def features_of(classifier: Classifier, pixels: Tensor, batch_size: int = 1000) -> Tensor:
    """uint8 [N, C, H, W] -> float32 features [N, F] on the classifier's device."""
    device = classifier.output.weight.device
    parts = torch.split(pixels, batch_size)
    return torch.cat([classifier.features(part.to(device).float() / 255) for part in parts])


@torch.no_grad()
def accuracy(classifier: Classifier, images: Images) -> float:
    """Fraction of images that are assigned to their own class."""
    parts = zip(torch.split(images.pixels, 1000), torch.split(images.labels, 1000), strict=True)
    correct = [(classifier(pixels.float() / 255).argmax(1) == labels).sum() for pixels, labels in parts]
    return int(torch.stack(correct).sum()) / len(images)


def train_classifier(images: Images, classes: int, *, seed: int, epochs: int) -> Classifier:
    """Train a new classifier on images with labels 0 … classes - 1, on their device; it ends in evaluation mode.

    The seed determines the initial weights, the order of the images and their shifts.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"the classifier needs labels of 2 classes or more, got {classes}; use a labeled dataset")
    device = images.pixels.device
    channels, height, width = images.pixels.shape[1:]
    batch_size = min(BATCH_SIZE, len(images))
    steps = epochs * math.ceil(len(images) / batch_size)
    stream = IndexStream(len(images), batch_size, seed, device)
    with fixed_noise(device, seed):
        classifier = Classifier(image_shape=(channels, height, width), classes=classes).to(device)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=max(steps, 2))
        for step in tqdm(range(steps), desc="classifier", unit=" steps", disable=None, leave=False):
            index = stream.batch(step)
            x = _shifted(images.pixels[index].float() / 255, MAX_SHIFT)
            loss = F.cross_entropy(classifier(x), images.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


def classifier_for(
    source: Source, cache_folder: Path, *, device: torch.device = CPU, epochs: int = 16
) -> tuple[Classifier, str]:
    """The classifier of a source's training images, and the SHA-256 of its file of weights.

    MNIST's is packaged. Others are loaded from `cache_folder`, or trained on the device and written there on first use,
    on at most MOST_IMAGES evenly spaced training images, as they are before any split or binarization.

    Raises:
        ValueError: if a file of weights is damaged, or the data have no labels.
    """
    train = source.train
    if len(train) > MOST_IMAGES:
        train = train[torch.arange(MOST_IMAGES) * len(train) // MOST_IMAGES]
    data_hash = hash_of(train)
    path = cache_folder / f"classifier-{VERSION}-{data_hash}.safetensors"
    if data_hash == MNIST_DATA_SHA256:
        path = MNIST_WEIGHTS
    elif not path.is_file():
        log.info("training a classifier for the FID of these images, once; it is cached in %s", path)
        classifier = train_classifier(train.to(device), source.classes, seed=0, epochs=epochs)
        score = accuracy(classifier, source.test.to(device))
        log.info("test accuracy of the classifier: %.2f %%", 100 * score)
        save_classifier(path, classifier, test_accuracy=score, seed=0, epochs=epochs)
    content = path.read_bytes()
    weights_hash = hashlib.sha256(content).hexdigest()
    if path == MNIST_WEIGHTS and weights_hash != MNIST_WEIGHTS_SHA256:
        raise ValueError(f"{path}: SHA-256 {weights_hash} is not {MNIST_WEIGHTS_SHA256}: damaged; install vaex again")
    channels, height, width = source.train.pixels.shape[1:]
    classifier = Classifier(image_shape=(channels, height, width), classes=source.classes)
    try:
        classifier.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: not this classifier's weights ({reason}); delete it to train again") from error
    return classifier.to(device).eval().requires_grad_(False), weights_hash


def save_classifier(path: Path, classifier: Classifier, *, test_accuracy: float, seed: int, epochs: int) -> str:
    """Write the weights, with how they were trained as metadata; return the SHA-256 of the file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    # safetensors writes several entries in a random order, which would give equal weights different hashes.
    training = json.dumps({"test_accuracy": round(test_accuracy, 4), "seed": seed, "epochs": epochs})
    content = save(tensors, {"training": training})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return hashlib.sha256(content).hexdigest()


def hash_of(images: Images) -> str:
    """SHA-256 of shape, pixels and labels (little-endian int64)."""
    digest = hashlib.sha256(repr(tuple(images.pixels.shape)).encode())
    digest.update(images.pixels.cpu().contiguous().numpy().data)
    digest.update(images.labels.cpu().contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def _shifted(x: Tensor, most: int) -> Tensor:
    """Shift each image [B, C, H, W] by its own whole number of pixels, up to `most` each way, repeating its border."""
    batch, _, height, width = x.shape
    rows, columns = (
        (torch.randint(-most, most + 1, (batch, 1), device=x.device) + torch.arange(size, device=x.device)).clamp(
            0, size - 1
        )
        for size in (height, width)
    )
    image = torch.arange(batch, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
