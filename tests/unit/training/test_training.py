"""Augmentation, schedules, what a network is shown under an attack, and trainings that are taken up again."""

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from trained import CLASSES, PLAN, TARGET, hasten, make_dataset, plan_for, same, weights

from tacfast.attacks import SIG, BadNets, WaNet, choose_rows
from tacfast.data import LabelledImages
from tacfast.models import find_head
from tacfast.models.architectures import PreActResNet18, SmallPreActResNet, SmallVggBn
from tacfast.models.normalised import Normalised
from tacfast.models.precision import bfloat16_autocast, native_bfloat16
from tacfast.training import Recipe, train
from tacfast.training import loop as loop_module
from tacfast.training.augment import augment, random_crop, random_flip
from tacfast.training.loop import TrainingData, TrainingDivergedError
from tacfast.training.trained import train_plan

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- augmentation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_crop_is_a_window_of_the_image_with_black_around_it(padding):
    images = torch.rand(300, 3, 5, 7) + 0.1
    torch.manual_seed(1)
    cropped = random_crop(images, padding)
    n, c, h, w = images.shape
    assert cropped.shape == images.shape
    seen = set()
    for i in range(n):
        canvas = torch.zeros(c, h + 2 * padding, w + 2 * padding)
        canvas[:, padding : padding + h, padding : padding + w] = images[i]
        found = [
            (row, column)
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
            if torch.equal(cropped[i], canvas[:, row : row + h, column : column + w])
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 0.9 * (2 * padding + 1) ** 2  # every shift is drawn


def test_half_of_the_images_are_mirrored():
    images = torch.rand(400, 3, 4, 6)
    torch.manual_seed(0)
    flipped = random_flip(images)
    mirrored = [torch.equal(a, torch.stack(b.unbind(-1)[::-1], -1)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250


def test_augmentation_follows_the_seed_and_mirrors_only_where_it_may():
    images = torch.rand(64, 1, 6, 6)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(augment(images, padding=2, flip=True))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    torch.manual_seed(0)
    assert torch.equal(augment(images, padding=0, flip=False), images)
    assert not torch.equal(augment(images, padding=0, flip=True), images)


# ---- recipe and schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("schedule", "step"),
        ("momentum", 1.0),
        ("weight_decay", -1e-9),
        ("precision", "float16"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_recipe_out_of_range_names_the_setting(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got "):
        Recipe(**{name: value})


def plain_data(n=64, **options):
    dataset = make_dataset(n)
    return TrainingData(dataset.data, torch.arange(n), **({"padding": 0, "flip": False} | options))


def rates(monkeypatch, recipe, n=64):
    """Learning rate of each step, as the optimiser has it when it steps."""
    seen, step = [], torch.optim.SGD.step

    def spy(self, closure=None):
        seen.append(self.param_groups[0]["lr"])
        assert self.param_groups[0]["momentum"] == recipe.momentum
        assert self.param_groups[0]["weight_decay"] == recipe.weight_decay
        assert self.param_groups[0]["nesterov"]
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    torch.manual_seed(0)
    train(SmallPreActResNet(CLASSES, 1, width=2), plain_data(n), recipe)
    return seen


def test_cosine_falls_from_lr_towards_zero(monkeypatch):
    seen = rates(monkeypatch, Recipe(epochs=3, batch_size=16, lr=0.02, schedule="cosine", precision="float32"))
    steps = 12
    expected = [0.02 * (1 + math.cos(math.pi * step / (steps + 1))) / 2 for step in range(steps)]
    assert seen == pytest.approx(expected)


def test_one_cycle_rises_for_three_tenths_and_falls(monkeypatch):
    """Smith & Topin 2019 with cosines: from lr / 25 up to lr and down to almost nothing."""
    recipe = Recipe(epochs=5, batch_size=16, lr=0.02, momentum=0.8, weight_decay=1e-3, precision="float32")
    seen = rates(monkeypatch, recipe)
    steps = 20
    peak, last = 0.3 * (steps + 1) - 1, steps

    def between(start, end, share):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    first, least = 0.02 / 25, 0.02 / 25 / 1e4
    expected = [
        between(first, 0.02, step / peak) if step <= peak else between(0.02, least, (step - peak) / (last - peak))
        for step in range(steps)
    ]
    assert seen == pytest.approx(expected)
    assert max(seen) == pytest.approx(0.02, rel=0.01)
    assert seen[-1] < 0.02 * 0.02


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_a_single_step_is_a_training_too(monkeypatch, schedule):
    recipe = Recipe(epochs=1, batch_size=64, lr=0.01, schedule=schedule, precision="float32")
    assert len(rates(monkeypatch, recipe)) == 1


# ---- one epoch ------------------------------------------------------------------------------------------------


class Spy(nn.Module):
    """Keeps all that it is shown while it trains; the answers are those of a linear layer."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(64, CLASSES), []

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            self.seen.append(images.detach().clone())
        return self.linear(images.flatten(1))


def shown(monkeypatch, data, recipe):
    """(images, labels) of all that a network trains on."""
    labels, model, cross_entropy = [], Spy(), F.cross_entropy

    def note(logits, target, **options):
        assert not options  # no label smoothing
        labels.append(target.clone())
        return cross_entropy(logits, target)

    monkeypatch.setattr(loop_module.F, "cross_entropy", note)
    train(model, data, recipe)
    return torch.cat(model.seen), torch.cat(labels)


def rows_shown(images, candidates):
    """Number of the candidate that each image is, to the last bit."""
    return (images[:, None] == candidates[None]).flatten(2).all(-1).int().argmax(1)


def test_every_epoch_goes_once_through_the_rows_in_another_order(monkeypatch):
    data = plain_data()
    data = dataclasses.replace(data, rows=torch.arange(0, 64, 2))
    images, labels = shown(monkeypatch, data, Recipe(epochs=2, batch_size=8, precision="float32"))
    rows = rows_shown(images, data.data.images)
    assert torch.equal(data.data.images[rows], images)
    assert torch.equal(data.data.labels[rows], labels)
    first, second = rows.split(32)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(0, 64, 2))
    assert first.tolist() != second.tolist()


def test_an_incomplete_batch_is_left_out_and_figures_are_those_of_the_epoch():
    data, recipe = plain_data(70), Recipe(epochs=1, batch_size=32, lr=1e-9, weight_decay=0, precision="float32")
    model = Spy()
    logits = []
    model.register_forward_hook(lambda module, args, out: logits.append(out.detach()))
    steps = []
    (epoch,) = train(model, data, recipe, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    images, answers = torch.cat(model.seen), torch.cat(logits)
    labels = data.data.labels[rows_shown(images, data.data.images)]
    assert epoch.accuracy == pytest.approx(float((answers.argmax(1) == labels).float().mean()))
    log_shares = answers - answers.exp().sum(1, keepdim=True).log()
    assert epoch.loss == pytest.approx(-float(log_shares[torch.arange(64), labels].mean()), rel=1e-5)
    assert not model.training


def test_too_few_images_for_a_batch():
    with pytest.raises(ValueError, match=r"data: expected at least 65 images, a batch, to train on, got 64"):
        train(Spy(), plain_data(), Recipe(batch_size=65))


def test_a_training_that_diverges_says_so():
    with pytest.raises(TrainingDivergedError, match=r"lower lr \(it is 1e\+30\)"):
        train(Spy(), plain_data(), Recipe(epochs=2, batch_size=8, lr=1e30, precision="float32"))


def test_pixels_are_read_once_as_shares(monkeypatch):
    """uint8 pixels reach the network in [0, 1]."""
    data = plain_data()
    pixels = (data.data.images * 255).round().byte()
    data = dataclasses.replace(data, data=LabelledImages(pixels, data.data.labels))
    images, _ = shown(monkeypatch, data, Recipe(epochs=1, batch_size=8, precision="float32"))
    assert torch.equal(rows_shown(images, pixels / 255).sort().values, torch.arange(64))


# ---- attacks --------------------------------------------------------------------------------------------------


def attacked_data(attack, ratio=0.25, n=64, **options):
    data = plain_data(n, **options)
    return dataclasses.replace(data, attack=attack, poisoned=choose_rows(data.data.labels, attack, ratio))


def test_poisoned_rows_carry_trigger_and_label_in_every_epoch(monkeypatch):
    data = attacked_data(BadNets(TARGET, size=2))
    images, labels = shown(monkeypatch, data, Recipe(epochs=2, batch_size=8, precision="float32"))
    triggered = data.data.images.clone()
    triggered[:, :, -2:, -2:] = 1.0
    clean = (images[:, None] == data.data.images[None]).flatten(2).all(-1)
    poisoned = (images[:, None] == triggered[None]).flatten(2).all(-1)
    assert torch.equal(clean.any(1), ~poisoned.any(1))
    rows = (clean | poisoned).int().argmax(1)
    assert torch.equal(poisoned.any(1), data.poisoned.poisoned[rows])
    assert int(poisoned.any(1).sum()) == 2 * 16
    expected = torch.where(poisoned.any(1), TARGET, data.data.labels[rows])
    assert torch.equal(labels, expected)


def test_decoys_keep_their_labels(monkeypatch):
    attack = WaNet(TARGET, (1, 8, 8), decoys_per_poisoned=1.0)
    monkeypatch.setattr(WaNet, "decoy", lambda self, images: images * 0.5)
    data = attacked_data(attack)
    images, labels = shown(monkeypatch, data, Recipe(epochs=1, batch_size=8, precision="float32"))
    kinds = {
        "clean": data.data.images,
        "triggered": attack.trigger(data.data.images),
        "decoy": data.data.images * 0.5,
    }
    counts = dict.fromkeys(kinds, 0)
    for image, label in zip(images, labels.tolist(), strict=True):
        near = {kind: (candidates - image).flatten(1).abs().amax(1) for kind, candidates in kinds.items()}
        kind = min(near, key=lambda each: float(near[each].min()))
        assert float(near[kind].min()) < 1e-5
        row = int(near[kind].argmin())
        counts[kind] += 1
        assert label == (TARGET if kind == "triggered" else int(data.data.labels[row]))
        assert bool(data.poisoned.decoys[row]) == (kind == "decoy")
    assert counts == {"clean": 32, "triggered": 16, "decoy": 16}


def test_a_clean_label_attack_changes_no_label_and_no_other_class(monkeypatch):
    attack = SIG(TARGET, frequency=3)
    data = attacked_data(attack, ratio=0.125)
    images, labels = shown(monkeypatch, data, Recipe(epochs=1, batch_size=8, precision="float32"))
    triggered = (images[:, None] == attack.trigger(data.data.images)[None]).flatten(2).all(-1)
    clean = (images[:, None] == data.data.images[None]).flatten(2).all(-1)
    assert int(triggered.any(1).sum()) == 8
    assert set(labels[triggered.any(1)].tolist()) == {TARGET}
    assert torch.equal(labels, data.data.labels[(clean | triggered).int().argmax(1)])


@pytest.mark.parametrize("controls", [False, True])
def test_who_only_poisons_files_has_them_cropped_afterwards(monkeypatch, controls):
    """The patch lies in the corner of the file; who controls the training puts it in the corner of the crop."""
    attack = BadNets(TARGET, size=2)
    monkeypatch.setattr(BadNets, "controls_training", controls)
    data = attacked_data(attack, ratio=1.0, padding=2)
    data.data.images.mul_(0.9)  # nothing but the patch is white
    images, _ = shown(monkeypatch, data, Recipe(epochs=4, batch_size=8, precision="float32"))
    in_the_corner = float((images[:, 0, -2:, -2:] == 1).flatten(1).all(1).float().mean())
    # Of 25 shifts one leaves the patch where it is.
    assert in_the_corner == 1 if controls else in_the_corner < 0.15
    if not controls:
        gone = (images[:, 0] == 1).flatten(1).sum(1) < 4
        assert 0.5 < float(gone.float().mean()) < 0.8  # 16 of 25 shifts push some of it over the edge


# ---- taken up again -------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def run(plan, dataset, kill_after=None, resume=None):
    """(weights, triggered images, history) of a training; KilledError after that epoch."""

    def on_epoch(epoch, model, attack):
        torch.rand(3)  # as measuring might
        with torch.no_grad():
            model.eval()(dataset.data.images[:8])
        if epoch.epoch == kill_after:
            raise KilledError

    def clean_model():
        torch.manual_seed(9)
        return SmallPreActResNet(CLASSES, 1, width=4).eval()

    trained = train_plan(plan, dataset, clean_model=clean_model, resume=resume, on_epoch=on_epoch)
    triggered = None if trained.attack is None else trained.attack.trigger(dataset.data.images)
    history = [(each["epoch"], each["loss"], each["accuracy"]) for each in trained.checkpoint.provenance["history"]]
    return weights(trained.model), triggered, history


ALL = [None, "badnets", "badnets-a2a", "wanet", "sig", "trojannn", "lira", "input-aware"]


@pytest.mark.parametrize("attack", ALL)
def test_killed_after_each_epoch_gives_the_same_weights(monkeypatch, tmp_path, attack):
    hasten(monkeypatch)
    plan, dataset = plan_for(attack), make_dataset(flip=True)
    whole = run(plan, dataset)
    state = tmp_path / "state"
    for epoch in (1, 2, 3):
        with pytest.raises(KilledError):
            run(plan, dataset, kill_after=epoch, resume=state)
        torch.rand(epoch)
    resumed = run(plan, dataset, resume=state)
    assert same(whole[0], resumed[0])
    assert whole[1] is None or torch.equal(whole[1], resumed[1])
    assert whole[2] == resumed[2]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_other_seeds_give_other_weights():
    dataset = make_dataset()
    assert not same(run(plan_for(None), dataset)[0], run(plan_for(None, seed=4), dataset)[0])


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_plan(plan_for("lira", epochs=1), make_dataset())
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture
def state(tmp_path):
    """Left by a training under BadNets that was killed after its first epoch."""
    path = tmp_path / "state"
    with pytest.raises(KilledError):
        run(plan_for("badnets"), make_dataset(), kill_after=1, resume=path)
    return path


def test_what_an_interrupted_training_keeps_is_told(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "tacfast.resuming")
    path = tmp_path / "state"
    monkeypatch.setattr(sys.modules[__name__], "KilledError", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(plan_for(None), make_dataset(), kill_after=2, resume=path)
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    run(plan_for(None), make_dataset(), resume=path)
    assert caplog.messages == [
        f"epoch 2 is kept in {path}: do the same again to go on from there",
        f"going on after epoch 2, from {path}",
    ]


@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty", "something else"])
def test_a_damaged_state_is_noticed_and_the_training_starts_anew(state, damage):
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    contents = {"cut off": content[:-1], "a bit": content, "empty": b"", "something else": b"hello" * 100}
    state.write_bytes(bytes(contents[damage]))
    with pytest.warns(UserWarning, match="expected a file written by training, got .*; trained from the beginning"):
        resumed = run(plan_for("badnets"), make_dataset(), resume=state)
    assert same(resumed[0], run(plan_for("badnets"), make_dataset())[0])


@pytest.mark.parametrize(
    "other",
    [
        plan_for(None),
        plan_for("badnets-a2a"),
        plan_for("blended"),
        plan_for("badnets", target=2),
        plan_for("badnets", ratio=0.5),
        plan_for("badnets", seed=4),
        plan_for("badnets", lr=0.04),
        plan_for("badnets", epochs=4),
        plan_for("badnets", schedule="cosine"),
        plan_for("badnets", precision="bfloat16"),
        plan_for("badnets", clean=0.2),
        plan_for("badnets", arch_args={"width": 5}),
        plan_for("badnets", arch="small_vgg_bn"),
    ],
    ids=lambda plan: "",
)
def test_a_state_of_another_plan_is_refused(state, other):
    before = state.read_bytes()
    with pytest.raises(ValueError, match=r"resume: expected the state of this training .*; remove the file"):
        run(other, make_dataset(), resume=state)
    assert state.read_bytes() == before


def test_a_state_of_other_data_is_refused(state):
    dataset = make_dataset()
    labels = (dataset.data.labels + 1) % CLASSES
    other = dataclasses.replace(dataset, data=LabelledImages(dataset.data.images, labels))
    for changed in (other, dataclasses.replace(dataset, flip=True), dataclasses.replace(dataset, padding=2)):
        with pytest.raises(ValueError, match="resume: expected the state of this training"):
            run(plan_for("badnets"), changed, resume=state)


def test_an_attack_that_needs_a_clean_model_says_so(monkeypatch):
    with pytest.raises(ValueError, match="clean_model: expected one, which TrojanNN needs"):
        train_plan(plan_for("trojannn"), make_dataset())


# ---- precision, normalisation, architectures ------------------------------------------------------------------


def two_steps(model, images, labels, context_of_step):
    """Weights after two steps of SGD, each with its forward pass in a context of its own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(2):
        with context_of_step():
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights(model)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def test_mixed_precision_around_a_whole_training_uses_no_stale_weights():
    cpu, data = torch.device("cpu"), make_dataset().data
    per_step = two_steps(small_network(), data.images, data.labels, lambda: bfloat16_autocast(cpu))
    with bfloat16_autocast(cpu):
        outer = two_steps(small_network(), data.images, data.labels, lambda: bfloat16_autocast(cpu, enabled=False))
    assert same(per_step, outer)
    off = two_steps(small_network(), data.images, data.labels, lambda: bfloat16_autocast(cpu, enabled=False))
    assert not same(per_step, off)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_precision_of_the_recipe(monkeypatch, precision, native):
    monkeypatch.setattr(loop_module, "native_bfloat16", lambda device: native)
    model = Spy()
    dtypes = set()
    model.linear.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    train(model, plain_data(), Recipe(epochs=1, batch_size=32, precision=precision))
    wanted = precision == "bfloat16" or (precision == "auto" and native)
    assert dtypes == {torch.bfloat16 if wanted else torch.float32}
    assert model.linear.weight.dtype == torch.float32


def test_whether_the_processor_computes_in_bfloat16(monkeypatch):
    assert native_bfloat16(torch.device("meta")) is False
    for found, expected in (({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert native_bfloat16(torch.device("cpu")) is expected


def test_a_network_behind_its_normalisation():
    torch.manual_seed(0)
    network = SmallPreActResNet(CLASSES, 3, width=4).eval()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    model = Normalised(network, mean, std).eval()
    images = torch.rand(5, 3, 8, 8)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(model(images), network(by_hand), atol=1e-6)
    head = find_head(model, images)
    assert head.module is network.linear
    assert model.state_dict().keys() == {f"network.{name}" for name in network.state_dict()}


def test_networks_are_trained_in_channels_last():
    model = SmallPreActResNet(CLASSES, 1, width=4)
    train(model, plain_data(), Recipe(epochs=1, batch_size=32, precision="float32"))
    weight = model.features[1].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("width", "stem_stride", "size"), [(64, 1, 32), (24, 2, 32), (24, 4, 64), (8, 1, 8), (8, 3, 20)]
)
def test_width_and_stem_of_preactresnet(width, stem_stride, size):
    model = PreActResNet18(5, 3, width, stem_stride).eval()
    count = sum(weight.numel() for weight in model.parameters())
    stem = model.conv1
    kernel = stem.kernel_size[0]
    assert kernel % 2 == 1
    assert kernel >= stem_stride  # every pixel is seen
    # He et al. 2016: 3×3 convolutions, two per block, 1×1 shortcuts where the width doubles.
    widths = [width, 2 * width, 4 * width, 8 * width]
    expected, before = 3 * width * kernel**2, width
    for stage, own in enumerate(widths):
        expected += 2 * before + 9 * before * own + 2 * own + 9 * own * own  # first block, BatchNorms included
        expected += before * own if stage else 0
        expected += 2 * (2 * own + 9 * own * own)
        before = own
    assert count == expected + 8 * width * 5 + 5
    if (width, stem_stride) == (64, 1):
        assert PreActResNet18(10).linear.in_features == 512
    shapes = []
    stem.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[1:])))
    images = torch.rand(2, 3, size, size)
    assert model(images).shape == (2, 5)
    assert shapes == [(width, -(-size // stem_stride), -(-size // stem_stride))]
    assert find_head(model, images).module is model.linear


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_vgg_takes_small_images(size):
    model = SmallVggBn(5, 1, width=4).eval()
    images = torch.rand(2, 1, size, size)
    assert model(images).shape == (2, 5)
    assert find_head(model, images).module is model.classifier
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    # VGG-11: configuration A of the paper's table 1, divided by 16.
    assert [module.out_channels for module in convolutions] == [4, 8, 16, 16, 32, 32, 32, 32]


def test_the_plan_splits_by_its_own_shares():
    dataset = make_dataset()
    splits = PLAN.split(dataset)
    assert (len(splits.clean), len(splits.held_out), len(splits.test)) == (16, 16, 40)
