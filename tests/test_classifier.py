"""The packaged classifier is accurate and the documented one; others are trained once for their data, then loaded."""

import hashlib
from pathlib import Path

import pytest
import torch

from vaex.data.dataset import Images, Source
from vaex.evaluation import classifier as module
from vaex.evaluation.classifier import (
    MNIST_DATA_SHA256,
    MNIST_WEIGHTS,
    MNIST_WEIGHTS_SHA256,
    Classifier,
    accuracy,
    classifier_for,
    features_of,
    hash_of,
    save_classifier,
    to_pixels,
    train_classifier,
)


@pytest.fixture
def colors() -> Source:
    """Two classes of small color images, told apart by which half is bright; some noise."""
    pixels = torch.randint(0, 60, (120, 3, 9, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(120) % 2
    pixels[labels == 0, :, :4] += 150
    pixels[labels == 1, :, 5:] += 150
    images = [Images(part, label) for part, label in zip(pixels.split(60), labels.split(60), strict=True)]
    return Source(train=images[0], test=images[1], classes=2)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained, though the weights exist")

    monkeypatch.setattr(module, "train_classifier", refuse)


def test_packaged_classifier_knows_mnist(source: Source, no_training: None, tmp_path: Path) -> None:
    classifier, weights_hash = classifier_for(source, tmp_path)
    assert weights_hash == MNIST_WEIGHTS_SHA256 == hashlib.sha256(MNIST_WEIGHTS.read_bytes()).hexdigest()
    assert accuracy(classifier, source.test[torch.arange(0, 10_000, 5)]) >= 0.993
    assert not any(tmp_path.iterdir())
    assert MNIST_WEIGHTS.stat().st_size < 1_000_000
    features = features_of(classifier, source.test.pixels[:500])
    assert features.shape == (500, 128)
    assert (features.var(0) > 1e-3).all()  # a dead feature sees nothing


def test_features_are_those_of_the_logits(source: Source) -> None:
    classifier, _ = classifier_for(source, Path("unused"))
    x = source.test.pixels[:7].float() / 255
    torch.testing.assert_close(classifier.output(classifier.features(x)), classifier(x))
    assert (classifier.features(x) < 0).any()  # after the activation, which lets a tenth of these through
    torch.testing.assert_close(
        classifier.features(x).relu(), classifier.hidden(classifier.convolutions(x).flatten(1)).relu()
    )
    pieces = features_of(classifier, source.test.pixels[:7], batch_size=3)
    torch.testing.assert_close(pieces, classifier.features(x), rtol=1e-5, atol=1e-5)


def test_hash_sees_every_pixel_label_and_the_shape(source: Source) -> None:
    assert hash_of(source.train) == MNIST_DATA_SHA256
    images = Images(source.test.pixels[:20].clone(), source.test.labels[:20].clone())
    hashes = {hash_of(images)}
    images.pixels[13, 0, 5, 5] += 1
    hashes.add(hash_of(images))
    images.labels[3] += 1
    hashes.add(hash_of(images))
    hashes.add(hash_of(Images(images.pixels.view(20, 1, 14, 56), images.labels)))
    assert len(hashes) == 4
    strided = Images(images.pixels.permute(0, 1, 3, 2), images.labels)
    assert hash_of(strided) == hash_of(Images(strided.pixels.contiguous(), images.labels))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 65, 40), (2, 3, 3), (1, 1, 50)])
def test_images_of_any_size(shape: tuple[int, int, int]) -> None:
    classifier = Classifier(image_shape=shape, classes=4, features=16)
    x = torch.rand(5, *shape)
    assert classifier.features(x).shape == (5, 16)
    assert classifier(x).shape == (5, 4)


def test_a_second_call_loads_what_the_first_trained(
    colors: Source, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cache = tmp_path / "not" / "yet"
    first, first_hash = classifier_for(colors, cache, epochs=40)
    assert accuracy(first, colors.test) > 0.95
    (file,) = cache.iterdir()
    assert hash_of(colors.train) in file.name
    assert first_hash == hashlib.sha256(file.read_bytes()).hexdigest()

    request.getfixturevalue("no_training")
    second, second_hash = classifier_for(colors, cache, epochs=40)
    assert second_hash == first_hash
    assert torch.equal(features_of(first, colors.test.pixels), features_of(second, colors.test.pixels))
    assert not second.training and not any(parameter.requires_grad for parameter in second.parameters())
    other = Source(train=Images(colors.train.pixels, 1 - colors.train.labels), test=colors.test, classes=2)
    with pytest.raises(AssertionError, match="trained"):
        classifier_for(other, cache)


def test_training_is_a_function_of_the_seed_and_leaves_the_random_state(colors: Source) -> None:
    state = torch.random.get_rng_state()
    for epochs in (0, 1):
        trained = [train_classifier(colors.train, 2, seed=seed, epochs=epochs) for seed in (0, 0, 1)]
        weights = [classifier.hidden.weight for classifier in trained]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
        assert not any(classifier.training for classifier in trained)
    assert torch.equal(state, torch.random.get_rng_state())


def test_equal_weights_have_equal_hashes(tmp_path: Path) -> None:
    classifier = Classifier(image_shape=(1, 8, 8), classes=2)
    hashes = {
        save_classifier(tmp_path / f"{n}.safetensors", classifier, test_accuracy=0.5, seed=0, epochs=1)
        for n in range(10)
    }
    assert len(hashes) == 1


def test_damaged_weights_are_refused(
    colors: Source, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier_for(colors, tmp_path, epochs=1)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for content in (whole[:-9], b"", whole.replace(b"hidden.weight", b"widden.height")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="delete it to train again") as caught:
            classifier_for(colors, tmp_path)
        assert "\n" not in str(caught.value)
    broken = bytearray(MNIST_WEIGHTS.read_bytes())
    broken[-1] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    monkeypatch.setattr(module, "MNIST_WEIGHTS", tmp_path / "broken")
    with pytest.raises(ValueError, match="damaged; install vaex again"):
        classifier_for(source, tmp_path)


def test_unlabeled_images_are_refused(colors: Source) -> None:
    with pytest.raises(ValueError, match="2 classes or more, got 1; use a labeled dataset"):
        train_classifier(colors.train, 1, seed=0, epochs=1)


def test_shifts_move_whole_pixels_and_repeat_the_border() -> None:
    """Every shifted image is one of the 25 windows into the image with its border repeated, and all of them occur."""
    image = torch.arange(30.0).view(1, 1, 5, 6)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")[0, 0]
    windows = {tuple(padded[i : i + 5, j : j + 6].flatten().tolist()) for i in range(5) for j in range(5)}
    shifted = module._shifted(image.expand(2000, 1, 5, 6), 2)
    assert {tuple(each.flatten().tolist()) for each in shifted} == windows
    assert shifted.shape == (2000, 1, 5, 6)


def test_pixels_are_rounded_not_cut() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_pixels(levels / 255), levels.to(torch.uint8))
    assert to_pixels(torch.tensor([-0.1, 0.499 / 255, 0.501 / 255, 1.2])).tolist() == [0, 0, 1, 255]
