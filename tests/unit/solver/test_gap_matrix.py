"""The streaming gap matrix: bitwise repeatable from logits, mergeable, storable, reducible; trimmed gaps."""

import datetime
import io

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from independent import gap_matrix, trimmed_gap_matrix
from problems import plain

import tacfast
from tacfast import GapMatrix

KINDS = ("random", "imbalanced", "confident", "constant", "one class")


def make_logits(kind, n, classes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, classes))
    if kind == "imbalanced":
        logits[rng.random(n) < 0.9, 0] += 8
        logits[:, 1] -= 100  # never predicted
    elif kind == "confident":
        logits[np.arange(n), rng.integers(classes, size=n)] += 12
    elif kind == "constant":
        logits = np.tile(np.arange(classes) % 3, (n, 1)).astype(float)
    elif kind == "one class":
        logits[:, classes - 1] += 30
    return logits.astype(dtype)


def head(classes, dim=3, dtype=torch.float32):
    return torch.randn(classes, dim, generator=torch.Generator().manual_seed(classes), dtype=dtype)


def bits(a):
    return np.asarray(a).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (5, 3), (100, 10), (1000, 43), (700, 65)])
def test_bitwise_the_naive_loop(n, classes, kind, dtype):
    logits = make_logits(kind, n, classes, dtype)
    R = GapMatrix(head(classes)).update_logits(logits).gaps
    assert isinstance(R, np.ndarray)
    assert R.dtype == dtype
    assert bits(R + 0) == bits(gap_matrix(logits) + 0)
    assert (R.diagonal() == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bitwise_equal_for_any_split_order_merge_and_thread_count(kind, threads):
    logits = torch.from_numpy(make_logits(kind, 20_000, 60))
    W = head(60)
    whole = GapMatrix(W).update_logits(logits).gaps
    for number in (1, 2, 4):
        threads(number)
        assert torch.equal(GapMatrix(W).update_logits(logits).gaps, whole)
    shuffled = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(GapMatrix(W).update_logits(shuffled).gaps, whole)
    parts = [GapMatrix(W).update_logits(part) for part in shuffled.split([1, 6999, 13_000])]
    merged = GapMatrix(W).merge(parts[2]).merge(GapMatrix(W)).merge(parts[0]).merge(parts[1])
    assert torch.equal(merged.gaps, whole)
    assert merged.n_samples == 20_000


def test_from_latents_batches_agree_to_rounding():
    p = plain(0, classes=20, dim=30, n=5000).to(torch.float32)
    whole = GapMatrix(p.W, p.b).update(p.latents)
    assert torch.equal(GapMatrix(p.W, p.b).update(p.latents).gaps, whole.gaps)
    parts = GapMatrix(p.W, p.b)
    for part in p.latents.split(33):
        assert parts.update(part) is parts
    assert parts.n_samples == 5000
    torch.testing.assert_close(parts.gaps, whole.gaps, rtol=1e-5, atol=1e-5)
    exact = (p.latents.double() @ p.W.double().T + p.b.double()).numpy()
    np.testing.assert_allclose(whole.gaps, gap_matrix(exact), atol=2e-5)


def test_a_common_offset_of_the_rows_costs_no_digits():
    p = plain(0, classes=10, dim=64, n=500).to(torch.float32)
    p.W.add_(1000 * torch.randn(64, generator=torch.Generator().manual_seed(2)))
    exact = gap_matrix((p.latents.double() @ p.W.double().T + p.b.double()).numpy())
    np.testing.assert_allclose(GapMatrix(p.W, p.b).update(p.latents).gaps, exact, atol=2e-5)


@pytest.mark.parametrize("method", ["active-set", "projected-gradient", "auto"])
def test_the_solution_is_bitwise_equal_over_calls_and_thread_counts(method, threads):
    W, generator = head(150, 60), torch.Generator().manual_seed(0)
    R = torch.rand(150, 150, generator=generator) + 1
    R.fill_diagonal_(0)
    matrix = GapMatrix.from_gaps(W, None, R)
    solutions = []
    for number in (1, 1, 3):
        threads(number)
        solutions.append(matrix.solve(method=method, raise_on_failure=False))
    for name in ("perturbations", "norms", "duals", "status"):
        first, *others = (bits(getattr(sol, name)) for sol in solutions)
        assert all(other == first for other in others), name


def test_methods_agree():
    W, R = head(70, 80), 1 + torch.rand(70, 70, generator=torch.Generator().manual_seed(0))
    R.fill_diagonal_(0)
    matrix = GapMatrix.from_gaps(W, None, R)
    first, *others = (matrix.solve(method=m) for m in ("active-set", "projected-gradient", "auto"))
    for other in others:
        torch.testing.assert_close(other.perturbations, first.perturbations, rtol=1e-6, atol=1e-7)


# ---- trimmed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [0.001, 0.05, 0.5, 0.97])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "classes", "dtype"),
    [(7, 2, np.float32), (900, 10, np.float64), (2000, 43, np.float32), (1000, 200, np.float32)],
)
def test_trimmed_gaps_are_those_of_a_sort(n, classes, dtype, kind, trim):
    logits = make_logits(kind, n, classes, dtype)
    matrix = GapMatrix(head(classes, 210), keep_logits=True)
    for part in np.array_split(logits, 3):
        if len(part):
            matrix.update_logits(part)
    sol = matrix.solve(trim=trim, raise_on_failure=False, classes=[0])
    np.testing.assert_array_equal(sol.gaps, trimmed_gap_matrix(logits, trim))
    assert sol.trim == trim
    np.testing.assert_array_equal(matrix.gaps, gap_matrix(logits))  # the maximum is still there


def test_the_least_trim_gives_the_maximum_over_the_own_samples():
    """No sample of class j is left out then, but those of other classes are; of a class without samples all count."""
    logits = make_logits("imbalanced", 40, 5)
    matrix = GapMatrix(head(5, 7), keep_logits=True).update_logits(logits)
    R, all_of_them = matrix.solve(trim=1e-9).gaps, gap_matrix(logits)
    answers = logits.argmax(1)
    for j in range(5):
        expected = gap_matrix(logits[answers == j] if (answers == j).any() else logits)
        np.testing.assert_array_equal(R[:, j], expected[:, j])
    np.testing.assert_array_equal(matrix.solve(trim=0.0).gaps, all_of_them)
    np.testing.assert_array_equal(R[:, 1], all_of_them[:, 1])
    assert (all_of_them != R).any()


@pytest.mark.parametrize("trim", [0.1, 0.5, 0.8])
def test_a_trimmed_shift_carries_the_rest_of_each_class_past_it(trim):
    p = plain(4, classes=8, n=400)
    sol = tacfast.solve_tac(*p, trim=trim)
    logits = p.latents @ p.W.T + p.b
    own = [logits.argmax(1) == j for j in range(8)]
    for k, shift in enumerate(sol.perturbations @ p.W.T):
        moved = logits + shift
        passed = [int((moved[rows, k] >= moved[rows, j] - 1e-9).sum()) for j, rows in enumerate(own)]
        least = [rows.sum() - int(trim * rows.sum()) for rows in own]
        for j in set(range(8)) - {k}:
            assert passed[j] >= least[j]
            assert passed[j] == least[j] or sol.duals[k, j] == 0 or not own[j].any()


def test_trim_on_any_number_of_threads(threads):
    logits = make_logits("confident", 4000, 50)
    matrix = GapMatrix(head(50, 60), keep_logits=True).update_logits(logits)
    results = []
    for number in (1, 2, 4):
        threads(number)
        results.append(bits(matrix.solve(trim=0.3).gaps))
    assert len(set(results)) == 1


def test_kept_logits_merge():
    logits = make_logits("random", 400, 10)
    W = head(10, 12)
    left, right = (GapMatrix(W, keep_logits=True).update_logits(part) for part in np.split(logits, 2))
    np.testing.assert_array_equal(left.merge(right).solve(trim=0.4).gaps, trimmed_gap_matrix(logits, 0.4))
    np.testing.assert_array_equal(right.solve(trim=0.4).gaps, trimmed_gap_matrix(logits[200:], 0.4))


def test_kept_logits_are_copies():
    logits = torch.from_numpy(make_logits("random", 300, 10))
    matrix = GapMatrix(head(10, 12), keep_logits=True).update_logits(logits)
    before = matrix.solve(trim=0.4).gaps
    logits.zero_()
    assert torch.equal(matrix.solve(trim=0.4).gaps, before)


def test_some_logits_are_drawn_without_repetition_and_always_the_same():
    logits = torch.arange(1030.0).reshape(103, 10)
    matrix = GapMatrix(head(10, 12), keep_logits=True)
    assert matrix.some_logits(5).shape == (0, 10)
    for part in torch.split(logits, [40, 1, 62]):
        matrix.update_logits(part)
    assert torch.equal(matrix.some_logits(103), logits)
    assert torch.equal(matrix.some_logits(1000), logits)
    some = matrix.some_logits(30)
    assert torch.equal(some, matrix.some_logits(30))
    places = some[:, 0] / 10
    assert torch.equal(some, logits[places.long()])
    assert len(places.unique()) == 30
    assert not torch.equal(places, places[0] + torch.arange(30) * (places[1] - places[0]))  # evenly might miss a class
    with pytest.raises(ValueError, match=r"keep_logits: expected True for some_logits"):
        GapMatrix(head(10, 12)).some_logits(1)
    with pytest.raises(ValueError, match="count: expected an integer >= 1, got 0"):
        matrix.some_logits(0)


# ---- state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_logits", [False, True])
def test_state_survives_torch_save(keep_logits):
    p = plain(3, classes=8, n=50)
    matrix = GapMatrix(p.W, p.b, keep_logits).update(p.latents)
    buffer = io.BytesIO()
    torch.save(matrix.state_dict(), buffer)
    buffer.seek(0)
    restored = GapMatrix(p.W, p.b, keep_logits)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    trim = 0.2 if keep_logits else 0.0
    np.testing.assert_array_equal(restored.solve(trim=trim).perturbations, matrix.solve(trim=trim).perturbations)
    assert restored.n_samples == 50


def test_nothing_is_shared_with_what_comes_in_and_goes_out():
    """Whatever the caller overwrites afterwards changes neither the matrix nor an earlier solution."""
    p = plain(3, classes=8, n=50).to(torch.float32)
    seen = GapMatrix(p.W, p.b).update(p.latents).gaps.T.contiguous().T  # as the matrix itself stores it
    classes = torch.arange(8)
    kept = GapMatrix(p.W, p.b, keep_logits=True).update(p.latents)
    known = GapMatrix.from_gaps(p.W, p.b, seen)
    saved = kept.state_dict()
    loaded = GapMatrix(p.W, p.b, keep_logits=True)
    loaded.load_state_dict(saved)
    matrices = [(kept, 0.3), (kept, 0.0), (known, 0.0), (loaded, 0.3), (loaded, 0.0)]

    def solve():
        return [matrix.solve(trim=trim).gaps.clone() for matrix, trim in matrices]

    before, solution = solve(), known.solve(classes=classes)
    for tensor in (p.W, p.b, p.latents, seen, saved["gaps"], *saved["logits"], known.gaps, solution.gaps, classes):
        tensor.fill_(1)
    for matrix, trim in matrices:
        matrix.solve(trim=trim).gaps.fill_(1)
    assert solution.classes.tolist() == list(range(8))
    assert all(map(torch.equal, solve(), before))


def test_a_saved_state_does_not_follow_the_matrix():
    p = plain(3, classes=8, n=50)
    matrix = GapMatrix(p.W, p.b, keep_logits=True).update(p.latents)
    state = matrix.state_dict()
    before = matrix.solve(trim=0.3).gaps
    matrix.update(p.latents + 5)
    restored = GapMatrix(p.W, p.b, keep_logits=True)
    restored.load_state_dict(state)
    np.testing.assert_array_equal(restored.solve(trim=0.3).gaps, before)


SIZE = "expected shape \\(8, 8\\) to match W"
STATES = {
    "gaps of another shape": ({"gaps": torch.zeros(7, 8)}, rf"'gaps'\]: {SIZE}, got \(7, 8\)"),
    "gaps of another number of dimensions": ({"gaps": torch.zeros(64)}, rf"'gaps'\]: {SIZE}, got \(64,\)"),
    "integer gaps": ({"gaps": torch.zeros(8, 8, dtype=torch.int64)}, r"'gaps'\]: expected float16, .*got torch.int64"),
    "gaps in a list": ({"gaps": [[0.0] * 8] * 8}, r"'gaps'\]: expected a torch.Tensor, .*, got list"),
    "gaps elsewhere": (
        {"gaps": torch.zeros(8, 8, device="meta")},
        r"'gaps'\]: expected device cpu to match W, got meta",
    ),
    "gaps with a diagonal": ({"gaps": torch.ones(8, 8)}, r"'gaps'\]: expected a zero diagonal"),
    "logits without gaps": ({"gaps": None}, r"'logits'\]: expected batches exactly if there are gaps, got 1"),
    "gaps without logits": ({"logits": []}, r"'logits'\]: expected batches exactly if there are gaps, got 0"),
    "no logits": ({"logits": None}, r"'logits'\]: expected a list to match keep_logits=True, got NoneType"),
    "logits not in a list": ({"logits": torch.zeros(50, 8)}, r"'logits'\]: expected a list to match .*, got Tensor"),
    "narrow logits": ({"logits": [torch.zeros(50, 7)]}, r"'logits'\]\[0\]: expected shape \(n, 8\) .*got \(50, 7\)"),
    "integer logits": ({"logits": [torch.zeros(50, 8).int()]}, r"'logits'\]\[0\]: expected .*got torch.int32"),
    "NaN logits": ({"logits": [torch.full((50, 8), torch.nan)]}, r"'logits'\]\[0\]: expected finite .* index \(0, 0\)"),
    "fewer logits": ({"logits": [torch.zeros(49, 8)]}, r"'n_samples'\]: expected 49, the number of rows .*, got 50"),
    "a negative number": ({"n_samples": -1}, r"'n_samples'\]: expected an integer >= 0, got -1"),
    "a fraction": ({"n_samples": 50.0}, r"'n_samples'\]: expected an integer >= 0, got 50.0"),
    "no number of its own": ({"n_own": None}, r"'n_own'\]: expected an integer >= 0, got None"),
    "no kind": ({"kind": 1}, r"'kind'\]: expected one of torch, numpy, cupy, numba, got 1"),
    "an unknown kind": ({"kind": "jax"}, r"'kind'\]: expected one of torch, numpy, cupy, numba, got 'jax'"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_spoilt_state_is_refused(case):
    p = plain(3, classes=8, n=50).to(torch.float32)
    matrix = GapMatrix(p.W, p.b, keep_logits=True).update(p.latents)
    before = matrix.solve(trim=0.2).gaps
    changed, message = STATES[case]
    with pytest.raises((TypeError, ValueError), match=rf"^state\[{message}"):
        matrix.load_state_dict(matrix.state_dict() | changed)
    assert torch.equal(matrix.solve(trim=0.2).gaps, before)


def test_a_state_with_logits_is_not_taken_by_a_matrix_without():
    p = plain(3, classes=8, n=50)
    state = GapMatrix(p.W, p.b, keep_logits=True).update(p.latents).state_dict()
    with pytest.raises(ValueError, match=r"^state\['logits'\]: expected None to match keep_logits=False, got list"):
        GapMatrix(p.W, p.b).load_state_dict(state)


def test_a_state_of_other_strides_and_precision_is_taken_as_it_is_worth():
    p = plain(3, classes=8, n=50).to(torch.float64)
    matrix = GapMatrix(p.W, p.b, keep_logits=True).update(p.latents)
    state = matrix.state_dict()
    state["gaps"] = state["gaps"].T.contiguous().T
    state["logits"] = [chunk.T.contiguous().T for chunk in state["logits"][0].split(20)]
    restored = GapMatrix(p.W, p.b, keep_logits=True)
    restored.load_state_dict(state)
    for trim in (0.0, 0.3):
        assert torch.equal(restored.solve(trim=trim).gaps, matrix.solve(trim=trim).gaps)


def test_fingerprint_tells_heads_apart():
    p = plain(0)
    prints = {
        GapMatrix(p.W, p.b).fingerprint,
        GapMatrix(p.W).fingerprint,
        GapMatrix(p.W, p.b + 1e-12).fingerprint,
        GapMatrix(p.W.astype(np.float32), p.b).fingerprint,
        GapMatrix(p.W.T[:5].copy(), p.b).fingerprint,
    }
    assert len(prints) == 5
    assert GapMatrix(torch.from_numpy(p.W.T.copy()).T, p.b).fingerprint in prints


def test_w_and_b_are_copied():
    p = plain(0).to(torch.float64)
    matrix = GapMatrix(p.W, p.b).update(p.latents)
    before = matrix.solve().perturbations
    p.W.zero_()
    p.b.fill_(9)
    assert torch.equal(matrix.solve().perturbations, before)


def test_the_widest_dtype_wins():
    p = plain(0)
    single = p.to(torch.float32)
    matrix = GapMatrix(single.W, single.b).update(single.latents)
    assert matrix.gaps.dtype == torch.float32
    assert matrix.update(p.latents).gaps.dtype == np.float64
    other = GapMatrix(single.W, single.b).merge(matrix)
    assert other.gaps.dtype == np.float64


@pytest.mark.parametrize("method", ["update", "update_logits"])
def test_precisions_mix_in_any_order_to_the_same_bits(method):
    """Each batch counts with its own precision, whatever came before it."""
    W, generator = head(10, 12), torch.Generator().manual_seed(0)
    width = 12 if method == "update" else 10
    dtypes = (torch.float32, torch.float64, torch.float16, torch.float64)
    batches = [torch.randn(40, width, generator=generator, dtype=torch.float64).to(dtype) for dtype in dtypes]
    results = []
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1]):
        matrix = GapMatrix(W, keep_logits=True)
        for i in order:
            getattr(matrix, method)(batches[i])
        alone = [getattr(GapMatrix(W, keep_logits=True), method)(batches[i]) for i in order]
        merged = GapMatrix(W, keep_logits=True)
        for part in alone:
            merged.merge(part)
        results += [(m.gaps, m.solve(trim=0.2).gaps) for m in (matrix, merged)]
    for gaps, trimmed in results:
        assert torch.equal(gaps, results[0][0])
        assert torch.equal(trimmed, results[0][1])


def test_logits_are_kept_as_trimming_reads_them():
    """Row-major and as wide as R: nothing but them, n x C values, is as large as they are."""
    matrix = GapMatrix(head(10, 12), keep_logits=True)
    logits = torch.from_numpy(make_logits("random", 300, 10))
    for values in (logits.half(), logits.T.contiguous().T, logits.repeat_interleave(2, 1)[:, ::2]):
        matrix.update_logits(values)
    kept = matrix.state_dict()["logits"]
    assert all(chunk.dtype == torch.float32 and chunk.is_contiguous() for chunk in kept)
    matrix.update_logits(logits.double()).solve(trim=0.1)
    assert all(chunk.dtype == torch.float64 for chunk in matrix.state_dict()["logits"])


def test_from_gaps_is_the_same_as_from_samples():
    p = plain(6, classes=7, n=40)
    seen = GapMatrix(p.W, p.b).update(p.latents)
    known = GapMatrix.from_gaps(p.W, p.b, seen.gaps, n_samples=40)
    np.testing.assert_array_equal(known.solve().perturbations, seen.solve().perturbations)
    assert known.n_samples == 40
    np.testing.assert_array_equal(known.gaps, seen.gaps)


# ---- several processes ---------------------------------------------------------------------------------------


def _reduce(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    p = plain(0, n=30).to(torch.float64)
    matrix = GapMatrix(p.W, p.b)
    half = p.latents[15 * rank : 15 * rank + 15]
    both = GapMatrix(p.W, p.b).update(half).all_reduce()
    one = (matrix.update(p.latents) if rank == 0 else matrix).all_reduce()
    known = GapMatrix.from_gaps(p.W, p.b, one.gaps).all_reduce()  # of an unknown number of samples
    W, b = p.W.float(), p.b.float()
    wider = GapMatrix(W, b)  # float64 latents in one process only
    (wider.update(p.latents) if rank == 0 else wider).all_reduce()
    counts = [both.n_samples, one.n_samples, wider.n_samples, GapMatrix(p.W).all_reduce().n_samples]
    counts.append(both.all_reduce().n_samples)  # again
    counts.append(both.update(half).update(half[:2]).all_reduce().n_samples)
    restored = GapMatrix(p.W, p.b)
    restored.load_state_dict(both.state_dict())
    counts.append(restored.all_reduce().n_samples)
    found = {"both": both.gaps, "one": one.gaps, "known": known.gaps, "wider": wider.gaps, "counts": counts}
    wrong = {"mismatch": GapMatrix(p.W + rank, p.b), "kept": GapMatrix(p.W, p.b, keep_logits=rank == 0)}
    for name, matrix in wrong.items():
        try:
            matrix.update(half).all_reduce()
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_reduce(tmp_path):
    torch.multiprocessing.spawn(_reduce, (tmp_path / "store", tmp_path), nprocs=2)
    p = plain(0, n=30).to(torch.float64)
    expected = GapMatrix(p.W, p.b).update(p.latents).gaps
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["both"], expected, rtol=1e-13, atol=1e-13)
        assert torch.equal(found["one"], expected)
        assert found["counts"] == [30, 30, 30, 0, 30, 64, 64]
        assert found["mismatch"].startswith("group: expected the same W and b in every process")
        assert found["kept"].startswith("keep_logits: expected False in every process for all_reduce, got True")
        assert torch.equal(found["known"], expected)
        assert torch.equal(found["wider"], GapMatrix(p.W.float(), p.b.float()).update(p.latents).gaps)
