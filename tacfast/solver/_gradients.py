"""Derivatives of the norms and perturbations of a solution with respect to latents, W and b.

Near a solution, s is the shortest vector with A s = ρ for the rows of A and ρ with λ > 0: s = Aᵀλ, AAᵀλ = ρ. Let g be
the gradient of a loss with respect to s, y the coefficients of g in the rows of A by least squares, which solves that
system once more, and h = g − Aᵀy what is left. Then the gradients with respect to ρ and A are y and λhᵀ − ysᵀ.

For the norm, g = s/‖s‖, y = λ/‖s‖ and h = 0: the envelope theorem, and nothing to solve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ._reference import project
from ._stages import chunk_rows, prepare_head_impl, product_with

# Entries of the differences of logits that are looked at together: few enough for the caches, enough for a GPU.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 23}


def attach_gradients_impl(
    latents: Tensor,
    W: Tensor,
    b: Tensor | None,
    perturbations: Tensor,
    norms: Tensor,
    duals: Tensor,
    gaps: Tensor,
    classes: Tensor,
    trim: float,
) -> tuple[Tensor, Tensor]:
    """Copies of ``perturbations`` (K, d) and ``norms`` (K,); as an operator, they depend on latents, W and b."""
    return perturbations.clone(), norms.clone()


def pull_back_impl(
    grad_perturbations: Tensor,
    grad_norms: Tensor,
    latents: Tensor,
    W: Tensor,
    b: Tensor | None,
    perturbations: Tensor,
    norms: Tensor,
    duals: Tensor,
    gaps: Tensor,
    classes: Tensor,
    trim: float,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to latents (n, d), W (C, d) and b (C,), in their dtypes; empty where not ``wanted``.

    Logits are computed again, as the solve computed them; all else is in float64. Memory is that of the results, a few
    chunks of logits (with ``trim`` > 0 all of them, as in the solve) and O(d) for each of at most n and K·C samples.
    """
    solved = norms.isfinite()[:, None]
    duals, s = (values.double().where(solved, 0.0) for values in (duals, perturbations))
    rates, rest = _project_on_active(grad_perturbations.double().where(solved, 0.0), W.double(), duals, classes)
    unit = (grad_norms.double() / norms.double())[:, None]
    rates += (unit * duals).where((duals > 0) & (norms > 0)[:, None], 0.0)
    by_logit, samples = _through_gaps(latents, W, b, gaps, classes, rates, trim)

    grads = [latents.new_empty(0), W.new_empty(0), W.new_empty(0, dtype=W.dtype if b is None else b.dtype)]
    if wanted[0]:
        grads[0] = latents.new_zeros(latents.shape)
        grads[0][samples] = torch.sparse.mm(by_logit, W.double()).to(latents.dtype)
    if wanted[1]:
        by_row = _per_class(duals, classes).T @ rest - _per_class(rates, classes).T @ s
        grads[1] = (by_row + torch.sparse.mm(by_logit.T, latents[samples].double())).to(W.dtype)
    if wanted[2]:
        grads[2] = -_per_class(rates, classes).sum(0).to(grads[2].dtype)
    return grads[0], grads[1], grads[2]


def _project_on_active(g: Tensor, W: Tensor, duals: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (K, C) and h (K, d), see above, for g (K, d); a class whose g is zero costs nothing."""
    y, h = torch.zeros_like(duals), torch.zeros_like(g)
    for r in g.any(1).nonzero()[:, 0].tolist():
        active = duals[r].nonzero()[:, 0]
        y[r, active], h[r] = project(W[classes[r]] - W[active], g[r])
    return y, h


def _per_class(values: Tensor, classes: Tensor) -> Tensor:
    """What values (K, C) on the rows w_k − w_j of A are on the rows of W: −value on j, their sum on k."""
    return torch.zeros_like(values).scatter(1, classes[:, None], values.sum(1, keepdim=True)) - values


def _through_gaps(
    latents: Tensor, W: Tensor, b: Tensor | None, gaps: Tensor, classes: Tensor, rates: Tensor, trim: float
) -> tuple[Tensor, Tensor]:
    """From ``rates`` (K, C), the gradient with respect to R, to that with respect to the logits.

    It is sparse (m, C); the second result are the m samples (m,) of its rows, all others have none.
    """
    rows, j = rates.nonzero().unbind(1)
    k, rate = classes[rows], rates[rows, j]
    samples, place = torch.unique(_attaining(latents, W, b, gaps, k, j, trim), return_inverse=True)
    indices = torch.stack([place.repeat(2), torch.cat([j, k])])
    shape = (len(samples), len(W))
    return torch.sparse_coo_tensor(indices, torch.cat([rate, -rate]), shape, check_invariants=False), samples


def _attaining(latents: Tensor, W: Tensor, b: Tensor | None, gaps: Tensor, k: Tensor, j: Tensor, trim: float) -> Tensor:
    """The sample whose difference of logits is R[k, j], the first of several, for pairs k (P,) and j (P,).

    It is found by that value, to which it is the nearest; with ``trim`` among the samples of class j, if it has any.
    """
    value, start = gaps[k, j][:, None], 0
    own = torch.zeros(len(W), dtype=torch.bool, device=gaps.device)
    chunks: Iterable[Tensor] = _logits_of_the_solve(latents, W, b, gaps, trim)
    if trim > 0:  # then they are all there at once anyway
        chunks = list(chunks)
        for logits in chunks:
            own[logits.argmax(1)] = True
    best, nearest = torch.full_like(value[:, 0], torch.inf), torch.zeros_like(k)
    for logits in chunks:
        by_class, answers = logits.T.contiguous(), logits.argmax(1)
        some = max(1, _BLOCK.get(gaps.device.type, _BLOCK["cuda"]) // len(logits))
        for part in (slice(first, first + some) for first in range(0, len(k), some)):
            distance = (by_class[j[part]] - by_class[k[part]]).sub_(value[part]).abs_()
            if trim > 0:
                foreign = answers != j[part][:, None]
                distance.masked_fill_(foreign & own[j[part]][:, None], torch.inf)
            least, where = distance.min(1)
            nearer = least < best[part]
            best[part] = torch.where(nearer, least, best[part])
            nearest[part] = torch.where(nearer, start + where, nearest[part])
        start += len(logits)
    return nearest


def _logits_of_the_solve(latents: Tensor, W: Tensor, b: Tensor | None, gaps: Tensor, trim: float) -> Iterator[Tensor]:
    """All logits (n, C) in chunks, from products of the sizes that `solve_tac` makes them with: to the same bits."""
    head, rows = prepare_head_impl(W, b), len(latents) if trim > 0 else chunk_rows(gaps)
    product = product_with(latents[:rows], head, len(W), gaps.dtype)
    for part in torch.split(latents, rows):
        yield from torch.split(product(part), chunk_rows(gaps))
