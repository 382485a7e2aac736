import base64
import itertools
import json
import random
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from tacfast.data import LabelledImages, Splits, load_digits, split_indices
from tacfast.data.randomness import isolated_randomness, random_states, set_random_states


def images(n=20):
    return LabelledImages(torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1), torch.arange(n))


def test_digits_are_the_ones_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_digits()
    raw = datasets.load_digits()
    assert data.images.shape == (1797, 1, 8, 8)
    assert (float(data.images.min()), float(data.images.max())) == (0.0, 1.0)
    assert np.array_equal(data.images[:, 0].numpy() * 16, raw.images.astype(np.float32))
    assert np.array_equal(data.labels.numpy(), raw.target)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"tacfast\[digits\]"):
        load_digits()


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(3).long(), r"images: .* got torch.float32 of shape \(3, 8, 8\)"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.int16), torch.zeros(3).long(), "got torch.int16"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(2).long(), r"labels: expected int64 of shape \(3,\)"),
        (torch.zeros(3, 1, 8, 8), torch.zeros(3), "got torch.float32"),
    ],
)
def test_bad_images(pictures, labels, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(pictures, labels)


def test_subset_is_a_copy():
    data = images()
    part = data.subset(torch.tensor([3, 5]))
    part.images.zero_()
    assert part.labels.tolist() == [3, 5]
    assert float(data.images[3]) == 3.0


def test_loader_sees_everything_and_training_loaders_leave_out_the_rest():
    batches = list(images().loader(8))
    assert [len(x) for x, _ in batches] == [8, 8, 4]
    assert torch.cat([y for _, y in batches]).tolist() == list(range(20))
    assert [len(x) for x, _ in images().loader(8, shuffle=True)] == [8, 8]
    assert [len(x) for x, _ in images(5).loader(8, shuffle=True)] == [5]


def test_bytes_come_out_between_zero_and_one():
    pixels = torch.arange(0, 250, 25, dtype=torch.uint8).view(5, 2, 1, 1)
    data = LabelledImages(pixels, torch.arange(5))
    ((images, labels),) = data.loader(8)
    expected = np.arange(0, 250, 25, dtype=np.float32).reshape(5, 2, 1, 1) / 255
    assert np.array_equal(images.numpy(), expected)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    image, label = data[3]
    assert np.array_equal(image.numpy(), expected[3])
    assert (label.shape, int(label)) == ((), 3)
    assert data.subset(torch.tensor([4])).images.dtype == torch.uint8


def test_splits_are_disjoint_complete_and_repeatable():
    splits = split_indices(101, clean=0.3, test=0.2, seed=5)
    shares = [splits.train, splits.clean, splits.test]
    assert [len(share) for share in shares] == [51, 30, 20]
    assert sorted(torch.cat(shares).tolist()) == list(range(101))
    again = split_indices(101, clean=0.3, test=0.2, seed=5)
    assert torch.equal(splits.test, again.test)
    assert not torch.equal(splits.test, split_indices(101, clean=0.3, test=0.2, seed=6).test)


def test_splits_of_a_data_set_with_an_official_test_set():
    splits = split_indices(100, clean=0.05, held_out=0.1, test=torch.arange(100, 120), seed=1)
    assert [len(share) for share in (splits.train, splits.clean, splits.held_out, splits.test)] == [85, 5, 10, 20]
    assert splits.test.tolist() == list(range(100, 120))
    assert sorted(torch.cat([splits.train, splits.clean, splits.held_out]).tolist()) == list(range(100))


def test_drawing_splits_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    split_indices(50, clean=0.1, held_out=0.1, test=0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def packed(*indices):
    """As `Splits.as_dict` documents it, written out by hand."""
    steps = [after - before for before, after in itertools.pairwise((0, *indices))]
    return base64.b64encode(zlib.compress(struct.pack(f"<{len(steps)}i", *steps))).decode()


STORED = {"train": packed(5, 2, 9), "clean": packed(0), "test": packed(3, 4), "held_out": packed()}


def test_splits_are_read_as_documented():
    splits = Splits.from_dict(STORED, 10)
    read = [share.tolist() for share in (splits.train, splits.clean, splits.test, splits.held_out)]
    assert read == [[5, 2, 9], [0], [3, 4], []]


def test_splits_survive_json_and_ranges_take_little_of_it():
    splits = split_indices(10_000, clean=0.05, held_out=0.02, test=torch.arange(10_000, 20_000))
    text = json.dumps(splits.as_dict())
    again = Splits.from_dict(json.loads(text), 20_000)
    for name in ("train", "clean", "test", "held_out"):
        assert torch.equal(getattr(again, name), getattr(splits, name))
    assert len(text) < 4 * 10_000
    assert len(splits.as_dict()["test"]) < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": packed(10)}, "clean: expected indices of 10 images, got 10 to 10"),
        ({"clean": packed(-1)}, "clean: expected indices of 10 images, got -1 to -1"),
        ({"clean": packed(9)}, "splits: expected disjoint indices, got 9 more than once"),
        ({"clean": packed()}, r"clean: expected int64 indices of shape \(n,\) with n >= 1"),
        ({"clean": packed(0)[:-8]}, "clean: expected packed indices"),
        ({"clean": base64.b64encode(zlib.compress(b"abc")).decode()}, "clean: expected packed indices"),
        ({"clean": base64.b64encode(b"abcd").decode()}, "clean: expected packed indices"),
        ({"clean": "§"}, "clean: expected packed indices"),
        ({"clean": None}, "clean: expected packed indices"),
        ({"test": base64.b64encode(zlib.compress(bytes(2**24))).decode()}, "test: .* cut off, or more than 10"),
        ({"more": packed(1)}, "splits: expected train, clean, test, held_out, got .*'more'"),
    ],
)
def test_stored_splits_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        Splits.from_dict(STORED | change, 10)


@pytest.mark.parametrize(
    ("train", "clean", "test", "message"),
    [
        ([0, 1], [2], [3, 1], "got 1 more than once"),
        ([0, 1], [2, 2], [3], "got 2 more than once"),
        ([0, 1], [], [3], "clean: expected int64 indices"),
        ([[0, 1]], [2], [3], r"train: .* shape \(1, 2\)"),
        ([0.5], [2], [3], "train: .* got torch.float32"),
    ],
)
def test_bad_splits(train, clean, test, message):
    with pytest.raises(ValueError, match=message):
        Splits(torch.tensor(train), torch.tensor(clean, dtype=torch.int64), torch.tensor(test))


@pytest.mark.parametrize(("clean", "test"), [(0.0, 0.5), (0.5, 0.5), (1.2, 0.1), (0.3, -0.1)])
def test_bad_shares(clean, test):
    with pytest.raises(ValueError, match="clean, test, held_out: expected shares"):
        split_indices(100, clean=clean, test=test)


def draw(loader=None):
    shuffled = [] if loader is None else torch.cat([x for (x,) in loader]).tolist()
    return random.random(), np.random.rand(), float(torch.rand(())), shuffled  # noqa: NPY002


def with_generator(generator):
    data = TensorDataset(torch.arange(20))
    sampler = RandomSampler(data, generator=generator)
    return {
        "loader": DataLoader(data, batch_size=20, shuffle=True, generator=generator),
        "sampler": DataLoader(data, batch_size=20, sampler=sampler),
        "batch sampler": DataLoader(data, batch_sampler=BatchSampler(sampler, 20, drop_last=False)),
    }


@pytest.mark.parametrize("owner", ["loader", "sampler", "batch sampler"])
def test_isolated_randomness_repeats_itself_and_leaves_no_trace(owner):
    generator = torch.Generator().manual_seed(9)
    loader = with_generator(generator)[owner]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = draw(loader)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    generator.manual_seed(9)
    with isolated_randomness(4, loader):
        first = draw(loader)
    with pytest.raises(KeyError), isolated_randomness(4, loader):  # noqa: PT012
        assert draw(loader) == first
        raise KeyError
    with isolated_randomness(5):
        assert draw()[:3] != first[:3]
    assert draw(loader) == expected


@pytest.mark.parametrize("owner", ["loader", "sampler", "batch sampler"])
def test_random_states_survive_a_file(owner, tmp_path):
    loader = with_generator(torch.Generator().manual_seed(9))[owner]
    with isolated_randomness(4, loader):
        random.gauss(0, 1), np.random.normal()  # noqa: NPY002  (each leaves the second of a pair behind)
        torch.save(random_states(loader), tmp_path / "states")
        first = draw(loader), random.gauss(0, 1), np.random.normal()  # noqa: NPY002
        set_random_states(torch.load(tmp_path / "states", weights_only=True), loader)
        assert (draw(loader), random.gauss(0, 1), np.random.normal()) == first  # noqa: NPY002
