"""Inception's distances and LPIPS, with networks whose weights are random: the published ones must be downloaded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from scipy.linalg import sqrtm
from test_generation import copying
from torch import Tensor, nn

from vaex import cli
from vaex.data.dataset import Dataset, Images, Source
from vaex.errors import UserError
from vaex.evaluation import generation, pretrained
from vaex.evaluation.comparison import Description, comparison_group
from vaex.evaluation.generation import GENERATION
from vaex.evaluation.measure import Evaluation, measure
from vaex.evaluation.metrics import METRICS
from vaex.evaluation.pretrained import LPIPS, inception_distances, lpips_network
from vaex.likelihoods.gaussian import Gaussian
from vaex.likelihoods.scale import Fixed
from vaex.model import Autoencoder
from vaex.objectives import AE

torchmetrics = pytest.importorskip("torchmetrics")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def new_networks() -> Iterator[None]:
    for load in (pretrained.inception, pretrained.lpips_network):
        load.cache_clear()
    yield
    for load in (pretrained.inception, pretrained.lpips_network):
        load.cache_clear()


@pytest.fixture
def few_features(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network of eight features in place of Inception-v3's 2,048."""

    class Means(nn.Module):
        """Means of four neighboring pixels each, in a corner of the first channel."""

        def forward(self, pixels: Tensor) -> Tensor:
            assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
            return (pixels[:, 0, :4, :8].float() / 255).reshape(len(pixels), 8, 4).mean(2)

    network = Means()
    monkeypatch.setattr(pretrained, "inception", lambda: network)
    monkeypatch.setattr(pretrained, "INCEPTION_FEATURES", 8)
    return network


def color(count: int, seed: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def dataset(images: Tensor, classes: int = 0) -> Dataset:
    split = Images(images, torch.zeros(len(images), dtype=torch.int64))
    return Dataset(source=Source(split, split, classes), validation=0, binarize="none", dequantize="none")


def test_the_distance_is_that_of_two_gaussians(few_features: nn.Module) -> None:
    real, fake = color(300, 0), color(300, 1) // 2 + 40
    distances = inception_distances(real, {"same": real, "other": fake}, CPU)
    a, b = (few_features(pixels).double() for pixels in (real, fake))
    root = torch.as_tensor(sqrtm((a.T.cov() @ b.T.cov()).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (a.T.cov() + b.T.cov() - 2 * root).trace()
    assert distances["other"] == pytest.approx(float(expected), rel=1e-6)
    assert distances["same"] == pytest.approx(0, abs=1e-9)
    assert len(distances["fid_inception_features"]) == 64


def test_gray_images_are_compared_in_color_and_the_number_of_images_must_exceed_that_of_features(
    few_features: nn.Module,
) -> None:
    gray = color(20, 0)[:, :1]
    assert inception_distances(gray, {"same": gray}, CPU)["same"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="--inception: needs images of 1 or 3 channels, got 2"):
        inception_distances(color(20, 0)[:, :2], {}, CPU)
    with pytest.raises(UserError, match="needs more than 8 test images, got 8"):
        inception_distances(color(8, 0), {}, CPU)


def test_images_without_labels_have_distances_by_inception(few_features: nn.Module, source: Source) -> None:
    test = Images(source.test.pixels[:60], source.test.labels[:60])
    unlabeled = Dataset(source=Source(source.train, test, 0), validation=0, binarize="none", dequantize="none")
    results, reasons = measure(Evaluation(copying(0.5), AE(), unlabeled, inception=True), [GENERATION])
    assert not reasons and "test/fid" not in results and "test/precision" not in results
    assert results["test/fid_inception_reconstruction"] == pytest.approx(0, abs=1e-6)
    assert results["test/fid_inception"] > 0.01
    assert results["test/fid_inception_images"] == 60 and results["test/fid_inception_draws"] == "means"
    assert not {"test/fid_images", "test/fid_draws", "test/fid_classifier"} & results.keys()
    noisy, _ = measure(Evaluation(copying(0.5), AE(), unlabeled, inception=True, fid="noise"), [GENERATION])
    assert noisy["test/fid_inception_draws"] == "noise" and "test/fid" not in noisy


def test_no_classifier_is_trained_for_inception_alone(
    few_features: nn.Module, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "classifier_for", None)
    test = Images(source.test.pixels[:60], source.test.labels[:60])
    labeled = Dataset(source=Source(source.train, test, 10), validation=0, binarize="none", dequantize="none")
    results, _ = measure(Evaluation(copying(0.5), AE(), labeled, fid="none", inception=True), [GENERATION])
    assert "test/fid_inception" in results and "test/fid" not in results


def test_numbers_are_compared_only_in_the_features_of_one_network() -> None:
    about = Description(
        dataset="mnist",
        image_shape=(1, 28, 28),
        test_images=60,
        test_sha256="0" * 64,
        binarize="none",
        dequantize="none",
        conditional=False,
        stochastic=True,
        likelihood="gaussian",
        scale="shared",
        likelihood_settings="{}",
        kind="density",
        support="real",
        beta=1.0,
        prior="standard",
        posterior="diagonal",
        rate="closed form",
    ).to_results()
    own: dict[str, Any] = {
        "test/fid_images": 60,
        "test/fid_draws": "means",
        "test/fid_latent": "prior",
        "test/fid_classifier": "a",
    }
    inception: dict[str, Any] = {
        "test/fid_inception_images": 60,
        "test/fid_inception_draws": "noise",
        "test/fid_inception_latent": "prior",
        "test/fid_inception_features": "b",
    }
    metrics = {metric.key: metric for metric in METRICS}
    own["test/fid"] = inception["test/fid_inception"] = inception["test/fid_inception_reconstruction"] = 10.0
    both = {**about, **own, **inception, "test/lpips": 0.1, "test/lpips_network": "c"}
    for key, changed, same in (
        ("test/fid", {"test/fid_inception_features": "d"}, True),
        ("test/fid", {"test/fid_classifier": "d"}, False),
        ("test/fid_inception", {"test/fid_classifier": "d"}, True),
        ("test/fid_inception", {"test/fid_inception_features": "d"}, False),
        ("test/fid_inception_reconstruction", {"test/fid_inception_draws": "means"}, False),
        ("test/lpips", {"test/lpips_network": "d"}, False),
        ("test/lpips", {"test/fid_classifier": "d"}, True),
    ):
        groups = [comparison_group(metrics[key], results) for results in (both, both | changed)]
        assert (groups[0] == groups[1]) == same, (key, changed)
    assert comparison_group(metrics["test/fid"], {**about, **own}) == comparison_group(metrics["test/fid"], both)
    assert comparison_group(metrics["test/fid_inception"], {**about, **own}) is None


class Blur(nn.Module):
    """Encodes an image as itself, and decodes it mixed with its mean."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if x.ndim == 4:
            return torch.cat([x.flatten(1), torch.full((len(x), 3 * 32 * 32), -20.0)], dim=1)
        x = x.view(-1, 3, 32, 32)
        return (1 - self.share) * x + self.share * x.mean((2, 3), keepdim=True)


def blurring(share: float) -> Autoencoder:
    shape = (3, 32, 32)
    likelihood = Gaussian(image_shape=shape, scale=Fixed(image_shape=shape, value=0.5), bounded_mean=False)
    return Autoencoder(encoder=Blur(share), decoder=Blur(share), likelihood=likelihood, latent_dim=3 * 32 * 32)


@pytest.fixture
def random_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.alexnet(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", lambda *_, **__: weights)


def test_lpips_is_zero_for_a_copy_and_grows_with_the_difference(random_alexnet: None) -> None:
    data = dataset(color(12, 0))
    values = []
    for share in (0.0, 0.3, 0.9):
        results, reasons = measure(Evaluation(blurring(share), AE(), data, lpips=True), [LPIPS])
        assert not reasons and len(results["test/lpips_network"]) == 64
        values.append(results["test/lpips"])
    assert values[0] == pytest.approx(0, abs=1e-6) and 0 < values[1] < values[2]


def test_lpips_is_the_librarys_mean_over_images(random_alexnet: None) -> None:
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    pixels = color(12, 0)
    results, _ = measure(Evaluation(blurring(0.5), AE(), dataset(pixels), lpips=True, images_per_batch=5), [LPIPS])
    x = pixels.float() / 255
    expected = learned_perceptual_image_patch_similarity(Blur(0.5)(x.flatten(1)), x, "alex", normalize=True)
    assert results["test/lpips"] == pytest.approx(float(expected), rel=1e-5)


def test_the_smallest_image_of_lpips_is_the_smallest_for_alexnet(random_alexnet: None) -> None:
    size = pretrained.SMALLEST_IMAGE
    lpips_network()(*torch.zeros(2, 1, 3, size, size))
    with pytest.raises(RuntimeError):
        lpips_network()(*torch.zeros(2, 1, 3, size - 1, size - 1))


def test_small_images_have_no_lpips(source: Source) -> None:
    small = Dataset(source=source, validation=0, binarize="none", dequantize="none")
    with pytest.raises(UserError, match="--lpips: needs images of at least 31 × 31 pixels, got 28 × 28; leave it out"):
        measure(Evaluation(copying(0.5), AE(), small, lpips=True), [LPIPS])


@pytest.mark.parametrize("option", ["inception", "lpips"])
def test_weights_that_cannot_be_downloaded_are_one_line_before_anything_is_measured(
    option: str,
    trained: Callable[..., Path],
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", offline)
    monkeypatch.setattr("vaex.commands.eval._evaluate", None)
    with pytest.raises(SystemExit):
        cli.run("eval", [str(trained(*tiny, "steps=2")), f"--{option}"])
    error = capsys.readouterr().err.strip()
    assert (
        error.startswith(f"vaex: --{option}: ") and "cannot be downloaded (<urlopen error no route to host>)" in error
    )
    assert "checkpoints" in error and ".pth" in error and "\n" not in error


@pytest.mark.parametrize("load", [pretrained.inception, pretrained.lpips_network])
def test_a_damaged_file_of_weights_is_named(
    load: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in (pretrained.INCEPTION_FILE, pretrained.ALEXNET_FILE):
        (tmp_path / "checkpoints" / name).write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"checkpoints/.*\.pth: cannot be read .*; delete it to download it again"):
        load()


def test_a_missing_extra_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vaex.commands.eval.find_spec", lambda name: None)
    for option, extra in (("inception", "pretrained"), ("lpips", "pretrained"), ("disentanglement", "disentanglement")):
        with pytest.raises(SystemExit):
            cli.run("eval", ["nowhere", f"--{option}"])
        assert f"pip install 'vaex-autoencoders[{extra}]'" in capsys.readouterr().err


@pytest.mark.slow
def test_inception_itself_gives_2048_features_of_images_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(f"{module}.FeatureExtractorInceptionV3.load_state_dict", lambda *_: None)
    network = pretrained.inception()
    assert network.use_antialias is False  # as TensorFlow 1 resizes
    features = network(color(2, 0))
    assert features.shape == (2, pretrained.INCEPTION_FEATURES) and features.isfinite().all()
    assert lpips_network.cache_info().currsize == 0
