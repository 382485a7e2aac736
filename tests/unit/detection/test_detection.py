"""From values to a verdict: scores, surprise, what the bank says of it, and what stands in the way."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from tacfast import GapMatrix, Status, TacSolution
from tacfast.detection import FULL, MIN_CLASSES, MIN_SAMPLES_PER_CLASS, QUICK, Asymmetry, detect
from tacfast.detection.bank import Bank
from tacfast.detection.outliers import outlier_scores, surprise_of, threshold_of
from tacfast.detection.rule import RULE_MARGIN, RULE_TRIM, Rule
from tacfast.detection.statistic import MAX_LEFT_OUT
from tacfast.solver import Certificate

# The bank of these tests: what the one of the package holds will change, what is done with it will not.
BANK = Bank(
    clean=(-0.3, 0.1, 0.4, 0.4, 0.9, 1.2, 1.5, 2.0),
    suspicious=1.5,
    borderline=0.9,
    judged=8,
    alarms=1,
    attacked=9,
    found=8,
    right=7,
)


@pytest.fixture(autouse=True)
def bank(monkeypatch):
    asked = []
    monkeypatch.setattr(Bank, "of", classmethod(lambda _, rule: asked.append(rule) or BANK))
    return asked


def solution(norms, *, classes=None, num_classes=None, trim=RULE_TRIM, margin=RULE_MARGIN, n_samples=1000, status=None):
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
        iterations=torch.zeros(k, dtype=torch.int32),
        duals=torch.zeros(k, c),
        gaps=torch.zeros(c, c),
        certificate=Certificate(blank, blank, blank, blank, blank, blank),
        n_samples=n_samples,
        margin=margin,
        trim=trim,
    )


def scores_by_scipy(values):
    """Student's distribution on a normal's scale, exactly; the package approximates the map between the two."""
    scores = []
    for k, value in enumerate(values):
        rest = np.delete(values, k)
        t = (rest.mean() - value) / (rest.std(ddof=1) * math.sqrt(1 + 1 / len(rest)))
        scores.append(float(stats.norm.isf(stats.t.sf(t, min(len(rest) - 1, 8)))))
    return scores


NORMS = [5.0, 5.2, 3.0, 4.9, 5.1, 5.3, 4.8, 5.0, 5.2, 5.1]


class Told:
    """A statistic whose values are given to the rule; its title is its name."""

    needs_inputs = by_nature = False

    def __init__(self, name):
        self.name = self.title = name


def with_scores(*scores, count=10):
    """Values of which the first classes have these scores, the others about none."""

    def gap(lows):
        rest = np.linspace(-1.0, 1.0, count - len(scores))
        return torch.tensor([*(-low for low in lows), *rest], dtype=torch.float64)

    lows = [1.0] * len(scores)
    for _ in range(400):  # a fixed point: each score falls as the others spread
        found = outlier_scores(gap(lows))
        lows = [
            low * math.exp((score - now) / 2) for low, score, now in zip(lows, scores, found.tolist(), strict=False)
        ]
    return gap(lows)


# ---- surprise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "classes"), [(3.0, 10), (1.0, 10), (-1.0, 5), (7.5, 200), (12.0, 43), (39.0, 10)])
def test_surprise_is_the_expected_number_of_such_classes(score, classes):
    scores = {k: score - 1 - k for k in range(classes)} | {classes // 2: score}
    expected = -(math.log10(classes) + stats.norm.logsf(score) / math.log(10))
    assert surprise_of(scores) == pytest.approx(expected)
    assert surprise_of(scores | {classes: math.nan}) == surprise_of(scores)  # that is no class more
    assert threshold_of(expected, classes) == pytest.approx(score) or score == 39.0  # too rare for a double


def test_surprise_of_nothing_and_of_the_infinite():
    assert math.isnan(surprise_of({}))
    assert math.isnan(surprise_of({0: math.nan}))
    assert surprise_of({0: math.inf, 1: 0.0}) == math.inf


def test_no_threshold_is_too_high_or_too_low():
    assert threshold_of(math.inf, 10) == threshold_of(400.0, 10) == math.inf
    assert threshold_of(-math.inf, 10) == threshold_of(-1.0, 10) == -math.inf
    # So many classes are expected that every one has it.
    assert threshold_of(-math.log10(5), 10) == pytest.approx(0.0, abs=1e-12)


# ---- the bank ------------------------------------------------------------------------------------------------


def test_the_bank_counts_the_networks_that_are_as_odd():
    for surprise in (-1.0, -0.3, 0.39, 0.4, 0.5, 1.5, 2.0, 2.1, math.inf):
        as_odd = sum(value >= surprise for value in BANK.clean)
        assert BANK.count(surprise) == as_odd
        assert BANK.p_value(surprise) == (1 + as_odd) / 9


@pytest.mark.parametrize("rule", [FULL, QUICK, Asymmetry()])
def test_the_package_has_a_bank_for_each_rule(rule, monkeypatch):
    monkeypatch.undo()
    bank = Bank.of(rule.name)
    assert list(bank.clean) == sorted(bank.clean)
    assert bank.borderline <= bank.suspicious
    assert 0 <= bank.right <= bank.found <= bank.attacked
    assert bank.alarms <= bank.judged <= len(bank.clean)
    assert Bank.of(rule.name) is bank
    with pytest.raises(KeyError):
        Bank.of("nothing")


def test_each_rule_asks_for_its_own_bank(bank):
    detect(solution(NORMS))
    assert set(bank) == {"quick", "asymmetry"}
    bank.clear()
    FULL.judge({each.name: with_scores(3.0) for each in FULL.measured if each is not FULL.pairs})
    assert set(bank) == {"full", "asymmetry"}


# ---- labels --------------------------------------------------------------------------------------------------


def test_one_class_far_below_the_others_is_suspicious():
    verdict = detect(solution(NORMS), [10] * 10)
    assert (verdict.rule, verdict.label, verdict.classes, verdict.easiest) == ("quick", "suspicious", (2,), 2)
    assert verdict.left_out == ()
    logs = np.log(np.float32(NORMS).astype(float))
    (finding,) = verdict.findings
    assert finding.name == "qp"
    assert [finding.values[k] for k in range(10)] == pytest.approx(list(logs))
    assert finding.scores == verdict.scores
    exact = scores_by_scipy(logs)
    assert [verdict.scores[k] for k in range(10)] == pytest.approx(exact, rel=0.02, abs=0.02)
    expected = -math.log10(10 * stats.norm.sf(verdict.scores[2]))
    assert verdict.surprise == pytest.approx(expected)
    assert verdict.p_value == pytest.approx(1 / 9)
    assert verdict.threshold == pytest.approx(stats.norm.isf(10**-BANK.suspicious / 10))
    assert f"class 2 is the easiest to reach: it stands out by {verdict.scores[2]:.2f}" in verdict.reasons[0]
    assert f"suspicious are more than {verdict.threshold:.2f}" in verdict.reasons[0]
    assert "of the bank's 8 clean networks, none have" in verdict.reasons[1]
    assert len(verdict.reasons) == 2


@pytest.mark.parametrize("count", [5, 10, 43])
def test_labels_change_where_the_bank_says(count):
    """Surprise, not the score, decides: the score that it takes grows with the number of classes."""
    rule, labels = Rule("any", (Told("a"),)), []
    for wanted in np.linspace(0.6, 2.4, 19):
        score = stats.norm.isf(10**-wanted / count)
        verdict = rule.judge({"a": with_scores(score, count=count)})
        assert verdict.surprise == pytest.approx(wanted, abs=1e-3)
        labels.append(verdict.label)
        known = BANK.suspicious, BANK.borderline
        expected = "suspicious" if wanted > known[0] else "borderline" if wanted > known[1] else "nothing_found"
        if min(abs(wanted - limit) for limit in known) > 0.01:
            assert verdict.label == expected
        assert verdict.classes == ((0,) if verdict.label == "suspicious" else ())
        assert any("no proof" in reason for reason in verdict.reasons) == (verdict.label == "nothing_found")
        assert any("less than an alarm" in reason for reason in verdict.reasons) == (verdict.label == "borderline")
    assert set(labels) == {"nothing_found", "borderline", "suspicious"}


def test_one_clean_network_that_is_as_odd_has_a_class():
    verdict = Rule("any", (Told("a"),)).judge({"a": with_scores(stats.norm.isf(10**-1.8 / 10))})
    assert "of the bank's 8 clean networks, 1 has a class" in verdict.reasons[1]
    assert verdict.p_value == pytest.approx(2 / 9)


def test_every_class_above_the_threshold_is_named_worst_first():
    values = torch.linspace(-1, 1, 43, dtype=torch.float64)
    values[[20, 21, 22]] = torch.tensor([-6.0, -2.0, -6.4], dtype=torch.float64)
    verdict = Rule("any", (Told("a"),)).judge({"a": values})
    assert verdict.label == "suspicious"
    above = [k for k, score in verdict.scores.items() if score > verdict.threshold]
    assert above == [20, 22]
    assert verdict.classes == (22, 20)


def test_a_class_far_above_the_others_is_not_suspicious():
    assert detect(solution([5.0, 5.2, 50.0, 4.9, 5.1, 5.3, 4.9, 5.0, 5.2, 5.1])).label == "nothing_found"


def test_classes_that_need_no_shift_at_all_are_as_odd_as_can_be():
    verdict = detect(solution([0.0, *NORMS[3:], 5.0, 5.1]))
    assert (verdict.label, verdict.classes) == ("suspicious", (0,))
    assert verdict.scores[0] == verdict.surprise == math.inf
    assert verdict.findings[0].values[0] == -math.inf
    assert verdict.p_value == pytest.approx(1 / 9)


@pytest.mark.parametrize("norms", [[5.0] * 10, [1.0] + [math.inf] * 4 + [1.0] * 5])
def test_classes_that_are_all_alike_are_not_odd(norms):
    verdict = detect(solution(norms))
    assert verdict.label == "nothing_found"
    assert set(verdict.scores.values()) == {0.0}
    assert verdict.easiest == 0


# ---- several statistics --------------------------------------------------------------------------------------


def test_of_several_statistics_the_largest_score_or_their_sum_counts():
    rule = Rule("any", (Told("a"), Told("b")))
    a, b = with_scores(3.2), with_scores(0.0, 0.0, 3.6)
    verdict = rule.judge({"b": b, "a": a})
    assert [found.name for found in verdict.findings] == ["a", "b"]
    alone = [outlier_scores(values) for values in (a, b)]
    for finding, scores in zip(verdict.findings, alone, strict=True):
        assert list(finding.scores.values()) == scores.tolist()
    together = (alone[0] + alone[1]) / math.sqrt(2)
    assert list(verdict.scores.values()) == pytest.approx(torch.stack([*alone, together]).amax(0).tolist(), abs=1e-12)
    assert (verdict.easiest, verdict.classes) == (2, (2, 0))
    # Both are said of the easiest class, also what is not odd.
    assert f"(a {alone[0][2]:.2f}, b {alone[1][2]:.2f})" in verdict.reasons[0]


def test_two_statistics_that_each_see_too_little_see_enough_together():
    rule = Rule("any", (Told("a"), Told("b")))
    both = with_scores(2.6)
    verdict = rule.judge({"a": both, "b": both})
    single = float(outlier_scores(both)[0])
    assert verdict.scores[0] == pytest.approx(math.sqrt(2) * single)
    assert single < verdict.threshold < verdict.scores[0]
    assert verdict.classes == (0,)


def test_a_statistic_that_says_nothing_of_a_class_leaves_it_to_the_other():
    rule = Rule("any", (Told("a"), Told("b")))
    a, b = with_scores(3.4), with_scores(0.0, 3.3)
    a[0] = b[9] = math.nan
    verdict = rule.judge({"a": a, "b": b})
    assert verdict.scores[0] == verdict.findings[1].scores[0]
    assert verdict.scores[9] == verdict.findings[0].scores[9]
    assert verdict.easiest == 1
    a[3] = b[3] = math.nan
    again = rule.judge({"a": a, "b": b})
    assert math.isnan(again.scores[3])
    assert again.surprise == pytest.approx(surprise_of({k: v for k, v in again.scores.items() if k != 3}))


def test_a_statistic_that_says_nothing_at_all_leaves_no_verdict():
    """The bank's networks were judged by both."""
    rule = Rule("any", (Told("a"), Told("b")))
    verdict = rule.judge({"a": with_scores(3.6), "b": torch.full((10,), math.nan, dtype=torch.float64)})
    assert (verdict.label, verdict.classes) == ("inconclusive", ())
    assert verdict.reasons == ("no value for any class by the b",)


# ---- classes left out ----------------------------------------------------------------------------------------


def test_classes_with_too_few_samples_are_left_out_and_the_others_judged_as_if_they_were_alone():
    counts, more = [MIN_SAMPLES_PER_CLASS] * 11, [*NORMS, 1.0]
    whole = detect(solution(more), counts)
    assert (whole.classes, whole.left_out) == ((10,), ())
    verdict, alone = detect(solution(more), [*counts[:10], 3]), detect(solution(NORMS), counts[:10])
    assert (verdict.label, verdict.classes, verdict.left_out) == ("suspicious", (2,), (10,))
    assert (verdict.surprise, verdict.threshold, verdict.p_value) == (alone.surprise, alone.threshold, alone.p_value)
    assert {k: verdict.scores[k] for k in range(10)} == alone.scores
    assert math.isnan(verdict.scores[10])
    assert verdict.findings[0].values[10] == 0.0  # log 1: it is known, it is not judged
    assert verdict.easiest == 2
    assert verdict.reasons[-1].endswith("fewer than 4 samples to them: class 10 (3)")
    assert verdict.reasons[:-1] == alone.reasons


@pytest.mark.parametrize("kind", [list, torch.tensor, np.array])
def test_too_few_classes_with_enough_samples_are_inconclusive(kind):
    enough, norms = [MIN_SAMPLES_PER_CLASS] * MIN_CLASSES, NORMS[: MIN_CLASSES + 1]
    assert detect(solution(norms), kind([*enough, 0])).label != "inconclusive"
    verdict = detect(solution(norms), kind([500, *enough[2:], MIN_SAMPLES_PER_CLASS - 1, 0]))
    assert (verdict.label, verdict.classes, verdict.left_out) == ("inconclusive", (), (4, 5))
    assert verdict.reasons[0].endswith("4 of 6 can be judged")


def test_too_many_left_out_are_inconclusive():
    norms = 3 * NORMS
    most = math.floor(MAX_LEFT_OUT * 30)
    for short, expected in ((most, True), (most + 1, False)):
        verdict = detect(solution(norms), [0] * short + [99] * (30 - short))
        assert (verdict.label != "inconclusive") == expected
        assert len(verdict.left_out) == short
    assert verdict.reasons[0] == "too many classes are left out: 11 of 30"


def test_only_solved_classes_are_left_out():
    some = solution(NORMS[:6], classes=[7, 3, 9, 0, 1, 5], num_classes=10)
    verdict = detect(some, [99, 99, 0, 99, 0, 99, 0, 99, 0, 99])
    assert (verdict.easiest, verdict.left_out) == (9, ())
    assert verdict.label != "inconclusive"
    assert {k for k, score in verdict.scores.items() if math.isnan(score)} == {2, 4, 6, 8}
    assert verdict.findings[0].values[9] == pytest.approx(math.log(3.0))


def test_many_missing_classes_are_counted_rather_than_named():
    reasons = detect(solution(4 * NORMS), [0] * 12 + [99] * 28).reasons
    assert reasons[-1].endswith("class 6 (0), class 7 (0) and 4 more")


def test_counts_must_match_the_classes():
    with pytest.raises(ValueError, match="samples_per_class: expected 10 counts, one per class of the model, got 5"):
        detect(solution(NORMS), [10] * 5)


def test_counts_per_class_say_more_than_an_unknown_total():
    assert detect(solution(NORMS, n_samples=0), [10] * 10).label == "suspicious"
    assert any("only their total" in reason for reason in detect(solution(NORMS)).reasons)
    assert not any("only their total" in reason for reason in detect(solution(NORMS), [10] * 10).reasons)


# ---- obstacles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unreachable", [4, 5, 6, 10])
def test_half_unreachable_is_inconclusive(unreachable):
    verdict = detect(solution([math.inf] * unreachable + [5.0, 4.0, 4.5, 4.7, 3.0, 4.1][: 10 - unreachable]))
    assert (verdict.label == "inconclusive") == (unreachable >= 5)
    assert any("cannot be reached" in reason for reason in verdict.reasons) == (unreachable >= 5)


def test_unreachable_classes_count_as_the_farthest():
    verdict = detect(solution([5.0, math.inf, 3.0, 4.9, 5.1, math.inf, 4.8, 5.0, 5.2, 5.3]))
    assert verdict.findings[0].values[1] == math.inf
    near = detect(solution([5.0, 5.3, 3.0, 4.9, 5.1, 5.3, 4.8, 5.0, 5.2, 5.3]))
    assert verdict.scores == near.scores
    assert verdict.classes == (2,)


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
def test_inconclusive_where_the_bank_cannot_be_asked(changes, reason):
    verdict = detect(solution(NORMS, **changes))
    assert verdict.label == "inconclusive"
    assert verdict.classes == ()
    assert all(math.isnan(value) for value in (verdict.surprise, verdict.p_value, verdict.threshold))
    assert any(reason in text for text in verdict.reasons)
    assert not math.isnan(verdict.scores[2])  # it is still seen how the classes compare


def test_obstacles_of_the_caller_are_reasons():
    verdict = Rule("any", (Told("a"),)).judge({"a": with_scores(4.0)}, None, ["it rains"])
    assert (verdict.label, verdict.classes, verdict.reasons) == ("inconclusive", (), ("it rains",))


def test_samples_are_counted_against_all_classes_of_the_model():
    few = solution(NORMS[:5], num_classes=10, n_samples=5 * MIN_SAMPLES_PER_CLASS)
    assert detect(few).label == "inconclusive"
    assert detect(solution(NORMS[:5], num_classes=10, n_samples=10 * MIN_SAMPLES_PER_CLASS)).label != "inconclusive"


@pytest.mark.parametrize("count", range(MIN_CLASSES + 1))
def test_too_few_classes_are_inconclusive(count):
    verdict = detect(solution([5.0, 1.0, 5.1, 4.9, 5.2][:count], num_classes=10))
    assert (verdict.label == "inconclusive") == (count < MIN_CLASSES)
    assert any(f"of {count} can be judged" in reason for reason in verdict.reasons) == (count < MIN_CLASSES)
    assert len(verdict.scores) == 10


def test_failed_classes_are_unknown():
    verdict = detect(solution([math.nan, *NORMS], status=[int(Status.INVALID_INPUT)] + [0] * 10))
    assert verdict.label == "inconclusive"
    assert math.isnan(verdict.findings[0].values[0])
    assert math.isnan(verdict.scores[0])
    # A norm that came of a failure is not taken for one either.
    failed = detect(solution([0.1, *NORMS], status=[int(Status.MAX_ITER)] + [0] * 10))
    assert failed == dataclasses.replace(verdict, reasons=failed.reasons)
    assert verdict.easiest == 3


# ---- solutions -----------------------------------------------------------------------------------------------


def test_a_real_solution_scaled_stays_the_same_verdict():
    generator = torch.Generator().manual_seed(3)
    weights = torch.eye(8).repeat(1, 2) + 0.1 * torch.randn(8, 16, generator=generator)
    latents = 4 * weights[torch.randint(8, (400,), generator=generator)] + torch.randn(400, 16, generator=generator)
    verdicts = []
    for scale in (1.0, 64.0):
        gaps = GapMatrix(weights, keep_logits=True)
        gaps.update(scale * latents)
        verdicts.append(detect(gaps.solve(trim=RULE_TRIM)))
    assert verdicts[0].label == verdicts[1].label != "inconclusive"
    assert list(verdicts[1].scores.values()) == pytest.approx(list(verdicts[0].scores.values()), rel=1e-3, abs=1e-3)


def test_numpy_solutions_are_judged_too():
    given = solution(NORMS[:6])
    names = ("norms", "classes", "status", "gaps")
    arrays = dataclasses.replace(given, **{name: getattr(given, name).numpy() for name in names})
    assert detect(arrays) == detect(given)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="solution: expected a TacSolution"):
        detect([1.0, 2.0])
