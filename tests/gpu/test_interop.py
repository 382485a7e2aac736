"""CuPy and numba arrays in and out: zero-copy, and in the order of the streams."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from problems import plain

import tacfast
from tacfast.solver import _arrays

pytestmark = pytest.mark.gpu

CYCLES = 50_000_000  # tens of milliseconds: long beside everything else here


class Cupy:
    """CuPy as the tests use it."""

    def __init__(self, cupy):
        self.cupy, self.type = cupy, cupy.ndarray
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def put(self, array):
        return self.cupy.asarray(array)

    def get(self, array):
        return array.get()

    def pointer(self, array):
        return array.data.ptr

    def late(self, array):
        """An array that its stream fills only after a while; the stream stays CuPy's current one."""
        source = self.cupy.asarray(array)
        late = self.cupy.zeros_like(source)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(self.stream.ptr)):
            torch.cuda._sleep(CYCLES)
        self.stream.use()
        late[...] = source
        return late

    def clear(self, array):
        array.fill(0)

    def close(self):
        self.cupy.cuda.Stream.null.use()


class Numba:
    """numba.cuda as the tests use it."""

    def __init__(self, cuda):
        self.cuda, self.type = cuda, cuda.devicearray.DeviceNDArray
        self.stream = cuda.stream()

    def put(self, array):
        return self.cuda.to_device(array)

    def get(self, array):
        return array.copy_to_host()

    def pointer(self, array):
        return array.__cuda_array_interface__["data"][0]

    def late(self, array):
        """An array bound to a stream that fills it only after a while."""
        late = self.cuda.device_array(array.shape, array.dtype, stream=self.stream)
        pinned = torch.from_numpy(array).pin_memory().numpy()
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(int(self.stream))):
            torch.cuda._sleep(CYCLES)
        late.copy_to_device(pinned, stream=self.stream)
        return late

    def clear(self, array):
        array.copy_to_device(np.zeros(array.shape, array.dtype))

    def close(self):
        pass


LIBRARIES = {"cupy": ("cupy", Cupy), "numba": ("numba.cuda", Numba)}


@pytest.fixture(params=LIBRARIES)
def library(request):
    module, wrapper = LIBRARIES[request.param]
    with warnings.catch_warnings():  # what they say while they are imported is not ours
        warnings.simplefilter("ignore")
        pytest.importorskip(module.partition(".")[0], exc_type=ImportError)  # present, but of no use here, too
        used = wrapper(importlib.import_module(module))
    yield used
    used.close()


def problem():
    return [np.ascontiguousarray(x, np.float32) for x in plain(0, classes=12, dim=40, n=500)]


def on_device(arrays, device="cuda"):
    return [torch.from_numpy(x).to(device) for x in arrays]


def expected(arrays):
    return tacfast.solve_tac(*on_device(arrays)).perturbations.cpu().numpy()


def test_results_are_of_the_kind_of_the_latents(library):
    arrays = problem()
    for solution in (
        tacfast.solve_tac(*map(library.put, arrays)),
        tacfast.solve_tac_per_sample(*map(library.put, arrays), return_perturbations=True),
    ):
        values = [*vars(solution).values(), *vars(solution.certificate).values()]
        shaped = [value for value in values if hasattr(value, "shape")]
        assert len(shaped) >= 10
        assert all(isinstance(value, library.type) for value in shaped)
        assert library.get(solution.status).dtype == np.int8
        assert library.get(solution.classes).tolist() == list(range(12))
    solution = tacfast.solve_tac(*map(library.put, arrays))
    np.testing.assert_array_equal(library.get(solution.perturbations), expected(arrays))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.int8])
def test_memory_is_shared_in_both_directions(library, dtype):
    array = library.put(np.arange(12).reshape(3, 4).astype(dtype))
    tensor = _arrays.as_tensor("x", array)
    assert tensor.is_cuda
    assert tensor.data_ptr() == library.pointer(array)
    assert tensor.tolist() == library.get(array).tolist()
    assert library.pointer(_arrays.as_kind(tensor, _arrays.kind_of(array))) == tensor.data_ptr()


def test_strides_are_kept(library):
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    tensor = _arrays.as_tensor("x", library.put(values)[:, 1:3])
    assert tensor.stride() == (5, 1)
    assert tensor.tolist() == values[:, 1:3].tolist()


def test_torch_waits_for_the_producer(library):
    z, W, b = problem()
    head = [library.put(W), library.put(b)]
    with torch.cuda.stream(torch.cuda.Stream()):
        solution = tacfast.solve_tac(library.late(z), *head)
        found = solution.to("cpu").perturbations.numpy()
    torch.cuda.synchronize()
    np.testing.assert_array_equal(found, expected([z, W, b]))


def test_the_consumer_waits_for_torch(library):
    arrays = problem()
    inputs = [library.put(x) for x in arrays]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(CYCLES)
        solution = tacfast.solve_tac(*inputs, raise_on_failure=False)
    np.testing.assert_array_equal(library.get(solution.perturbations), expected(arrays))


def test_latents_may_be_overwritten_at_once(library):
    arrays = problem()
    z, W, b = map(library.put, arrays)
    matrix = tacfast.GapMatrix(W, b)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(CYCLES)
        matrix.update(z)
        library.clear(z)
        found = matrix.solve().to("cpu").perturbations.numpy()
    np.testing.assert_array_equal(found, expected(arrays))


def test_the_head_may_be_of_another_kind_on_the_same_device(library):
    arrays = problem()
    z, W, b = on_device(arrays)
    found = tacfast.solve_tac(z, library.put(arrays[1]), library.put(arrays[2]))
    assert isinstance(found.perturbations, torch.Tensor)
    np.testing.assert_array_equal(found.perturbations.cpu().numpy(), expected(arrays))
    assert isinstance(tacfast.solve_tac(library.put(arrays[0]), W, b).norms, library.type)


def test_a_head_in_host_memory_is_refused_by_name(library):
    z, W, b = problem()
    with pytest.raises(ValueError, match=r"^latents: expected device cpu to match W, got cuda:0"):
        tacfast.solve_tac(library.put(z), W, b)
    with pytest.raises(ValueError, match=r"^b: expected device cuda:0 to match W, got cpu"):
        tacfast.solve_tac(library.put(z), library.put(W), b)


def test_a_graph_holds_arrays_of_other_kinds(library):
    arrays = problem()
    given = [library.put(x) for x in arrays]
    with torch.cuda.stream(torch.cuda.Stream()):
        tacfast.solve_tac(*given, raise_on_failure=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        solution = tacfast.solve_tac(*given, raise_on_failure=False)
    graph.replay()
    torch.cuda.synchronize()
    np.testing.assert_array_equal(library.get(solution.perturbations), expected(arrays))


def test_gap_matrix(library):
    arrays = problem()
    z, W, b = map(library.put, arrays)
    matrix = tacfast.GapMatrix(W, b).update(z[:200]).update(z[200:])
    assert isinstance(matrix.gaps, library.type)
    restored = tacfast.GapMatrix(W, b)
    restored.load_state_dict(matrix.state_dict())
    again = tacfast.GapMatrix.from_gaps(W, b, matrix.gaps)
    for one in (matrix, restored, again):
        solution = one.solve(classes=library.put(np.array([3, 1])))
        assert isinstance(solution.norms, library.type)
        np.testing.assert_array_equal(library.get(solution.gaps), library.get(matrix.gaps))
        assert library.get(solution.classes).tolist() == [3, 1]


def test_what_a_solution_can_do(library, tmp_path):
    arrays = problem()
    given = [library.put(x) for x in arrays]
    solution = tacfast.solve_tac(*given)
    assert set(solution.statuses) == {tacfast.Status.OPTIMAL}
    assert isinstance(solution.flipped(*given, scale=1.01), library.type)
    assert tacfast.detect(tacfast.solve_tac(*given, trim=0.1)).scores
    pytest.importorskip("safetensors")
    solution.save(tmp_path / "s")
    np.testing.assert_array_equal(tacfast.TacSolution.load(tmp_path / "s").perturbations.numpy(), expected(arrays))


def test_another_device(library):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    arrays = problem()
    tensors = on_device(arrays, "cuda:1")
    kind = next(name for name, (_, wrapper) in LIBRARIES.items() if isinstance(library, wrapper))
    given = [_arrays.as_kind(x, kind) for x in tensors]
    solution = tacfast.solve_tac(*given)
    assert _arrays.as_tensor("norms", solution.norms).device == torch.device("cuda", 1)
    np.testing.assert_array_equal(solution.to("cpu").perturbations.numpy(), expected(arrays))
