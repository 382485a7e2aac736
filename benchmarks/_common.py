"""What the benchmarks share: a realistic problem, the machine's description, JSON and Markdown."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import time

import torch


def processor() -> str:
    """Name of the processor."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return cpu


def machine() -> dict:
    """Describe where and with what the figures were taken."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(path: str | os.PathLike, payload: dict) -> None:
    """Write `payload` and the machine's description as JSON."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **payload}, indent=2) + "\n")


def markdown_table(rows: list[dict]) -> str:
    """Format rows with the same keys as a Markdown table."""
    cells = [list(rows[0])] + [[f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def make_problem(
    classes: int, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (n, d) and a fitted head W (classes, d), b (classes,) that is right for about nine in ten of them.

    The latents imitate a network's: rectified Gaussian clouds, with some classes much closer to one another than
    others. The head is a linear discriminant, which is what logistic regression tends to on such data.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    families = noise(max(2, classes // 8), d)[torch.arange(classes) % max(2, classes // 8)]
    directions = 0.7 * families + noise(classes, d)

    def clouds(rows):
        return torch.randint(classes, (rows,), generator=generator), noise(rows, d)

    def fit(latents, targets):
        counts = torch.bincount(targets, minlength=classes).clamp(min=1)
        means = torch.zeros(classes, d).index_add_(0, targets, latents) / counts[:, None]
        residual = latents - means[targets]
        covariance = residual.T @ residual / len(latents)
        weight = torch.linalg.solve(covariance + 0.1 * covariance.diagonal().mean() * torch.eye(d), means.T).T
        return weight.contiguous(), (counts / len(targets)).log() - 0.5 * (weight * means).sum(1)

    train_labels, train_noise = clouds(20 * classes + 2 * d)
    labels, test_noise = clouds(n)
    part = slice(0, 5000)
    low, high = 0.0, 2.0
    for _ in range(8):  # bisect the distance between the clouds for the accuracy
        scale = 0.5 * (low + high)
        weight, bias = fit((scale * directions[train_labels] + train_noise).relu(), train_labels)
        latents = (scale * directions[labels[part]] + test_noise[part]).relu()
        accuracy = ((latents @ weight.T + bias).argmax(1) == labels[part]).float().mean()
        low, high = (scale, high) if accuracy < 0.9 else (low, scale)
    latents = test_noise.add_(directions[labels], alpha=scale).relu_()
    return latents.to(dtype), weight.to(dtype), bias.to(dtype)
