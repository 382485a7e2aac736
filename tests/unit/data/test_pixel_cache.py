"""Pixels are decoded once."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from layouts import cifar_folders, draw

from tacfast.data import Preprocessing, load_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TACFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def no_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Preprocessing, "read", fail)


def test_the_second_start_decodes_nothing(root, cache, monkeypatch):
    pixels = cifar_folders(root)
    load_dataset("cifar10", root)
    (file,) = cache.iterdir()
    assert file.read_bytes() == np.stack(pixels).tobytes()
    no_decoding(monkeypatch)
    data = load_dataset("cifar10", root)
    assert np.array_equal(data.data.images.numpy(), np.stack(pixels))
    monkeypatch.chdir(root)
    load_dataset("cifar10", ".")


def test_pixels_are_mapped_and_private(root, cache):
    maps = Path("/proc/self/maps")
    cifar_folders(root)
    data = load_dataset("cifar10", root)
    (file,) = cache.iterdir()
    before = file.read_bytes()
    if maps.exists():
        assert str(file) in maps.read_text()
    data.data.images.zero_()
    assert file.read_bytes() == before


@pytest.mark.parametrize("size", [0, 100, 10**6])
def test_a_cache_of_the_wrong_size_is_redone(root, cache, size):
    pixels = cifar_folders(root)
    load_dataset("cifar10", root)
    (file,) = cache.iterdir()
    file.write_bytes(b"x" * size)
    assert np.array_equal(load_dataset("cifar10", root).data.images.numpy(), np.stack(pixels))
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize(
    "change",
    [
        lambda root: draw(root / "train" / "bird" / "1.png"),
        lambda root: draw(root / "train" / "bird" / "2.png"),
        lambda root: (root / "train" / "bird" / "1.png").unlink(),
        lambda root: (root / "train" / "bird" / "1.png").rename(root / "train" / "bird" / "5.png"),
        lambda root: (root / "train" / "bird" / "1.png").rename(root / "train" / "cat" / "5.png"),
        lambda root: os.utime(root / "train" / "bird" / "1.png", ns=(0, 1)),
    ],
)
def test_other_files_are_decoded_again(root, cache, change):
    cifar_folders(root)
    load_dataset("cifar10", root)
    change(root)
    load_dataset("cifar10", root)
    assert len(list(cache.iterdir())) == 2


def test_an_image_that_is_damaged_is_named_and_leaves_nothing(root, cache):
    cifar_folders(root)
    path = root / "test" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"data: expected an image, got {path}: "):
        load_dataset("cifar10", root)
    assert list(cache.iterdir()) == []
    path = root / "a" / "0.png"
    path.parent.mkdir()
    path.write_bytes(b"")
    for part in ("train", "test"):
        (root / part).rename(root.parent / part)
    with pytest.raises(ValueError, match=f"data: expected an image, got {path}: "):
        load_dataset("folder", root)


def test_a_cache_that_cannot_be_written_is_named(root, cache, monkeypatch):
    cifar_folders(root)
    cache.write_text("a file")
    with pytest.raises(OSError, match=f"TACFAST_CACHE may name another folder.*{cache}"):
        load_dataset("cifar10", root)
    cache.unlink()

    class Full:
        def __init__(self, path):
            path.touch()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda path, _: Full(path))
    with pytest.raises(OSError, match=f"No space left on device; TACFAST_CACHE .*: '{cache}'") as caught:
        load_dataset("cifar10", root)
    assert caught.value.errno == errno.ENOSPC
    assert list(cache.iterdir()) == []


def test_several_may_decode_at_once(root, cache):
    pixels = cifar_folders(root)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_dataset("cifar10", root), range(4)))
    assert all(np.array_equal(data.data.images.numpy(), np.stack(pixels)) for data in loaded)
    assert len(list(cache.iterdir())) == 1


def test_the_cache_is_in_the_home_folder(root, tmp_path, monkeypatch):
    monkeypatch.delenv("TACFAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    draw(root / "a" / "0.png", 8)
    load_dataset("folder", root)
    (file,) = (tmp_path / ".cache" / "tacfast").iterdir()
    assert file.stat().st_size == 3 * 8 * 8
