"""Folders of pictures: what becomes of their pixels, labels and splits, and of the cache when things go wrong."""

import contextlib
import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaex.data import pictures
from vaex.data.cache import folder_lock, map_array, new_file
from vaex.data.dataset import Source
from vaex.data.image_folder import image_folder
from vaex.data.pictures import decode, decode_pictures


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def save(path: Path, color: object = 0, mode: str = "RGB", size: tuple[int, int] = (8, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def fill(root: Path, count: int = 20, labels: tuple[str, ...] = ("a", "b"), start: int = 0) -> None:
    """Pictures whose gray is their number, under the label that their number gives."""
    for n in range(start, start + count):
        save(root / labels[n % len(labels)] / f"{n}.png", n, "L")


def load(root: Path | str | None, size: int = 8, channels: int = 1, test: float = 0.3) -> Source:
    return image_folder(root=root if root is None else str(root), size=size, channels=channels, test=test)


def grays(source: Source) -> tuple[list[int], list[int]]:
    return source.train.pixels[:, 0, 0, 0].tolist(), source.test.pixels[:, 0, 0, 0].tolist()


def one(path: Path, size: int = 8, channels: int = 3, crop: int | None = None) -> list[int]:
    """The color of a picture of a single one."""
    flat = decode(path, size=size, channels=channels, crop=crop).reshape(channels, -1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def entries(cache: Path) -> list[Path]:
    """Folders in the cache with any file but their lock."""
    return sorted({path.parent for path in cache.glob("*/*") if path.name != ".lock"})


def unfinished(cache: Path) -> list[Path]:
    return list(cache.glob("*/*.tmp"))


class TestPixels:
    def test_colors_are_kept_in_any_lossless_mode(self, root: Path) -> None:
        assert one(save(root / "a.png", (200, 30, 90))) == [200, 30, 90]
        assert one(save(root / "a.bmp", (200, 30, 90))) == [200, 30, 90]
        assert one(save(root / "a.tif", (200, 30, 90))) == [200, 30, 90]
        assert one(save(root / "a.ppm", (200, 30, 90))) == [200, 30, 90]
        assert one(save(root / "a.webp", (200, 30, 90), lossless=True)) == [200, 30, 90]
        assert one(save(root / "a.gif", (200, 30, 90))) == [200, 30, 90]
        assert one(save(root / "l.png", 77, "L")) == [77] * 3
        assert one(save(root / "0.png", 0, "1")) == [0] * 3
        assert one(save(root / "1.png", 1, "1")) == [255] * 3
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([1, 2, 3, 200, 30, 90])
        palette.save(root / "p.png")
        assert one(root / "p.png") == [200, 30, 90]

    def test_cmyk_is_what_its_inks_leave(self, root: Path) -> None:
        assert one(save(root / "c.tif", (255, 0, 0, 0), "CMYK")) == [0, 255, 255]
        assert one(save(root / "k.tif", (0, 0, 0, 102), "CMYK")) == [153] * 3
        assert one(save(root / "c.jpg", (255, 0, 0, 0), "CMYK")) == pytest.approx([0, 255, 255], abs=2)

    def test_color_becomes_luma_and_gray_stays(self, root: Path) -> None:
        for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90)):
            luma = np.dot((0.299, 0.587, 0.114), color)  # ITU-R BT.601
            assert one(save(root / "a.png", color), channels=1) == [round(luma)]
        for gray in (0, 77, 255):
            assert one(save(root / "l.png", gray, "L"), channels=1) == [gray]

    @pytest.mark.parametrize("alpha, share", [(0, 0), (51, 0.2), (255, 1)])
    def test_transparency_shows_white(self, alpha: int, share: float, root: Path) -> None:
        shown = [round(share * value + (1 - share) * 255) for value in (200, 30, 90)]
        assert one(save(root / "rgba.png", (200, 30, 90, alpha), "RGBA")) == shown
        gray = round(share * 100 + (1 - share) * 255)
        assert one(save(root / "la.png", (100, alpha), "LA")) == [gray] * 3
        assert one(save(root / "la.png", (100, alpha), "LA"), channels=1) == [gray]

    def test_a_transparent_color_shows_white(self, root: Path) -> None:
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([1, 2, 3, 200, 30, 90])
        palette.save(root / "p.png", transparency=1)
        palette.save(root / "bytes.png", transparency=bytes([255, 51]))
        palette.save(root / "p.gif", transparency=1)
        assert one(root / "p.png") == one(root / "p.gif") == [255] * 3
        assert one(root / "bytes.png") == [244, 210, 222]  # 0.2 of the color and 0.8 of white
        assert one(save(root / "l.png", 100, "L", transparency=100)) == [255] * 3
        assert one(save(root / "rgb.png", (1, 2, 3), transparency=(1, 2, 3))) == [255] * 3

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_16_bit_gray_is_scaled_not_clipped(self, suffix: str, root: Path) -> None:
        for value in (0, 255, 257 * 40 + 200, 257 * 100, 65535):
            Image.fromarray(np.full((8, 8), value, np.uint16)).save(root / f"a.{suffix}")
            assert one(root / f"a.{suffix}", channels=1) == [round(value / 257)]

    def test_pixels_of_unknown_range_are_refused(self, root: Path) -> None:
        Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(root / "f.tif")
        Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(root / "i.tif")
        for name in ("f.tif", "i.tif"):
            with pytest.raises(ValueError, match="range isn't known"):
                one(root / name)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_exif_orientation_turns_the_picture(self, suffix: str, root: Path) -> None:
        upright = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        # How the stored picture comes from the upright one: EXIF 2.32, table of Orientation.
        stored: dict[int, Callable[[np.ndarray], np.ndarray]] = {
            1: lambda x: x,
            2: np.fliplr,
            3: lambda x: np.rot90(x, 2),
            4: np.flipud,
            5: np.transpose,
            6: np.rot90,  # to be turned clockwise when shown
            7: lambda x: np.rot90(x, 2).T,
            8: lambda x: np.rot90(x, -1),
        }
        for orientation, turned in stored.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(np.ascontiguousarray(turned(upright))).save(root / f"x.{suffix}", exif=exif)
            assert (decode(root / f"x.{suffix}", size=8, channels=1, crop=None)[0] == upright).all()

    def test_size_unchanged_changes_no_pixel(self, root: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (9, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "x.png")
        assert (decode(root / "x.png", size=9, channels=3, crop=None) == noise[:, 5:14].transpose(2, 0, 1)).all()
        assert (decode(root / "x.png", size=5, channels=3, crop=5) == noise[2:7, 7:12].transpose(2, 0, 1)).all()

    def test_a_gradient_keeps_its_slope_and_place(self, root: Path) -> None:
        gray = np.tile(np.arange(0, 240, dtype=np.uint8), (240, 1))
        Image.fromarray(gray).save(root / "x.png")
        small = decode(root / "x.png", size=40, channels=1, crop=None)[0]
        centers = (np.arange(40) + 0.5) * 6 - 0.5  # of each pixel, in pixels of the picture
        assert np.abs(small - centers)[:, 1:-1].max() <= 1
        assert (small == small[:1]).all()
        cut = decode(root / "x.png", size=40, channels=1, crop=80)[0]
        assert np.abs(cut - (80 + (np.arange(40) + 0.5) * 2 - 0.5))[:, 1:-1].max() <= 1

    @pytest.mark.parametrize("size", [7, 32, 90])
    def test_edges_do_not_overshoot_and_fine_patterns_do_not_alias(self, size: int, root: Path) -> None:
        edge = np.full((64, 64), 40, np.uint8)
        edge[:, 29:] = 215
        Image.fromarray(edge).save(root / "edge.png")
        resized = decode(root / "edge.png", size=size, channels=1, crop=None)
        assert resized.min() == 40 and resized.max() == 215
        stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
        Image.fromarray(stripes).save(root / "stripes.png")
        if size == 7:
            assert np.abs(decode(root / "stripes.png", size=7, channels=1, crop=None) - 127.5).max() < 10

    def test_non_square_pictures_lose_their_ends(self, root: Path) -> None:
        wide = np.repeat(np.array([10, 100, 200], np.uint8), 30)
        Image.fromarray(np.tile(wide, (30, 1))).save(root / "wide.png")
        Image.fromarray(np.tile(wide[:, None], (1, 30))).save(root / "tall.png")
        for name in ("wide", "tall"):
            square = decode(root / f"{name}.png", size=10, channels=1, crop=None)
            assert square.shape == (1, 10, 10)
            assert (square[:, 1:-1, 1:-1] == 100).all()
        with pytest.raises(ValueError, match="90 × 30 pixels are less than the crop of 31"):
            decode(root / "wide.png", size=10, channels=1, crop=31)

    def test_an_animation_shows_its_first_frame(self, root: Path) -> None:
        frames = [Image.new("RGB", (8, 8), color) for color in ((200, 30, 90), (0, 0, 0))]
        for name in ("a.gif", "a.webp", "a.png"):
            options = {"lossless": True} if name == "a.webp" else {}
            frames[0].save(root / name, save_all=True, append_images=frames[1:], **options)
            assert one(root / name) == [200, 30, 90]

    def test_the_content_counts_and_not_the_suffix_but_nothing_that_starts_programs(self, root: Path) -> None:
        save(root / "a.png", (200, 30, 90)).rename(root / "a.jpg")
        assert one(root / "a.jpg") == [200, 30, 90]
        Image.new("RGB", (8, 8)).save(root / "x.eps")
        (root / "x.eps").rename(root / "x.png")
        with pytest.raises(OSError, match="cannot identify"):
            one(root / "x.png")


class TestFolder:
    def test_sub_folders_are_labels_in_order(self, root: Path) -> None:
        fill(root, 40, ("zebra", "Äpfel mit Birnen", "b"))
        source = load(root)
        assert source.class_names == ("b", "zebra", "Äpfel mit Birnen") and source.classes == 3
        for part in (source.train, source.test):
            assert part.pixels.dtype == torch.uint8 and part.pixels.shape[1:] == (1, 8, 8)
            assert part.labels.dtype == torch.int64
            assert [[1, 2, 0][n % 3] for n in part.pixels[:, 0, 0, 0].tolist()] == part.labels.tolist()
        assert sorted(sum(grays(source), [])) == list(range(40))

    def test_suffixes_in_any_case_at_any_depth_and_hidden_files_not(self, root: Path) -> None:
        for n, name in enumerate(("A.PNG", "b.JpG", "deep/er/c.tiff", "d.jpeg", "x y/ü.webp", "f.TIF", "g.gif")):
            save(root / "p" / name, n)
        for name in (".hidden.png", ".folder/x.png", "._a.png"):
            save(root / "q" / name)
        (root / "notes.txt").write_text("no picture")
        (root / "r").mkdir()
        source = load(root, test=0.5)
        assert len(source.train) + len(source.test) == 7
        assert source.classes == 0 and source.class_names == ()  # a single sub-folder is no label
        assert not source.train.labels.any() and not source.test.labels.any()

    def test_without_sub_folders_there_are_no_classes(self, root: Path) -> None:
        fill(root, 20, (".",))
        source = load(root)
        assert source.classes == 0 and len(source.train.labels) + len(source.test.labels) == 20

    def test_added_pictures_move_none_between_the_splits(self, root: Path) -> None:
        fill(root, 60)
        train, test = grays(load(root))
        fill(root, 120, start=60)
        more_train, more_test = grays(load(root))
        assert [n for n in more_train if n < 60] == train and [n for n in more_test if n < 60] == test
        assert len(more_train) + len(more_test) == 180

    def test_a_larger_fraction_takes_more_into_the_same_split(self, root: Path, cache: Path) -> None:
        fill(root, 200)
        small, large = set(grays(load(root, test=0.1))[1]), set(grays(load(root, test=0.4))[1])
        assert small < large
        assert abs(len(small) - 20) < 4 * (200 * 0.1 * 0.9) ** 0.5
        assert abs(len(large) - 80) < 4 * (200 * 0.4 * 0.6) ** 0.5
        assert len(entries(cache)) == 1  # the same order, so decoded once

    def test_the_order_is_that_of_the_names_sha256(self, root: Path) -> None:
        from hashlib import sha256

        fill(root, 50)
        train, test = grays(load(root))
        names = {n: f"{'ab'[n % 2]}/{n}.png" for n in range(50)}
        assert train + test == sorted(range(50), key=lambda n: sha256(names[n].encode()).hexdigest())
        assert all(int(sha256(names[n].encode()).hexdigest()[:8], 16) >= 0.7 * 2**32 for n in test)
        assert len(test) > 5

    def test_accents_written_as_one_letter_or_two_are_one_name(self, root: Path) -> None:
        from vaex.data.image_folder import _find_pictures

        for form in ("\u00e9", "e\u0301"):
            save(root / form / "caf\u00e9" / f"{form}.png")
        pictures = _find_pictures(str(root), str(root), [], [])
        assert len({p.label for p in pictures}) == 1
        assert len({p.position for p in pictures}) == 1 and len({p.file for p in pictures}) == 2

    def test_labels_are_mixed_in_what_becomes_the_validation_split(self, root: Path) -> None:
        fill(root, 200, ("a", "b"))
        assert 15 < load(root).train.labels[-50:].sum() < 35

    @pytest.mark.parametrize("held_out", ["test", "val", "Valid"])
    def test_folders_for_the_splits(self, held_out: str, root: Path) -> None:
        fill(root / "train", 12, ("a", "b"))
        fill(root / held_out, 6, ("b", "c"), start=100)
        save(root / "elsewhere" / "x.png", 255, "L")
        source = load(root)
        train, test = grays(source)
        assert sorted(train) == list(range(12)) and sorted(test) == list(range(100, 106))
        assert source.class_names == ("a", "b", "c")
        assert [1 + n % 2 for n in test] == source.test.labels.tolist()

    def test_a_validation_folder_is_the_end_of_the_training_images(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        for start, name in enumerate(("train", "valid", "test")):
            fill(root / name, 6, start=10 * start)
        (root / "valid" / "a" / "broken.png").touch()
        train, test = grays(load(root))
        assert [n // 10 for n in train] == [0] * 6 + [1] * 6 and sorted(test) == list(range(20, 26))
        assert "dataset.validation=6" in caplog.text

    @pytest.mark.parametrize("train, test", [("training", "testing"), ("TRAIN", "Testing"), ("Training", "Validation")])
    def test_other_names_of_the_splits(self, train: str, test: str, root: Path) -> None:
        fill(root / train, 12, ("a", "b"))
        fill(root / test, 6, ("a", "b"), start=100)
        source = load(root)
        assert sorted(grays(source)[0]) == list(range(12)) and sorted(grays(source)[1]) == list(range(100, 106))
        assert source.class_names == ("a", "b")

    def test_folders_beside_the_splits_are_left_out_by_name(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        for start, name in enumerate(("training", "testing", "extras")):
            fill(root / name, 6, start=10 * start)
        train, test = grays(load(root))
        assert sorted(train + test) == [*range(6), *range(10, 16)]
        assert "'extras' left out: beside the folders of the splits" in caplog.text

    def test_a_split_with_two_folders_is_refused(self, root: Path) -> None:
        for name in ("train", "Training", "test"):
            fill(root / name, 6)
        with pytest.raises(ValueError, match="holds Training and train, and each may be the training split; merge"):
            load(root)

    def test_splits_inside_other_folders_are_refused(self, root: Path) -> None:
        for name in ("train", "test"):
            fill(root / "release" / name, 6)
        with pytest.raises(ValueError, match=f"splits inside 'release'; give dataset.source.root={root}/release"):
            load(root)
        assert len(load(root / "release").train) == 6
        for label in ("cats", "dogs"):
            fill(root / label / "Train", 6, (".",))
            fill(root / label / "Val", 6, (".",))
        with pytest.raises(ValueError, match="splits inside 'cats', 'dogs', 'release'.*train/CLASS and test/CLASS"):
            load(root)

    def test_a_class_may_have_the_name_of_a_split(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(root, 20, ("plane", "train"))
        assert load(root).class_names == ("plane", "train")
        assert "'train' taken as a class, not as a split, because there is no folder test" in caplog.text

    def test_pictures_beside_the_classes_are_left_out_by_name(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(root, 20)
        save(root / "preview.png", 255, "L")
        source = load(root)
        assert 255 not in sum(grays(source), []) and source.class_names == ("a", "b")
        assert "'preview.png' left out" in caplog.text

    def test_beside_a_single_sub_folder_they_are_taken(self, root: Path) -> None:
        fill(root, 20, ("a", "."))
        source = load(root)
        assert sorted(sum(grays(source), [])) == list(range(20)) and source.classes == 0

    def test_a_class_without_good_pictures_keeps_its_label(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(root, 20, ("a", "c"))
        (root / "b").mkdir()
        (root / "b" / "x.png").touch()
        source = load(root)
        assert source.class_names == ("a", "b", "c")
        assert set(source.train.labels.tolist()) == {0, 2}
        assert "no good training picture of 'b'" in caplog.text


class TestFormats:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that Pillow will drop
    def test_every_format_that_pillow_reads_and_writes_is_decoded(self, root: Path) -> None:
        Image.init()
        expected = {}
        for suffix, name in sorted(Image.registered_extensions().items()):
            if name not in Image.SAVE or name not in Image.OPEN or name in pictures.NOT_DECODED:
                continue
            for mode, color in (("RGB", (200, 200, 200)), ("L", 200), ("1", 1)):  # some hold only one of these
                with contextlib.suppress(OSError, ValueError, KeyError):
                    Image.new(mode, (32, 32), color).save(root / f"x{suffix}")
                    expected[f"x{suffix}"] = 255 if mode == "1" else 200
                    break
                (root / f"x{suffix}").unlink(missing_ok=True)
        assert {"x.jfif", "x.avif", "x.webp", "x.bmp", "x.tif", "x.gif", "x.jp2", "x.tga"} <= expected.keys()
        for name, gray in expected.items():
            assert one(root / name, channels=1) == pytest.approx([gray], abs=3), name
        source = load(root, test=0.5)
        assert len(source.train) + len(source.test) == len(expected)

    def test_a_class_of_other_suffixes_does_not_vanish(self, root: Path) -> None:
        fill(root, 20)
        for n in range(20):
            save(root / "c" / f"{n}.jpg", n, "L").rename(root / "c" / f"{n}.JFIF")
        assert load(root).class_names == ("a", "b", "c")

    def test_other_files_are_counted(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(root, 20)
        for n in range(3):
            (root / "a" / f"{n}.HEIC").touch()
        (root / "b" / "notes.txt").touch()
        (root / "b" / "README").touch()
        load(root)
        message = "5 files are left out, whose types Pillow doesn't decode: 3 .heic, "
        assert message in caplog.text and "1 .txt" in caplog.text and "1 without a suffix" in caplog.text
        shutil.rmtree(root / "b")
        for picture in (root / "a").glob("*.png"):
            picture.unlink()
        with pytest.raises(ValueError, match="no pictures that Pillow decodes, but 3 .heic"):
            load(root)

    def test_no_format_that_is_decoded_can_start_a_program(self) -> None:
        Image.init()
        sources = {
            name: Path(str(inspect.getsourcefile(plugin)))
            for name, (plugin, _) in Image.OPEN.items()
            if inspect.isclass(plugin)
        }
        able = {name for name, path in sources.items() if re.search(r"subprocess|os\.system|popen", path.read_text())}
        # These two can, for functions that Image.open and load never call: load_djpeg and _save_netpbm.
        assert able & set(pictures.picture_formats().values()) <= {"GIF", "JPEG"} and "EPS" in able


class TestLinks:
    def test_links_out_are_skipped_by_name(self, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(root, 20)
        save(tmp_path / "secret" / "x.png", 255, "L")
        save(tmp_path / "root-of-another" / "x.png", 255, "L")
        (root / "a" / "out.png").symlink_to(tmp_path / "secret" / "x.png")
        (root / "out").symlink_to(tmp_path / "secret")
        (root / "similar").symlink_to(tmp_path / "root-of-another")
        (root / "a" / "up").symlink_to("../..")
        (root / "a" / "nothing.png").symlink_to("nowhere.png")
        assert sorted(sum(grays(load(root)), [])) == list(range(20))
        message = next(m for m in caplog.messages if "lead out of the folder" in m)
        assert "'out'" in message and "'similar'" in message and "2 more" in message and "\n" not in message

    def test_a_split_may_not_be_a_link_out(self, root: Path, tmp_path: Path) -> None:
        fill(root / "test", 20)
        fill(tmp_path / "elsewhere", 20)
        (root / "train").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="holds test but no train"):
            load(root)

    def test_loops_end_and_a_file_counts_once(self, root: Path) -> None:
        fill(root, 20)
        (root / "a" / "loop").symlink_to("..")
        (root / "0").symlink_to("b")
        (root / "self").symlink_to("self")
        (root / "a" / "twice.png").symlink_to("0.png")
        source = load(root)
        assert sorted(sum(grays(source), [])) == list(range(20)) and source.class_names == ("a", "b")

    def test_links_within_lead_to_what_is_not_there_itself(self, root: Path) -> None:
        fill(root / ".pool", 20)
        (root / "x").symlink_to(".pool/a")
        save(root / "y" / "own.png", 99, "L")
        (root / "y" / "linked.png").symlink_to("../.pool/b/1.png")
        source = load(root)
        assert source.class_names == ("x", "y")
        assert sorted(sum(grays(source), [])) == sorted([*range(0, 20, 2), 1, 99])

    def test_the_root_may_be_a_link(self, root: Path, tmp_path: Path) -> None:
        fill(root, 20)
        (tmp_path / "link").symlink_to(root)
        assert grays(load(tmp_path / "link")) == grays(load(root))


class TestErrors:
    def one_line(self, kind: type[Exception], root: Path | str | None, **options: float) -> str:
        with pytest.raises(kind) as error:
            load(root, **options)  # type: ignore[arg-type]
        message = str(error.value)
        assert message.startswith("dataset.source.") and "\n" not in message
        return message

    def test_root(self, root: Path, tmp_path: Path) -> None:
        assert "root=null" in self.one_line(FileNotFoundError, None)
        assert "root=/data/flowers" in self.one_line(FileNotFoundError, tmp_path / "nowhere")
        assert "file.png" in self.one_line(FileNotFoundError, save(tmp_path / "file.png"))
        assert "holds no pictures that Pillow decodes" in self.one_line(ValueError, root)
        (root / "a" / "b").mkdir(parents=True)
        assert "holds no pictures" in self.one_line(ValueError, root)

    def test_options(self, root: Path) -> None:
        fill(root)
        for test in (0, 1, -0.1, 10):
            assert f"test={test}: must be between 0 and 1" in self.one_line(ValueError, root, test=test)
        assert "channels=2: must be 1" in self.one_line(ValueError, root, channels=2)
        assert "size=0: must be at least 1" in self.one_line(ValueError, root, size=0)
        with pytest.raises(ValueError, match=r"dataset.source.crop=0: "):
            decode_pictures([root / "a/0.png"], root=root, size=8, channels=3, crop=0)

    def test_splits(self, root: Path, tmp_path: Path) -> None:
        fill(root / "train", 4)
        assert f"no test; dataset.source.root={root}/train takes" in self.one_line(ValueError, root)
        save(root / "test" / "flat.png")
        assert "has no good test picture in a class's folder" in self.one_line(ValueError, root)
        save(tmp_path / "few" / "1.png")
        assert "test=0.01: leaves no test picture of 1" in self.one_line(ValueError, tmp_path / "few", test=0.01)

    def test_a_folder_that_cannot_be_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(root)
        scandir = os.scandir

        def closed(path: str) -> object:
            if str(path).endswith("/b"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        assert "/b'" in self.one_line(OSError, root)

    def test_nothing_good(self, root: Path, cache: Path) -> None:
        for name in ("a.png", "b.png"):
            (root / name).write_bytes(b"not a picture")
        assert "none of 2 pictures can be decoded" in self.one_line(ValueError, root)
        assert entries(cache) == []


class TestBadFiles:
    def test_they_are_named_once_and_left_out(self, root: Path, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
        fill(root, 100)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for suffix in ("png", "jpg", "webp", "gif", "tif"):
            path = root / "a" / f"cut off.{suffix}"
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        (root / "a" / "empty.png").touch()
        (root / "b" / "text\n.jpg").write_text("<html>404</html>")
        bomb = b"P5 60000 60000 255\n"
        (root / "b" / "bomb.pgm").write_bytes(bomb)
        for _ in range(2):
            caplog.clear()
            train, test = grays(source := load(root))
            assert sorted(train + test) == list(range(100))
            assert [n % 2 for n in train] == source.train.labels.tolist()
            warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(warned) == 1 and warned[0].name == "vaex"
            message = warned[0].getMessage()
            assert "8 of 108 pictures" in message and "\n" not in message and message.count(".png'") <= 3
        (entry,) = entries(cache)
        listed = (entry / "failed.txt").read_text().splitlines()
        assert str(entry / "failed.txt") in message and len(listed) == 8
        assert any("bomb" in line and "DecompressionBomb" in line for line in listed)
        assert any(line.startswith(r"'b/text\n.jpg' UnidentifiedImageError") for line in listed)

    def test_the_indices_are_of_the_good_files(self, root: Path) -> None:
        files = [save(root / f"{n}.png", n, "L") for n in range(100)]
        for n in (0, 41, 42, 99):
            files[n].write_bytes(b"")
        for _ in range(2):
            pixels, rows = decode_pictures(files, root=root, size=4, channels=1)
            assert rows == [n for n in range(100) if n not in (0, 41, 42, 99)]
            assert pixels[:, 0, 0, 0].tolist() == rows and pixels.shape == (96, 1, 4, 4)

    def test_one_that_could_not_be_read_is_tried_again(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [save(root / f"{n}.png", n, "L") for n in range(3)]
        whole = decode

        def closed(file: Path, **options: object) -> np.ndarray:
            if file.name == "1.png":
                raise PermissionError(13, "Permission denied")
            return whole(file, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(pictures, "decode", closed)
            assert decode_pictures(files, root=root, size=4, channels=1)[1] == [0, 2]
        assert decode_pictures(files, root=root, size=4, channels=1)[1] == [0, 1, 2]

    def test_odd_metadata_is_no_warning(self, root: Path) -> None:
        save(root / "a.jpg", (200, 30, 90), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
        pixels, rows = decode_pictures([root / "a.jpg"], root=root, size=4, channels=3)
        assert rows == [0]


class TestCache:
    @pytest.fixture
    def closed(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def close() -> None:
            def fail(*arguments: object, **options: object) -> None:
                raise AssertionError("decoded again")

            monkeypatch.setattr(pictures, "decode", fail)

        return close

    def test_pictures_are_decoded_once(self, root: Path, cache: Path, tmp_path: Path, closed: Callable) -> None:
        fill(root)
        first = grays(load(root))
        assert len(entries(cache)) == 1 and not unfinished(cache)
        closed()
        assert grays(load(root)) == first
        root.rename(tmp_path / "moved")
        assert grays(load(tmp_path / "moved")) == first
        with pytest.raises(ValueError, match="decoded again"):
            load(tmp_path / "moved", size=9)

    def test_the_pixels_are_mapped_and_writing_to_them_is_private(self, root: Path) -> None:
        fill(root)
        before = grays(load(root))
        load(root).train.pixels.zero_()
        assert grays(load(root)) == before
        if os.path.exists("/proc/self/maps"):
            source = load(root)
            assert "pixels.npy" in Path("/proc/self/maps").read_text() and len(source.train)

    def test_any_change_makes_a_new_entry(self, root: Path, cache: Path) -> None:
        files = [save(root / f"{n}.png", n, "L") for n in range(3)]
        made = 0

        def check(**options: object) -> torch.Tensor:
            nonlocal made
            made += 1
            arguments = {"size": 4, "channels": 1, "crop": None} | options
            pixels, _ = decode_pictures(files, root=root, **arguments)  # type: ignore[arg-type]
            assert len(entries(cache)) == made
            return pixels

        check()
        check(size=5)
        check(channels=3)
        check(crop=6)
        status = files[0].stat()
        save(files[0], 200, "L")
        os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert check()[0, 0, 0, 0] == 200
        files[1] = files[1].rename(root / "new name.png")
        check()
        files.reverse()
        assert check()[:, 0, 0, 0].tolist() == [2, 1, 200]
        # Another data set of the same names, sizes and times.
        status = files[0].stat()
        save(files[0], 77, "L")
        os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
        assert files[0].stat().st_size == status.st_size
        assert check()[0, 0, 0, 0] == 77

    def test_a_changed_time_alone_makes_a_new_entry(self, root: Path) -> None:
        files = [save(root / f"{n}.bmp", n, "L") for n in range(50)]
        assert decode_pictures(files, root=root, size=4, channels=1)[0][1, 0, 0, 0] == 1
        sizes = {file.stat().st_size for file in files}
        time.sleep(0.01)
        assert save(files[1], 200, "L").stat().st_size in sizes and len(sizes) == 1
        assert decode_pictures(files, root=root, size=4, channels=1)[0][1, 0, 0, 0] == 200

    @pytest.mark.parametrize("file", ["pixels.npy", "index.json"])
    def test_damage_is_noticed(self, file: str, root: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        fill(root, 40)
        (root / "a" / "bad.png").touch()
        before = grays(load(root))
        path = entries(cache)[0] / file
        whole = path.read_bytes()
        name = whole.index(b"a/2.png") if file == "index.json" else 9
        for place in (name, len(whole) // 2, len(whole) - 2):
            flipped = bytearray(whole)
            flipped[place] ^= 8
            for content in (bytes(flipped), whole[:place], b""):
                path.write_bytes(content)
                caplog.clear()
                assert grays(load(root)) == before
                assert "decoded again" in caplog.text
                assert path.read_bytes() == whole and len(entries(cache)) == 1
        path.unlink()
        assert grays(load(root)) == before

    def test_a_large_entry_is_sampled_to_its_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pictures, "PAGE", 16)
        monkeypatch.setattr(pictures, "PAGES", 4)
        path = tmp_path / "file"
        path.write_bytes(whole := bytes(range(180)))
        right = pictures._checksum(path)
        noticed = []
        for place in range(2, 180, 16):
            flipped = bytearray(whole)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            noticed.append(pictures._checksum(path) != right)
        assert noticed == [n % 3 == 0 for n in range(11)] + [True]

    def test_a_folder_that_cannot_be_written(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(root)
        (root / "a" / "bad.png").touch()
        first = grays(load(root))
        monkeypatch.setenv("VAEX_CACHE", "/proc/can/not/be")
        caplog.clear()
        assert grays(load(root)) == first
        messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(messages) == 2 and "/proc/can/not/be/pictures: can't be written" in messages[0]
        assert "bad.png" in messages[1] and "failed.txt" not in messages[1]

    def test_a_full_disk_is_said_before_and_when_it_happens(
        self, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(root, 20)
        usage = type("usage", (), {"free": 1279})
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: usage)
            with pytest.raises(OSError, match=r"can't hold 1.28e-06 GB .*1.28e-06 GB are free.*VAEX_CACHE"):
                load(root)
        with monkeypatch.context() as patch:

            def full(*arguments: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"can't hold .*No space left on device.*VAEX_CACHE"):
                load(root)
        assert entries(cache) == []

    def test_an_array_larger_than_memory_is_mapped_for_reading(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.save(tmp_path / "x.npy", np.arange(6, dtype=np.uint8))
        open_ = np.load

        def refuse(path: Path, mmap_mode: str) -> np.ndarray:
            if mmap_mode == "c":
                raise OSError(12, "Cannot allocate memory")
            array: np.ndarray = open_(path, mmap_mode=mmap_mode)
            return array

        monkeypatch.setattr(np, "load", refuse)
        assert map_array(tmp_path / "x.npy").tolist() == list(range(6))


# Decodes the first folder of its arguments; says so, and stops in the midst of it while the second one's file exists.
PROCESS = """
import sys, time
from pathlib import Path
from vaex.data import pictures

whole, gate = pictures.decode, Path(sys.argv[2])
def slow(file, **options):
    gate.with_suffix(f".{file.stem}").touch()
    while gate.exists():
        time.sleep(0.01)
    return whole(file, **options)
pictures.decode = slow
files = sorted(Path(sys.argv[1]).glob("*.png"))
pixels, rows = pictures.decode_pictures(files, root=Path(sys.argv[1]), size=4, channels=1)
print(pixels[:, 0, 0, 0].tolist() == sorted(range(len(files)), key=str))
"""


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestTogether:
    def test_what_killed_processes_leave_is_removed_and_does_not_count(self, root: Path, cache: Path) -> None:
        fill(root)
        first = grays(load(root))
        (entry,) = entries(cache)
        (entry / "index.json").unlink()  # as if it had been killed before the end
        for folder in (entry, cache / "of-other-pictures"):
            folder.mkdir(exist_ok=True)
            (folder / "pixels.npy.1.tmp").write_bytes(b"half of it")
        assert grays(load(root)) == first
        assert entries(cache) == [entry] and not unfinished(cache)

    def test_two_at_once_decode_once(self, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [save(root / f"{n}.png", n, "L") for n in range(40)]
        begun, proceed, opened = threading.Event(), threading.Event(), []

        def slow(file: Path, **options: object) -> np.ndarray:
            opened.append(file)
            begun.set()
            assert proceed.wait(300)
            return decode(file, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(pictures, "decode", slow)
        with ThreadPoolExecutor(2) as pool:
            try:
                first = pool.submit(decode_pictures, files, root=root, size=4, channels=1)
                assert begun.wait(300)
                second = pool.submit(decode_pictures, files, root=root, size=4, channels=1)
                pictures._remove_leftovers(cache / "another")
                assert len(unfinished(cache)) == 1  # of a living process
            finally:
                proceed.set()
            for run in (first, second):
                pixels, rows = run.result()
                assert pixels[:, 0, 0, 0].tolist() == rows == list(range(40))
        assert sorted(opened) == sorted(files)
        assert len(entries(cache)) == 1 and not unfinished(cache)

    def test_a_process_that_waited_for_one_that_failed_decodes_itself(
        self, root: Path, cache: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        fill(root)
        first = grays(load(root))
        (entry,) = entries(cache)
        shutil.rmtree(entry)
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(InterruptedError), folder_lock(entry), new_file(entry / "pixels.npy") as file:
                file.write(b"half of it")
                waiting = pool.submit(load, root)
                wait_until(lambda: "waiting for it" in caplog.text)
                raise InterruptedError
            assert grays(waiting.result()) == first
        assert entries(cache) == [entry] and not unfinished(cache)


class TestProcesses:
    @pytest.fixture
    def start(self, root: Path, tmp_path: Path) -> Callable[[], "subprocess.Popen[str]"]:
        for n in range(80):
            save(root / f"{n}.png", n, "L")
        command = [sys.executable, "-W", "error", "-c", PROCESS, str(root), str(tmp_path / "gate")]
        return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.slow
    def test_a_killed_one_leaves_nothing_that_counts(
        self, start: Callable, root: Path, tmp_path: Path, cache: Path
    ) -> None:
        gate = tmp_path / "gate"
        gate.touch()
        process = start()
        wait_until((tmp_path / "gate.0").exists)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(unfinished(cache)) == len(entries(cache)) == 1
        # A process that decodes other pictures removes what is left.
        save(tmp_path / "other" / "x.png")
        decode_pictures([tmp_path / "other" / "x.png"], root=tmp_path / "other", size=4, channels=1)
        assert len(entries(cache)) == 1 and not unfinished(cache)
        files = sorted(root.glob("*.png"))
        assert len(decode_pictures(files, root=root, size=4, channels=1)[1]) == 80
        assert len(entries(cache)) == 2 and not unfinished(cache)

    @pytest.mark.slow
    def test_two_at_once_decode_once_and_a_third_clears_nothing_away(
        self, start: Callable, tmp_path: Path, cache: Path
    ) -> None:
        gate = tmp_path / "gate"
        gate.touch()
        first = start()
        wait_until((tmp_path / "gate.0").exists)
        for mark in tmp_path.glob("gate.*"):
            mark.unlink()
        second = start()
        save(tmp_path / "other" / "x.png")
        decode_pictures([tmp_path / "other" / "x.png"], root=tmp_path / "other", size=4, channels=1)
        assert len(unfinished(cache)) == 1
        gate.unlink()
        for process in (first, second):
            out, error = process.communicate(timeout=300)
            assert (out, error) == ("True\n", "")
        assert len(entries(cache)) == 2 and not unfinished(cache)
        index = json.loads(
            (max(entries(cache), key=lambda p: (p / "pixels.npy").stat().st_size) / "index.json").read_text()
        )
        assert len(index["files"]) == 80


def test_pixels_outside_the_square_have_no_part_in_it(tmp_path: Path) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", size=16, channels=3, crop=None) == 200).all()
