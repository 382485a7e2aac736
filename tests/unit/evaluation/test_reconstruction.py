"""The true change of the latents and how well a shift reconstructs it, on networks where both are known."""

import pytest
import torch
from torch import nn

from tacfast.attacks import Attack, BadNets
from tacfast.data import LabelledImages
from tacfast.evaluation import TrueChange, closed_form, true_change
from tacfast.models import find_head

D, CLASSES, TARGET = 20, 4, 2


class Brighter(Attack):
    """Adds one to the first pixel."""

    target = TARGET

    def trigger(self, images):
        images = images.clone()
        images[:, 0, 0, 0] += 1
        return images


def linear_network():
    """φ(x) = A x, so that a brighter first pixel always adds the first column of A."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, D, bias=False), nn.Linear(D, CLASSES)).double()


def data(n=30):
    torch.manual_seed(1)
    return LabelledImages(torch.rand(n, 1, 4, 4, dtype=torch.float64), torch.arange(n) % CLASSES)


def measured(model, images, attack=None):
    head = find_head(model, images.images[:2])
    return true_change(model, head, images.loader(7), attack or Brighter()), head


def test_of_a_linear_network_the_change_is_a_column():
    model, images = linear_network(), data()
    change, _ = measured(model, images)
    column = model[1].weight.detach()[:, 0]
    torch.testing.assert_close(change.mean, column)
    torch.testing.assert_close(change.mean_absolute, column.abs())
    perfect = change.compare(3 * column)
    assert (perfect.cosine, perfect.top_overlap) == (pytest.approx(1.0), 1.0)
    assert change.compare(-column).cosine == pytest.approx(-1.0)
    assert change.compare(-column).top_overlap == 1.0  # it is a share of latents, whatever the sign


def test_the_cosine_of_vectors_at_a_known_angle():
    change = TrueChange(torch.tensor([3.0, 4.0, 0.0]).double(), torch.tensor([3.0, 4.0, 0.0]).double())
    assert change.compare(torch.tensor([1.0, 0.0, 0.0])).cosine == pytest.approx(3 / 5)
    assert change.compare(torch.tensor([0.0, 0.0, 1.0])).cosine == pytest.approx(0.0)


def test_the_tenth_of_latents_that_change_most_by_absolute_value():
    true = torch.zeros(40).double()
    true[[3, 7, 11, 20]] = torch.tensor([9.0, 8.0, 7.0, 6.0]).double()
    true[5] = 5.0
    # Changes that cancel in the mean count all the same.
    change = TrueChange(torch.zeros(40).double(), true)
    shift = torch.zeros(40)
    shift[[3, 7]] = torch.tensor([-2.0, 1.0])
    shift[[5, 30]] = torch.tensor([3.0, -4.0])
    assert change.compare(shift).top_overlap == 2 / 4


def test_only_images_that_are_sent_elsewhere_count():
    """Through a ReLU the change depends on the image."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, D), nn.ReLU(), nn.Linear(D, CLASSES)).double()
    images = data()
    change, _ = measured(model, images)
    changes = []
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        if label != TARGET:
            x = image.flatten()
            moved = x.clone()
            moved[0] += 1
            weight, bias = model[1].weight, model[1].bias
            changes.append((weight @ moved + bias).clamp_min(0) - (weight @ x + bias).clamp_min(0))
    torch.testing.assert_close(change.mean, torch.stack(changes).mean(0).detach())
    torch.testing.assert_close(change.mean_absolute, torch.stack(changes).abs().mean(0).detach())


def test_nothing_to_measure():
    images = data()
    own = images.subset((images.labels == TARGET).nonzero().flatten())
    with pytest.raises(ValueError, match="images that the attack sends to another class, got none"):
        measured(linear_network(), own)


def test_the_closed_form():
    model, images = linear_network(), data()
    _, head = measured(model, images)
    rows = model[2].weight.detach()
    expected = rows[2] - (rows[0] + rows[1] + rows[3]) / 3
    torch.testing.assert_close(closed_form(head, TARGET), expected)


def test_a_backdoor_along_the_closed_form_is_reconstructed_by_it():
    """A network whose trigger moves the latents along the target's own direction, with the other rows alike."""
    model = linear_network()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].weight[TARGET] = torch.linspace(-1, 1, D).double()
        model[1].weight[:, 0] = 5 * torch.linspace(-1, 1, D).double()
    change, head = measured(model, data())
    assert change.compare(closed_form(head, TARGET)).cosine == pytest.approx(1.0)
    assert change.compare(closed_form(head, 0)).cosine == pytest.approx(-1.0)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, D), nn.BatchNorm1d(D), nn.Linear(D, CLASSES)).double().train()
    before = model[2].running_mean.clone()
    measured(model, data(), BadNets(TARGET, size=2))
    assert model.training
    assert torch.equal(model[2].running_mean, before)
