"""Published datasets in their own file formats, made small: what is read, what is refused, and how files come."""

import hashlib
import http.server
import io
import os
import pickle
import re
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import write_idx
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets

from vaex.build import load_dataset
from vaex.config.schema import config_dir
from vaex.data.cache import cached_arrays
from vaex.data.celeba import celeba
from vaex.data.cifar10 import CLASSES, PlainUnpickler, cifar10, read_batch
from vaex.data.dataset import Images, Source
from vaex.data.mnist_like import CHARACTERS, FASHION, KUZUSHIJI, emnist, fashion_mnist, kmnist
from vaex.data.omniglot import omniglot
from vaex.data.svhn import svhn
from vaex.errors import UserError

RANDOM = np.random.default_rng(0)
Patch = pytest.MonkeyPatch


@dataclass
class Case:
    """A dataset's files in a folder, under checksums that torchvision now expects, and what they should give."""

    load: Callable[..., Source]
    options: dict[str, object]
    folder: Path
    files: list[str]
    train: tuple[np.ndarray, list[int]]
    test: tuple[np.ndarray, list[int]]
    names: tuple[str, ...]

    def read(self, root: Path | None = None, download: bool = False) -> Source:
        return self.load(root=str(root or self.folder), download=download, **self.options)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def pictures(count: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)


def write_mnist_like(folder: Path, patch: Patch, name: str) -> Case:
    load, kind, names = {
        "fashion_mnist": (fashion_mnist, datasets.FashionMNIST, FASHION),
        "kmnist": (kmnist, datasets.KMNIST, KUZUSHIJI),
    }[name]
    files, parts = [], []
    for part, count in (("train", 6), ("t10k", 4)):
        pixels, labels = pictures(count, 28, 28), list(range(9, 9 - count, -1))
        for what, array in (("images-idx3", torch.from_numpy(pixels)), ("labels-idx1", torch.tensor(labels))):
            files.append(f"{part}-{what}-ubyte.gz")
            write_idx(folder / files[-1], array)
        parts.append((pixels[:, None], labels))
    patch.setattr(kind, "resources", [(file, md5(folder / file)) for file in files])
    return Case(load, {}, folder, files, parts[0], parts[1], names)


def write_emnist(folder: Path, patch: Patch, split: str = "balanced") -> Case:
    first, parts = (1 if split == "letters" else 0), []
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for part, count in (("train", 6), ("test", 4)):
            pixels, labels = pictures(count, 28, 28), list(range(count))
            pixels[0] = 0
            pixels[0, 3:25, 5] = pixels[0, 24, 5:20] = 255  # an upright L
            transposed, moved = torch.from_numpy(pixels).mT, torch.tensor(labels) + first
            for what, array in (("images-idx3", transposed.contiguous()), ("labels-idx1", moved)):
                name = f"emnist-{split}-{part}-{what}-ubyte.gz"
                write_idx(folder / name, array)
                archive.write(folder / name, f"gzip/{name}")
                (folder / name).unlink()
            parts.append((pixels[:, None], labels))
    patch.setattr(datasets.EMNIST, "md5", md5(folder / "gzip.zip"))
    return Case(emnist, {"split": split}, folder, ["gzip.zip"], parts[0], parts[1], tuple(CHARACTERS[split]))


class Python2Pickler(pickle._Pickler):
    """Bytes and text become Python 2's str, as in the authors' files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_str


def pickled(entry: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(entry)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def write_cifar10(folder: Path, patch: Patch, unpacked: bool = False) -> Case:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    pixels, labels = pictures(12, 3, 32, 32), [*range(10), 3, 1]
    for row, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = slice(2 * row, 2 * row + 2)
        entry = {"data": pixels[rows].reshape(2, 3072), "labels": labels[rows], "batch_label": f"batch {row}"}
        (batches / name).write_bytes(pickled(entry))
    (batches / "batches.meta").write_bytes(pickled({"label_names": list(CLASSES)}))
    for table in ("train_list", "test_list"):
        listed = [[name, md5(batches / name)] for name, _ in getattr(datasets.CIFAR10, table)]
        patch.setattr(datasets.CIFAR10, table, listed)
    patch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(batches / "batches.meta")})
    files = [f"cifar-10-batches-py/{path.name}" for path in batches.glob("*_batch*")]
    if not unpacked:
        files = ["cifar-10-python.tar.gz"]
        with tarfile.open(folder / files[0], "w:gz") as archive:
            for path in sorted(batches.iterdir(), key=lambda path: path.name[::-1]):  # in no order to rely on
                archive.add(path, f"cifar-10-batches-py/{path.name}")
                path.unlink()
        batches.rmdir()
        patch.setattr(datasets.CIFAR10, "tgz_md5", md5(folder / files[0]))
    return Case(cifar10, {}, folder, files, (pixels[:10], labels[:10]), (pixels[10:], labels[10:]), CLASSES)


def write_svhn(folder: Path, patch: Patch) -> Case:
    from scipy.io import savemat

    parts, listed = [], {}
    for part, labels in (("train", [1, 9, 10, 4]), ("test", [10, 2, 3])):
        pixels = pictures(len(labels), 3, 32, 32)
        name = f"{part}_32x32.mat"
        stored = {"X": pixels.transpose(2, 3, 1, 0), "y": np.array(labels, dtype=np.uint8)[:, None]}
        savemat(folder / name, stored, do_compression=True)
        parts.append((pixels, [label % 10 for label in labels]))
        listed[part] = [datasets.SVHN.split_list[part][0], name, md5(folder / name)]
    patch.setattr(datasets.SVHN, "split_list", listed)
    return Case(svhn, {}, folder, [name for _, name, _ in listed.values()], *parts, tuple("0123456789"))


def write_omniglot(folder: Path, patch: Patch, size: int = 105) -> Case:
    parts, listed = [], {}
    for part, alphabets in (("background", ["Tifinagh", "Greek"]), ("evaluation", ["Keble"])):
        drawn = {}
        with zipfile.ZipFile(folder / f"images_{part}.zip", "w") as archive:
            for name in [f"{alphabet}/character0{n}/000{n}_01.png" for alphabet in alphabets for n in (2, 1)]:
                strokes = RANDOM.random((105, 105)) < 0.1
                picture = io.BytesIO()
                Image.fromarray(~strokes).save(picture, "png")
                archive.writestr(f"images_{part}/{name}", picture.getvalue())
                drawn[name] = 255 * strokes.astype(np.uint8)
        parts.append((np.stack([drawn[name] for name in sorted(drawn)])[:, None], [0] * len(drawn)))
        listed[f"images_{part}"] = md5(folder / f"images_{part}.zip")
    patch.setattr(datasets.Omniglot, "zips_md5", listed)
    return Case(omniglot, {"size": size}, folder, [f"{name}.zip" for name in listed], *parts, ())


def write_celeba(folder: Path, patch: Patch, zipped: bool = False, **options: object) -> Case:
    (folder / "img_align_celeba").mkdir()
    across, down = np.meshgrid(np.arange(178), np.arange(218))  # red is the column and green the row
    blues = [0, 50, 100, 150, 200, 250]
    partition = [0, 2, 1, 0, 2, 0]
    names = [f"00000{n}.jpg" for n in range(1, 7)]
    for name, blue in zip(names, blues, strict=True):
        picture = np.stack([across, down, np.full_like(down, blue)], axis=2).astype(np.uint8)
        Image.fromarray(picture).save(folder / "img_align_celeba" / name, quality=95, subsampling=0)
    smiling = [1, -1, -1, 1, 1, -1]
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {part}\n" for name, part in zip(names, partition, strict=True))
    )
    rows = "".join(f"{name} -1 {smile:2}\n" for name, smile in zip(names, smiling, strict=True))
    (folder / "list_attr_celeba.txt").write_text(f"6\nYoung Smiling \n{rows}")
    files = ["list_eval_partition.txt", "list_attr_celeba.txt"]
    if zipped:
        files.append("img_align_celeba.zip")
        with zipfile.ZipFile(folder / files[-1], "w") as archive:
            for path in sorted((folder / "img_align_celeba").iterdir()):
                archive.write(path, f"img_align_celeba/{path.name}")
                path.unlink()
        (folder / "img_align_celeba").rmdir()
    patch.setattr(datasets.CelebA, "file_list", [(f"id of {name}", md5(folder / name), name) for name in files])
    centers = (np.arange(64) + 0.5) * 148 / 64 - 0.5  # of the 64 pixels, in those of the square
    squares = np.empty((6, 3, 64, 64))
    squares[:, 0], squares[:, 1] = 15 + centers, 35 + centers[:, None]
    squares[:, 2] = np.array(blues)[:, None, None]
    train, test = [0, 3, 5, 2], [1, 4]  # validation last
    return Case(
        celeba,
        {"size": 64, "crop": 148, "attribute": "Smiling", **options},
        folder,
        files,
        (squares[train], [1, 1, 0, 0]),
        (squares[test], [0, 1]),
        ("not Smiling", "Smiling"),
    )


CASES: dict[str, Callable[[Path, Patch], Case]] = {
    "fashion_mnist": lambda folder, patch: write_mnist_like(folder, patch, "fashion_mnist"),
    "kmnist": lambda folder, patch: write_mnist_like(folder, patch, "kmnist"),
    "emnist": write_emnist,
    "emnist letters": lambda folder, patch: write_emnist(folder, patch, "letters"),
    "cifar10": write_cifar10,
    "cifar10 unpacked": lambda folder, patch: write_cifar10(folder, patch, unpacked=True),
    "svhn": write_svhn,
    "omniglot": write_omniglot,
    "celeba": write_celeba,
    "celeba zipped": lambda folder, patch: write_celeba(folder, patch, zipped=True),
}
URLS = {  # where torchvision keeps the addresses of each kind
    "fashion_mnist": (datasets.FashionMNIST, "mirrors", lambda url: [url]),
    "emnist": (datasets.EMNIST, "url", lambda url: f"{url}gzip.zip"),
    "cifar10": (datasets.CIFAR10, "url", lambda url: f"{url}cifar-10-python.tar.gz"),
    "omniglot": (datasets.Omniglot, "download_url_prefix", lambda url: url.rstrip("/")),
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: Patch) -> None:
    """An empty cache, and no network."""
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, folder: Path, monkeypatch: Patch) -> Case:
    return CASES[request.param](folder, monkeypatch)


def check(case: Case, source: Source, tolerance: int = 0) -> None:
    for part, (pixels, labels) in ((source.train, case.train), (source.test, case.test)):
        assert part.pixels.dtype == torch.uint8 and part.labels.dtype == torch.int64
        assert part.pixels.shape == pixels.shape
        assert (part.pixels - torch.from_numpy(pixels).double()).abs().max() <= tolerance
        assert part.labels.tolist() == labels
    assert source.class_names == case.names and source.classes == len(case.names)


def tolerance(case: Case) -> int:
    return 3 if case.load is celeba else 0  # JPEG


def one_line(action: Callable[[], object], *, kind: type[Exception] | tuple[type[Exception], ...]) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_pixels_labels_and_split_are_those_in_the_files(case: Case) -> None:
    check(case, case.read(), tolerance(case))


def test_a_second_start_reads_no_file_and_imports_nothing(case: Case, monkeypatch: Patch) -> None:
    case.read()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # an import of it would fail
    check(case, case.read(), tolerance(case))


def test_changed_files_are_read_anew(folder: Path, monkeypatch: Patch) -> None:
    write_mnist_like(folder, monkeypatch, "kmnist").read()
    time.sleep(0.01)  # for another time of change
    changed = write_mnist_like(folder, monkeypatch, "kmnist")
    check(changed, changed.read())


def test_an_array_cut_short_or_a_cache_that_cannot_be_written_costs_only_time(
    folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    case = write_svhn(folder, monkeypatch)
    case.read()
    [pixels] = (tmp_path / "cache").rglob("train-pixels.npy")
    for content in (pixels.read_bytes()[:-1], b""):
        pixels.write_bytes(content)
        check(case, case.read())
    monkeypatch.setenv("VAEX_CACHE", "/proc/can/not/be")
    check(case, case.read())


def test_nothing_is_kept_of_what_cannot_be_decoded(folder: Path, tmp_path: Path) -> None:
    (folder / "file").touch()

    def fail() -> tuple[Images, Images]:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            cached_arrays("key", [folder / "file"], fail)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "name, subfolder", [("kmnist", "KMNIST/raw"), ("celeba", "celeba"), ("omniglot", "omniglot-py")]
)
def test_the_folder_that_torchvision_was_given_will_do(
    name: str, subfolder: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / subfolder).mkdir(parents=True)
    case = CASES[name](tmp_path / subfolder, monkeypatch)
    check(case, case.read(tmp_path), tolerance(case))


def test_torchvision_reads_the_same(folder: Path, monkeypatch: Patch) -> None:
    """The fixtures are in its formats, and what is read here and there agrees."""
    write_cifar10(folder, monkeypatch, unpacked=True)
    theirs = datasets.CIFAR10(str(folder), train=False)
    ours = cifar10(root=str(folder), download=False).test
    assert np.array_equal(ours.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets and tuple(theirs.classes) == CLASSES
    assert tuple(datasets.FashionMNIST.classes) == FASHION and tuple(datasets.KMNIST.classes) == KUZUSHIJI
    for split, names in datasets.EMNIST.classes_split_dict.items():
        assert [name for name in names if name != "N/A"] == list(CHARACTERS[split])


def test_omniglot_is_scaled_without_losing_light(folder: Path, monkeypatch: Patch) -> None:
    case = write_omniglot(folder, monkeypatch, size=28)
    source = case.read()
    assert source.train.pixels.shape == (4, 1, 28, 28) and source.classes == 0
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(case.train[0]).float(), size=28, mode="bilinear", antialias=True
    )
    assert (source.train.pixels - scaled).abs().max() <= 1
    assert len(source.train.pixels.unique()) > 10
    for size in (0, 106):
        with pytest.raises(ValueError, match=f"dataset.source.size={size}"):
            omniglot(root=str(folder), download=False, size=size)


def test_celeba_without_an_attribute_has_no_labels(folder: Path, monkeypatch: Patch) -> None:
    case = write_celeba(folder, monkeypatch, attribute=None)
    (folder / "list_attr_celeba.txt").unlink()
    source = case.read()
    assert source.classes == 0 and source.class_names == () and source.train.labels.tolist() == [0] * 4


@pytest.mark.parametrize(
    "option", [{"attribute": "Grumpy"}, {"crop": 179}, {"crop": 0}, {"size": 0}], ids=lambda option: str(option)
)
def test_celeba_refuses_options_by_name(option: dict[str, object], folder: Path, monkeypatch: Patch) -> None:
    [(name, value)] = option.items()
    case = write_celeba(folder, monkeypatch, **option)
    assert f"dataset.source.{name}={value}" in one_line(case.read, kind=ValueError)


def test_celeba_pictures_missing_or_damaged(folder: Path, monkeypatch: Patch) -> None:
    case = write_celeba(folder, monkeypatch)
    picture = folder / "img_align_celeba" / "000004.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:300])
    assert "000004.jpg: is damaged" in one_line(case.read, kind=ValueError)
    picture.unlink()
    assert re.search(
        "lacks 1 of 6 pictures, for example 000004.jpg.*img_align_celeba.zip", one_line(case.read, kind=OSError)
    )
    picture.write_bytes(whole)
    check(case, case.read(), tolerance(case))


def test_unpacking_that_was_killed_is_done_anew_and_stays_within_its_folder(folder: Path, monkeypatch: Patch) -> None:
    case = write_celeba(folder, monkeypatch, zipped=True)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "a") as archive:
        archive.writestr("../../outside.txt", "")
    listed = [(key, md5(folder / name), name) for key, _, name in datasets.CelebA.file_list]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", kill)
        case.read()
    assert {path.name for path in folder.iterdir()} <= {*case.files, ".lock"}
    check(case, case.read(), tolerance(case))
    assert not list(folder.parent.rglob("outside.txt"))


def test_a_missing_file_is_named_with_its_folder_and_the_remedy(case: Case) -> None:
    (case.folder / case.files[-1]).unlink()
    message = one_line(case.read, kind=FileNotFoundError)
    assert str(case.folder) in message and Path(case.files[-1]).name in message
    assert "dataset.source.root=" in message


def test_files_that_are_damaged_or_others_are_named_and_left_alone(case: Case) -> None:
    for name in case.files:
        path = case.folder / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for content in (whole[: len(whole) // 2], bytes(flipped), b"", b"<html>404</html>"):
            path.write_bytes(content)
            message = one_line(lambda: case.read(download=True), kind=ValueError)
            assert message.startswith(f"{path}: has MD5 {hashlib.md5(content).hexdigest()}") and "replace it" in message
            assert path.read_bytes() == content
        path.write_bytes(whole)
    check(case, case.read(), tolerance(case))


class Mischief:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch mischief",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": Mischief(), "labels": []}),
        pickle.dumps(Path("x")),
        b'cbuiltins\neval\n(S\'open("mischief", "w")\'\ntR.',
        b"cnumpy\nload\n(S'x'\ntR.",
        pickle.dumps([1]),
        b"<html>",
        b"",
    ],
    ids=["system", "path", "eval", "numpy.load", "list", "html", "empty"],
)
def test_a_pickle_runs_nothing(content: bytes, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data_batch_1: not a batch of CIFAR-10" in one_line(
        lambda: read_batch(content, "data_batch_1"), kind=ValueError
    )
    assert not (tmp_path / "mischief").exists()


def test_a_batch_with_the_expected_md5_runs_nothing_either(folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    case = write_cifar10(folder, monkeypatch, unpacked=True)
    batch = folder / "cifar-10-batches-py" / "data_batch_1"
    batch.write_bytes(pickle.dumps(Mischief()))
    _, *others = datasets.CIFAR10.train_list
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5(batch)], *others])
    assert "data_batch_1: not a batch of CIFAR-10" in one_line(case.read, kind=ValueError)
    assert not (tmp_path / "mischief").exists()


def test_plain_values_and_arrays_do_come_out_of_a_pickle() -> None:
    entry = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "name": "x"}
    for content in (pickled(entry), pickle.dumps(entry, protocol=4)):
        loaded = PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        assert np.array_equal(loaded["data"], entry["data"]) and loaded["labels"] == [1, 2]


def test_svhn_without_scipy_says_what_to_install(folder: Path, monkeypatch: Patch) -> None:
    case = write_svhn(folder, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert "pip install 'vaex-autoencoders[datasets]'" in one_line(case.read, kind=ValueError)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("cifar10 unpacked", "celeba")])
def test_offline_one_line_says_what_to_put_where_and_nothing_is_left(
    name: str, folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    case = CASES[name](folder, monkeypatch)
    monkeypatch.delitem(sys.modules, "gdown", raising=False)
    empty = tmp_path / "empty"
    message = one_line(lambda: case.read(empty, download=True), kind=OSError)
    assert str(empty) in message and all(file in message for file in case.files) and "dataset.source.root=" in message
    assert "not known" in message or "pip install 'vaex-autoencoders[datasets]'" in message
    assert {path.name for path in empty.iterdir()} <= {".lock"}
    assert socket.getdefaulttimeout() is None


def test_a_folder_that_cannot_be_written_is_named(folder: Path, monkeypatch: Patch) -> None:
    case = write_svhn(folder, monkeypatch)
    for root in (Path("/proc/nowhere"), folder / case.files[0]):
        message = one_line(lambda root=root: case.read(root, download=True), kind=OSError)
        assert message.startswith(f"{root}: can't be written to") and "dataset.source.root=" in message


def test_the_config_ends_in_that_line_and_points_to_the_cache(tmp_path: Path) -> None:
    for name in ("fashion_mnist", "kmnist", "emnist", "cifar10", "svhn", "omniglot", "celeba"):
        config = OmegaConf.to_container(OmegaConf.load(config_dir() / "dataset" / f"{name}.yaml"))
        config["source"]["download"] = False
        message = one_line(lambda config=config: load_dataset(config), kind=UserError)
        assert str(tmp_path / "cache" / "datasets" / name) in message
        assert message.endswith("or set dataset.source.download=true")


class TestDownload:
    @pytest.fixture
    def server(self, folder: Path, monkeypatch: Patch) -> Iterator[str]:
        """The files of `folder` on this machine alone."""
        monkeypatch.undo()  # the network is back, the cache and the checksums are set by each test

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()
            thread.join()

    @pytest.fixture(params=[*URLS, "svhn"])
    def served(
        self, request: pytest.FixtureRequest, server: str, folder: Path, tmp_path: Path, monkeypatch: Patch
    ) -> Case:
        monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
        case = CASES[request.param](folder, monkeypatch)
        if request.param == "svhn":
            rows = {part: [server + name, name, md5] for part, (_, name, md5) in datasets.SVHN.split_list.items()}
            monkeypatch.setattr(datasets.SVHN, "split_list", rows)
        else:
            kind, attribute, address = URLS[request.param]
            monkeypatch.setattr(kind, attribute, address(server))
        return case

    def test_files_come_once_whole_and_checked(self, served: Case, tmp_path: Path) -> None:
        source = served.load(root=None, download=True, **served.options)
        check(served, source)
        [home] = (tmp_path / "cache" / "datasets").iterdir()
        assert {path.name for path in home.iterdir()} == {*served.files, ".lock"}
        for name in served.files:
            assert (home / name).read_bytes() == (served.folder / name).read_bytes()
            (served.folder / name).unlink()  # the server has nothing any more
        check(served, served.load(root=None, download=True, **served.options))

    def test_what_is_not_as_published_is_not_kept(self, served: Case, tmp_path: Path) -> None:
        last = served.folder / served.files[-1]
        last.write_bytes(last.read_bytes()[:-9])
        message = one_line(lambda: served.read(tmp_path / "new", download=True), kind=OSError)
        assert f"{last.name} could not be downloaded" in message
        assert {path.name for path in (tmp_path / "new").iterdir()} == {*served.files[:-1], ".lock"}

    def test_a_download_that_was_killed_leaves_no_file(self, served: Case, tmp_path: Path, monkeypatch: Patch) -> None:
        def kill(url: str, path: str) -> None:
            Path(path).write_bytes((served.folder / Path(path).name).read_bytes()[:50])
            raise KeyboardInterrupt

        new = tmp_path / "new"
        (new / ".download-0").mkdir(parents=True)  # what a power cut leaves
        (new / ".download-0" / served.files[0]).write_bytes(b"half")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("torchvision.datasets.utils._urlretrieve", kill)
            served.read(new, download=True)
        assert {path.name for path in new.iterdir()} == {".lock", ".download-0"}
        check(served, served.read(new, download=True))

    def test_a_second_mirror_is_tried(self, server: str, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        case = write_mnist_like(folder, monkeypatch, "fashion_mnist")
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{server}nowhere/", server])
        check(case, case.read(tmp_path / "new", download=True))

    def test_runs_that_start_together_fetch_once(self, served: Case, tmp_path: Path, monkeypatch: Patch) -> None:
        from torchvision.datasets import utils

        fetched, original = [], utils._urlretrieve
        monkeypatch.setattr(utils, "_urlretrieve", lambda *given: (fetched.append(given), original(*given)))
        sources: list[Source] = []
        runs = [
            threading.Thread(target=lambda: sources.append(served.read(tmp_path / "new", download=True)))
            for _ in range(3)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert len(sources) == 3 and len(fetched) == len(served.files)

    def test_celeba_comes_through_gdown(self, folder: Path, tmp_path: Path, monkeypatch: Patch) -> None:
        case = write_celeba(folder, monkeypatch, zipped=True)
        gdown = ModuleType("gdown")
        gdown.__spec__ = ModuleSpec("gdown", None)

        def download(*, id: str, output: str, quiet: bool, user_agent: str) -> str:
            Path(output).write_bytes((folder / id.removeprefix("id of ")).read_bytes())
            return output

        gdown.download = download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gdown", gdown)
        check(case, case.read(tmp_path / "new", download=True), tolerance(case))
        names = {path.name for path in (tmp_path / "new").iterdir()}
        assert names == {*case.files, "img_align_celeba", ".lock"}
