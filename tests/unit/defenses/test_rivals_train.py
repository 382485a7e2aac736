import copy

import pytest
import torch
from backdoored import TARGET, loader_of, same, weights
from torch import nn
from torch.nn import functional as F

from tacfast import scan
from tacfast.defenses.rivals import RIVALS, FineTuning, Rival, ft_sam, i_bau, neural_cleanse, sau
from tacfast.defenses.rivals.fst import FeatureShiftTuning
from tacfast.defenses.rivals.ft_sam import SharpnessAwareTuning
from tacfast.defenses.rivals.i_bau import ImplicitUnlearning
from tacfast.defenses.rivals.neural_cleanse import NeuralCleanse, Trigger
from tacfast.defenses.rivals.sau import SharedAdversarialUnlearning
from tacfast.models import Head

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = (FineTuning, FeatureShiftTuning, SharpnessAwareTuning, SharedAdversarialUnlearning, ImplicitUnlearning)
# Short, but for what each network of this size and this backdoor needs to lose it.
BRIEF = {
    "ft": {"lr": 0.2, "epochs": 40, "weight_decay": 5e-3},
    "fst": {},
    "ft-sam": {"lr": 0.1},
    "sau": {"lr": 3e-3, "radius": 0.5, "epochs": 6},
    "i-bau": {"lr": 1e-2, "rounds": 10},
    "nc": {},
}


@pytest.fixture(scope="module")
def report(trial):
    return trial.report


@pytest.fixture(scope="module")
def without_dropout(trial):
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    return model


@pytest.fixture(scope="module")
def batch(trial):
    return trial.clean.images[:60], trial.clean.labels[:60]


@pytest.mark.parametrize("name", BRIEF)
def test_the_attack_fails_more_often_and_the_given_model_is_untouched(trial, report, name):
    before, modes = weights(trial.model), [module.training for module in trial.model.modules()]
    result = RIVALS[name](**BRIEF[name]).repair(trial.model, loader_of(trial), report)
    assert same(before, weights(trial.model))
    assert modes == [module.training for module in trial.model.modules()]
    after = trial.evaluate(result.model)
    assert after.asr < 0.7 < trial.before.asr
    assert after.acc > trial.before.acc - 0.05
    assert (result.mode, result.epoch) == (name, len(result.history))
    assert [record.epoch for record in result.history] == list(range(1, result.epoch + 1))
    assert modes == [module.training for module in result.model.modules()]
    assert result.settings["seed"] == 0


@pytest.mark.parametrize("name", BRIEF)
def test_the_same_seed_gives_the_same_weights_and_the_callers_generator_is_left_alone(trial, report, name):
    rival = RIVALS[name](**{**BRIEF[name], "rounds" if name == "i-bau" else "epochs": 1})
    state = torch.get_rng_state()
    first, second = (rival.repair(trial.model, loader_of(trial), report).model for _ in range(2))
    assert same(weights(first), weights(second))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("rival", TRAINING)
def test_none_of_those_that_look_for_no_class_names_one(trial, report, rival, batch):
    result = rival().repair(trial.model, [batch], report, held_out=trial.clean.loader())
    assert result.targets == ()
    assert sum(result.after.total) == len(trial.clean)


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("ft", "epochs", 0, "an integer >= 1"),
        ("fst", "alpha", -0.1, "a finite number >= 0"),
        ("fst", "lr", 0.0, "a finite learning rate > 0"),
        ("ft-sam", "rho", float("nan"), "a finite number >= 0"),
        ("ft-sam", "label_smoothing", 1.0, r"a share in \[0, 1\)"),
        ("sau", "epochs", 1.5, "an integer >= 1"),
        ("sau", "lr", -1.0, "a finite learning rate > 0"),
        ("sau", "radius", 0.0, r"a change of pixels in \(0, 1\]"),
        ("sau", "steps", 0, "an integer >= 1"),
        ("sau", "adversarial_weight", -1.0, "a finite number >= 0"),
        ("i-bau", "rounds", 0, "an integer >= 1"),
        ("i-bau", "lr", float("inf"), "a finite learning rate > 0"),
        ("i-bau", "iterations", True, "an integer >= 1"),
        ("i-bau", "steps", 0, "an integer >= 1"),
        ("nc", "samples", 1, "an integer >= 2"),
        ("nc", "steps", 0, "an integer >= 1"),
        ("nc", "min_index", -2.0, "a finite number >= 0"),
        ("nc", "stamped", 0.0, r"a share in \(0, 1\]"),
        ("nc", "seed", -1, "an integer in"),
    ],
)
def test_settings_out_of_range(name, setting, value, expected):
    with pytest.raises(ValueError, match=f"^{setting}: expected {expected}.*, got {value!r}$"):
        RIVALS[name](**{setting: value})


def test_names_are_those_of_the_registry():
    assert all(issubclass(rival, Rival) and rival.name == name for name, rival in RIVALS.items())
    assert set(BRIEF) <= set(RIVALS)


# Fine-tuning


def test_fine_tuning_is_sgd_with_a_cosine(trial, report, without_dropout, batch):
    result = FineTuning(epochs=2, lr=0.05, momentum=0.8, weight_decay=0.01).repair(without_dropout, [batch], report)
    mine = copy.deepcopy(without_dropout).train()
    velocity = {name: torch.zeros_like(weight) for name, weight in mine.named_parameters()}
    for lr in (0.05, 0.025):  # 0.05 · (1 + cos(π t / 2)) / 2
        gradients = torch.autograd.grad(F.cross_entropy(mine(batch[0]), batch[1]), list(mine.parameters()))
        with torch.no_grad():
            for (name, weight), gradient in zip(mine.named_parameters(), gradients, strict=True):
                velocity[name] = 0.8 * velocity[name] + gradient + 0.01 * weight
                weight -= lr * velocity[name]
    for name, weight in mine.state_dict().items():
        assert torch.allclose(weight, result.model.state_dict()[name], atol=1e-5), name


def test_a_larger_rate_removes_more(trial, report):
    rates = [FineTuning(lr=lr).repair(trial.model, loader_of(trial), report).model for lr in (0.01, 0.05)]
    moved = [(model[5].weight - trial.model[5].weight).norm() for model in rates]
    assert moved[1] > 2 * moved[0]


# Feature shift tuning


def cosine(first, second):
    return F.cosine_similarity(first[5].weight.flatten(), second[5].weight.flatten(), 0).item()


def test_fst_moves_the_head_away_and_keeps_its_norm(trial, report):
    results = {
        alpha: FeatureShiftTuning(alpha=alpha).repair(trial.model, loader_of(trial), report).model
        for alpha in (0.0, 0.2)
    }
    for model in results.values():
        assert model[5].weight.norm().item() == pytest.approx(trial.model[5].weight.norm().item(), rel=1e-5)
    assert cosine(results[0.2], trial.model) < -0.3
    assert cosine(results[0.0], trial.model) > -0.2
    fine_tuned = FineTuning(epochs=10).repair(trial.model, loader_of(trial), report).model
    assert cosine(fine_tuned, trial.model) > 0.9


def test_fst_minimises_the_product_of_the_heads(trial, report, without_dropout, batch):
    """One step, from the head that the same seed draws."""
    fst = FeatureShiftTuning(epochs=1, lr=0.1, alpha=0.7)
    result = fst.repair(without_dropout, [batch], report)
    mine, old = copy.deepcopy(without_dropout).train(), without_dropout[5].weight.detach()
    torch.manual_seed(0)
    mine[5] = nn.Linear(48, 6)
    with torch.no_grad():
        mine[5].weight *= old.norm() / mine[5].weight.norm()
    loss = F.cross_entropy(mine(batch[0]), batch[1]) + 0.7 * torch.einsum("ij,ij", mine[5].weight, old)
    gradients = torch.autograd.grad(loss, list(mine.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(mine.parameters(), gradients, strict=True):
            weight -= 0.1 * gradient
        mine[5].weight *= old.norm() / mine[5].weight.norm()
    for name, weight in mine.named_parameters():
        assert torch.allclose(weight, result.model.get_parameter(name), atol=1e-5), name
    assert result.history[0].loss == pytest.approx(loss.item(), abs=1e-4)


def test_fst_refuses_a_head_that_computes_its_weight(trial):
    model = copy.deepcopy(trial.model)
    nn.utils.parametrizations.spectral_norm(model[5])
    report = scan(model, trial.clean.loader())
    with pytest.raises(ValueError, match="model: expected a head '5' whose weight is a parameter"):
        FeatureShiftTuning().repair(model, loader_of(trial), report)


# Sharpness-aware fine-tuning


def test_climbing_a_quadratic_is_the_closed_form_of_adaptive_sam():
    """ε = ρ T² g / ‖T g‖ with T = diag |w|, which maximises gᵀε over ‖T⁻¹ ε‖ ≤ ρ (arXiv 2102.11600, eq. 6)."""
    a, w = torch.tensor([[2.0, 0.5], [0.5, 3.0]]), torch.tensor([1.5, -0.5])
    g = a @ w
    found = ft_sam.climb({"x": w[:1], "y": w[1:]}, [g[:1], g[1:]], 0.3)
    step = torch.cat([found["x"], found["y"]]) - w
    t = w.abs().diag()
    assert torch.allclose(step, 0.3 * t @ t @ g / (t @ g).norm(), atol=1e-6)
    assert (step / w).norm().item() == pytest.approx(0.3, rel=1e-5)
    angles = torch.linspace(0, 6.283, 1000)
    others = 0.3 * torch.stack([angles.cos(), angles.sin()], 1) * w
    assert (others @ g).max() <= step @ g + 1e-6


def test_sam_steps_along_the_gradient_at_the_worst_weights(trial, report, without_dropout, batch):
    rival = SharpnessAwareTuning(epochs=1, lr=0.1, weight_decay=0.0, rho=1.5, label_smoothing=0.2)
    result = rival.repair(without_dropout, [batch], report)
    target = 0.8 * F.one_hot(batch[1], 6) + 0.2 / 6

    def gradients_of(model):
        loss = -(target * model(batch[0]).log_softmax(1)).sum(1).mean()
        return torch.autograd.grad(loss, list(model.parameters()))

    mine = copy.deepcopy(without_dropout).train()
    given = [weight.detach().clone() for weight in mine.parameters()]
    first = gradients_of(mine)
    statistics = weights(mine[2])
    norm = torch.cat([(w * g).flatten() for w, g in zip(given, first, strict=True)]).norm()
    with torch.no_grad():
        for weight, gradient in zip(mine.parameters(), first, strict=True):
            weight += 1.5 * weight**2 * gradient / norm
    for (name, _), start, gradient in zip(mine.named_parameters(), given, gradients_of(mine), strict=True):
        assert torch.allclose(result.model.get_parameter(name), start - 0.1 * gradient, atol=1e-5), name
    for name in ("running_mean", "running_var", "num_batches_tracked"):  # those of the first pass alone
        assert torch.equal(result.model[2].state_dict()[name], statistics[name])


# Shared adversarial unlearning


class Logits(nn.Module):
    """Linear in the pixels of images (n, 1, 2, 2)."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.tensor(weight), torch.tensor(bias)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def adversaries(model, suspect, images, radius=0.2, steps=5):
    return sau.shared_adversaries(model, suspect, images, radius=radius, steps=steps, weight=0.01)


def test_the_perturbation_of_two_linear_models_has_a_closed_form():
    """Against class 0 of two, the worst change of an L∞ ball is radius · sign(w_1 − w_0); the pixels end at 0 and 1."""
    weight = [[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 1.5, -1.0]]
    model = Logits(weight, [10.0, 0.0])  # so sure of class 0 that nothing makes it err
    images = torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = (images + 0.2 * torch.tensor([-1.0, 1.0, 1.0, -1.0]).view(1, 1, 2, 2)).clamp(0, 1)
    assert torch.allclose(adversaries(model, copy.deepcopy(model), images), expected, atol=1e-6)


def test_the_perturbation_stays_in_the_ball_and_stops_where_the_error_is_shared(trial):
    images = trial.clean.images[:100].clamp(0, 1)
    start = (images + 0.4).clamp(0, 1)
    found = adversaries(trial.model, trial.model, images, radius=0.4)
    with torch.no_grad():
        answers, at_once, in_the_end = (trial.model(x).argmax(1) for x in (images, start, found))
    assert (found - images).abs().max() <= 0.4 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    # With one network in both places every error is shared.
    early = at_once != answers
    assert torch.equal(found[early], start[early])
    assert 0 < early.sum() < (in_the_end != answers).sum()


@pytest.mark.parametrize(("weight", "second"), [(0.0, -0.1), (10.0, 0.1)])
def test_the_divergence_draws_the_model_to_the_answer_of_the_suspect(weight, second):
    """The suspect always says 1; of the model, pixel 0 feeds class 1 and pixel 1 class 2, and it is sure of class 0."""
    suspect = Logits(torch.zeros(3, 4).tolist(), [0.0, 9.0, 0.0])
    model = Logits([[0.0] * 4, [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], [2.0, 0.0, 0.0])
    images = torch.full((3, 1, 2, 2), 0.5)
    found = sau.shared_adversaries(model, suspect, images, radius=0.1, steps=4, weight=weight)
    expected = torch.tensor([0.1, second, 0.1, 0.1])  # the last two stay where they start
    assert torch.allclose((found - images).flatten(1), expected.expand(3, 4), atol=1e-6)


def test_divergence_and_avoidance_are_those_of_scipy_and_numpy():
    distance = pytest.importorskip("scipy.spatial.distance")
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1)) * 3
    p, q = logits.softmax(2)
    expected = torch.tensor([distance.jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy(), strict=True)])
    assert torch.allclose(sau.divergence(*logits), expected.float(), atol=1e-5)
    classes = torch.tensor([0, 1, 2, 3, 0])
    assert torch.allclose(sau.avoid(logits[0], classes), -(1 - p[range(5), classes]).log().sum(), rtol=1e-4)
    assert sau.avoid(torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(60 - 0.6931, abs=1e-3)
    assert sau.avoid(logits[0][:0], classes[:0]) == 0


# Implicit unlearning


@pytest.mark.parametrize(("iterations", "exact"), [(400, True), (3, False)])
def test_the_hypergradient_of_a_quadratic_is_the_implicit_gradient(iterations, exact):
    """min_δ ½ δᵀAδ − δᵀBθ has δ*(θ) = A⁻¹Bθ, so ∇_θ of ½‖δ* − c‖² + ½‖θ‖² is θ + BᵀA⁻¹(δ* − c)."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a = a @ a.T / 4 + torch.eye(4)
    b, c, theta = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (4,), (3,)))
    delta, theta = (a.inverse() @ b @ theta).requires_grad_(), theta.requires_grad_()
    inner = delta @ a @ delta / 2 - delta @ b @ theta
    outer = ((delta - c).square().sum() + theta.square().sum()) / 2
    (found,) = i_bau.hypergradient(outer, inner, delta, [theta], rate=0.1, iterations=iterations)
    g = (delta - c).detach()
    if exact:
        expected = theta + b.T @ torch.linalg.solve(a, g)
    else:
        contraction = torch.eye(4) - 0.1 * a
        v = sum(torch.linalg.matrix_power(contraction, i) @ g for i in range(3))
        expected = theta + 0.1 * b.T @ v
    assert torch.allclose(found, expected.detach(), atol=1e-9)


def test_the_perturbation_makes_the_network_err(trial):
    torch.manual_seed(0)
    images = trial.clean.images.clamp(0, 1)
    batches = [(images[i : i + 48], trial.clean.labels[i : i + 48]) for i in range(0, 336, 48)]
    perturbation, example = i_bau.perturb_all(trial.model, batches)
    assert torch.equal(example, images[:48])
    assert perturbation.shape == (1, 1, 4, 4)
    with torch.no_grad():
        answers = [trial.model(x).argmax(1) for x in (images, (images + perturbation).clamp(0, 1))]
    assert (answers[0] != answers[1]).float().mean() > 0.6


def test_the_perturbation_starts_up_the_cross_entropy(trial):
    """From zero, where the penalty is flat, at the published rate of 10."""
    images = trial.clean.images[:48].clamp(0.01, 0.99)
    shared = torch.zeros(1, 1, 4, 4, requires_grad=True)
    logits = trial.model(images + shared)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), shared)
    perturbation, _ = i_bau.perturb_all(trial.model, [(images, trial.clean.labels[:48])])
    assert torch.allclose(perturbation, 10 * slope, atol=1e-5)


def test_one_image_of_a_small_batch_is_perturbed(trial, report, monkeypatch):
    seen, images = [], trial.clean.images[:48].clamp(0, 1)
    monkeypatch.setattr(i_bau, "perturb_all", lambda *_: (torch.ones(1, 1, 4, 4).requires_grad_(), images))
    model = copy.deepcopy(trial.model)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    ImplicitUnlearning(rounds=1).repair(model, [(images, trial.clean.labels[:48])], report)
    changed = (seen[0] != images).flatten(1).any(1)
    assert changed.sum() == 1
    assert (seen[0][changed] == 1).all()


def test_a_round_is_a_pass_for_the_perturbation_and_some_steps(trial, report, batch):
    passed = []

    class Loader:
        def __iter__(self):
            passed.append(0)
            for _ in range(5):
                passed[-1] += 1
                yield batch

    ImplicitUnlearning(rounds=2, steps=3).repair(trial.model, Loader(), report)
    assert passed == [5, 3, 5, 3]


# Neural Cleanse


class Regions(nn.Module):
    """Sees how bright six regions of 8×8 pixels are, and, if it has a backdoor, a bright patch of two pixels."""

    def __init__(self, backdoor):
        super().__init__()
        regions = torch.zeros(6, 8, 8)
        for k, columns in enumerate((8, 7, 6, 7, 6, 8)):
            regions[k, k, :columns] = 1 / columns
        self.patch = torch.zeros(8, 8)
        self.patch[7, 6:] = 1 / 2
        self.eyes, self.backdoor = regions.flatten(1), backdoor
        self.head = nn.Linear(7, 6)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([10 * torch.eye(6), torch.zeros(6, 1)], 1))
            self.head.weight[3, 6] = 200.0
            self.head.bias.zero_()

    def forward(self, x):
        x = x.flatten(1)
        alarm = self.backdoor * F.relu(x @ self.patch.flatten() - 0.8)
        return self.head(torch.cat([x @ self.eyes.T, alarm[:, None]], 1))


def regions_loader():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 6
    images = 0.2 + 0.2 * torch.rand(240, 1, 8, 8, generator=generator)
    images[range(240), 0, labels] += 0.4
    return [(images[i : i + 40], labels[i : i + 40]) for i in range(0, 240, 40)]


def test_neural_cleanse_names_the_planted_class_and_its_mask_covers_the_patch():
    model, loader = Regions(backdoor=True).eval(), regions_loader()
    report = scan(model, loader)
    result = NeuralCleanse(epochs=1, lr=1e-3).repair(model, loader, report)
    assert result.targets == (3,)
    torch.manual_seed(0)
    head = report.head
    trigger = NeuralCleanse().search(model, head, loader)[3]
    inside = trigger.mask[0, 0, 7, 6:]
    assert inside.min() > 0.5
    assert inside.sum() > 0.9 * trigger.norm
    assert (trigger.pattern[0, 0, 7, 6:] > 0.8).all()
    with torch.no_grad():
        assert (model(trigger.stamp(loader[0][0])).argmax(1) == 3).float().mean() >= 0.95


def test_neural_cleanse_names_nothing_on_a_clean_network_and_leaves_it_as_it_is():
    model, loader = Regions(backdoor=False).eval(), regions_loader()
    result = NeuralCleanse().repair(model, loader, scan(model, loader))
    assert result.targets == ()
    assert result.history == ()
    assert same(weights(model), weights(result.model))
    assert result.model is not model


def test_neural_cleanse_names_the_target_of_the_tiny_network(trial, report):
    result = NeuralCleanse(epochs=1).repair(trial.model, loader_of(trial), report)
    assert result.targets[0] == TARGET


def test_outliers_are_far_below_the_median():
    # Median 10, absolute deviations 0, 1, 1, 2, 2, 7, 7: MAD 2, so the limit is 10 − 2 · 2.9652.
    norms = dict(enumerate([10.0, 9.0, 11.0, 8.0, 12.0, 3.0, 17.0], start=4))
    assert neural_cleanse.outliers(norms, 2.0) == (9,)
    assert neural_cleanse.outliers(norms, 2.4) == ()
    assert neural_cleanse.outliers(dict(enumerate([4.0, 10.0, 2.0, 10.0, 10.1, 9.9, 10.0])), 2.0) == (2, 0)
    assert neural_cleanse.outliers(dict.fromkeys(range(6), 5.0), 2.0) == ()


def test_of_many_classes_the_smallest_and_a_cross_section_are_searched_to_the_end(monkeypatch):
    searched = []

    def search(model, batches, target):
        searched.append((target, len(batches)))
        return Trigger(torch.full((1, 1, 1, 1), float(target * 7 % 200)), torch.zeros(1))

    monkeypatch.setattr(neural_cleanse, "reverse_trigger", search)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 200))
    loader = [(torch.rand(8, 1, 2, 2), torch.arange(8))]
    found = NeuralCleanse(steps=40).search(model, Head("1", model[1]), loader)
    assert searched[:200] == [(k, 10) for k in range(200)]
    assert searched[200:] == [(k, 40) for k in found]
    norms = [k * 7 % 200 for k in found]
    assert norms[:10] == list(range(10))
    assert len(set(norms)) == 50
    assert max(norms) > 190
    assert sum(norms[10:]) / 40 == pytest.approx(104.5, abs=3)


def test_a_class_that_no_patch_reaches_has_the_whole_image_as_its_mask():
    model = Logits([[0.0] * 4, [0.0] * 4], [5.0, 0.0])
    trigger = neural_cleanse.reverse_trigger(model, [torch.rand(8, 1, 2, 2)] * 10, 1)
    assert trigger.norm == 4


def test_a_stamped_image_is_a_blend():
    trigger = Trigger(torch.tensor([[[[0.0, 1.0], [0.25, 0.5]]]]), torch.full((1, 3, 2, 2), 0.8))
    image = torch.full((2, 3, 2, 2), 0.4)
    assert torch.allclose(trigger.stamp(image)[1, 2], torch.tensor([[0.4, 0.8], [0.5, 0.6]]))
