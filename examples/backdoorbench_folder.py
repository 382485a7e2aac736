"""Scan, repair and measure a model that BackdoorBench attacked: python examples/backdoorbench_folder.py RECORD IMAGES.

RECORD is the folder of a run, wherever it was moved to: with attack_result.pt, and with bd_test_dataset for measuring.
IMAGES holds clean images that the model was not trained on, in folders named by the numbers of their classes. The
repaired model goes to RECORD/defense/tacfast/defense_result.pt, where BackdoorBench looks for it. The poisoned images
only serve to measure: neither the scan nor the repair sees them.
"""

import sys
from pathlib import Path

import torch

import tacfast
from tacfast.data import FolderLoader, Preprocessing, find_images, hold_out
from tacfast.models import load_checkpoint, read_backdoorbench, restore_model, write_defense_result


def attack_success(model, result, preprocessing):
    """Share of the poisoned test images that are sent to the target, and share that is classified correctly."""
    hits = right = total = 0
    model.eval()
    for image in result.poisoned_images():
        inputs = preprocessing.normalise(preprocessing.read(image.path)[None])
        with torch.no_grad():
            answer = int(model(inputs).argmax())
        hits, right, total = hits + (answer == image.bd_label), right + (answer == image.original_label), total + 1
    return hits / total, right / total


def main(record: str, folder: str) -> None:
    """Print the verdict and the figures before and after."""
    result = read_backdoorbench(Path(record) / "attack_result.pt")
    checkpoint = load_checkpoint(Path(record) / "attack_result.pt")
    model = restore_model(checkpoint)
    preprocessing = Preprocessing(checkpoint.mean, checkpoint.std, checkpoint.image_size)
    images = find_images(Path(folder), preprocessing, checkpoint.num_classes)
    report = tacfast.scan(model, FolderLoader(images, 128))
    print(f"{report.verdict.label} {list(report.verdict.classes)}, clean accuracy {report.accuracy:.3f}")
    print("before: ASR {:.3f}, RA {:.3f}".format(*attack_success(model, result, preprocessing)))
    if not report.verdict.aims:
        return
    kept, held = hold_out(images.labels, 0.2)
    loader = FolderLoader(images.subset(kept), 32, shuffle=True)
    # As many points may be lost as a few hundred images can tell.
    repaired = tacfast.repair(model, loader, report, held_out=FolderLoader(images.subset(held), 128), max_drop=0.03)
    print("after:  ASR {:.3f}, RA {:.3f}".format(*attack_success(repaired.model, result, preprocessing)))
    out = Path(record) / "defense" / "tacfast"
    out.mkdir(parents=True, exist_ok=True)
    write_defense_result(out / "defense_result.pt", result.model_name, result.num_classes, repaired.model.state_dict())


if __name__ == "__main__":
    main(*sys.argv[1:])
