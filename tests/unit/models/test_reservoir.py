"""Some of the inputs of a loader, each as likely as any other."""

import numpy as np
import pytest
import torch
from scipy import stats

from tacfast.models import reservoir
from tacfast.models.reservoir import Reservoir


def numbered(n, size, shape=(2,)):
    """Batches of inputs that are full of their own number, with labels."""
    inputs = torch.arange(n, dtype=torch.float32).view(n, *[1] * len(shape)).expand(n, *shape).contiguous()
    return list(zip(inputs.split(size), torch.arange(n).split(size), strict=True))


def kept(loader, count):
    """Which of the inputs are kept, by their numbers."""
    some = Reservoir(loader, count)
    for _ in some:
        pass
    assert (some.inputs.flatten(1) == some.inputs.flatten(1)[:, :1]).all()
    return some.inputs.flatten(1)[:, 0].int().tolist()


@pytest.mark.parametrize("size", [1, 7, 30])
def test_every_input_is_as_likely_as_every_other(size):
    n, count, times = 30, 6, 2000
    found = np.zeros(n)
    for trial in range(times):
        some = Reservoir([], count)
        for inputs, _ in numbered(n, size):
            some._take(torch.cat([inputs, torch.full((len(inputs), 1), float(trial))], dim=1))
        numbers = some.inputs[:, 0].int().tolist()
        assert len(set(numbers)) == count
        found[numbers] += 1
    assert found.sum() == times * count
    # Each is a coin of probability 1/5, and they are all but independent.
    statistic = ((found - times / 5) ** 2).sum() / (times / 5 * (1 - 1 / 5))
    assert 0.001 < stats.chi2.sf(statistic, n) < 0.999


def test_the_same_are_kept_in_any_order():
    given = torch.cat([inputs for inputs, _ in numbered(300, 300)])
    shuffled = given[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    expected, found = kept([given], 20), kept(shuffled.split(7), 20)
    assert sorted(found) == expected
    assert found == [i for i in shuffled[:, 0].int().tolist() if i in expected]  # in the order in which they came


def test_large_inputs_are_told_apart():
    inputs = torch.zeros(64, 3, 100, 100)
    for i, image in enumerate(inputs):
        image[i % 3, i : i + 30, 64 - i : 94 - i] = 1.0
    assert len(set(reservoir._keys(inputs))) == 64
    assert len(set(reservoir._keys(inputs.to(torch.bfloat16)))) == 64


def test_a_long_pass_is_covered_evenly():
    numbers = kept(numbered(20_000, 100, (1,)), 500)
    assert len(set(numbers)) == 500
    assert stats.kstest(np.array(numbers) / 20_000, "uniform").pvalue > 0.01


def test_the_same_are_kept_whatever_the_batches():
    expected = kept(numbered(300, 300), 20)
    assert all(kept(numbered(300, size), 20) == expected for size in (1, 7, 19, 20, 21, 64))


@pytest.mark.parametrize("size", [1, 4, 10])
def test_of_a_few_all_are_kept_in_their_order(size):
    for count in (10, 11, 500):
        assert kept(numbered(10, size), count) == list(range(10))


def test_batches_pass_as_they_are():
    batches = [*numbered(30, 7), torch.zeros(3, 2), (torch.zeros(1, 2),)]
    assert all(came is given for came, given in zip(Reservoir(batches, 5), batches, strict=True))


def test_none_are_kept_where_none_are_wanted():
    some = Reservoir(numbered(30, 7), 0)
    assert some.inputs is None
    assert len(list(some)) == 5
    assert some.inputs is None


def test_every_pass_starts_afresh():
    batches = numbered(100, 9)
    some = Reservoir(batches, 10)
    list(some)
    first = some.inputs.clone()
    list(some)
    assert some.inputs.equal(first)
    del batches[2:]  # another pass over less
    list(some)
    assert some.inputs[:, 0].int().tolist() == kept(numbered(18, 9), 10)
    next(iter(some))  # one that is left at once
    assert some.inputs[:, 0].tolist() == list(range(9))


@pytest.mark.parametrize(
    "strange", [torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 2, 1), torch.zeros(4, 2, dtype=torch.float64)]
)
def test_inputs_of_another_kind_are_passed_over_and_make_no_difference(strange):
    batches = [part for batch in numbered(200, 10) for part in (batch, strange)]
    assert kept(batches, 20) == kept(numbered(200, 10), 20)


def test_no_more_is_kept_than_fits(monkeypatch):
    batches = numbered(200, 10, (3, 4))
    monkeypatch.setattr(reservoir, "MAX_BYTES", 3 * 4 * 4 * 25 + 47)
    assert kept(batches, 500) == kept(batches, 25)
    assert len(kept(batches, 500)) == 25
    assert len(kept(batches, 20)) == 20
    monkeypatch.setattr(reservoir, "MAX_BYTES", 1)  # one is kept at any rate
    assert len(kept(batches, 500)) == 1


def test_what_is_kept_is_a_copy():
    """A loader may write the next batch where the last one was; neither may what is kept be written to."""
    buffer, given = torch.empty(5, 2), numbered(50, 5)

    def loader():
        for inputs, _ in given:
            yield buffer.copy_(inputs)

    assert kept(loader(), 10) == kept(given, 10)
    assert all(inputs.equal(other) for (inputs, _), (other, _) in zip(given, numbered(50, 5), strict=True))


def test_gradients_are_not_kept():
    some = Reservoir([torch.zeros(3, 2, requires_grad=True)], 2)
    list(some)
    assert not some.inputs.requires_grad


def test_what_is_no_batch_is_refused():
    with pytest.raises(TypeError, match=r"loader: expected batches that are tensors .* got \(int\)"):
        list(Reservoir([{"x": 1}], 5))
