"""What a scan makes of a model and its inputs, beyond the latents: see also test_models, _stability and _resuming."""

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from planted import TARGET, C, Planted, checkerboard, make_images
from torch import nn

from tacfast import find_head, scan
from tacfast.detection import FULL, QUICK
from tacfast.detection.bank import Bank
from tacfast.detection.rule import Rule
from tacfast.scanning import evidence_of
from tacfast.solver import GapMatrix

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def bank(monkeypatch):
    """What the one of the package holds will change; what is scanned here is either odd or not."""
    known = Bank(
        clean=(0.0, 0.5, 1.0, 2.0), suspicious=2.0, borderline=1.0, judged=4, alarms=0, attacked=1, found=1, right=1
    )
    monkeypatch.setattr(Bank, "of", classmethod(lambda _, rule: known))


class Model(nn.Module):
    """The planted classifier with a head of its own; ``before`` is done to the inputs."""

    def __init__(self, pattern=True, before=None):
        super().__init__()
        self.body = Planted(checkerboard() if pattern else None)
        self.norm = nn.BatchNorm1d(C, affine=False)  # at first, that is the identity
        self.head = nn.Linear(C, C)
        self.before = before
        self.seen, self.graphs = 0, 0
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(C))
            self.head.bias.zero_()
            # The noise of clean images has some of the pattern; without this the latents would show that.
            self.head.bias[TARGET] = -0.75 * pattern

    def forward(self, images):
        self.seen += len(images)
        self.graphs += images.requires_grad
        return self.head(self.norm(self.body(images if self.before is None else self.before(images))))


IMAGES, LABELS = make_images()


def batches(images=IMAGES, size=50):
    return list(zip(images.split(size), LABELS.split(size), strict=True))


def of(report):
    """What was said, without the timings."""
    return report.verdict, report.stability, report.solution.norms.tolist()


# ---- full and quick ------------------------------------------------------------------------------------------


def test_a_shortcut_that_only_the_inputs_show_is_found():
    full, quick = (scan(Model(), batches(), quick=quick, blocks=0) for quick in (False, True))
    assert (full.verdict.rule, full.verdict.label, full.verdict.classes) == ("full", "suspicious", (TARGET,))
    qp, universal, inner = full.verdict.findings
    assert universal.scores[TARGET] > 3 > max(qp.scores.values())
    assert max(inner.scores.values()) < 3  # the only layers come behind the short cut
    assert (quick.verdict.rule, quick.verdict.label) == ("quick", "nothing_found")
    assert [found.values for found in quick.verdict.findings] == [qp.values]
    assert scan(Model(pattern=False), batches(), blocks=0).verdict.label == "nothing_found"


def test_the_perturbation_of_a_suspicious_class_is_kept_to_be_looked_at():
    model = Model().eval()
    report = scan(model, batches(), blocks=0)
    (found,) = report.perturbations
    assert found.target == TARGET
    assert found.inputs.shape == found.perturbed.shape == (5, *IMAGES.shape[1:])
    assert found.share >= 0.8  # says the climb; of all images, when some are cut to the range:
    change = (found.perturbed - found.inputs).mean(0)
    with torch.no_grad():
        answers = model((IMAGES + change).clamp(0, 1)).argmax(1)
    assert float((answers == TARGET).double().mean()) > 0.7
    spread = (IMAGES - IMAGES.mean(0)).flatten(1).norm(dim=1).mean()
    assert found.size == pytest.approx(float(change.norm() / spread), rel=0.1)
    assert float(torch.cosine_similarity(change.flatten(), checkerboard().flatten(), dim=0)) > 0.5
    # Nothing is looked for where nothing was found, or where only the latents were looked at.
    assert scan(Model(pattern=False), batches(), blocks=0).perturbations == ()
    assert scan(model, batches(), blocks=0, quick=True).perturbations == ()


def test_a_quick_scan_runs_the_model_once_and_wants_no_gradients():
    model = Model()
    head = find_head(model, IMAGES)
    model.seen = 0
    report = scan(model, batches(), head=head, quick=True)
    assert (model.seen, model.graphs) == (300, 0)
    assert not any("only the shifts" in reason for reason in report.verdict.reasons)  # nobody wanted more
    assert set(report.timings) == set(scan(model, batches(), head=head).timings)
    assert model.graphs > 0


@dataclasses.dataclass(frozen=True)
class Spy:
    """A statistic that keeps what it was given."""

    got: list
    name = title = "spy"
    needs_inputs = True
    by_nature = False

    def values(self, evidence):
        self.got.append(evidence)
        return torch.arange(C, dtype=torch.float64)


def test_statistics_get_some_of_the_inputs(monkeypatch):
    spy = Spy([])
    monkeypatch.setattr("tacfast.scanning.FULL", Rule("full", (spy,)))
    for most, expected in ((500, 300), (40, 40)):
        monkeypatch.setattr("tacfast.scanning.KEPT_INPUTS", most)
        model = Model().eval()
        report = scan(model, batches())
        evidence = spy.got.pop()
        assert len(evidence.inputs) == expected
        numbers = [(image == IMAGES).flatten(1).all(1).nonzero().item() for image in evidence.inputs]
        assert len(set(numbers)) == expected
        with torch.no_grad():
            logits = evidence.classify(evidence.inputs)  # in bfloat16 where the processor is made for it
            torch.testing.assert_close(logits, model(IMAGES[numbers]), rtol=0.02, atol=0.05)
        assert evidence.solution(0.1) is report.solution
        assert list(report.verdict.findings[0].values.values()) == list(range(C))


# ---- what the model may be -----------------------------------------------------------------------------------


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("not implemented")


class WithoutGradients(Model):
    @torch.no_grad()
    def forward(self, images):
        return super().forward(images)


@pytest.mark.parametrize(
    "model",
    [
        WithoutGradients(),
        Model(before=torch.Tensor.detach),  # the logits have a gradient, with respect to weights alone
        Model(before=NoWayBack.apply),
        Model(before=lambda images: (255 * images).byte() / 255),
        Model(before=lambda images: (255 * images).round() / 255),  # a gradient, but it is zero
        Model(before=lambda images: images + (images - images).sqrt()),  # 0/0 on the way back
    ],
    ids=["no_grad", "detached", "backward fails", "quantised", "zero", "not a number"],
)
def test_a_model_without_gradients_is_scanned_for_shifts_alone_and_that_is_said(model):
    verdict = scan(model, batches()).verdict
    assert verdict.rule == "quick"
    assert verdict.reasons[-1].startswith("the model gives no gradients")
    assert "so only the shifts of the latents were looked at" in verdict.reasons[-1]
    plain = scan(model, batches(), quick=True).verdict
    assert dataclasses.replace(verdict, reasons=verdict.reasons[:-1]) == plain


def test_inputs_that_are_no_numbers_on_a_scale_are_not_changed():
    images = (255 * IMAGES).round().byte()
    verdict = scan(Model(before=lambda images: images / 255), batches(images)).verdict
    assert verdict.rule == "quick"
    assert verdict.reasons[-1].startswith("the inputs are no batches of floating-point numbers, so only")


def test_memory_that_runs_out_is_no_lack_of_gradients():
    def fail(images):
        if images.requires_grad:
            raise torch.OutOfMemoryError("no memory")
        return images

    with pytest.raises(torch.OutOfMemoryError):
        scan(Model(before=fail), batches())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 0.1), (torch.float16, 0.3), (torch.bfloat16, 1.0)])
def test_other_precisions(dtype, tolerance):
    expected = scan(Model(), batches()).verdict
    verdict = scan(Model().to(dtype), batches(IMAGES.to(dtype))).verdict
    assert (verdict.rule, verdict.label, verdict.classes) == ("full", "suspicious", (TARGET,))
    found, other = (each.findings[1].scores[TARGET] for each in (verdict, expected))
    assert found == pytest.approx(other, abs=tolerance)


def test_what_wraps_a_model_makes_no_difference():
    expected = of(scan(Model(), batches()))
    assert of(scan(nn.DataParallel(Model()), batches())) == expected
    assert of(scan(torch.compile(Model(), backend="eager"), batches())) == expected


def test_what_is_compiled_in_place_runs_as_it_is_written():
    """Else it would be compiled anew for every size, with gradients and without."""
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph.forward

    expected = of(scan(Model(), batches()))
    model = Model()
    model.compile(backend=backend)
    assert of(scan(model, batches())) == expected
    assert not compiled


def test_gradients_in_evaluation_mode_are_enough():
    class Choosy(Model):
        def forward(self, images):
            return super().forward(images.detach() if self.training else images)

    assert scan(Choosy().train(), batches()).verdict.rule == "full"


@pytest.mark.parametrize("images", [IMAGES[:7], IMAGES[:1].expand(50, -1, -1, -1)], ids=["few", "all the same"])
def test_a_change_is_not_looked_for_from_nothing(images):
    report = scan(Model(), [images], blocks=0)
    assert report.verdict.rule == "quick"
    assert "fewer than 8 inputs that differ" in report.verdict.reasons[-1]


@pytest.mark.parametrize(("size", "most"), [(50, 50), (5, 5), (300, 300)])
def test_no_more_samples_at_once_than_the_loader_gives(size, most):
    """Whoever streams in small batches has little memory; whoever does not is given 128 at most."""
    model, sizes = Model(), []
    head = find_head(model, IMAGES)
    model.register_forward_hook(lambda model, args, out: sizes.append((len(args[0]), args[0].requires_grad)))
    report = scan(model, batches(size=size), head=head, blocks=0)
    assert report.verdict.label == "suspicious"
    assert report.perturbations
    assert max(count for count, _ in sizes) == most
    assert max(count for count, graph in sizes if graph) <= min(most, 128)


def test_inputs_need_not_be_images():
    """Features of one axis: no channels, no memory format."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, C))
    report = scan(model, [torch.randn(200, 8, generator=generator)])
    assert report.verdict.rule == "full"
    assert not any(np.isnan(list(report.verdict.findings[1].values.values())))

    # Of one number each there is nothing to see.
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, C)

        def forward(self, x):
            return self.head(x[:, None])

    assert scan(Scalar(), [torch.randn(200, generator=generator)]).verdict.rule == "quick"


# ---- nothing else is touched ---------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was():
    model = Model().train()
    model.body.eval()
    model.head.weight.requires_grad_(False)
    model.body.scale.grad = torch.tensor(3.0)

    def state():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
            [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
            [len(module._backward_hooks) for module in model.modules()],
        )

    before, tensors = state(), copy.deepcopy(model.state_dict())
    assert scan(model, batches()).verdict.rule == "full"
    assert state() == before
    assert all(tensor.equal(tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_modes_are_restored_when_a_statistic_fails(monkeypatch):
    class Broken(Spy):
        def values(self, evidence):
            raise ValueError("broken")

    monkeypatch.setattr("tacfast.scanning.FULL", Rule("full", (Broken([]),)))
    model = Model().train()
    with pytest.raises(ValueError, match="broken"):
        scan(model, batches())
    assert all(module.training for module in model.modules())


def test_parameters_without_gradients_are_no_hindrance():
    assert scan(Model().requires_grad_(False), batches()).verdict.rule == "full"


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_makes_no_difference(context):
    expected = of(scan(Model(), batches()))
    model = Model()
    with context():
        assert of(scan(model, batches())) == expected
        assert of(scan(model, batches(IMAGES.clone()))) == expected  # inputs that were made in it
        assert not torch.is_grad_enabled()
    assert expected[0].rule == "full"


def test_a_second_scan_says_the_same_and_randomness_is_left_alone():
    model = Model()
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = of(scan(model, batches()))
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(99)
    assert of(scan(model, batches())) == first


# ---- evidence by itself --------------------------------------------------------------------------------------


def test_evidence_is_the_model_as_it_is_used():
    model = Model().eval().double()
    head = find_head(model, IMAGES.double())
    gaps = GapMatrix(head.weight, head.bias, keep_logits=True)
    evidence, missing = evidence_of(model, head, gaps, IMAGES.double())
    assert missing is None
    assert evidence.gaps is gaps
    assert evidence.inputs.dtype == torch.float32
    logits = evidence.classify(evidence.inputs)  # in the dtype that the inputs had
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(IMAGES.double()).float())
    for nothing in (None, IMAGES.long(), IMAGES[:, 0, 0, 0]):
        evidence, missing = evidence_of(model, head, gaps, nothing)
        assert evidence.inputs is evidence.classify is None
        assert "no batches of floating-point numbers" in missing
    assert FULL.statistics[0] == QUICK.statistics[0]
