import random
import sys

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
        (torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3).long(), "got torch.uint8"),
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


def test_splits_are_disjoint_complete_and_repeatable():
    splits = split_indices(101, clean=0.3, test=0.2, seed=5)
    shares = [splits.train, splits.clean, splits.test]
    assert [len(share) for share in shares] == [51, 30, 20]
    assert sorted(torch.cat(shares).tolist()) == list(range(101))
    again = split_indices(101, clean=0.3, test=0.2, seed=5)
    assert torch.equal(splits.test, again.test)
    assert not torch.equal(splits.test, split_indices(101, clean=0.3, test=0.2, seed=6).test)


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
    with pytest.raises(ValueError, match="clean, test: expected shares"):
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
