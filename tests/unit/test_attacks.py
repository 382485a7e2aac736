import pytest
import torch

from tacfast.attacks import BadNets, poison
from tacfast.data import LabelledImages


def data(n=50):
    generator = torch.Generator().manual_seed(0)
    return LabelledImages(torch.rand(n, 2, 5, 6, generator=generator), torch.arange(n) % 5)


def test_patch_is_in_the_corner_and_nowhere_else():
    images = data().images
    stamped = BadNets(1, size=2, value=0.75).trigger(images)
    assert (stamped[..., 3:, 4:] == 0.75).all()
    untouched = torch.ones(5, 6, dtype=torch.bool)
    untouched[3:, 4:] = False
    assert torch.equal(stamped[..., untouched], images[..., untouched])
    assert not torch.equal(stamped, images)  # a copy: the input kept its corner
    assert torch.equal(images, data().images)


def test_poison_changes_the_chosen_rows_only():
    clean, attack = data(), BadNets(3)
    result = poison(clean, attack, 0.3, seed=2)
    assert len(result.indices) == 15
    assert result.indices.tolist() == sorted(set(result.indices.tolist()))
    chosen = torch.zeros(50, dtype=torch.bool)
    chosen[result.indices] = True
    assert (result.data.labels[chosen] == 3).all()
    assert torch.equal(result.data.images[chosen], attack.trigger(clean.images[chosen]))
    assert torch.equal(result.data.images[~chosen], clean.images[~chosen])
    assert torch.equal(result.data.labels[~chosen], clean.labels[~chosen])
    assert torch.equal(clean.images, data().images)


def test_poison_is_repeatable_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first = poison(data(), BadNets(0), 0.2, seed=1).indices
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, poison(data(), BadNets(0), 0.2, seed=1).indices)
    assert not torch.equal(first, poison(data(), BadNets(0), 0.2, seed=7).indices)
    assert len(poison(data(), BadNets(0), 1e-6).indices) == 1
    assert len(poison(data(), BadNets(0), 1.0).indices) == 50


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan")])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match="ratio: expected a share in"):
        poison(data(), BadNets(0), ratio)


def test_bad_patches():
    with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
        BadNets(-1)
    with pytest.raises(ValueError, match="size: expected"):
        BadNets(0, size=0)
    with pytest.raises(ValueError, match=r"h, w >= 6, got \(50, 2, 5, 6\)"):
        BadNets(0, size=6).trigger(data().images)
    with pytest.raises(ValueError, match=r"images: expected shape .* got \(5, 6\)"):
        BadNets(0).trigger(data().images[0, 0])
