"""Every error of the solver names the argument, what was expected and what came."""

# ruff: noqa: E501

import numpy as np
import pytest
import torch
from problems import plain

import tacfast
from tacfast import GapMatrix
from tacfast.solver import _checks

P = plain(0, classes=5, dim=8, n=20).to(torch.float32)
NAN, INF = float("nan"), float("inf")


def put(array, index, value):
    changed = array.clone()
    changed[index] = value
    return changed


ARGUMENTS = {
    "integer latents": ({"latents": P.latents.long()}, TypeError, r"latents: expected float16, bfloat16, float32 or float64 values, got torch.int64"),
    "bool W": ({"W": P.W > 0}, TypeError, r"W: expected float16, bfloat16, float32 or float64 values, got torch.bool"),
    "complex b": ({"b": P.b.to(torch.complex64)}, TypeError, r"b: expected .* got torch.complex64"),
    "float8 W": ({"W": P.W.to(torch.float8_e4m3fn)}, TypeError, r"W: expected .* got torch.float8_e4m3fn"),
    "integer NumPy": ({"latents": P.latents.numpy().astype(int)}, TypeError, r"latents: expected float16, float32 or float64 values, got int64"),
    "object NumPy": ({"W": P.W.numpy().astype(object)}, TypeError, r"W: expected .* got object"),
    "long double": ({"W": P.W.numpy().astype(np.longdouble)}, TypeError, r"W: expected .* got (float128|longdouble|float96)"),
    "a list": ({"latents": P.latents.tolist()}, TypeError, r"latents: expected a torch.Tensor, numpy.ndarray, .*, got list"),
    "sparse": ({"latents": P.latents.to_sparse()}, TypeError, r"latents: expected a dense tensor, got layout torch.sparse_coo"),
    "W 1-D": ({"W": P.W[0]}, ValueError, r"W: expected shape \(C, d\) with d >= 1, got \(8,\)"),
    "W without columns": ({"W": P.W[:, :0]}, ValueError, r"W: expected shape \(C, d\) with d >= 1, got \(5, 0\)"),
    "one class": ({"W": P.W[:1]}, ValueError, r"W: expected at least two classes \(rows\), got 1"),
    "wrong d": ({"W": P.W[:, :6]}, ValueError, r"W: expected shape \(C, 8\) to match latents \(n, 8\), got \(5, 6\)"),
    "wrong b": ({"b": P.b[:3]}, ValueError, r"b: expected shape \(5,\) to match W, got \(3,\)"),
    "b on meta": ({"b": P.b.to("meta")}, ValueError, r"b: expected device cpu to match W, got meta"),
    "latents 1-D": ({"latents": P.latents[0]}, ValueError, r"latents: expected shape \(n, 8\), got \(8,\)"),
    "no samples": ({"latents": P.latents[:0]}, ValueError, r"latents: expected at least one sample, got shape \(0, 8\)"),
    "latents on meta": ({"latents": P.latents.to("meta")}, ValueError, r"latents: expected device cpu to match W, got meta"),
    "NaN in W": ({"W": put(P.W, (2, 3), NAN)}, ValueError, r"W: expected finite values, got nan at index \(2, 3\)"),
    "inf in b": ({"b": put(P.b, 4, INF)}, ValueError, r"b: expected finite values, got inf at index 4"),
    "NaN in latents": ({"latents": put(P.latents, (7, 1), NAN)}, ValueError, r"latents: expected finite values, got nan at index \(7, 1\)"),
    "inf in latents": ({"latents": put(P.latents, (19, 7), -INF)}, ValueError, r"latents: expected finite values, got -inf at index \(19, 7\)"),
    "overflow": ({"latents": put(P.latents, 3, 3e38)}, ValueError, r"latents: expected finite logits, got an overflow for sample 3 and class \d"),
    "class too large": ({"classes": [0, 5]}, ValueError, r"classes: expected values in \[0, 5\), got 5"),
    "negative class": ({"classes": [-1]}, ValueError, r"classes: expected values in \[0, 5\), got -1"),
    "duplicate classes": ({"classes": [1, 1]}, ValueError, r"classes: expected no duplicates, got \[1, 1\]"),
    "float classes": ({"classes": [1.0]}, TypeError, r"classes: expected a 1-D sequence of integers, got \[1.0\]"),
    "bool classes": ({"classes": [True, False]}, TypeError, r"classes: expected a 1-D sequence of integers"),
    "scalar class": ({"classes": 3}, TypeError, r"classes: expected a 1-D sequence of integers, got 3"),
    "2-D classes": ({"classes": [[1]]}, TypeError, r"classes: expected a 1-D sequence of integers, got \[\[1\]\]"),
    "classes as a set": ({"classes": {1, 2}}, TypeError, r"classes: expected a 1-D sequence of integers, got \{1, 2\}"),
    "classes as a dict": ({"classes": {}}, TypeError, r"classes: expected a 1-D sequence of integers, got \{\}"),
    "classes as an iterator": ({"classes": iter([1])}, TypeError, r"classes: expected a 1-D sequence of integers, got <list_iterator"),
    "classes as a word": ({"classes": "a"}, TypeError, r"classes: expected a 1-D sequence of integers, got 'a'"),
    "no class": ({"classes": [None]}, TypeError, r"classes: expected a 1-D sequence of integers, got \[None\]"),
    "huge class": ({"classes": [2**70]}, TypeError, r"classes: expected a 1-D sequence of integers, got \[1180591620717411303424\]"),
    "ragged classes": ({"classes": [[1], [1, 2]]}, TypeError, r"classes: expected a 1-D sequence of integers, got \[\[1\], \[1, 2\]\]"),
    "empty float classes": ({"classes": np.array([])}, TypeError, r"classes: expected a 1-D sequence of integers, got array\(\[\]"),
    "empty float tensor": ({"classes": torch.tensor([])}, TypeError, r"classes: expected a 1-D sequence of integers, got tensor\(\[\]\)"),
    "masked classes": ({"classes": np.ma.array([1, 2])}, TypeError, r"classes: expected a 1-D sequence of integers, got masked_array"),
    "masked latents": ({"latents": np.ma.array(P.latents.numpy())}, TypeError, r"latents: expected an array without a mask, got MaskedArray"),
    "nested latents": ({"latents": torch.nested.nested_tensor([P.latents], layout=torch.jagged)}, TypeError, r"latents: expected a dense tensor, got nested layout torch.jagged"),
    "margin in words": ({"margin": "a"}, TypeError, r"margin: expected a finite number >= 0, got 'a'"),
    "no margin": ({"margin": None}, TypeError, r"margin: expected a finite number >= 0, got None"),
    "NaN margin": ({"margin": NAN}, ValueError, r"margin: expected a finite number >= 0, got nan"),
    "negative margin": ({"margin": -0.5}, ValueError, r"margin: expected a finite number >= 0, got -0.5"),
    "infinite margin": ({"margin": INF}, ValueError, r"margin: expected a finite number >= 0, got inf"),
}  # fmt: skip
ONLY_SOLVE = {
    "NaN trim": ({"trim": NAN}, ValueError, r"trim: expected a share in \[0, 1\), got nan"),
    "whole trim": ({"trim": 1.0}, ValueError, r"trim: expected a share in \[0, 1\), got 1.0"),
    "negative trim": ({"trim": -0.1}, ValueError, r"trim: expected a share in \[0, 1\), got -0.1"),
    "no trim": ({"trim": None}, TypeError, r"trim: expected a share in \[0, 1\), got None"),
    "tol in words": ({"tol": "a"}, TypeError, r"tol: expected a finite number > 0, got 'a'"),
    "infinite tol": ({"tol": INF}, ValueError, r"tol: expected a finite number > 0, got inf"),
    "max_iter beyond the machine": ({"max_iter": 2**31}, ValueError, r"max_iter: expected an integer <= 2147483647, got 2147483648"),
    "method": ({"method": "simplex"}, ValueError, r"method: expected one of auto, active-set, projected-gradient, got 'simplex'"),
    "zero tol": ({"tol": 0.0}, ValueError, r"tol: expected a finite number > 0, got 0.0"),
    "NaN tol": ({"tol": NAN}, ValueError, r"tol: expected a finite number > 0, got nan"),
    "zero max_iter": ({"max_iter": 0}, ValueError, r"max_iter: expected an integer >= 1, got 0"),
    "float max_iter": ({"max_iter": 2.0}, TypeError, r"max_iter: expected an integer >= 1, got 2.0"),
    "bool max_iter": ({"max_iter": True}, TypeError, r"max_iter: expected an integer >= 1, got True"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("function", [tacfast.solve_tac, tacfast.solve_tac_per_sample])
def test_arguments(function, case):
    changed, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        function(**(P._asdict() | changed))


@pytest.mark.parametrize("max_bytes", ["a", None, 1e9])
def test_max_bytes(max_bytes):
    with pytest.raises(TypeError, match=rf"max_bytes: expected an integer >= 0, got {max_bytes!r}"):
        tacfast.solve_tac_per_sample(*P, max_bytes=max_bytes)


def test_numbers_of_any_kind():
    few = {"classes": np.array([3, 1], np.uint64), "margin": np.float32(0.5), "trim": 0, "max_iter": np.int64(100)}
    plain = {"classes": [3, 1], "margin": 0.5, "trim": 0.0, "max_iter": 100}
    assert torch.equal(tacfast.solve_tac(*P, **few).perturbations, tacfast.solve_tac(*P, **plain).perturbations)


@pytest.mark.parametrize("case", ONLY_SOLVE)
def test_arguments_of_solve_tac(case):
    changed, kind, message = ONLY_SOLVE[case]
    with pytest.raises(kind, match=message):
        tacfast.solve_tac(**(P._asdict() | changed))


LOGITS = P.latents @ P.W.T
R = GapMatrix(P.W).update_logits(LOGITS).gaps
MATRIX = {
    "logits shape": (lambda: GapMatrix(P.W).update_logits(LOGITS[:, :4]), ValueError, r"logits: expected shape \(n, 5\) to match W, got \(20, 4\)"),
    "no logits": (lambda: GapMatrix(P.W).update_logits(LOGITS[:0]), ValueError, r"logits: expected at least one sample, got shape \(0, 5\)"),
    "logits device": (lambda: GapMatrix(P.W).update_logits(LOGITS.to("meta")), ValueError, r"logits: expected device cpu to match W, got meta"),
    "logits value": (lambda: GapMatrix(P.W).update_logits(put(LOGITS, (3, 2), INF)), ValueError, r"logits: expected finite values, got inf at index \(3, 2\)"),
    "R shape": (lambda: GapMatrix.from_gaps(P.W, None, R[:4]), ValueError, r"R: expected shape \(5, 5\) to match W, got \(4, 5\)"),
    "R device": (lambda: GapMatrix.from_gaps(P.W, None, R.to("meta")), ValueError, r"R: expected device cpu to match W, got meta"),
    "R diagonal": (lambda: GapMatrix.from_gaps(P.W, None, R + 1), ValueError, r"R: expected a zero diagonal, got another value"),
    "R value": (lambda: GapMatrix.from_gaps(P.W, None, put(R, (1, 2), NAN)).solve(), ValueError, r"R: expected finite values, got nan at index \(1, 2\)"),
    "nothing seen": (lambda: GapMatrix(P.W).gaps, ValueError, r"latents: expected at least one sample before R can be used, got none"),
    "nothing to solve": (lambda: GapMatrix(P.W).solve(), ValueError, r"latents: expected at least one sample before R can be used, got none"),
    "trim without logits": (lambda: GapMatrix(P.W).update(P.latents).solve(trim=0.1), ValueError, r"trim: expected keep_logits=True for trim > 0, got keep_logits=False, trim=0.1"),
    "merge of another head": (lambda: GapMatrix(P.W).merge(GapMatrix(P.W, P.b)), ValueError, r"other: expected a gap matrix of the same W and b, got one of another head"),
    "merge of another kind": (lambda: GapMatrix(P.W).merge(GapMatrix(P.W, keep_logits=True)), ValueError, r"other: expected the same keep_logits as self, got another"),
    "merge of a number": (lambda: GapMatrix(P.W).merge(3), TypeError, r"other: expected a GapMatrix, got int"),
    "merge of itself": (lambda: (m := GapMatrix(P.W)).merge(m), ValueError, r"other: expected another gap matrix, got the same one"),
    "n_samples in words": (lambda: GapMatrix.from_gaps(P.W, None, R, n_samples="abc"), TypeError, r"n_samples: expected an integer >= 0, got 'abc'"),
    "negative n_samples": (lambda: GapMatrix.from_gaps(P.W, None, R, n_samples=-1), ValueError, r"n_samples: expected an integer >= 0, got -1"),
    "no state": (lambda: GapMatrix(P.W).load_state_dict(None), TypeError, r"state: expected what GapMatrix.state_dict gave, got NoneType"),
    "state of another head": (lambda: GapMatrix(P.W).load_state_dict(GapMatrix(P.W, P.b).state_dict()), ValueError, r"state: expected a gap matrix of the same W and b, got one of another head"),
    "incomplete state": (lambda: GapMatrix(P.W).load_state_dict({"gaps": R}), ValueError, r"state: expected the fields of GapMatrix.state_dict, got none named \['fingerprint', 'kind', 'logits', 'n_own', 'n_samples'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", MATRIX)
def test_gap_matrix(case):
    call, kind, message = MATRIX[case]
    with pytest.raises(kind, match=message):
        call()


SOLUTION = tacfast.solve_tac(*P)
FLIPPED = {
    "fewer classes": ({"W": P.W[:3], "b": None}, ValueError, r"W: expected shape \(5, 8\) to match the solution, got \(3, 8\)"),
    "another d": ({"latents": P.latents[:, :4], "W": P.W[:, :4]}, ValueError, r"W: expected shape \(5, 8\) to match the solution, got \(5, 4\)"),
    "NaN latents": ({"latents": put(P.latents, (2, 1), NAN)}, ValueError, r"latents: expected finite values, got nan at index \(2, 1\)"),
    "inf in W": ({"W": put(P.W, (2, 1), INF)}, ValueError, r"W: expected finite values, got inf at index \(2, 1\)"),
    "NaN b": ({"b": put(P.b, 2, NAN)}, ValueError, r"b: expected finite values, got nan at index 2"),
    "scale": ({"scale": "a"}, TypeError, r"scale: expected a number, got 'a'"),
    "tie_tol": ({"tie_tol": "a"}, TypeError, r"tie_tol: expected a number, got 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLIPPED)
def test_flipped(case):
    changed, kind, message = FLIPPED[case]
    with pytest.raises(kind, match=message):
        SOLUTION.flipped(**(P._asdict() | changed))


@pytest.mark.parametrize("row", [0, 1500, 2999])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_first_bad_logit_is_named_wherever_it_is_and_nothing_is_folded_in(row, dtype, threads):
    threads(2)
    logits = torch.zeros(3000, 70, dtype=dtype)
    matrix = GapMatrix(torch.eye(70)).update_logits(logits)
    before = matrix.gaps
    logits[row:, 33] = NAN
    logits[row:, 50] = INF
    with pytest.raises(ValueError, match=rf"logits: expected finite values, got nan at index \({row}, 33\)"):
        matrix.update_logits(logits)
    assert torch.equal(matrix.gaps, before)
    assert matrix.n_samples == 3000


@pytest.mark.parametrize(("classes", "message"), [([5], r"values in \[0, 5\), got 5"), ([1, 1], "no duplicates")])
def test_a_list_of_classes_for_a_device_is_checked_before_it_goes_there(classes, message):
    with pytest.raises(ValueError, match=f"classes: expected {message}"):
        _checks.check_classes(classes, 5, torch.device("meta"))
