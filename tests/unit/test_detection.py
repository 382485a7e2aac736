import dataclasses
import math

import numpy as np
import pytest
import torch

from tacfast import GapMatrix, Status, TacSolution
from tacfast.detection import MAD_SCALE, MAX_RATIO, MIN_CLASSES, MIN_INDEX, MIN_SAMPLES_PER_CLASS, detect
from tacfast.solver import Certificate


def solution(norms, *, classes=None, num_classes=None, trim=0.5, margin=0.0, n_samples=1000, status=None):
    """A solution with given norms; every other field has the right shape and no meaning."""
    values = torch.tensor(norms, dtype=torch.float32)
    k = len(values)
    c = num_classes or k
    blank = torch.zeros(k, dtype=torch.float64)
    states = torch.where(values.isinf(), int(Status.INFEASIBLE), int(Status.OPTIMAL)).to(torch.int8)
    return TacSolution(
        perturbations=torch.zeros(k, 4),
        norms=values,
        classes=torch.arange(k) if classes is None else torch.tensor(classes),
        status=states if status is None else torch.tensor(status, dtype=torch.int8),
        duals=torch.zeros(k, c),
        gaps=torch.zeros(c, c),
        certificate=Certificate(blank, blank, blank, blank, blank, blank),
        n_samples=n_samples,
        margin=margin,
        trim=trim,
    )


def test_one_class_far_below_the_others_is_suspicious():
    verdict = detect(solution([5.0, 5.2, 3.0, 4.9, 5.1, 5.3, 4.8, 5.0, 5.2, 5.1]))
    assert verdict.label == "suspicious"
    assert verdict.classes == (2,)
    assert any("class 2" in reason for reason in verdict.reasons)


def test_index_median_and_threshold_agree_with_numpy():
    norms = np.float32([5.0, 5.25, 3.0, 4.75, 5.5, 5.375, 4.5, 5.125, 5.625, 4.875])
    verdict = detect(solution(norms))
    median = np.median(norms.astype(float))
    spread = MAD_SCALE * np.median(np.abs(norms - median))
    assert verdict.median == pytest.approx(median)
    assert [verdict.index[k] for k in range(10)] == pytest.approx(list((median - norms) / spread))
    assert [verdict.norms[k] for k in range(10)] == pytest.approx(list(norms.astype(float)))
    assert verdict.threshold == pytest.approx(min(MAX_RATIO * median, median - MIN_INDEX * spread))


@pytest.mark.parametrize("count", [9, 10])
@pytest.mark.parametrize("lowest", np.linspace(2.0, 5.0, 25))
def test_suspicious_exactly_when_the_smallest_is_below_the_threshold(count, lowest):
    rest = np.linspace(4.6, 5.4, count - 1)
    verdict = detect(solution([lowest, *rest]))
    assert (verdict.label == "suspicious") == (min(verdict.norms.values()) < verdict.threshold)
    beyond = (verdict.index[0] > MIN_INDEX) + (verdict.norms[0] / verdict.median < MAX_RATIO)
    assert verdict.label == ("nothing_found", "borderline", "suspicious")[beyond]


def test_a_large_index_alone_is_not_enough():
    # Ten nearly equal norms: the index is huge, the ratio 0.95.
    verdict = detect(solution([4.75, 5.0, 5.01, 4.99, 5.02, 4.98, 5.0, 5.01, 4.99, 5.0]))
    assert verdict.index[0] > MIN_INDEX
    assert (verdict.label, verdict.classes) == ("borderline", ())
    assert any("only its index" in reason for reason in verdict.reasons)


def test_a_small_ratio_alone_is_not_enough():
    verdict = detect(solution([3.5, 3.8, 4.3, 4.8, 5.2, 5.8, 6.4, 7.0, 7.6, 8.2]))
    assert verdict.norms[0] / verdict.median < MAX_RATIO
    assert verdict.index[0] < MIN_INDEX
    assert (verdict.label, verdict.classes) == ("borderline", ())
    assert any("only its ratio" in reason for reason in verdict.reasons)


def test_both_limits_missed_is_nothing_found_and_no_proof():
    verdict = detect(solution([4.6, 4.8, 5.4, 4.7, 5.2, 5.3, 4.9, 5.0, 5.2, 5.1]))
    assert verdict.index[0] < MIN_INDEX
    assert verdict.norms[0] / verdict.median > MAX_RATIO
    assert (verdict.label, verdict.classes) == ("nothing_found", ())
    assert any("no proof" in reason for reason in verdict.reasons)


def test_a_class_far_above_the_others_is_not_suspicious():
    assert detect(solution([5.0, 5.2, 50.0, 4.9, 5.1, 5.3, 4.9, 5.0, 5.2, 5.1])).label == "nothing_found"


def test_only_the_smallest_is_named():
    verdict = detect(solution([2.5, 5.2, 2.0, 4.9, 5.1, 5.3, 4.8, 5.0, 5.2, 5.1]))
    assert verdict.classes == (2,)


def test_classes_keep_their_numbers_in_a_subset():
    verdict = detect(solution([5.0, 5.2, 3.0, 4.9, 5.1], classes=[7, 3, 9, 0, 1], num_classes=10))
    assert verdict.classes == (9,)
    assert list(verdict.norms) == [7, 3, 9, 0, 1]


def test_unreachable_classes_count_as_far_away():
    verdict = detect(solution([5.0, math.inf, 3.0, 4.9, 5.1, math.inf, 4.8, 5.0, 5.2, 5.1]))
    assert verdict.label == "suspicious"
    assert verdict.classes == (2,)
    assert verdict.index[1] == -math.inf
    assert math.isfinite(verdict.median)


@pytest.mark.parametrize("unreachable", [5, 6, 10])
def test_half_unreachable_is_inconclusive(unreachable):
    verdict = detect(solution([math.inf] * unreachable + [5.0, 4.0, 4.5, 4.7, 3.0][: 10 - unreachable]))
    assert verdict.label == "inconclusive"
    assert any("cannot be reached" in reason for reason in verdict.reasons)
    assert math.isnan(verdict.threshold)
    assert all(math.isnan(value) for value in verdict.index.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trim": 0.0}, "trim 0.0"),
        ({"margin": 0.1}, "margin 0.1"),
        ({"n_samples": 10 * MIN_SAMPLES_PER_CLASS - 1}, "got 39"),
        ({"n_samples": 0}, "unknown number"),
        ({"status": [0] * 9 + [int(Status.MAX_ITER)]}, "class 9 (MAX_ITER)"),
        ({"status": [int(Status.INACCURATE)] + [0] * 9}, "class 0 (INACCURATE)"),
    ],
)
def test_inconclusive_where_the_limits_do_not_hold(changes, reason):
    verdict = detect(solution([5.0, 5.2, 3.0, 4.9, 5.1, 5.3, 4.8, 5.0, 5.2, 5.1], **changes))
    assert verdict.label == "inconclusive"
    assert verdict.classes == ()
    assert any(reason in text for text in verdict.reasons)


def test_samples_are_counted_against_all_classes_of_the_model():
    few = solution([5.0, 5.2, 3.0, 4.9, 5.1], num_classes=10, n_samples=5 * MIN_SAMPLES_PER_CLASS)
    assert detect(few).label == "inconclusive"


NORMS = [5.0, 5.2, 3.0, 4.9, 5.1, 5.3]


def test_classes_with_too_few_samples_are_left_out_and_the_others_judged_as_if_they_were_alone():
    counts = [MIN_SAMPLES_PER_CLASS] * 7
    whole = detect(solution([*NORMS, 1.0]), counts)
    assert (whole.classes, whole.left_out) == ((6,), ())
    verdict, alone = detect(solution([*NORMS, 1.0]), [*counts[:6], 3]), detect(solution(NORMS), counts[:6])
    assert (verdict.label, verdict.classes, verdict.left_out) == ("suspicious", (2,), (6,))
    assert (verdict.median, verdict.threshold) == (alone.median, alone.threshold)
    assert {k: verdict.index[k] for k in range(6)} == alone.index
    assert math.isnan(verdict.index[6])
    assert (verdict.norms[6], verdict.easiest) == (1.0, 2)
    assert verdict.reasons[-1].endswith("fewer than 4 samples to them: class 6 (3)")
    assert verdict.reasons[:-1] == alone.reasons


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_too_few_classes_with_enough_samples_are_inconclusive(kind):
    enough = [MIN_SAMPLES_PER_CLASS] * MIN_CLASSES
    assert detect(solution(NORMS), kind([*enough, 0])).label == "suspicious"
    verdict = detect(solution(NORMS), kind([500, *enough[2:], MIN_SAMPLES_PER_CLASS - 1, 0]))
    assert (verdict.label, verdict.classes, verdict.left_out) == ("inconclusive", (), (4, 5))
    assert verdict.reasons[0].endswith("6 were solved, 4 of them with enough samples")


def test_only_solved_classes_are_left_out():
    some = solution([5.0, 5.2, 3.0, 4.9, 5.1], classes=[7, 3, 9, 0, 1], num_classes=10)
    verdict = detect(some, [99, 99, 0, 99, 0, 0, 0, 99, 0, 99])
    assert (verdict.label, verdict.classes, verdict.left_out) == ("suspicious", (9,), ())


def test_counts_per_class_say_more_than_an_unknown_total():
    assert detect(solution(NORMS, n_samples=0), [10] * 6).label == "suspicious"
    assert any("only their total" in reason for reason in detect(solution(NORMS)).reasons)
    assert not any("only their total" in reason for reason in detect(solution(NORMS), [10] * 6).reasons)


def test_many_missing_classes_are_counted_rather_than_named():
    reasons = detect(solution(NORMS + [5.0 + 0.1 * k for k in range(20)]), [0] * 12 + [99] * 14).reasons
    assert reasons[-1].endswith("class 8 (0), class 9 (0) and 2 more")


def test_counts_must_match_the_classes():
    with pytest.raises(ValueError, match="samples_per_class: expected 6 counts, one per class of the model, got 5"):
        detect(solution(NORMS), [10] * 5)


def test_a_tie_for_the_smallest_norm_is_mentioned():
    verdict = detect(solution([2.0, 5.2, 2.0, 4.9, 5.1, 5.3, 4.8, 5.0, 2.0, 5.1]), [10] * 10)
    assert verdict.classes == (0,)
    assert any("also that of class 2, 8" in reason for reason in verdict.reasons)


def test_enough_samples_and_classes_are_conclusive():
    norms = [5.0, 5.2, 3.0, 4.9, 5.1]
    assert len(norms) == MIN_CLASSES
    assert detect(solution(norms, n_samples=MIN_CLASSES * MIN_SAMPLES_PER_CLASS)).label == "suspicious"


@pytest.mark.parametrize("count", range(MIN_CLASSES))
def test_too_few_classes_are_inconclusive(count):
    verdict = detect(solution([5.0, 1.0, 5.1, 4.9][:count], num_classes=10))
    assert verdict.label == "inconclusive"
    assert any(f"{count} were solved" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("norms", [[5.0] * 10, [1.0] + [5.0] * 9, [0.0] * 10, [1.0] * 4 + [1 + 2e-7] * 4])
def test_no_spread_is_inconclusive(norms):
    verdict = detect(solution(norms))
    assert verdict.label == "inconclusive"
    assert any("vanishes" in reason for reason in verdict.reasons)


def test_failed_classes_leave_norms_as_they_came():
    verdict = detect(solution([math.nan, 5.0, 5.1, 4.9, 5.2, 5.3], status=[int(Status.INVALID_INPUT)] + [0] * 5))
    assert verdict.label == "inconclusive"
    assert math.isnan(verdict.norms[0])


def test_a_real_solution_scaled_stays_the_same_verdict():
    generator = torch.Generator().manual_seed(3)
    weights = torch.eye(8).repeat(1, 2) + 0.1 * torch.randn(8, 16, generator=generator)
    latents = 4 * weights[torch.randint(8, (400,), generator=generator)] + torch.randn(400, 16, generator=generator)
    verdicts = []
    for scale in (1.0, 64.0):
        gaps = GapMatrix(weights, keep_logits=True)
        gaps.update(scale * latents)
        verdicts.append(detect(gaps.solve(trim=0.5)))
    assert verdicts[0].label == verdicts[1].label != "inconclusive"
    assert [verdicts[1].index[k] for k in range(8)] == pytest.approx([verdicts[0].index[k] for k in range(8)], rel=1e-3)


def test_numpy_solutions_are_judged_too():
    given = solution([5.0, 5.2, 3.0, 4.9, 5.1, 5.3])
    names = ("norms", "classes", "status", "gaps")
    arrays = dataclasses.replace(given, **{name: getattr(given, name).numpy() for name in names})
    assert detect(arrays) == detect(given)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="solution: expected a TacSolution"):
        detect([1.0, 2.0])
