"""``tacfast scan --quick`` of a whole data set: memory, time by stage, and the same gap matrix from two processes.

python benchmarks/tiny_scan.py [--data tinyimagenet] [--images 100000] [--checkpoint FILE] [--threads 2] [--batch 128]

Without a checkpoint, a narrow network is trained for one epoch first and kept in ``--work``. Then, one after another:

1. the forward passes alone, of the same batches;
2. ``tacfast scan --quick``, watched from outside: the one pass over all images, without the statistics for which a full
   scan runs the model again, forwards and backwards, on some of them;
3. the gap matrix in one process with one thread;
4. the same by two processes at once, one thread and half of the batches each, merged.

Of the memory, anonymous pages are what the process asked for; file pages are those of libraries and of the mapped
pixels, which the system drops where memory is short.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from _common import machine, write_results

import tacfast
from tacfast.data import FolderLoader, ImageRows, Preprocessing, Splits, load_dataset
from tacfast.detection import RULE_TRIM
from tacfast.models import load_checkpoint, restore_model, save_checkpoint
from tacfast.models.latents import latent_batches
from tacfast.training import Recipe
from tacfast.training.trained import Plan, save_trained, splits_of, train_plan

ARCH, ARCH_ARGS = "preactresnet18", {"width": 24, "stem_stride": 4}
# In the name under which tacfast scan takes the images that are to be scanned.
SHARE = "train"
MEMORY = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
LOOKS_PER_SECOND = 20


def train(path: pathlib.Path, data: str) -> float:
    """Train the network for an epoch; returns seconds."""
    start = time.perf_counter()
    recipe = Recipe(epochs=1, batch_size=256)
    trained = train_plan(Plan(data=data, arch=ARCH, arch_args=ARCH_ARGS, recipe=recipe), load_dataset(data))
    save_trained(trained, path)
    return time.perf_counter() - start


def choose(checkpoint: pathlib.Path, out: pathlib.Path, data: str, images: int | None) -> int:
    """Write the network again with the images to scan as its share ``SHARE``, evenly spaced; returns how many."""
    dataset = load_dataset(data)
    n = dataset.n_train
    rows = torch.linspace(0, n - 1, min(images or n, n)).long().unique()
    others = torch.ones(len(dataset.data), dtype=torch.bool)
    others[rows] = False
    clean, test = others.nonzero().flatten().tensor_split([1])
    known = load_checkpoint(checkpoint)
    splits = Splits(train=rows, clean=clean, test=test)
    save_checkpoint(replace(known, provenance={"data": data, "splits": splits.as_dict()}), out)
    return len(rows)


def open_network(path: pathlib.Path, data: str, batch: int, part: slice) -> tuple[torch.nn.Module, FolderLoader]:
    """The network and its images, as ``tacfast scan`` opens them."""
    checkpoint, dataset = load_checkpoint(path), load_dataset(data)
    preprocessing = Preprocessing(checkpoint.mean, checkpoint.std, checkpoint.image_size)
    rows = getattr(splits_of(checkpoint, dataset), SHARE)[part]
    return restore_model(checkpoint).eval(), FolderLoader(ImageRows(dataset, rows, preprocessing), batch)


def forward_passes(path: pathlib.Path, data: str, batch: int, threads: int) -> float:
    """Seconds of the forward passes alone."""
    torch.set_num_threads(threads)
    model, loader = open_network(path, data, batch, slice(None))
    seconds = 0.0
    with torch.no_grad():
        for inputs, _ in loader:
            start = time.perf_counter()
            model(inputs)
            seconds += time.perf_counter() - start
    return seconds


def fold(path: pathlib.Path, data: str, batch: int, part: slice, out: pathlib.Path) -> float:
    """Write the state of the gap matrix of a part of the images, with one thread; returns seconds."""
    torch.set_num_threads(1)
    model, loader = open_network(path, data, batch, part)
    start = time.perf_counter()
    head = tacfast.find_head(model, next(iter(loader))[0])
    gaps = tacfast.GapMatrix(head.weight, head.bias, keep_logits=True)
    with latent_batches(model, loader, head) as batches:
        for each in batches:
            gaps.update(each.latents)
    torch.save({"W": head.weight, "b": head.bias, "state": gaps.state_dict()}, out)
    return time.perf_counter() - start


def read_gaps(path: pathlib.Path) -> tacfast.GapMatrix:
    """Read what `fold` wrote."""
    stored = torch.load(path)
    gaps = tacfast.GapMatrix(stored["W"], stored["b"], keep_logits=True)
    gaps.load_state_dict(stored["state"])
    return gaps


def run_apart(*calls: tuple) -> list[float]:
    """Call each (function, *arguments) in a fresh process of its own, all at once."""
    with ProcessPoolExecutor(len(calls), mp_context=get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(*call) for call in calls]]


def watch(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, list[dict[str, float]]]:
    """Run a command; returns its seconds, and its memory in MiB, again and again while it ran."""
    start, looks = time.perf_counter(), []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if all(name in fields for name in MEMORY):
            looks.append({name: int(fields[name].split()[0]) / 1024 for name in MEMORY})
        time.sleep(1 / LOOKS_PER_SECOND)
    if process.returncode not in (0, 3, 4):
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.perf_counter() - start, looks


def scan(path: pathlib.Path, args: argparse.Namespace) -> dict:
    """Run ``tacfast scan --quick``, and say what it took."""
    out = args.work / "scan.json"
    # The command takes as many threads as this says.
    prefix = ["env", f"OMP_NUM_THREADS={args.threads}", sys.executable, "-m", "tacfast", "scan", str(path)]
    images = ["--data", args.data, "--split", SHARE, "--batch-size", str(args.batch), "--device", "cpu", "--quick"]
    seconds, looks = watch([*prefix, *images, "--json", str(out)])
    facts = json.loads(out.read_text())
    quarters = [looks[min(len(looks) - 1, len(looks) * i // 8)] for i in (3, 4, 5, 6)]
    return {
        "seconds": seconds,
        "timings": facts["timings"],
        "accuracy": facts["scan"]["accuracy"],
        "samples": facts["scan"]["samples"],
        "rule": facts["verdict"]["rule"],
        "verdict": facts["verdict"]["headline"],
        "peak_mib": {name: max(look[name] for look in looks) for name in MEMORY},
        "anonymous_mib_over_time": [look["RssAnon"] for look in quarters],
        "norms": [entry["norm"] for entry in facts["classes"]],
    }


def compare(path: pathlib.Path, args: argparse.Namespace, n: int, norms: list[float]) -> dict:
    """The gap matrix by one process and by two: whether they are the same to the bit, and seconds of both."""
    one, first, second = (args.work / f"{name}.gaps.pt" for name in ("one", "first", "second"))
    middle = n // args.batch // 2 * args.batch  # every batch is the same in both runs
    common = (path, args.data, args.batch)
    start = time.perf_counter()
    run_apart((fold, *common, slice(None), one))
    alone = time.perf_counter() - start
    start = time.perf_counter()
    run_apart((fold, *common, slice(middle), first), (fold, *common, slice(middle, None), second))
    together = time.perf_counter() - start
    whole, merged = read_gaps(one), read_gaps(first).merge(read_gaps(second))
    solutions = [gaps.solve(trim=RULE_TRIM, raise_on_failure=False) for gaps in (whole, merged)]
    found = torch.tensor(norms, dtype=torch.float32)  # the command ran with more threads, which round differently
    return {
        "seconds_one_process": alone,
        "seconds_two_processes": together,
        "samples": [whole.n_samples, merged.n_samples],
        "same_gap_matrix": torch.equal(whole.gaps, merged.gaps),
        "same_norms": torch.equal(solutions[0].norms, solutions[1].norms),
        "norms_differ_from_the_command_by": float(((solutions[0].norms - found).abs() / found).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tinyimagenet")
    parser.add_argument("--images", type=int, help="of the official training set; all if not given")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a network of tacfast train")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("tiny_scan_work"))
    parser.add_argument("--out", default="benchmarks/results/tiny_scan.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    checkpoint, training = args.checkpoint or args.work / "trained.safetensors", None
    if args.checkpoint is None and not checkpoint.exists():
        training = train(checkpoint, args.data)
        print(f"trained in {training:.0f} s")
    path = args.work / "scanned.safetensors"
    n = choose(checkpoint, path, args.data, args.images)
    (forward,) = run_apart((forward_passes, path, args.data, args.batch, args.threads))
    print(f"forward passes alone: {forward:.1f} s, {n / forward:.0f} images/s")
    scanned = scan(path, args)
    norms, timings = scanned.pop("norms"), scanned["timings"]
    beyond = timings["total"] / forward - 1
    parts = ("reading", "folding", "solve", "statistics", "stability")
    accounted = sum(timings[part] for part in parts)
    print(json.dumps(scanned, indent=2))
    print(f"beyond the forward passes: {100 * beyond:.1f} %, accounted for: {100 * accounted / forward:.1f} %")
    two = compare(path, args, n, norms)
    print(json.dumps(two, indent=2))
    known = load_checkpoint(path)
    payload = {
        "sizes": {"data": args.data, "images": n, "classes": known.num_classes, "batch": args.batch},
        "network": {"arch": known.arch, "arch_args": known.arch_args, "seconds_of_training": training},
        "threads": args.threads,
        "forward_seconds": forward,
        "scan": scanned,
        "beyond_forward": beyond,
        "beyond_forward_accounted_for": accounted / forward,
        "two_processes": two,
        "versions": {"tacfast": tacfast.__version__, "torch": machine()["torch"]},
    }
    write_results(args.out, payload)
    if not (two["same_gap_matrix"] and two["same_norms"]):
        raise SystemExit("two processes came to another gap matrix than one")


if __name__ == "__main__":
    main()
