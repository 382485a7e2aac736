"""Statistics of how easy each class is to reach, and the scores made of them."""

import math

import numpy as np
import pytest
import torch
from planted import C, Planted, checkerboard, make_images
from scipy import stats
from torch.nn import functional as F

from tacfast import GapMatrix, solve_tac
from tacfast.detection.lock_step import FLOOR, climb, scaled
from tacfast.detection.nearness import Nearness
from tacfast.detection.outliers import RIDGE, outlier_scores
from tacfast.detection.qp_norm import QpNorm
from tacfast.detection.statistic import Evidence
from tacfast.detection.universal import Additive, UniversalPerturbation

# ---- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 5, 10, 43, 200])
def test_scores_are_those_of_students_distribution_on_a_normals_scale(count):
    values = np.random.default_rng(count).normal(3, 2, count)
    scores = outlier_scores(torch.from_numpy(values))
    for k in range(count):
        rest = np.delete(values, k)
        t = (rest.mean() - values[k]) / (rest.std(ddof=1) * math.sqrt(1 + 1 / (count - 1)))
        exact = stats.norm.isf(stats.t.sf(t, min(count - 2, 8)))
        assert float(scores[k]) == pytest.approx(exact, abs=0.02 + 0.01 * abs(exact) + 0.6 * (count == 4))


def test_scores_depend_neither_on_unit_nor_on_origin():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=10))
    torch.testing.assert_close(outlier_scores(7 * values - 100), outlier_scores(values))
    assert int(outlier_scores(values).argmax()) == int(values.argmin())


def test_missing_and_infinite_values():
    values = torch.tensor([1.0, 2.0, math.nan, 1.5, 1.2, math.inf, 0.1], dtype=torch.float64)
    scores = outlier_scores(values)
    assert scores.isnan().tolist() == [False, False, True, False, False, False, False]
    known = torch.tensor([1.0, 2.0, 1.5, 1.2, 2.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(scores[~scores.isnan()], outlier_scores(known))
    # A class that needs no change at all is as odd as can be, and no measure for the others.
    none = torch.cat([known, torch.tensor([-math.inf], dtype=torch.float64)])
    assert float(outlier_scores(none)[-1]) == math.inf
    torch.testing.assert_close(outlier_scores(none)[:-1], outlier_scores(known))
    assert outlier_scores(values[:4]).isnan().all()  # two others at most
    assert outlier_scores(torch.full((5,), math.inf, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("count", [5, 10, 43])
def test_equal_values_are_no_outliers(count):
    for value in np.random.default_rng(0).normal(0, 3, 50):
        values = torch.full((count,), float(value), dtype=torch.float64)
        assert outlier_scores(values).tolist() == [0.0] * count
        values[1] *= 1 + 1e-15
        assert outlier_scores(values).tolist() == [0.0] * count
        # One that can be reached among others that cannot says nothing: there is nothing to compare it with.
        values[1:] = math.inf
        assert outlier_scores(values).tolist() == [0.0] * count
        # But one far below others that are all equal is.
        values[:] = float(value)
        values[0] -= 1
        assert float(outlier_scores(values)[0]) > 8
    assert outlier_scores(torch.zeros(5, dtype=torch.float64)).tolist() == [0.0] * 5


def residual_score(values, given, k):
    """Of one class, by least squares on the other rows and one more that shrinks the slope, and Student's tail."""
    x = (given - given.mean()) / given.std(ddof=1)
    rest = np.arange(len(values)) != k
    ridge = math.sqrt(RIDGE)
    rows = np.vstack([np.column_stack([np.ones(rest.sum()), x[rest] - x[rest].mean()]), [0.0, ridge]])
    coefficients, *_ = np.linalg.lstsq(rows, np.append(values[rest], 0.0), rcond=None)
    row = np.array([1.0, x[k] - x[rest].mean()])
    residuals = values[rest] - rows[:-1] @ coefficients
    freedom = len(residuals) - 2
    variance = residuals @ residuals / freedom * (1 + row @ np.linalg.inv(rows.T @ rows) @ row)
    return stats.norm.isf(stats.t.sf((row @ coefficients - values[k]) / math.sqrt(variance), min(freedom, 8)))


@pytest.mark.parametrize("count", [5, 10, 43])
def test_scores_given_something_are_studentised_residuals(count):
    random = np.random.default_rng(count)
    given = random.normal(5, 3, count)
    values = 2 * given + random.normal(0, 2, count)
    scores = outlier_scores(torch.from_numpy(values), torch.from_numpy(given))
    exact = [residual_score(values, given, k) for k in range(count)]
    assert scores.tolist() == pytest.approx(exact, rel=0.02, abs=0.1 if count == 5 else 0.02)
    torch.testing.assert_close(outlier_scores(torch.from_numpy(values), 40 - torch.from_numpy(given) / 7), scores)


def test_what_is_given_explains_an_easy_class_and_uncovers_another():
    given = torch.linspace(0, 9, 10, dtype=torch.float64)
    values = given + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=10))
    values[7] -= 3
    assert int(outlier_scores(values).argmax()) == 0
    assert int(outlier_scores(values, given).argmax()) == 7
    # One that is the same for all classes explains nothing, and costs a degree of freedom. What is missing is average.
    same = outlier_scores(values, torch.full((10,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(same, outlier_scores(values), atol=0.1, rtol=0.1)
    given[3] = math.nan
    mean = given.clone()
    mean[3] = given.nanmean()
    assert outlier_scores(values, given).isfinite().all()
    torch.testing.assert_close(outlier_scores(values, given), outlier_scores(values, mean), atol=0.1, rtol=0.1)
    assert outlier_scores(values[:4], given[:4]).isnan().all()


@pytest.mark.parametrize("count", [10, 43, 200])
def test_a_class_out_of_reach_never_stands_out_for_being_far(count):
    given = torch.from_numpy(np.random.default_rng(count).uniform(2, 9, count))
    values = 2 * given
    given[0], values[0] = 25, math.inf
    scores = outlier_scores(values, given)
    assert float(scores[0]) < 0
    assert scores[1:].isfinite().all()


def test_nearness_is_the_gap_of_the_nearest_tenth():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, C, generator=generator)
    logits[:, 2] -= 100  # nothing is of class 2
    evidence = Evidence(
        GapMatrix(torch.eye(C), keep_logits=True).update_logits(logits[:100]).update_logits(logits[100:])
    )
    found, rows = Nearness(share=0.1).values(evidence), logits.double().numpy()
    for k in range(C):
        others = rows[rows.argmax(1) != k]
        assert float(found[k]) == pytest.approx(np.quantile(others.max(1) - others[:, k], 0.1))
    alone = Evidence(GapMatrix(torch.eye(C), keep_logits=True).update_logits(torch.eye(C)[:1]))
    assert Nearness().values(alone).isnan().tolist() == [True] + [False] * (C - 1)


# ---- the norm of the QP --------------------------------------------------------------------------------------


def test_the_qp_statistic_is_the_log_of_the_norms():
    generator = torch.Generator().manual_seed(0)
    W, b = torch.randn(C, 8, generator=generator), torch.randn(C, generator=generator)
    latents = torch.randn(200, 8, generator=generator)
    evidence = Evidence(GapMatrix(W, b, keep_logits=True).update(latents))
    expected = solve_tac(latents, W, b, trim=0.1).norms.double().log()
    torch.testing.assert_close(QpNorm(trim=0.1).values(evidence), expected)
    assert evidence.solution(0.1) is evidence.solution(0.1)


def test_a_class_out_of_reach_is_infinitely_far():
    W = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])  # the last in the hull of the rest
    values = QpNorm(trim=0.0).values(Evidence(GapMatrix(W, keep_logits=True).update(torch.randn(50, 2))))
    assert values[4] == math.inf
    assert values[:4].isfinite().all()


# ---- perturbations in lock-step ------------------------------------------------------------------------------


def evidence_of(model, images):
    gaps = GapMatrix(torch.eye(C), keep_logits=True).update_logits(model(images).detach())
    return Evidence(gaps, images, model)


def test_the_class_with_a_pattern_is_the_easiest_to_reach():
    images, labels = make_images()
    for pattern in (None, checkerboard()):
        model = Planted(pattern).eval()
        assert (model(images).argmax(1) == labels).float().mean() > 0.95
        scores = outlier_scores(UniversalPerturbation().values(evidence_of(model, images)))
        assert (float(scores.max()) > 4) == (pattern is not None)
        if pattern is not None:
            assert int(scores.argmax()) == 2


def test_the_perturbation_found_is_the_pattern():
    images, _ = make_images()
    pattern = checkerboard()
    found = UniversalPerturbation().climb(evidence_of(Planted(pattern).eval(), images))
    cosines = F.cosine_similarity(found.distortions.flatten(1), pattern.flatten()[None])
    assert int(cosines.argmax()) == 2
    assert float(cosines[2]) > 0.7


def test_sizes_are_those_of_the_budgets_and_the_same_for_all():
    images, _ = make_images()
    model, budgets = Planted().eval(), [0.1, 0.2, 0.4]
    seen = []

    class Watched(Additive):
        def apply(self, inputs, parameters):
            seen.append(parameters.detach().flatten(1).norm(dim=1))
            return super().apply(inputs, parameters)

    found = climb(images, model, Watched(*vars(Additive.of(images)).values()), budgets, batch=16)
    assert found.losses.shape == found.reached.shape == (3, C)
    assert found.passes == 3 * C * 16
    # Zero at first: a step is taken from nothing. Then each is scaled to its budget, whatever the class.
    sizes = torch.cat(seen).view(3, -1)
    assert (sizes[0] == 0).all()
    for budget, size in zip(budgets[1:], sizes[1:], strict=True):
        torch.testing.assert_close(size, torch.full_like(size, budget))
    assert model.scale.grad is None


def test_samples_of_the_class_itself_are_left_out_and_classes_share_the_others():
    images, labels = make_images()
    asked = []

    def classify(inputs):
        asked.append(inputs.detach())
        return Planted().eval()(inputs)

    climb(images, classify, Additive.of(images), [1e-6], classes=torch.tensor([1, 4]), batch=128)
    asked = asked[-2:]  # before them, all of the images as they are
    first, second = ([int((image - images).flatten(1).norm(dim=1).argmin()) for image in batch] for batch in asked)
    assert 1 not in labels[first]
    assert 4 not in labels[second]
    both = [i for i in first if i in second]
    assert len(both) > 90
    assert both == [i for i in second if i in first]  # in the same order


def test_fewer_samples_than_a_batch_come_again():
    images, _ = make_images(12)
    model = Planted().eval()
    found = climb(images, model, Additive.of(images), [0.1, 0.2], batch=64)
    assert found.passes == 2 * C * 64
    assert found.effort.isfinite().all()
    # A model that says the same of everything: there are no others, and that is no reason to fail.
    same = climb(images, lambda inputs: 0 * model(inputs), Additive.of(images), [0.1], batch=8)
    assert same.losses.shape == (1, C)


def test_in_inference_mode_all_is_the_same():
    images, _ = make_images(60)
    model = Planted().eval()
    with torch.inference_mode():
        made = images.clone()
        found = UniversalPerturbation(steps=3).values(evidence_of(model, made))
    torch.testing.assert_close(found, UniversalPerturbation(steps=3).values(evidence_of(model, images)))


def test_it_may_wait_for_all_of_the_classes():
    images, _ = make_images()
    model = Planted(checkerboard()).eval()
    sizes = [0.05 * 1.15**t for t in range(60)]
    one, whole = (climb(images, model, Additive.of(images), sizes, batch=32, enough=share) for share in (0.1, 1.0))
    assert len(one.losses) < len(whole.losses) < 60
    assert float(whole.reached[-2:].mean(0).min()) >= 0.8 > float(one.reached[-2:].mean(0).min())
    assert float(one.reached[-2:].mean(0).max()) >= 0.8


def test_what_needs_inputs_says_so():
    statistic = UniversalPerturbation()
    assert statistic.needs_inputs
    with pytest.raises(ValueError, match="evidence: expected"):
        statistic.values(Evidence(GapMatrix(torch.eye(C), keep_logits=True)))


def test_it_ends_when_half_of_the_classes_are_reached():
    images, _ = make_images()
    found = UniversalPerturbation(steps=60, last=50.0).climb(evidence_of(Planted(checkerboard()).eval(), images))
    assert len(found.losses) < 60
    assert float(found.reached[-2:].mean(0).median()) >= 0.8
    assert float(found.reached[-3:-1].mean(0).median()) < 0.8
    expected = found.losses.numpy().clip(FLOOR).astype(float)
    np.testing.assert_allclose(found.effort.numpy(), np.log(expected).mean(0))


def test_perturbed_inputs_stay_within_the_range_of_each_channel():
    images = torch.rand(50, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) - 1
    kind = Additive.of(images)
    far = kind.apply(images, torch.full_like(images, 100.0))
    torch.testing.assert_close(far, images.amax((0, 2, 3)).view(1, 3, 1, 1).expand_as(images))
    assert kind.apply(images, torch.zeros_like(images)).equal(images)
    assert kind.start(7).shape == (7, 3, 4, 4)


def test_scaling_the_inputs_changes_nothing():
    """Whatever the normalisation: the sizes are relative to the data."""
    images, _ = make_images()
    model = Planted(checkerboard()).eval()
    moved = Evidence(evidence_of(model, images).gaps, 4 * images - 2, lambda inputs: model((inputs + 2) / 4))
    values = UniversalPerturbation().values(evidence_of(model, images))
    torch.testing.assert_close(UniversalPerturbation().values(moved), values, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_zeros_stay_zeros_at_any_size(dtype):
    """Perturbations start from zeros, and of large images they may be large."""
    rows = torch.stack([torch.zeros(8, dtype=dtype), torch.full((8,), 0.5, dtype=dtype)])
    found = scaled(rows, 100.0)
    assert torch.equal(found[0], rows[0])
    assert float(found[1].double().norm()) == pytest.approx(100.0, rel=1e-2)
