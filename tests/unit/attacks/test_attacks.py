import pytest
import torch

from tacfast.attacks import ATTACKS, SIG, BadNets, WaNet, choose_rows, make_attack, poison, poison_batch
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
    with pytest.raises(ValueError, match="num_classes: expected C with target None, and else None, got None"):
        BadNets(None)
    with pytest.raises(ValueError, match="num_classes: expected C with target None, and else None, got 10"):
        BadNets(3, num_classes=10)


def test_all_to_all_sends_every_class_to_the_next():
    attack = BadNets(None, num_classes=4)
    assert attack.target is None
    assert attack.relabel(torch.tensor([0, 1, 2, 3, 0])).tolist() == [1, 2, 3, 0, 1]
    images = data().images
    assert torch.equal(attack.trigger(images), BadNets(0).trigger(images))
    clean = LabelledImages(images, torch.arange(50) % 4)
    result = poison(clean, attack, 1.0)
    assert torch.equal(result.data.labels, torch.arange(1, 51) % 4)


def test_clean_labels_stay_and_no_other_class_is_touched():
    clean = LabelledImages(torch.rand(60, 1, 5, 20), torch.arange(60) % 5)
    result = poison(clean, SIG(3), 0.1)
    assert len(result.indices) == 6
    assert (clean.labels[result.indices] == 3).all()
    assert torch.equal(result.data.labels, clean.labels)
    # Half of a class that is a fifth of the set: it must keep images without the trigger.
    assert len(poison(clean, SIG(3), 0.5).indices) == 6
    dirty = poison(clean, SIG(3, clean_label=False), 0.5)
    assert len(dirty.indices) == 30
    assert (dirty.data.labels[dirty.indices] == 3).all()


def test_decoys_are_other_images_and_keep_their_label():
    attack = WaNet(1, (3, 12, 12))
    images, labels = torch.rand(80, 3, 12, 12), torch.arange(80) % 4
    rows = choose_rows(labels, attack, 0.1, seed=5)
    assert (int(rows.poisoned.sum()), int(rows.decoys.sum())) == (8, 16)  # a cross ratio of 2
    assert not (rows.poisoned & rows.decoys).any()
    before = images.clone(), labels.clone()
    torch.manual_seed(0)
    changed, relabelled = poison_batch(attack, images, labels, rows.poisoned, rows.decoys)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert torch.equal(relabelled, torch.where(rows.poisoned, 1, labels))
    untouched = ~(rows.poisoned | rows.decoys)
    assert torch.equal(changed[untouched], images[untouched])
    assert torch.equal(changed[rows.poisoned], attack.trigger(images[rows.poisoned]))
    torch.manual_seed(0)
    assert torch.equal(changed[rows.decoys], attack.decoy(images[rows.decoys]))
    assert (rows.decoys == choose_rows(labels, attack, 0.1, seed=5).decoys).all()
    with pytest.raises(NotImplementedError, match="BadNets has no decoys"):
        BadNets(0).decoy(images)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12), (1, 9, 14), (3, 32, 32), (3, 224, 224)], ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_by_name_fit_any_image(name, shape):
    made, again = (make_attack(name, 2, num_classes=5, image_shape=shape, seed=6) for _ in range(2))
    if made.trained:
        pytest.skip("the trigger is trained")
    state = torch.get_rng_state()
    images = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 0.0, 1.0
    given = images.clone()
    triggered = made.trigger(images)
    assert torch.equal(images, given)
    assert triggered.shape == images.shape
    assert triggered.dtype == torch.float32
    assert triggered.min() >= 0
    assert triggered.max() <= 1 + 1e-6  # one, but for rounding
    assert (triggered[2] - images[2]).abs().max() > 0.05
    assert torch.equal(triggered, again.trigger(images))
    assert torch.equal(triggered[1:], made.trigger(images[1:]))  # whatever else is in the batch
    assert torch.equal(torch.get_rng_state(), state)
    labels = torch.arange(5)
    assert made.relabel(labels).tolist() == ([1, 2, 3, 4, 0] if name == "badnets-a2a" else [2] * 5)
    assert made.may_poison(labels).tolist() == [k == 2 or name != "sig" for k in range(5)]


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 3), (32, 3), (64, 6), (224, 21)])
def test_the_patch_is_three_of_thirty_two_pixels(size, patch):
    for name in ("badnets", "badnets-a2a"):
        attack = make_attack(name, 0, num_classes=5, image_shape=(1, size, size))
        assert attack.trigger(torch.zeros(1, 1, size, size)).sum() == patch**2


def test_unknown_names_and_classes():
    with pytest.raises(ValueError, match=r"attack: expected one of badnets, .*wanet.*, got 'nothing'"):
        make_attack("nothing", 0, num_classes=5, image_shape=(1, 8, 8))
    for target in (-1, 5):
        with pytest.raises(ValueError, match=f"target: expected a class 0 to 4, got {target}"):
            make_attack("badnets", target, num_classes=5, image_shape=(1, 8, 8))
