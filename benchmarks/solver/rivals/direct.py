"""Solvers of one dense QP after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .forms import Answer, Answers, Array, Rival, Said, Solve, dual, primal, reduced

PRIMAL = "primal, d variables, C − 1 rows, as a least-distance problem"
REDUCED = "primal in the span of the rows, min(d, C − 1) variables, one QR for all classes"
DAQP_SAYS: dict[int, Said] = {1: "solved", 2: "solved", -1: "infeasible", -3: "infeasible"}
DUAL = "dual, C − 1 variables ≥ 0, Gram matrices from one product for all classes"


def _daqp(form: Callable[[Array, Array], Iterator[Any]]) -> Callable[[int, int, int], Solve]:
    def make(classes: int, dim: int, threads: int) -> Solve:
        import daqp

        def solve(W: Array, R: Array) -> Answer:
            found = Answers.like(W)
            for p in form(W, R):
                m = classes - 1
                sense = np.zeros(m, dtype=np.int32)
                if form is dual:
                    x, _, flag, _ = daqp.solve(p.G, -p.rho, np.zeros((0, m)), np.full(m, 1e30), np.zeros(m), sense)
                else:
                    x, _, flag, _ = daqp.solve(None, None, p.A, np.full(m, 1e30), p.rho, sense)
                found.add(p.back(x), DAQP_SAYS.get(flag, "gave up"))
            return found.done()

        return solve

    return make


def daqp_samples(W: Array) -> Solve:
    """DAQP set up once for each class: from sample to sample only the right-hand sides differ."""
    import daqp

    m, models = len(W) - 1, []
    for p in primal(W, np.zeros((len(W), len(W)))):
        model = daqp.Model()
        model.setup(
            np.eye(p.A.shape[1]), np.zeros(p.A.shape[1]), p.A, np.full(m, 1e30), p.rho, np.zeros(m, dtype=np.int32)
        )
        models.append(model)

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for k, model in enumerate(models):
            model.update(blower=np.delete(R[k], k))
            x, _, flag, _ = model.solve()
            found.add(x, DAQP_SAYS.get(flag, "gave up"))
        return found.done()

    return solve


def _quadprog(form: Callable[[Array, Array], Iterator[Any]]) -> Callable[[int, int, int], Solve]:
    def make(classes: int, dim: int, threads: int) -> Solve:
        import quadprog

        def solve(W: Array, R: Array) -> Answer:
            found = Answers.like(W)
            for p in form(W, R):
                try:
                    if form is dual:
                        m = classes - 1
                        x = quadprog.solve_qp(p.G, p.rho, np.eye(m), np.zeros(m))[0]
                    else:
                        H = np.eye(p.A.shape[1])
                        x = quadprog.solve_qp(H, np.zeros(len(H)), np.ascontiguousarray(p.A.T), p.rho, factorized=True)[
                            0
                        ]
                except ValueError as error:
                    found.add(None, "infeasible" if "inconsistent" in str(error) else "gave up")
                else:
                    found.add(p.back(x), "solved")
            return found.done()

        return solve

    return make


def _nnls(classes: int, dim: int, threads: int) -> Solve:
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for p in dual(W, R):
            try:
                upper = np.linalg.cholesky(p.G).T
                lam, _ = nnls(upper, solve_triangular(upper, p.rho, trans="T"))
            except (RuntimeError, np.linalg.LinAlgError):
                found.add(None, "gave up")
            else:
                found.add(p.back(lam), "solved")
        return found.done()

    return solve


def _piqp(classes: int, dim: int, threads: int) -> Solve:
    import piqp

    words: dict[Any, Said] = {piqp.PIQP_SOLVED: "solved", piqp.PIQP_DUAL_INFEASIBLE: "infeasible"}
    m = classes - 1
    nothing = np.zeros((0, m), order="F")

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for p in dual(W, R):
            solver = piqp.DenseSolver()
            solver.settings.eps_abs = solver.settings.eps_rel = 1e-10
            solver.setup(
                np.asfortranarray(p.G), -p.rho, nothing, np.zeros(0), nothing, x_l=np.zeros(m), x_u=np.full(m, np.inf)
            )
            status = solver.solve()
            found.add(p.back(np.array(solver.result.x)), words.get(status, "gave up"))
        return found.done()

    return solve


def _osqp(classes: int, dim: int, threads: int) -> Solve:
    import osqp
    from scipy import sparse

    words: dict[str, Said] = {"solved": "solved", "dual infeasible": "infeasible"}
    m = classes - 1
    identity = sparse.identity(m, format="csc")

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for p in dual(W, R):
            solver = osqp.OSQP()
            settings = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 20_000, "polishing": True, "verbose": False}
            upper = sparse.csc_matrix(np.triu(p.G))
            solver.setup(upper, -p.rho, identity, np.zeros(m), np.full(m, np.inf), **settings)
            result = solver.solve()
            found.add(p.back(result.x), words.get(result.info.status, "gave up"))
        return found.done()

    return solve


def _clarabel(classes: int, dim: int, threads: int) -> Solve:
    import clarabel
    from scipy import sparse

    words: dict[str, Said] = {"Solved": "solved", "DualInfeasible": "infeasible"}
    m = classes - 1
    minus = -sparse.identity(m, format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for p in dual(W, R):
            upper = sparse.csc_matrix(np.triu(p.G))
            cones = [clarabel.NonnegativeConeT(m)]
            result = clarabel.DefaultSolver(upper, -p.rho, minus, np.zeros(m), cones, settings).solve()
            found.add(p.back(np.array(result.x)), words.get(str(result.status), "gave up"))
        return found.done()

    return solve


def _highs(classes: int, dim: int, threads: int) -> Solve:
    import highspy

    status = highspy.HighsModelStatus
    words: dict[Any, Said] = {status.kOptimal: "solved", status.kUnbounded: "infeasible"}
    m = classes - 1
    rows, columns = np.tril_indices(m)
    order = np.lexsort((rows, columns))  # column by column, the lower triangle
    starts = np.concatenate([[0], np.cumsum(np.arange(m, 0, -1))])[:-1].astype(np.int32)

    def solve(W: Array, R: Array) -> Answer:
        found = Answers.like(W)
        for p in dual(W, R):
            solver, model = highspy.Highs(), highspy.HighsModel()
            solver.setOptionValue("output_flag", False)
            lp, hessian = model.lp_, model.hessian_
            lp.num_col_, lp.num_row_ = m, 0
            lp.col_cost_, lp.col_lower_, lp.col_upper_ = -p.rho, np.zeros(m), np.full(m, highspy.kHighsInf)
            hessian.dim_, hessian.format_ = m, highspy.HessianFormat.kTriangular
            hessian.start_ = np.append(starts, len(order)).astype(np.int32)
            hessian.index_, hessian.value_ = rows[order].astype(np.int32), p.G[rows[order], columns[order]]
            solver.passModel(model)
            solver.run()
            lam = np.array(solver.getSolution().col_value)
            found.add(p.back(lam) if len(lam) else None, words.get(solver.getModelStatus(), "gave up"))
        return found.done()

    return solve


def _proxqp(classes: int, dim: int, threads: int) -> Solve:
    from proxsuite import proxqp

    words: dict[Any, Said] = {
        proxqp.PROXQP_SOLVED: "solved",
        proxqp.PROXQP_DUAL_INFEASIBLE: "infeasible",
    }
    m = classes - 1

    def solve(W: Array, R: Array) -> Answer:
        found, forms = Answers.like(W), list(dual(W, R))
        problems = proxqp.dense.BatchQP(classes)
        for p in forms:
            qp = problems.init_qp_in_place(m, 0, m)
            qp.settings.eps_abs, qp.settings.initial_guess = 1e-10, proxqp.NO_INITIAL_GUESS
            qp.init(p.G, -p.rho, None, None, np.eye(m), np.zeros(m), np.full(m, 1e20))
        proxqp.dense.solve_in_parallel(problems, threads)
        for k, p in enumerate(forms):
            results = problems.get(k).results
            found.add(p.back(results.x), words.get(results.info.status, "gave up"))
        return found.done()

    return solve


RIVALS = (
    Rival("DAQP", PRIMAL, ("daqp",), _daqp(primal)),
    Rival("DAQP reduced", REDUCED, ("daqp",), _daqp(reduced)),
    Rival("DAQP dual", DUAL, ("daqp",), _daqp(dual)),
    Rival("quadprog", REDUCED, ("quadprog",), _quadprog(reduced)),
    Rival("quadprog dual", DUAL, ("quadprog",), _quadprog(dual)),
    Rival("SciPy NNLS", f"{DUAL}, least squares by their Cholesky factors", ("scipy",), _nnls),
    Rival("PIQP", DUAL, ("piqp",), _piqp),
    Rival("OSQP", f"{DUAL}, tolerance 1e-9, polished", ("osqp",), _osqp),
    Rival("Clarabel", DUAL, ("clarabel",), _clarabel),
    Rival("HiGHS", DUAL, ("highspy",), _highs),
    Rival("ProxQP", f"{DUAL}, its batch interface", ("proxsuite",), _proxqp, threads=True),
)
