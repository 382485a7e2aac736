"""Several processes see a part of the samples each, and solve for all of them.

    torchrun --nproc-per-node 2 examples/two_processes.py

On GPUs it is the same with the backend nccl and the model on cuda:LOCAL_RANK. Only C × C numbers are exchanged, however
many samples there are.
"""

import torch
import torch.distributed as dist
from torch import nn

import tacfast
from tacfast.data import load_digits


def gap_matrix(model, head, images):
    """Fold images (n, 1, h, w) into a gap matrix, batch by batch."""
    gaps = tacfast.GapMatrix(head.weight, head.bias)
    for batch in images.split(256):
        gaps.update(tacfast.extract_latents(model, [batch], head).latents)
    return gaps


def main():
    """Solve together, and compare with one process that sees everything."""
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    try:
        torch.manual_seed(0)  # the same model in every process
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        images = load_digits().images
        head = tacfast.find_head(model, images[:1])
        together = gap_matrix(model, head, images[rank::processes]).all_reduce().solve()
        if rank == 0:
            alone = gap_matrix(model, head, images).solve()
            print(f"{processes} processes, {together.n_samples} samples: {norms(together)}")
            print(f"1 process,   {alone.n_samples} samples: {norms(alone)}")
    finally:
        dist.destroy_process_group()


def norms(solution):
    """Norms of the shifts, to the digits that do not depend on how the matrix product was split into batches."""
    return " ".join(f"{norm:.4f}" for norm in solution.norms.tolist())


if __name__ == "__main__":
    main()
