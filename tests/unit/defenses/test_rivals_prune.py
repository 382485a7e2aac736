"""Rival defences that prune, on networks written down with a channel for the trigger, so that it is known which."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from shortcut import TARGET as SHORTCUT
from shortcut import make_data as make_pixels
from shortcut import make_model as make_pixel_model
from torch import nn
from torch.nn import functional as F

from tacfast import repair, scan
from tacfast.data import LabelledImages
from tacfast.defenses import RIVALS
from tacfast.defenses.rivals import (
    AdversarialNeuronPruning,
    ChannelLipschitzness,
    FinePruning,
    PruningRival,
    ReconstructiveNeuronPruning,
    TwoStageDefense,
    channels,
    clp,
    fine_pruning,
    rnp,
    tsbd,
    unlearning,
)
from tacfast.models import Head
from tacfast.models.architectures import SmallPreActResNet

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, TARGET, TRIGGER = 3, 2, 3  # colour plane 3 is for the trigger, and so is channel 3
PRUNING = ("fp", "clp", "anp", "rnp", "tsbd")


def make_data(n=240, seed=0, trigger=False):
    """Images of four planes, 4×4: that of the class is bright, the last is noise, or bright with the trigger."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = 0.3 * torch.randn(n, 4, 4, 4, generator=generator).clamp(-2, 2)
    images[torch.arange(n), labels] += 1.0
    if trigger:
        images[:, TRIGGER] = 3.0
    return LabelledImages(images, labels)


def make_model():
    """Each channel is a plane. That of the trigger outvotes the others, and is all but silent in clean images."""
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1, bias=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4)[:, :, None, None])
        model[1].bias[TRIGGER] = -2.2
        model[5].weight.copy_(2 * torch.eye(CLASSES, 4))
        model[5].weight[TARGET, TRIGGER] = 20.0
        model[5].bias.zero_()
        model(make_data(seed=9).images)  # statistics
    return model.eval()


def loader_of(data, batch_size=40):
    return data.loader(batch_size, shuffle=True)


def accuracy(model, data, label=None):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        found = model(data.images).argmax(1)
    return float((found == (data.labels if label is None else label)).float().mean())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before, after):
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def run(settings, model, data, **options):
    """The repaired model, by the settings of a rival."""
    return settings.repair(model, loader_of(data), scan(model, data.loader(), blocks=0), **options).model


@pytest.fixture
def model():
    model = make_model()
    assert accuracy(model, make_data(seed=1)) > 0.99
    assert accuracy(model, make_data(seed=1, trigger=True), TARGET) > 0.99
    return model


# What all of them promise


@pytest.mark.parametrize("mode", PRUNING)
def test_the_given_model_is_untouched_and_the_new_one_of_the_same_form(model, mode):
    model[0].weight.requires_grad_(False)
    before, data, held_out = state(model), make_data(), make_data(seed=1)
    report = scan(model, data.loader(), blocks=0)
    random = torch.get_rng_state()
    result = repair(model, loader_of(data), report, mode=mode, held_out=held_out.loader(), seed=3)
    assert not changed(before, state(model))
    assert torch.equal(random, torch.get_rng_state())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    new = result.model
    assert list(new.state_dict()) == list(before)
    assert [name for name, _ in new.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert [type(module) for module in new.modules()] == [type(module) for module in model.modules()]
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in new.parameters())
    assert not any(module.training or module._forward_hooks or module._forward_pre_hooks for module in new.modules())
    assert result.mode == mode
    assert result.settings["seed"] == 3
    assert result.after.overall == pytest.approx(accuracy(new, held_out))


@pytest.mark.parametrize("mode", PRUNING)
def test_a_trigger_with_a_channel_of_its_own_is_removed(model, mode):
    data = make_data()
    settings = {"neurons": 0.25} if mode == "tsbd" else {"u": 1.0} if mode == "clp" else {}
    if mode == "clp":
        with torch.no_grad():  # a bright plane sets the bounds: let the trigger's be the largest
            model[1].weight[TRIGGER] *= 6
            model[1].bias[TRIGGER] *= 6
    new = run(RIVALS[mode](**settings), model, data, held_out=make_data(seed=1).loader())
    assert accuracy(new, make_data(seed=2)) > 0.95
    if mode != "tsbd":  # fine-tuned on clean images alone, what it resets is not for us to plant
        assert accuracy(new, make_data(seed=2, trigger=True), TARGET) < 0.5


@pytest.mark.parametrize("mode", ["anp", "rnp", "tsbd", "fp"])
def test_losses_are_as_good_under_autocast(model, mode):
    data = make_data()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        result = RIVALS[mode]().repair(model, loader_of(data), scan(model, data.loader(), blocks=0))
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    assert accuracy(result.model, make_data(seed=2)) > 0.95


@pytest.mark.parametrize("mode", ["clp", "anp", "rnp"])
def test_networks_without_batch_norm_are_refused(mode):
    model, data = make_pixel_model(), make_pixels()
    with pytest.raises(ValueError, match=r"model: expected BatchNorm layers .*, got none \(Sequential\)$"):
        run(RIVALS[mode](), model, data)


@pytest.mark.parametrize(
    ("mode", "setting", "value", "message"),
    [
        ("fp", "share", 0, r"share: expected a share in \(0, 1\], got 0"),
        ("fp", "lr", -1.0, "lr: expected a finite learning rate > 0, got -1.0"),
        ("fp", "max_drop", 2, r"max_drop: expected a share in \[0, 1\], got 2"),
        ("clp", "u", float("nan"), "u: expected a finite number, got nan"),
        ("anp", "epochs", 0, "epochs: expected an integer >= 1, got 0"),
        ("anp", "lr", 0, "lr: expected a finite learning rate > 0, got 0"),
        ("anp", "eps", -0.1, "eps: expected a finite number >= 0, got -0.1"),
        ("anp", "alpha", 1.1, r"alpha: expected a share in \[0, 1\], got 1.1"),
        ("rnp", "unlearning_epochs", 1.5, "unlearning_epochs: expected an integer >= 1, got 1.5"),
        ("rnp", "unlearning_lr", 0, "unlearning_lr: expected a finite learning rate > 0, got 0"),
        ("rnp", "weight_decay", -1, "weight_decay: expected a finite number >= 0, got -1"),
        ("rnp", "floor", 1.0, r"floor: expected a share in \[0, 1\), got 1.0"),
        ("tsbd", "epochs", True, "epochs: expected an integer >= 1, got True"),
        ("tsbd", "lr", float("inf"), "lr: expected a finite learning rate > 0, got inf"),
        ("tsbd", "momentum", 1.0, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ("tsbd", "neurons", -0.1, r"neurons: expected a share in \[0, 1\], got -0.1"),
        ("tsbd", "weights", "0", r"weights: expected a share in \[0, 1\], got '0'"),
        ("tsbd", "radius", -1, "radius: expected a finite number >= 0, got -1"),
    ],
)
def test_bad_settings(mode, setting, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        RIVALS[mode](**{setting: value})


# Thresholds


class Planned(PruningRival):
    """Prunes the columns of the head one by one; ``finish`` writes down that it ran."""

    name = "planned"

    def prune(self, model, head, loader, tell):
        for column in range(head.weight.shape[1]):
            head.weight[:, column] = 0
            yield float(column)

    def finish(self, model, head, loader, tell):
        head.module.bias.data += 1


class Unseen:
    """A loader that nobody may look into."""

    def __iter__(self):
        raise AssertionError


@pytest.mark.parametrize("column", [None, 0, 3, 6, 10])
def test_the_threshold_is_the_furthest_that_held_out_accuracy_allows_and_nothing_else_is_seen(column):
    """With the drop that one of the columns costs, to the sample, or none, as what is allowed."""
    model, held_out = make_pixel_model(), make_pixels()
    report = scan(model, held_out.loader(), blocks=0)
    pruned, errors = copy.deepcopy(model), [0]
    with torch.no_grad():
        right = round(200 * accuracy(pruned, held_out))
        for each in range(11):
            pruned[1].weight[:, each] = 0
            errors.append(right - round(200 * accuracy(pruned, held_out)))
    allowed = 0 if column is None else errors[column + 1]
    furthest = max(count for count, more in enumerate(errors) if more <= allowed)
    new = Planned(max_drop=allowed / 200).repair(model, Unseen(), report, held_out=held_out.loader()).model
    assert (new[1].weight == 0).all(0).nonzero().flatten().tolist() == list(range(furthest))
    assert torch.equal(new[1].bias, model[1].bias + 1)


def test_a_later_step_counts_although_an_earlier_one_is_too_bad(model):
    class TwoSteps(Planned):
        def prune(self, model, head, loader, tell):
            given = head.weight.clone()
            head.weight.zero_()
            yield 0.0
            head.weight.copy_(2 * given)
            yield 1.0

    new = run(TwoSteps(), model, make_data(), held_out=make_data(seed=1).loader())
    assert torch.equal(new[5].weight, 2 * model[5].weight)


@pytest.mark.parametrize("mode", ["fp", "anp", "rnp"])
def test_steps_go_through_rising_harm(model, mode):
    data, before = make_data(), state(model)
    settings = RIVALS[mode](share=0.25) if mode == "fp" else RIVALS[mode](epochs=2)
    thresholds, zeros, ends = [], [], []
    for threshold, pruned, finish in settings.steps(model, loader_of(data), scan(model, data.loader(), blocks=0)):
        layer = pruned[5].weight if mode == "fp" else pruned[1].weight[None]
        thresholds.append(threshold)
        zeros.append(set((layer == 0).all(0).nonzero().flatten().tolist()))
        ends.append((pruned, finish))
        assert changed(before, state(pruned)) <= {"5.weight" if mode == "fp" else "1.weight"}
    assert thresholds == sorted(set(thresholds))
    assert all(earlier < later for earlier, later in pairwise(zeros))
    assert TRIGGER in zeros[0]
    assert all(each is pruned for each, _ in ends)
    ends[-1][1]()
    if mode == "fp":
        assert set((pruned[5].weight == 0).all(0).nonzero().flatten().tolist()) == zeros[-1]
        assert "0.weight" in changed(before, state(pruned))
    assert not changed(before, state(model))


# Fine-Pruning


def test_latents_are_ranked_by_mean_activation():
    model, data = make_pixel_model(), make_pixels()
    found = fine_pruning.mean_activations(model, data.loader(7), Head("1", model[1]))
    assert found.numpy() == pytest.approx(np.abs(data.images.double().numpy()).mean((0, 1, 2)))


def test_fine_pruning_cuts_off_the_pixel_that_is_dark_in_clean_images():
    model, data, held_out = make_pixel_model(), make_pixels(), make_pixels(per_class=10)
    triggered = LabelledImages(data.images.clone(), data.labels)
    triggered.images[..., -1] = 3.0
    assert accuracy(model, triggered, SHORTCUT) > 0.9
    new = run(FinePruning(epochs=2, max_drop=0.5), model, data, held_out=held_out.loader())
    pruned = (new[1].weight == 0).all(0).nonzero().flatten().tolist()
    activity = data.images.abs().mean((0, 1, 2))
    assert pruned == sorted(activity.argsort()[: len(pruned)].tolist())
    assert 10 in pruned
    assert 1 < len(pruned) < 11
    assert accuracy(new, triggered, SHORTCUT) < 0.3
    kept = [column for column in range(11) if column not in pruned]
    assert (new[1].weight != model[1].weight)[:, kept].all()


# CLP


def test_bounds_are_spectral_norms_times_the_scale():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
    norm.weight.data.normal_()
    norm.running_var.uniform_(0.1, 2)
    kernels = convolution.weight.detach().double().numpy()
    scales = np.abs(norm.weight.detach().numpy()) / np.sqrt(norm.running_var.numpy() + 1e-5)
    for k, found in enumerate(clp.channel_bounds(convolution, norm).tolist()):
        spectral, scale = np.linalg.svd(kernels[k].reshape(3, 9), compute_uv=False)[0], scales[k]
        assert found == pytest.approx(spectral * scale, rel=1e-5)


@pytest.mark.parametrize(("u", "pruned"), [(3.0, [4]), (2.0, [4]), (4.0, [])])
def test_a_channel_with_a_large_lipschitz_bound_is_pruned_without_any_sample(u, pruned):
    """Of 16 equal channels one is larger: it is 15/4 = 3.75 (unbiased) standard deviations above the mean."""
    convolution = nn.Conv2d(3, 16, 3)
    kernel = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(convolution, nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 4, 2)).eval()
    with torch.no_grad():
        convolution.weight.copy_(kernel.expand(16, -1, -1, -1))
        convolution.weight[4] *= 50
        model[1].bias.fill_(0.5)
    before = state(model)
    images = torch.rand(8, 3, 4, 4)
    report = scan(model, [images], blocks=0)
    after = state(ChannelLipschitzness(u=u).repair(model, Unseen(), report).model)
    assert changed(before, after) == ({"1.weight", "1.bias"} if pruned else set())
    for name in ("1.weight", "1.bias"):
        assert (after[name] == 0).nonzero().flatten().tolist() == pruned


def test_each_batch_norm_has_the_convolution_before_it():
    model = SmallPreActResNet(width=4)
    names = {module: name.removeprefix("features.") for name, module in model.named_modules()}
    found = {names[norm]: names[convolution] for convolution, norm in clp.convolutions_before(model)}
    assert found == {
        "1.bn1": "0",
        "1.bn2": "1.conv1",
        "2.bn1": "1.conv2",
        "2.bn2": "2.conv1",
        "3.bn1": "2.shortcut",
        "3.bn2": "3.conv1",
        "4": "3.shortcut",
    }


def test_batch_norm_of_another_width_than_the_convolution_is_no_pair():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.PixelShuffle(2), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"BatchNorm layers after convolutions, got none \(Sequential\)$"):
        ChannelLipschitzness().treat(model, Head("4", model[4]), Unseen(), None, print)


# Masks: ANP and RNP


def test_masks_and_noise_do_what_other_scales_and_shifts_would(model):
    torch.manual_seed(0)
    images, before = make_data(20).images, state(model)
    masked = channels.MaskedChannels(model)
    masked.masks["1"].data.uniform_()
    on_scale, on_shift = torch.randn(4), torch.randn(4)
    expected = copy.deepcopy(model).train()
    with torch.no_grad():
        expected[1].weight *= masked.masks["1"] + on_scale
        expected[1].bias *= 1 + on_shift
    model.train()
    assert torch.allclose(masked.run(images, {"1": (on_scale, on_shift)}), expected(images))
    assert not changed(before, state(model))  # nor the statistics
    assert torch.allclose(masked.run(images), masked.run(images, {"1": (torch.zeros(4), torch.zeros(4))}))


def test_noise_is_within_eps_and_raises_the_loss(model):
    data = make_data()
    masked, anp = channels.MaskedChannels(model), AdversarialNeuronPruning(eps=0.3)
    (on_scale, on_shift) = anp._worst_noise(masked, data.images, data.labels)["1"]
    assert float(torch.cat([on_scale, on_shift]).abs().max()) <= 0.3 + 1e-6
    assert on_scale[TRIGGER] > 0 > on_shift[TRIGGER]  # wakes the channel up
    noises = (None, {"1": (on_scale, on_shift)})
    losses = [F.cross_entropy(masked.run(data.images, noise), data.labels) for noise in noises]
    assert losses[1] > losses[0] + 0.2


def test_anp_masks_the_channel_that_noise_wakes_up(model):
    data, before = make_data(), state(model)
    new = run(AdversarialNeuronPruning(), model, data, held_out=make_data(seed=1).loader())
    assert changed(before, state(new)) == {"1.weight"}
    assert (new[1].weight == 0).tolist() == [False, False, False, True]
    assert accuracy(new, make_data(seed=2, trigger=True), TARGET) < 0.5


def test_without_noise_anp_finds_nothing(model):
    model[1].bias.data[TRIGGER] = -2.4  # silent in any clean image
    new = run(AdversarialNeuronPruning(alpha=1.0), model, make_data(), held_out=make_data(seed=1).loader())
    assert new[1].weight[TRIGGER] == 1


def test_rnp_prunes_in_the_given_network_what_recovers_the_unlearned_one(model, monkeypatch):
    """The unlearned network is planted: the channel of the trigger answers for everything, and another is dead."""

    def plant(model, head, loader, **settings):
        assert settings == {"epochs": 20, "lr": 0.01, "floor": 0.2, "weight_decay": 5e-4}
        model[1].weight.data[TRIGGER] = 6.0
        model[0].weight.data *= 1.5

    monkeypatch.setattr(rnp, "unlearn", plant)
    before = state(model)
    new = run(ReconstructiveNeuronPruning(), model, make_data(), held_out=make_data(seed=1).loader())
    assert changed(before, state(new)) == {"1.weight"}
    assert (new[1].weight == 0).tolist() == [False, False, False, True]


def test_only_masks_are_trained_and_kept_between_0_and_1(model):
    before, data = state(model), make_data()
    masked, signs = channels.MaskedChannels(model), torch.tensor([1.0, -1.0, 0.0, 1.0])

    def step(inputs, labels):
        return (signs * masked.masks["1"]).sum(), masked.run(inputs)

    masks = masked.fit(Head("5", model[5]), loader_of(data), 2, 0.5, step, lambda record: None)
    assert masks["1"].tolist() == [0, 1, 1, 0]
    assert not changed(before, state(model))


def test_channels_are_pruned_up_to_each_threshold(model):
    thresholds, before = [], model[1].bias.detach().clone()
    for threshold in channels.prune_by_masks(model, {"1": torch.tensor([0.0, 0.52, 1.0, 0.07])}):
        thresholds.append((threshold, (model[1].weight == 0).tolist()))
    assert thresholds == [
        (0.0, [True, False, False, False]),
        (pytest.approx(0.07), [True, False, False, True]),
        (pytest.approx(0.52), [True, True, False, True]),
    ]
    assert torch.equal(model[1].bias, before)


def test_unlearning_stops_where_accuracy_collapses(model):
    data = make_data()
    losses = []
    model.register_forward_hook(
        lambda module, inputs, out: losses.append(float(F.cross_entropy(out.detach(), data.labels)))
    )
    batches = [(data.images, data.labels)]
    unlearning.unlearn(model, Head("5", model[5]), batches, epochs=500, lr=0.01, floor=0.4)
    assert len(losses) < 500
    assert losses[-1] > losses[0] + 0.5
    assert not model.training
    model._forward_hooks.clear()
    model.train()
    assert float((model(data.images).argmax(1) == data.labels).float().mean()) <= 0.4
    before = state(model)
    unlearning.unlearn(model, Head("5", model[5]), batches, epochs=3, lr=0.01, floor=0.4)
    assert changed(before, state(model)) <= {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


# TSBD


def test_the_most_changed_weights_of_the_most_changed_neurons_are_reset():
    changes = [
        torch.tensor([[[1.0, 0.0]], [[3.0, 0.5]], [[0.1, 0.2]]]),  # three channels of 1, 3.5 and 0.3
        torch.tensor([[2.0, 4.0, 0.0]]),  # one of 6
    ]
    first, second = tsbd.most_changed(changes, 0.5, 0.4)  # 4 and 3 of 4, 3, 2, 0.5, 0
    assert first.tolist() == [[[False, False]], [[True, False]], [[False, False]]]
    assert second.tolist() == [[False, True, False]]
    for nothing in (tsbd.most_changed(changes, 0.0, 1.0), tsbd.most_changed(changes, 1.0, 0.0)):
        assert not any(each.any() for each in nothing)
    assert all(each.all() for each in tsbd.most_changed(changes, 1.0, 1.0))


def test_tsbd_resets_what_unlearning_changed(model, monkeypatch):
    def plant(model, head, loader, **settings):
        model[0].weight.data[1, 1] += 5.0  # one weight of one channel of four
        model[0].weight.data[1, 2] += 1.0
        model[0].weight.data[3, 3] += 2.0
        model[5].weight.data += 100.0  # the head is no neuron
        model[1].running_mean += 1.0

    monkeypatch.setattr(tsbd, "unlearn", plant)
    new = run(TwoStageDefense(neurons=0.25, weights=0.5, epochs=1, lr=1e-12), model, make_data())
    expected = model[0].weight.detach().clone()
    expected[1, 1:3] = 0  # two of its four
    assert torch.allclose(new[0].weight, expected, atol=1e-9)
    assert torch.allclose(new[5].weight, model[5].weight, atol=1e-9)


def test_a_step_of_tsbd_follows_the_gradient_ahead(model, monkeypatch):
    monkeypatch.setattr(tsbd, "unlearn", lambda *args, **settings: None)
    data = make_data(60, seed=4)
    with torch.no_grad():
        model[0].weight += 0.3 * torch.randn(4, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    settings = TwoStageDefense(neurons=0.0, epochs=1, lr=0.1, radius=0.5, alpha=0.3, weight_decay=0.01)
    report = scan(model, data.loader(), blocks=0)
    new = settings.repair(model, [(data.images, data.labels)], report).model

    def gradient(network):
        network.zero_grad()
        F.cross_entropy(network(data.images), data.labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    mine, ahead = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    here = nn.utils.parameters_to_vector(model.parameters()).detach()
    first = gradient(mine)
    nn.utils.vector_to_parameters(here + 0.5 * first / first.norm(), ahead.parameters())
    second = gradient(ahead)
    assert not torch.allclose(first, second, rtol=0.1)
    expected = here - 0.1 * (0.7 * first + 0.3 * second + 0.01 * here)
    assert torch.allclose(nn.utils.parameters_to_vector(new.parameters()), expected, atol=1e-6)
    assert torch.equal(new[1].running_mean, mine[1].running_mean)  # of one pass


def test_without_convolutions_linear_layers_are_reset():
    layers = [nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)]
    model = nn.Sequential(*layers)
    assert tsbd.layers_to_reset(model, Head("2", layers[2])) == [layers[0]]
    convolution = nn.Conv2d(1, 1, 1)
    assert tsbd.layers_to_reset(nn.Sequential(convolution, model), Head("1.2", layers[2])) == [convolution]
    with pytest.raises(ValueError, match="model: expected convolutions or linear layers before the head, got none"):
        tsbd.layers_to_reset(layers[2], Head("", layers[2]))
