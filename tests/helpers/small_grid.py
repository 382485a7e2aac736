"""A grid of digits that takes seconds, as a module so that other processes can run it."""

import dataclasses
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # behind what is installed

from benchmarks.defence import profiles, running
from benchmarks.defence.profiles import Network, Profile
from tacfast.training import Recipe

ROOT = Path(__file__).parents[2]
ARCH = "tiny"
CLEAN, BADNETS, BLENDED = (
    Network("digits", ARCH, attack, ratio, 0) for attack, ratio in (("clean", 0.0), ("badnets", 0.1), ("blended", 0.1))
)
NAME = "tiny"
TINY = Profile(
    (CLEAN, BADNETS, BLENDED),
    {"digits": Recipe(epochs=4, batch_size=64, precision="float32")},
    {"digits": (0.2, 0.1)},
)
DEFENCES = ("clp", "short")


def register():
    """Make the profile and a quick defence known, in this process."""
    profiles.PROFILES[NAME] = TINY
    profiles.ARCHITECTURES[ARCH] = ("small_preact_resnet", {"width": 4})
    profiles.DEFENCES["short"] = dataclasses.replace(profiles.DEFENCES["ft"], settings={"lr": 0.01, "epochs": 1})
    running.PATIENCE = 0.2


def make_grid(folder, networks=TINY.networks, defences=DEFENCES):
    return running.Grid(NAME, tuple(networks), tuple(defences), folder / "results", folder / "models", None)


def say(text, cells=0):
    print(text, flush=True)


register()

if __name__ == "__main__":
    # python small_grid.py FOLDER WORKERS
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    grid = make_grid(folder)
    if workers == 1:
        running.work(grid, say)
    else:
        running.run_local(grid, workers, say)
