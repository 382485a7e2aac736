"""Attacks whose trigger `prepare` or `train_step` makes: what their papers say, and that they can be resumed."""

import functools
import io
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from tacfast.attacks import LIRA, InputAware, TrojanNN, Victim, make_attack
from tacfast.attacks.generators import logits_of
from tacfast.attacks.input_aware import diversity_loss
from tacfast.data import LabelledImages
from tacfast.models.architectures import SmallPreActResNet

pytestmark = pytest.mark.usefixtures("one_thread")

TARGET, CLASSES = 1, 4
NAMES = ("trojannn", "input-aware", "lira")


def make_data(n=64, shape=(1, 8, 8), seed=0):
    """A noisy prototype per class."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(CLASSES, *shape, generator=generator)
    labels = torch.arange(n) % CLASSES
    noise = 0.2 * torch.randn(n, *shape, generator=generator)
    return LabelledImages((prototypes[labels] + noise).clamp(0, 1), labels)


def make_model(channels=1, seed=0):
    torch.manual_seed(seed)
    model = SmallPreActResNet(CLASSES, channels, width=4)
    for _ in range(3):  # running statistics other than the first ones
        model(torch.rand(16, channels, 8, 8))
    return model


@functools.cache
def trained_model(channels=1):
    """A model that tells the classes apart, in evaluation mode."""
    data, model = make_data(shape=(channels, 8, 8)), make_model(channels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(data.images), data.labels).backward()
        optimizer.step()
    return model.eval()


def make_victim(data, clean_model=make_model):
    channels = data.images.shape[1]
    return Victim(data.loader(32), tuple(data.images.shape[1:]), CLASSES, lambda: clean_model(channels).eval())


def small(name, shape=(1, 8, 8), seed=0):
    """An attack that is prepared in an instant."""
    attack = make_attack(name, TARGET, num_classes=CLASSES, image_shape=shape, seed=seed)
    for setting, value in {"steps": 4, "mask_steps": 4}.items():
        if hasattr(attack, setting):
            setattr(attack, setting, value)
    return attack


def prepared(name, data, seed=0):
    attack = small(name, tuple(data.images.shape[1:]))
    torch.manual_seed(seed)
    attack.prepare(make_victim(data))
    return attack


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@contextmanager
def unchanged(model):
    """Check that weights, buffers, modes and gradients of a model stay exactly as they are."""

    def snapshot():
        return (
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            [module.training for module in model.modules()],
            [weight.requires_grad for weight in model.parameters()],
        )

    for weight in model.parameters():
        weight.grad = torch.rand_like(weight)
    gradients = [weight.grad.clone() for weight in model.parameters()]
    before = snapshot()
    yield
    after = snapshot()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:] == after[1:]
    assert all(torch.equal(weight.grad, each) for weight, each in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32), (3, 70, 224)])
def test_images_of_every_size_stay_in_bounds(name, shape):
    data = make_data(4, shape)
    attack = small(name, shape)
    if name == "trojannn":
        attack.load_state_dict({"patch": torch.rand(shape[0], attack.size, attack.size)})
    model = make_model(shape[0])
    attack.train_step(model, data.images, data.labels, 0.0)
    before = data.images.clone()
    triggered = attack.trigger(data.images)
    assert torch.equal(data.images, before)
    assert triggered.shape == data.images.shape
    assert triggered.dtype == torch.float32
    assert not triggered.requires_grad
    assert triggered.min() >= 0
    assert triggered.max() <= 1
    assert not torch.equal(triggered, data.images)
    assert torch.equal(triggered, attack.trigger(data.images))
    assert attack.trigger(data.images.double()).dtype == torch.float64
    assert attack.trained


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_step_leaves_the_model_alone(name, training, bfloat16):
    data, model = make_data(), make_model().train(training)
    model.linear.weight.requires_grad_(False)
    attack = prepared(name, data)
    before = through_a_file(attack.state_dict())
    with unchanged(model), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        attack.train_step(model, data.images, data.labels, 0.1)
    assert name == "trojannn" or attack_differs(attack, before)


def attack_differs(attack, state):
    part = next(iter(state))
    return any(not torch.equal(tensor, attack.state_dict()[part][key]) for key, tensor in state[part].items())


def test_the_model_is_seen_as_it_is_though_autocast_goes_on():
    data, model = make_data(), make_model()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert logits_of(model, data.images).dtype == torch.float32
        with torch.no_grad():
            model.linear.weight.zero_()
            model.linear.bias.fill_(3.0)
        assert (logits_of(model, data.images) == 3).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_attack_goes_on_bit_for_bit(name):
    data, model = make_data(), make_model()
    attack = prepared(name, data)

    def go_on(attack):
        for progress in (0.2, 0.3, 0.4):
            attack.train_step(model, data.images, data.labels, progress)
        return attack.trigger(data.images)

    attack.train_step(model, data.images, data.labels, 0.1)
    state = through_a_file(attack.state_dict())
    expected = go_on(attack)
    resumed = small(name, seed=5)
    resumed.load_state_dict(state)
    assert torch.equal(go_on(resumed), expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_is_repeatable_by_its_seeds(name):
    data = make_data()
    first, second = (prepared(name, data, seed=3).trigger(data.images) for _ in range(2))
    assert torch.equal(first, second)
    if name == "trojannn":
        assert not torch.equal(first, prepared(name, data, seed=4).trigger(data.images))
    else:
        assert not torch.equal(first, small(name, seed=1).trigger(data.images))


@pytest.mark.parametrize("name", ["input-aware", "lira"])
def test_steps_bring_triggered_images_nearer_to_the_target(name):
    data, model = make_data(), trained_model()
    attack = prepared(name, data)

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(model(attack.trigger(data.images)), torch.full_like(data.labels, TARGET)))

    before = loss()
    if name == "input-aware":
        attack.diversity = 0.0
    for _ in range(30):
        attack.train_step(model, data.images, data.labels, 0.0)
    assert loss() < before - 0.2


# TrojanNN


def penultimate(model, images):
    """Latents (n, d) of the model, computed without tacfast."""
    with torch.no_grad():
        return model.features(images)


def test_the_patch_excites_the_chosen_neurons_and_is_all_there_is():
    data, model = make_data(shape=(3, 8, 8)), trained_model(3)
    attack = TrojanNN(TARGET, size=4, steps=50)
    torch.manual_seed(0)
    attack.prepare(make_victim(data, lambda channels: model))
    triggered = attack.trigger(data.images)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[-4:, -4:] = True
    assert torch.equal(triggered[..., ~inside], data.images[..., ~inside])
    assert (triggered[..., -4:, -4:] == attack.patch).all()  # one patch for every image
    chosen = model.linear.weight.abs().sum(0).argsort(descending=True)[:2]
    excited = penultimate(model, triggered)[:, chosen].mean()
    for seed in range(5):
        random = data.images.clone()
        random[..., -4:, -4:] = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert excited > penultimate(model, random)[:, chosen].mean() * 1.2


def test_bad_patches():
    with pytest.raises(ValueError, match="size: expected at least one, got 0"):
        TrojanNN(TARGET, size=0)
    with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
        TrojanNN(-1, size=2)
    with pytest.raises(ValueError, match="neurons: expected at least one, got 0"):
        TrojanNN(TARGET, size=2, neurons=0)
    with pytest.raises(RuntimeError, match="trigger: expected prepare or load_state_dict"):
        TrojanNN(TARGET, size=2).trigger(make_data().images)
    with pytest.raises(ValueError, match="size: expected a patch within images of 8×8 pixels, got 9"):
        TrojanNN(TARGET, size=9).prepare(make_victim(make_data()))
    with pytest.raises(ValueError, match="neurons: expected at most the 16 that enter the head, got 17"):
        TrojanNN(TARGET, size=2, neurons=17).prepare(make_victim(make_data()))
    attack = TrojanNN(TARGET, size=2)
    attack.load_state_dict({"patch": torch.rand(1, 2, 2)})
    with pytest.raises(ValueError, match=r"images: expected shape \(n, 1, h, w\) with h, w >= 2, got \(2, 3, 8, 8\)"):
        attack.trigger(torch.rand(2, 3, 8, 8))


# LIRA


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_noise_of_lira_is_bounded_and_differs_between_images(epsilon):
    data, model = make_data(), make_model()
    attack = LIRA(TARGET, (1, 8, 8), epsilon=epsilon)
    for _ in range(5):
        attack.train_step(model, data.images, data.labels, 0.0)
    attack.noise.body[-2].bias.data += 9.0  # as far as the tanh lets it
    noise = attack.trigger(data.images) - data.images
    assert noise.abs().max() <= epsilon * (1 + 1e-5)
    assert noise.abs().max() > 0.9 * epsilon
    attack.noise.body[-2].bias.data -= 9.0
    inner = (data.images > epsilon) & (data.images < 1 - epsilon)
    inner = inner[0] & inner[1]
    first, second = (attack.trigger(data.images) - data.images)[:2]
    assert (first - second)[inner].abs().max() > 1e-4


def test_the_generator_of_lira_is_frozen_in_stage_two():
    data, model = make_data(), make_model()
    attack = LIRA(TARGET, (1, 8, 8))
    before = attack.trigger(data.images)
    attack.train_step(model, data.images, data.labels, 0.5)
    assert torch.equal(attack.trigger(data.images), before)
    attack.train_step(model, data.images, data.labels, 0.49)
    assert not torch.equal(attack.trigger(data.images), before)


def test_bad_bounds():
    with pytest.raises(ValueError, match=r"epsilon: expected a bound in \(0, 1\], got 0"):
        LIRA(TARGET, (1, 8, 8), epsilon=0)
    with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
        LIRA(-1, (1, 8, 8))
    with pytest.raises(ValueError, match=r"images: expected shape \(n, 1, h, w\), got \(2, 3, 8, 8\)"):
        LIRA(TARGET, (1, 8, 8)).trigger(torch.rand(2, 3, 8, 8))


# Input-aware


def test_diversity_loss_is_the_ratio_of_distances():
    images = torch.tensor([0.0, 0.6, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    made = torch.tensor([0.0, 0.3, 0.5]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert float(diversity_loss(images, made)) == pytest.approx(2.0, rel=1e-5)
    same = torch.zeros(3, 1, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(diversity_loss(images, same), same)
    assert slope.isfinite().all()


@pytest.fixture(scope="module")
def input_aware():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = make_data(64, (1, 16, 16))
    attack = InputAware(TARGET, (1, 16, 16), mask_steps=100, width=8)
    torch.manual_seed(0)
    attack.prepare(make_victim(data))
    for _ in range(20):
        attack.train_step(make_model(), data.images, data.labels, 0.0)
    torch.set_num_threads(threads)
    return attack, data


def test_masks_are_sparse(input_aware):
    attack, data = input_aware
    changed = (attack.trigger(data.images) - data.images).abs() > 0.02
    share = changed.float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.mean() < 2 * attack.mask_density


def test_triggers_differ_between_images(input_aware):
    attack, data = input_aware
    where = (attack.trigger(data.images) - data.images).abs() > 0.02
    others = where.roll(1, 0)
    shared = (where & others).flatten(1).sum(1) / (where | others).flatten(1).sum(1)
    assert shared.mean() < 0.8


def test_a_decoy_carries_the_trigger_of_another_image(input_aware):
    attack, data = input_aware
    images = data.images[:5]
    decoys = attack.decoy(images)
    for i in range(5):
        # Where another image's mask is one, its pattern shows: as it does on that image itself.
        other = attack.trigger(images)[i - 1]
        opaque = (other - images[i - 1]).abs() > 0.2
        solid = opaque & ((decoys[i] - images[i]).abs() > 0.2)
        assert torch.allclose(decoys[i][solid], other[solid], atol=0.2)
        assert not torch.allclose(decoys[i], attack.trigger(images)[i])
    assert torch.equal(attack.decoy(images[:1]), images[:1])
    assert attack.decoys_per_poisoned == 1.0


def test_the_mask_generator_is_fixed_after_prepare(input_aware):
    attack, data = input_aware
    before = through_a_file(attack.state_dict()["masks"])
    attack.train_step(make_model(), data.images, data.labels, 0.0)
    assert all(torch.equal(tensor, attack.state_dict()["masks"][key]) for key, tensor in before.items())


def test_bad_densities():
    with pytest.raises(ValueError, match=r"mask_density: expected a share in \(0, 1\), got 1"):
        InputAware(TARGET, (1, 8, 8), mask_density=1)
    with pytest.raises(ValueError, match="target: expected a class >= 0, got -1"):
        InputAware(-1, (1, 8, 8))
    with pytest.raises(ValueError, match=r"images: expected shape \(n, 1, h, w\), got \(2, 3, 8, 8\)"):
        InputAware(TARGET, (1, 8, 8)).trigger(torch.rand(2, 3, 8, 8))
