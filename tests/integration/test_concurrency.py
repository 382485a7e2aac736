"""Python threads, and processes forked after a threaded solve."""

import multiprocessing
import threading

import pytest
import torch
from problems import plain

import tacfast

P = plain(0, classes=80, dim=96, n=4000).to(torch.float32)


def solve():
    sol = tacfast.solve_tac(*P)
    each = tacfast.solve_tac_per_sample(P.latents[:300], P.W, P.b)
    cut = tacfast.solve_tac(*P, trim=0.2)
    return sol.perturbations, each.norms, cut.norms


def _child(queue):
    # As a DataLoader's worker does. Torch's own product would wait for threads that the fork did not copy.
    torch.set_num_threads(1)
    matrix = tacfast.GapMatrix(P.W, P.b)
    logits = torch.zeros(50_000, 80)
    logits[:, 3] = torch.arange(50_000.0)
    torch.set_num_threads(2)  # now with threads of our own
    gaps = matrix.update_logits(logits).gaps
    queue.put((float(gaps[0, 3]), float(matrix.solve(raise_on_failure=False).norms[3])))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_hang(threads):
    threads(2)
    solve()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    child.join(timeout=60)
    hung = child.is_alive()
    if hung:
        child.kill()
    assert not hung
    assert child.exitcode == 0
    gap, norm = queue.get()
    assert gap == 49_999
    assert norm == 0


def test_several_python_threads_at_once():
    expected = solve()
    results, errors = [], []

    def work():
        try:
            results.extend(solve() for _ in range(3))
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    assert len(results) == 9
    for found in results:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
