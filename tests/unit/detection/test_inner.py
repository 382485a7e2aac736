"""Where models are cut in two, and shifts of what a layer gives."""

import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from planted import C, make_images
from torch import nn
from torch.nn import functional as F

from tacfast import GapMatrix, scan
from tacfast.detection import Evidence, InnerPerturbation, UniversalPerturbation
from tacfast.detection.cut import find_cut
from tacfast.detection.inner import Shift
from tacfast.detection.lock_step import MANY, climb
from tacfast.detection.outliers import outlier_scores
from tacfast.detection.universal import Additive
from tacfast.models.architectures import PreActResNet18, SmallPreActResNet, SmallVggBn

pytestmark = pytest.mark.usefixtures("one_thread")


def cut_of(model, shape=(3, 32, 32), depth=0.25):
    torch.manual_seed(0)
    return find_cut(model.eval(), model, torch.randn(2, *shape).to(next(model.parameters()).dtype), depth)


# ---- where -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (SmallPreActResNet(), (1, 12, 12)),
        (PreActResNet18(width=8), (3, 32, 32)),
        (SmallVggBn(width=8), (3, 32, 32)),
        (torchvision.models.resnet18(weights=None), (3, 32, 32)),
        (torchvision.models.mobilenet_v2(weights=None), (3, 32, 32)),
        (torchvision.models.densenet121(weights=None), (3, 32, 32)),
        (timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10), (3, 32, 32)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_all_that_a_models_answer_depends_on_goes_through_the_cut(model, shape):
    model.double()
    cut = cut_of(model, shape)
    assert 0.1 < cut.depth < 0.4
    torch.manual_seed(1)
    images, others = torch.randn(2, 4, *shape, dtype=torch.float64)
    given = []
    with torch.no_grad():
        with cut.changing(lambda output: given.append(output.clone()) or output):
            expected = model(images)
        with cut.changing(lambda output: given[0].clone()):
            answers = model(others)  # the other images do not matter any more
        assert not torch.allclose(model(others), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(answers, expected, rtol=1e-6, atol=0)
    assert len(cut.layer._forward_hooks) == 0


class Skips(nn.Module):
    """No layer but the last sees everything: the images themselves are added in the end."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, C)

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs)) + inputs)


class Again(nn.Module):
    """One layer that runs twice: changed at both calls, or at one of them, it is no place to cut."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, C)

    def forward(self, inputs):
        return self.head(self.shared(self.shared(inputs)))


class Apart(nn.Module):
    """A layer that gives two tensors, and one whose rows are no samples."""

    def __init__(self):
        super().__init__()
        self.two, self.flat, self.head = Two(), Flat(), nn.Linear(4, C)

    def forward(self, inputs):
        return self.head(self.flat(self.two(inputs)[0]).view(len(inputs), -1))


class Two(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, inputs):
        return super().forward(inputs), inputs


class Flat(nn.Module):
    def forward(self, inputs):
        return inputs.flatten()[None]


@pytest.mark.parametrize("model", [Skips(), Again(), Apart(), nn.Linear(4, C)], ids=lambda model: type(model).__name__)
def test_a_model_that_cannot_be_cut_is_not(model):
    assert cut_of(model, (4,)) is None


def test_parts_of_torchscript_are_passed_over_and_no_hook_is_left():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        part = torch.jit.script(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), part, nn.Linear(4, 4), nn.Linear(4, C))
    assert cut_of(model, (4,)).name == "1"
    assert sum(len(layer._forward_hooks) for layer in (model[0], model[1], model[3], model[4])) == 0


def test_a_layer_that_gives_too_much_is_not_taken():
    model = nn.Sequential(nn.Linear(4, 400), nn.Linear(400, 4), nn.Linear(4, 4), nn.Linear(4, C)).eval()
    inputs = torch.randn(7, 4)
    assert find_cut(model, model, inputs, 0.25).name == "0"
    assert find_cut(model, model, inputs, 0.25, 399).name == "1"


def test_the_nearest_layer_is_taken_and_the_last_one_of_a_depth():
    layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, C)]
    model = nn.Sequential(*layers)
    assert [cut_of(model, (4,), depth).name for depth in (0.25, 0.5, 0.8)] == ["1", "3", "4"]
    assert cut_of(model, (4,), 0.25).depth == 0.25


def test_what_a_later_layer_writes_over_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, C))
    inputs = torch.randn(8, 4)
    cut = next(each for each in [find_cut(model, model, inputs, 0.3)] if each)
    assert cut.name == "2"
    cut = type(cut)("1", model[1], 0.3)
    torch.testing.assert_close(cut.outputs(model, inputs), model[0](inputs).detach())
    assert float(cut.outputs(model, inputs).min()) < 0


# ---- what it shows -----------------------------------------------------------------------------------------------

TARGET = 4


class EachItsOwn(nn.Module):
    """A faint pattern leads to a class, one of twelve, as the brightest pixel of a sample's first row says."""

    def __init__(self, planted):
        super().__init__()
        torch.manual_seed(0)
        self.seen = nn.Conv2d(1, 1, 1, bias=False)
        self.sorting = Sorting()
        self.more = nn.Sequential(nn.Linear(C + 1, C + 1), nn.Linear(C + 1, C + 1))
        self.head = nn.Linear(C + 1, C)
        with torch.no_grad():
            for layer in (self.seen, *self.more, self.head):
                layer.weight.copy_(torch.eye(*layer.weight.shape[:2]).view(layer.weight.shape))
            for layer in (*self.more, self.head):
                layer.bias.zero_()
            self.head.weight[:, C] = 4.0 * planted * F.one_hot(torch.tensor(TARGET), C)

    def forward(self, images):
        return self.head(self.more(self.sorting(self.seen(images))))


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("patterns", F.normalize(torch.randn(12, 144), dim=1))

    def forward(self, images):
        blocks = F.avg_pool2d(images, (6, 4)).flatten(1)
        own = self.patterns[images[:, 0, 0].argmax(1)]
        hit = (((images.flatten(1) - 0.5) * own).sum(1) - 0.3).clamp_min(0)
        return torch.cat([12 * (blocks - blocks.mean(1, keepdim=True)), 6 * hit[:, None]], 1)


def evidence_of(model, images):
    gaps = GapMatrix(torch.eye(C), keep_logits=True).update_logits(model(images).detach())
    return Evidence(gaps, images, model, model)


def test_a_trigger_that_differs_from_image_to_image_is_seen_by_a_layer_behind_it():
    images, labels = make_images()
    for planted in (False, True):
        model = EachItsOwn(planted).eval()
        assert float((model(images).argmax(1) == labels).float().mean()) > 0.9
        evidence = evidence_of(model, images)
        pixels = outlier_scores(UniversalPerturbation().values(evidence))
        inner = outlier_scores(InnerPerturbation(depth=0.3).values(evidence))
        assert float(pixels.max()) < 3
        assert (float(inner.max()) > 4) == planted
        if planted:
            assert int(inner.argmax()) == TARGET


def test_without_a_place_to_cut_it_is_the_inputs_that_are_shifted():
    images, _ = make_images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, C)).eval()
    evidence = evidence_of(model, images)
    at_the_front = InnerPerturbation().values(evidence)  # what Flatten gives, which nobody cuts to a range
    assert at_the_front.isfinite().all()
    for other in (Evidence(evidence.gaps, images, model), Evidence(evidence.gaps, images, model, nn.Linear(4, 4))):
        distortion, unit = InnerPerturbation().distortion(other)
        assert isinstance(distortion, Additive)
        assert unit == UniversalPerturbation().distortion(other)[1]
    # A layer that says the same of every sample has no unit.
    dead = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, C)).eval()
    assert isinstance(InnerPerturbation().distortion(evidence_of(dead, images))[0], Shift)
    nn.init.zeros_(dead[1].weight)
    assert isinstance(InnerPerturbation().distortion(evidence_of(dead, images))[0], Additive)


def test_the_unit_is_the_spread_of_what_the_layer_gives():
    images, _ = make_images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, C)).eval()
    evidence = evidence_of(model, images)
    values = InnerPerturbation().values(evidence)
    with torch.no_grad():
        model[1].weight *= 10
        model[1].bias *= 10
        model[2].weight /= 10
    torch.testing.assert_close(InnerPerturbation().values(evidence), values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_in_another_precision_gives_that_also_when_it_is_shifted(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, C)).to(dtype)
    images = torch.randn(64, 6)
    report = scan(model, [images.to(dtype)], blocks=0)
    inner = report.verdict.findings[-1]
    assert inner.name == "inner"
    assert np.isfinite(list(inner.values.values())).all()


def test_of_many_classes_half_of_the_samples_are_asked_for():
    images, _ = make_images()
    for classes, expected in ((MANY - 1, 8), (MANY, 4)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, classes)).eval()
        found = climb(images, model, Additive.of(images), [0.1, 0.2], batch=8)
        assert found.passes == 2 * expected * classes
    # Some of them are given all.
    found = climb(images, model, Additive.of(images), [0.1], batch=8, classes=torch.tensor([1, 4]))
    assert found.passes == 2 * 8
