"""Arrays of CuPy and numba, pretended in the host's memory; tests/gpu/test_interop.py has the real ones."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from problems import plain

import tacfast
from tacfast.solver import _arrays, _checks, _results


class HostArray:
    """What CuPy's and numba's arrays have in common; ``stream`` is what the interface of CUDA arrays says."""

    def __init__(self, array, stream=None):
        self.array, self.stream = array, stream
        self.dtype, self.shape, self.strides = array.dtype, array.shape, array.strides

    @property
    def __cuda_array_interface__(self):
        strides = None if self.array.flags.c_contiguous else self.strides
        data = (self.array.ctypes.data, False)
        return {"shape": self.shape, "strides": strides, "data": data, "typestr": self.dtype.str, "stream": self.stream}


class CupyArray(HostArray):
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def copy(self, order):
        return CupyArray(self.array.copy(order))


class NumbaArray(HostArray):
    """Like numba's: no DLPack, no ``tolist``."""


CupyArray.__module__ = "cupy"
NumbaArray.__module__ = "numba_cuda.numba.cuda.cudadrv.devicearray"
DEVICE_ARRAYS = {"cupy": CupyArray, "numba": NumbaArray}


class Stream:
    def __init__(self, pointer, waits):
        self.cuda_stream, self.waits = pointer, waits

    def wait_stream(self, other):
        self.waits.append((self.cuda_stream, other.cuda_stream))


class Queues:
    """Stands in for the streams of ``torch.cuda``; ``waits`` lists (who waits, for whom)."""

    def __init__(self):
        self.waits, self.current, self.capturing = [], 0, False

    def install(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(self.current, self.waits))
        monkeypatch.setattr(torch.cuda, "default_stream", lambda _: Stream(0, self.waits))
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer, _: Stream(pointer, self.waits))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        return self


class CupyStream:
    """Stream that CuPy is told to use, by its address."""

    entered: list[int]

    def __init__(self, pointer):
        self.pointer = pointer

    def __enter__(self):
        self.entered.append(self.pointer)

    def __exit__(self, *_):
        pass


class Gpus:
    def __getitem__(self, _):
        return self

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


@pytest.fixture
def queues(monkeypatch):
    """Pretend that there is a CUDA device, CuPy and numba, and that their memory is the host's."""
    as_tensor = torch.as_tensor

    def share(value, *rest, **options):
        return torch.from_numpy(value.array) if isinstance(value, NumbaArray) else as_tensor(value, *rest, **options)

    cupy, numba = types.ModuleType("cupy"), types.ModuleType("numba.cuda")
    cupy.from_dlpack = lambda tensor: CupyArray(np.from_dlpack(tensor))
    cupy.cuda = types.SimpleNamespace(ExternalStream=CupyStream)
    CupyStream.entered = []
    numba.as_cuda_array = lambda tensor, sync: NumbaArray(tensor.numpy())
    numba.gpus = Gpus()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "numba.cuda", numba)
    monkeypatch.setattr(torch, "as_tensor", share)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for kind in DEVICE_ARRAYS:
        monkeypatch.setitem(_arrays.DEVICES, kind, "cpu")
    return Queues().install(monkeypatch)


VALUES = np.arange(12.0).reshape(3, 4)


def test_kinds():
    class Mine(np.ndarray):
        pass

    class MyCupy(CupyArray):
        pass

    assert _arrays.kind_of(torch.zeros(2)) == _arrays.kind_of(torch.nn.Parameter(torch.zeros(2))) == "torch"
    assert _arrays.kind_of(VALUES) == _arrays.kind_of(VALUES.view(Mine)) == "numpy"
    assert _arrays.kind_of(CupyArray(VALUES)) == _arrays.kind_of(MyCupy(VALUES)) == "cupy"
    assert _arrays.kind_of(NumbaArray(VALUES)) == "numba"
    for value in (None, [1.0], 3, HostArray(VALUES), HostArray, CupyArray, types.ModuleType("cupy")):
        assert _arrays.kind_of(value) == ""


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
@pytest.mark.parametrize("values", [VALUES, VALUES.T, VALUES[:, 1:3], VALUES[:0]], ids=["rows", "T", "part", "none"])
def test_memory_is_shared_in_both_directions(queues, kind, values):
    tensor = _checks.as_tensor("latents", DEVICE_ARRAYS[kind](values))
    assert tensor.data_ptr() == values.ctypes.data or not values.size
    assert tensor.numpy().tolist() == values.tolist()
    back = _arrays.as_kind(tensor, kind)
    assert type(back) is DEVICE_ARRAYS[kind]
    assert back.array.ctypes.data == values.ctypes.data or not values.size
    assert (back.dtype, back.shape) == (values.dtype, values.shape)


def test_backward_strides(queues):
    values = VALUES[::-1]
    assert _checks.as_tensor("latents", CupyArray(values)).tolist() == values.tolist()
    with pytest.raises(ValueError, match=r"^latents: expected no negative strides, got \(-32, 8\)$"):
        _checks.as_tensor("latents", NumbaArray(values))


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "u8"])
def test_dtypes_are_refused_by_name(queues, kind, dtype):
    array = DEVICE_ARRAYS[kind](VALUES.astype(dtype))
    with pytest.raises(TypeError, match=rf"^W: expected float16, float32 or float64 values, got {array.dtype}$"):
        _checks.as_tensor("W", array)


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
def test_classes(queues, kind):
    chosen = DEVICE_ARRAYS[kind](np.array([3, 1], np.uint8))
    assert _checks.check_classes(chosen, 5, torch.device("cpu")).tolist() == [3, 1]
    with pytest.raises(TypeError, match="classes: expected a 1-D sequence of integers"):
        _checks.check_classes(DEVICE_ARRAYS[kind](VALUES[0]), 5, torch.device("cpu"))


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
def test_a_torch_without_a_device_is_named(queues, kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"^latents: expected an array that torch can use, got one of {kind}"):
        _checks.as_tensor("latents", DEVICE_ARRAYS[kind](VALUES))


def test_torch_copying_is_an_error(queues, monkeypatch):
    monkeypatch.setattr(torch, "as_tensor", lambda value: torch.from_numpy(value.array.copy()))
    with pytest.raises(ValueError, match=r"^b: expected an array on torch's default device cpu, got one elsewhere$"):
        _checks.as_tensor("b", NumbaArray(VALUES))


def test_cuda_arrays_of_other_libraries_are_refused(queues):
    with pytest.raises(TypeError, match=r"^latents: expected .*, got HostArray$"):
        _checks.as_tensor("latents", HostArray(VALUES))


# Stream of the array, torch's current stream, whether that is being captured, who waits for whom.
STREAMS = {
    "all on the default stream": (None, 0, False, []),
    "numba's default stream, torch elsewhere": (None, 64, False, [(64, 0)]),
    "the default stream by its number": (1, 64, False, [(64, 0)]),
    "one number for both": (1, 0, False, []),
    "the default stream by CUDA's number": (0, 64, False, [(64, 0)]),
    "the default stream of the thread": (2, 64, False, [(64, 2)]),
    "a stream of its own": (128, 64, False, [(64, 128)]),
    "a stream of its own, torch on the default": (128, 0, False, [(0, 128)]),
    "the same stream": (64, 64, False, []),
    "captured": (None, 64, True, []),
    "captured, after a stream of its own": (128, 64, True, [(64, 128)]),
}


@pytest.mark.parametrize("case", STREAMS)
def test_torch_waits_for_the_stream_of_numba(queues, case):
    stream, queues.current, queues.capturing, waits = STREAMS[case]
    _arrays.as_tensor("latents", NumbaArray(VALUES, stream))
    assert queues.waits == waits


@pytest.mark.parametrize(("current", "capturing", "waits"), [(0, False, []), (64, False, [(0, 64)]), (64, True, [])])
def test_numba_waits_for_torch(queues, current, capturing, waits):
    queues.current, queues.capturing = current, capturing
    _arrays.as_kind(torch.ones(3), "numba")
    assert queues.waits == waits


# The same, where the producer waits until torch has read the array.
HANDED_BACK = {
    "all on the default stream": (None, 0, False, []),
    "numba's default stream, torch elsewhere": (None, 64, False, [(0, 64)]),
    "a stream of its own": (128, 64, False, [(128, 64)]),
    "captured": (128, 64, True, []),
}


@pytest.mark.parametrize("case", HANDED_BACK)
def test_numba_waits_until_torch_has_read(queues, case):
    stream, queues.current, queues.capturing, waits = HANDED_BACK[case]
    _arrays.hand_back(None, VALUES, torch.ones(3), NumbaArray(VALUES, stream))
    assert queues.waits == waits


@pytest.mark.parametrize(("capturing", "exports"), [(False, 1), (True, 0)])
def test_cupy_waits_until_torch_has_read(queues, monkeypatch, capturing, exports):
    queues.capturing = capturing
    seen = []
    monkeypatch.setattr(sys.modules["cupy"], "from_dlpack", seen.append)
    _arrays.hand_back(CupyArray(VALUES), None, torch.ones(3))
    assert [tensor.data_ptr() for tensor in seen] == [VALUES.ctypes.data] * exports


@pytest.mark.parametrize(("capturing", "entered"), [(False, []), (True, [64, 64])])
def test_cupy_uses_the_captured_stream(queues, capturing, entered):
    queues.current, queues.capturing = 64, capturing
    _arrays.as_kind(_arrays.as_tensor("latents", CupyArray(VALUES)), "cupy")
    assert CupyStream.entered == entered


@pytest.mark.parametrize("kind", ["numpy", "cupy", "numba"])
def test_a_tensor_stays_one_where_its_device_has_no_such_arrays(kind):
    tensor = torch.empty(3, device="meta")
    assert _arrays.as_kind(tensor, kind) is tensor


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
def test_solutions_of_other_kinds(queues, kind, tmp_path):
    p = plain(0).to(torch.float64)
    plain_solution = tacfast.solve_tac(*p)
    solution = _results.with_kind(plain_solution, kind)
    arrays = [*vars(solution).values(), *vars(solution.certificate).values()]
    assert sum(type(value) is DEVICE_ARRAYS[kind] for value in arrays) == 13
    assert solution.statuses == plain_solution.statuses
    shares = solution.flipped(*p)
    assert type(shares) is DEVICE_ARRAYS[kind]
    np.testing.assert_array_equal(shares.array, plain_solution.flipped(*p))
    assert torch.equal(solution.to("cpu").perturbations, plain_solution.perturbations)
    pytest.importorskip("safetensors")
    solution.save(tmp_path / "s")
    assert torch.equal(tacfast.TacSolution.load(tmp_path / "s").duals, plain_solution.duals)


def solutions(latents, *head):
    yield tacfast.solve_tac(latents, *head)
    yield tacfast.solve_tac_per_sample(latents, *head, return_perturbations=True)
    matrix = tacfast.GapMatrix(*head, keep_logits=True).update(latents)
    yield matrix.solve(trim=0.3)
    restored = tacfast.GapMatrix(*head, keep_logits=True)
    restored.load_state_dict(matrix.state_dict())
    yield restored.solve()
    yield tacfast.GapMatrix(*head).merge(tacfast.GapMatrix(*head).update(latents)).solve()
    yield tacfast.GapMatrix.from_gaps(*head, matrix.gaps).solve()


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
@pytest.mark.parametrize("head_too", [True, False])
def test_results_are_of_the_kind_of_the_latents(queues, kind, head_too):
    p = plain(0)
    put = DEVICE_ARRAYS[kind]
    given = [put(p.latents), *(map(put, p[1:]) if head_too else p[1:])]
    for found, expected in zip(solutions(*given), solutions(*p), strict=True):
        for name, value in (vars(expected) | vars(expected.certificate)).items():
            if isinstance(value, np.ndarray):
                array = getattr(found if hasattr(found, name) else found.certificate, name)
                assert type(array) is put
                np.testing.assert_array_equal(array.array, value)


def test_everything_given_is_handed_back(queues):
    p = plain(0)
    streams = (128, 192, 256, 320)
    z, W, b, classes = map(NumbaArray, (*p, np.array([1, 2])), streams)
    queues.current = 64
    back = [(stream, 64) for stream in streams]
    for call in (
        lambda: tacfast.solve_tac(z, W, b, classes=classes),
        lambda: tacfast.solve_tac_per_sample(z, W, b, classes=classes),
        lambda: tacfast.solve_tac(*p).flipped(z, W, b),
    ):
        queues.waits.clear()
        call()
        assert set(back[:3]) <= set(queues.waits)
    queues.waits.clear()
    tacfast.GapMatrix.from_gaps(W, b, NumbaArray(tacfast.solve_tac(*p).gaps, 384)).solve(classes=classes)
    assert {*back[1:], (384, 64)} <= set(queues.waits)


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
def test_errors_carry_results_of_the_kind_of_the_latents(queues, kind):
    with pytest.raises(tacfast.SolverError) as caught:
        tacfast.solve_tac(DEVICE_ARRAYS[kind](plain(0).latents), *plain(0)[1:], tol=1e-300)
    assert type(caught.value.solution.norms) is DEVICE_ARRAYS[kind]
    assert tacfast.Status.INACCURATE in caught.value.solution.statuses


@pytest.mark.parametrize("kind", DEVICE_ARRAYS)
def test_solutions_of_other_kinds_are_judged(queues, kind):
    p = plain(0, classes=6, n=200)
    solution = tacfast.solve_tac(*p, trim=0.5)
    assert tacfast.detect(_results.with_kind(solution.to("cpu"), kind)) == tacfast.detect(solution)


def test_neither_library_is_imported_without_its_arrays():
    code = (
        "import sys, numpy as np, tacfast; z = np.eye(8);"
        "tacfast.solve_tac(z, z[:5]); print({'cupy', 'numba'} & {name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
