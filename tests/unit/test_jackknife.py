"""Leaving out blocks of samples: how they are dealt, what each run solves, and what the ranges are."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from independent import gap_matrix, trimmed_gap_matrix
from shortcut import TARGET, make_data, make_model

from tacfast import GapMatrix, scan
from tacfast.detection import FULL, QUICK, RULE_TRIM, Evidence, Finding, Verdict, detect
from tacfast.detection.rule import combined_scores
from tacfast.jackknife import MAX_UNASKED_WORK, Range, Stability, leave_blocks_out, ranks, weigh

C, DIM = 7, 12


def make_logits(n, dtype=np.float32, classes=C, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, classes)).astype(dtype)
    logits[np.arange(n), np.sort(rng.integers(classes, size=n))] += 6  # sorted by class, as in many folders
    return logits


def head(classes=C):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(classes, DIM, generator=generator), torch.randn(classes, generator=generator)


def matrix_of(batches, keep_logits=True):
    matrix = GapMatrix(*head(), keep_logits=keep_logits)
    for batch in batches:
        matrix.update_logits(torch.as_tensor(batch))
    return matrix


def runs_of(matrix, blocks=None):
    """By the rule that looks at the shifts of the latents alone."""
    (qp,) = QUICK.statistics
    return leave_blocks_out(matrix, QUICK, {qp.name: qp.values(Evidence(matrix))}, blocks)


def bits(solution):
    return [
        torch.as_tensor(value).numpy().tobytes() for value in (solution.perturbations, solution.gaps, solution.duals)
    ]


# ---- GapMatrix.deal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 10, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dealt_parts_merge_to_the_same_bits(count, dtype):
    batches = [make_logits(n, dtype, seed=n) for n in (100, 37, 1)]
    whole = matrix_of(batches)
    before = bits(whole.solve(trim=RULE_TRIM)) + bits(whole.solve())
    parts = whole.deal(count)
    assert len(parts) == count
    assert sum(part.n_samples for part in parts) == 138
    together = whole.empty()
    for part in reversed(parts):
        together.merge(part)
    assert together.n_samples == 138
    for matrix in (together, whole):
        assert bits(matrix.solve(trim=RULE_TRIM)) + bits(matrix.solve()) == before


def test_precisions_mix():
    whole = matrix_of([make_logits(100), make_logits(50, np.float64, seed=1)])
    before = whole.solve(trim=RULE_TRIM).norms
    first, *others = whole.deal(3)
    for other in others:
        first.merge(other)
    assert torch.allclose(first.solve(trim=RULE_TRIM).norms, before, rtol=1e-6)


def test_each_part_gets_an_equal_share_of_each_class():
    logits = make_logits(333)
    parts = matrix_of(np.array_split(logits, [50, 51, 200])).deal(10)
    sizes = [part.n_samples for part in parts]
    assert max(sizes) - min(sizes) <= 1
    counts = torch.stack([part.samples_per_class for part in parts])
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert counts.sum(0).tolist() == np.bincount(logits.argmax(1), minlength=C).tolist()


def test_classes_that_come_in_turn_are_dealt_to_all_parts_too():
    """As many blocks as classes, in turn: sample i to part i mod 7 would give every part one class."""
    logits = make_logits(210)
    order = np.argsort(np.arange(210) % 30, kind="stable")
    counts = torch.stack([part.samples_per_class for part in matrix_of([logits[order]]).deal(C)])
    assert bool((counts > 0).all())


def test_blocks_do_not_depend_on_the_order_of_the_samples():
    """Sorted by class, as folders are, reversed, or shuffled: the same samples lie together."""
    logits = make_logits(333)
    orders = (np.arange(333), np.arange(333)[::-1], np.random.default_rng(5).permutation(333))
    dealt = [
        [
            {row.tobytes() for chunk in part._logits for row in chunk.numpy()}
            for part in matrix_of([logits[order]]).deal(10)
        ]
        for order in orders
    ]
    assert dealt[0] == dealt[1] == dealt[2]
    assert len(set().union(*dealt[0])) == 333
    verdicts = [runs_of(matrix_of(np.array_split(logits[order], 3))).runs for order in orders]
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_blocks_are_a_random_choice():
    """Not the samples that the model is most sure of together, nor every tenth of them in that order."""
    logits = make_logits(1000, classes=C)
    part = matrix_of([logits]).deal(2)[0]
    chosen = {row.tobytes() for chunk in part._logits for row in chunk.numpy()}
    own = logits[logits.argmax(1) == 0]
    taken = np.array([row.tobytes() in chosen for row in own[own.max(1).argsort()]])
    changes = (taken[1:] != taken[:-1]).mean()
    assert 0.3 < changes < 0.7  # half of a coin, nearly none of halves, all of every second


def test_parts_share_memory_with_the_whole():
    whole = matrix_of([make_logits(100), make_logits(60)])
    parts = whole.deal(4)
    owned = {chunk.untyped_storage().data_ptr() for chunk in whole.state_dict()["logits"]}
    assert len(owned) == 2  # a state is a copy
    held = {chunk.untyped_storage().data_ptr() for chunk in whole._logits}
    assert {chunk.untyped_storage().data_ptr() for part in parts for chunk in part._logits} == held


def test_kind_and_emptiness_are_kept():
    whole = GapMatrix(*head(), keep_logits=True).update_logits(make_logits(50))
    assert isinstance(whole.deal(3)[0].gaps, np.ndarray)
    assert whole.empty().n_samples == 0
    with pytest.raises(ValueError, match="at least one sample"):
        whole.empty().solve()
    assert [part.n_samples for part in GapMatrix(*head(), keep_logits=True).deal(2)] == [0, 0]


def test_dealing_needs_logits_and_a_number_of_parts():
    with pytest.raises(ValueError, match="keep_logits: expected True for deal, got False"):
        matrix_of([make_logits(20)], keep_logits=False).deal(2)
    with pytest.raises(ValueError, match="keep_logits: expected True for samples_per_class"):
        _ = matrix_of([make_logits(20)], keep_logits=False).samples_per_class
    with pytest.raises(ValueError, match="count: expected an integer >= 1, got 0"):
        matrix_of([make_logits(20)]).deal(0)


# ---- leaving blocks out --------------------------------------------------------------------------------------


def test_every_run_is_a_solve_without_that_block():
    logits = make_logits(280)
    found = runs_of(matrix_of(np.array_split(logits, 3)), 4)
    # The rule of dealing once more, by a loop: the samples of each class, shuffled, dealt round and round.
    answers = logits.argmax(1)
    shuffled = logits.max(1).argsort()[torch.randperm(280, generator=torch.Generator().manual_seed(0)).numpy()]
    block, turn = np.empty(280, int), 0
    for k in range(C):
        for i in shuffled[answers[shuffled] == k]:
            block[i], turn = turn % 4, turn + 1
    assert len(found.runs) == 4
    for left_out, run in enumerate(found.runs):
        rest = logits[block != left_out]
        R = trimmed_gap_matrix(rest, RULE_TRIM)
        assert not np.array_equal(R, trimmed_gap_matrix(logits, RULE_TRIM))
        norms = GapMatrix.from_gaps(*head(), torch.from_numpy(R)).solve().norms
        (finding,) = run.findings
        assert list(finding.values.values()) == norms.double().log().tolist()
        assert run.label != "inconclusive"


def test_samples_that_are_enough_in_all_are_enough_without_a_block():
    logits = np.repeat(6 * np.eye(C, dtype=np.float32), 10, axis=0) + make_logits(10 * C) / 20
    matrix = matrix_of([logits])
    whole = detect(matrix.solve(trim=RULE_TRIM), matrix.samples_per_class).label
    assert whole != "inconclusive"
    found = runs_of(matrix, 10)
    assert "inconclusive" not in found.labels
    assert all(math.isfinite(value) for scores in found.scores.values() for value in scores)


def test_too_few_samples_are_too_few_without_a_block():
    logits = np.repeat(6 * np.eye(C, dtype=np.float32), 3, axis=0) + make_logits(3 * C) / 20
    found = runs_of(matrix_of([logits]), 9)
    assert found.labels == {"inconclusive": 9}
    assert all("fewer than 4 samples" in run.reasons[-1] for run in found.runs)


def test_what_needs_the_model_stays_as_it_is_with_all_samples():
    matrix = matrix_of([make_logits(280)])
    given = torch.linspace(0, 1, C, dtype=torch.float64)
    given[3] = -5.0
    with_all = {
        "qp": torch.full((C,), 9.0, dtype=torch.float64),
        "universal": given,
        "inner": -given,
        "nearness": given,
    }
    found = leave_blocks_out(matrix, replace(FULL, given=None), with_all, 4)
    alone = runs_of(matrix, 4)
    for run, other in zip(found.runs, alone.runs, strict=True):
        qp, universal, inner = run.findings
        assert qp == other.findings[0]  # and not what was given
        assert list(universal.values.values()) == given.tolist()
        assert list(inner.values.values()) == (-given).tolist()
        assert (run.rule, run.easiest) == ("full", 3)
        assert run.scores == combined_scores((qp, universal, inner))


@pytest.mark.parametrize(("blocks", "n"), [(0, 100), (20, 19)])
def test_no_blocks_or_fewer_samples_than_blocks_give_none(blocks, n):
    assert runs_of(matrix_of([make_logits(n)]), blocks) is None


def test_nobody_who_did_not_ask_waits(monkeypatch):
    matrix = matrix_of([make_logits(100)])
    assert len(runs_of(matrix).runs) == 10
    assert MAX_UNASKED_WORK == 80_000 * 1000 + 20 * 1000**2  # as the docstring of scan says
    monkeypatch.setattr("tacfast.jackknife.MAX_UNASKED_WORK", 100 * C + 20 * C**2)
    assert len(runs_of(matrix).runs) == 10
    monkeypatch.setattr("tacfast.jackknife.MAX_UNASKED_WORK", 100 * C + 20 * C**2 - 1)
    assert runs_of(matrix) is None
    assert len(runs_of(matrix, 3).runs) == 3


@pytest.mark.parametrize("blocks", [1, -1, True, 2.0])
def test_one_block_leaves_nothing(blocks):
    for call in (lambda: runs_of(matrix_of([make_logits(20)]), blocks), lambda: scan(None, [], blocks=blocks)):
        with pytest.raises(ValueError, match="blocks: expected None, 0 or an integer >= 2, got"):
            call()


# ---- ranges --------------------------------------------------------------------------------------------------


def verdict(scores, classes=(), label="nothing_found"):
    table = dict(enumerate(scores))
    return Verdict("quick", label, classes, (Finding("qp", "shift", table, table),), table, 1.0, 0.5, 2.0, ())


def test_ranges_counts_and_ranks():
    inf, nan = math.inf, math.nan
    runs = (
        verdict([0.5, 2.5, -inf, nan], (1,), "suspicious"),
        verdict([nan] * 4, (), "inconclusive"),
        verdict([2.0, 2.0, -3.0, nan], (0,), "suspicious"),
    )
    found = Stability(runs)
    assert found.scores[0] == Range(0.5, 2.0)
    assert found.scores[1] == Range(2.0, 2.5)
    assert found.scores[2] == Range(-inf, -3.0)
    assert all(math.isnan(value) for value in found.scores[3])
    assert {k: tuple(places) for k, places in found.ranks.items()} == {0: (1, 2), 1: (1, 1), 2: (1, 3), 3: (1, 4)}
    assert found.named == {0: 1, 1: 1}
    assert found.labels == {"suspicious": 2, "inconclusive": 1}


def test_ranks_share_the_better_place():
    assert ranks({4: 2.0, 7: 3.0, 2: 2.0, 9: math.nan, 1: -math.inf}) == {7: 1, 4: 2, 2: 2, 9: 4, 1: 4}


@pytest.mark.parametrize(
    ("label", "classes", "runs", "expected", "words"),
    [
        ("nothing_found", (), ["nothing_found"] * 3, "nothing_found", None),
        ("suspicious", (1,), ["suspicious 1"] * 3, "suspicious", None),
        (
            "suspicious",
            (1,),
            ["suspicious 1", "nothing_found", "suspicious 0"],
            "borderline",
            "suspicious (class 1), but",
        ),
        (
            "nothing_found",
            (),
            ["nothing_found", "suspicious 2", "nothing_found"],
            "borderline",
            "1 suspicious (class 2)",
        ),
        ("nothing_found", (), ["borderline", "borderline", "borderline"], "borderline", "3 disagree (3 borderline)"),
        ("suspicious", (1, 2), ["suspicious 2 1", "suspicious 1 2", "suspicious 2 1"], "suspicious", None),
        ("borderline", (), ["nothing_found"] * 3, "borderline", None),
        ("inconclusive", (), ["suspicious 1"] * 3, "inconclusive", None),
    ],
)
def test_runs_that_disagree_make_it_borderline(label, classes, runs, expected, words):
    parsed = [run.split() for run in runs]
    runs = [verdict([1.0, 3.0, 2.0], tuple(map(int, named)), name) for name, *named in parsed]
    before = verdict([1.0, 3.0, 2.0], classes, label)
    found = weigh(before, Stability(tuple(runs)))
    assert (found.label, found.classes) == (expected, classes)  # what was named can still be repaired
    assert replace(found, label=label, reasons=()) == before
    assert len(found.reasons) == (words is not None)
    assert words is None or words in found.reasons[0]
    assert weigh(before, None) is before


# ---- scan ----------------------------------------------------------------------------------------------------


def test_scan_brings_stability_and_its_verdict_is_the_same_without():
    model, data = make_model(), make_data()
    report, plain = (scan(model, data.loader(32), blocks=blocks) for blocks in (None, 0))
    assert plain.stability is None
    assert bits(report.solution) == bits(plain.solution)
    assert report.verdict == plain.verdict
    assert report.verdict.classes == (TARGET,)
    assert report.stability.named == {TARGET: 10}
    assert all(report.stability.ranks[k].low > 1 for k in range(10) if k != TARGET)
    assert len(scan(model, data.loader(), blocks=3).stability.runs) == 3


def test_scan_is_borderline_where_runs_disagree(monkeypatch):
    model, data = make_model(), make_data()
    real = leave_blocks_out

    def one_disagrees(*args):
        first, *others = real(*args).runs
        return Stability((replace(first, label="nothing_found", classes=()), *others))

    monkeypatch.setattr("tacfast.scanning.leave_blocks_out", one_disagrees)
    report = scan(model, data.loader(32))
    assert (report.verdict.label, report.verdict.classes) == ("borderline", (TARGET,))
    assert report.stability.labels == {"nothing_found": 1, "suspicious": 9}


def test_scan_counts_accuracy_per_class():
    model, data = make_model(), make_data(noise=0.5)
    kept = torch.nonzero(data.labels != 4).flatten()
    report = scan(model, data.subset(kept).loader(32), blocks=0)
    with torch.no_grad():
        right = (model(data.images).argmax(1) == data.labels).double()
    expected = [float(right[data.labels == k].mean()) if k != 4 else math.nan for k in range(10)]
    assert min(expected) < max(expected) <= 1
    assert report.class_accuracy.tolist() == pytest.approx(expected, nan_ok=True)
    assert report.accuracy == pytest.approx(float(right[kept].mean()))
    assert scan(model, [data.images]).class_accuracy is None


def test_untrimmed_blocks_merge_by_maximum():
    logits = make_logits(120)
    parts = matrix_of([logits]).deal(5)
    merged = torch.stack([torch.as_tensor(part.gaps) for part in parts]).amax(0)
    np.testing.assert_array_equal(merged.numpy(), gap_matrix(logits))
