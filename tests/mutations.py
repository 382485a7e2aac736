"""Breaks the solver on purpose, one place at a time, and records which test notices.

    python tests/mutations.py [--only WORD]

Works on a copy of the last commit, built for this machine alone, and writes
benchmarks/results/mutations.md. Tests that fail before anything is broken are left out, and counted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "benchmarks/results/mutations.md"


class Mutation(NamedTuple):
    what: str
    file: str
    old: str  # found exactly once in the file
    new: str
    tests: str


SOLVE = "known_answers statuses exact_answers optimality"
GAPS = "gap_matrix checks"
ACTIVE_SET, CERTIFICATE, PRUNING = (f"csrc/core/{name}.h" for name in ("active_set", "certificate", "gap_pruning"))
MUTATIONS = [
    Mutation("the multipliers step the wrong way", ACTIVE_SET, "lambda[i] -= step", "lambda[i] += step", SOLVE),
    Mutation("no multiplier blocks a step", ACTIVE_SET, "blocking.index < 0 ? INFINITY : -blocking.value",
             "INFINITY", SOLVE),
    Mutation("a dropped constraint keeps the weight 0", ACTIVE_SET,
             "const int j = set.index[q];\n        c.weight[j] = 1 / c.length[j];", "", SOLVE),
    Mutation("a coarse tolerance on violations", ACTIVE_SET, "kViolation = 1e-13", "kViolation = 1e-4", SOLVE),
    Mutation("the margin is forgotten", "csrc/core/problem.h", "gap(j) + margin", "gap(j)", SOLVE),
    Mutation("the margin goes to the own class too", "csrc/core/problem.h", "j == k ? 0.0 : margin",
             "j == k ? margin : margin", SOLVE),
    Mutation("equal rows: the bias is compared the wrong way", "csrc/core/problem.h", "bias[k] - bias[j]",
             "bias[j] - bias[k]", SOLVE),
    Mutation("the upper bound skips the constraints with negative right-hand sides", CERTIFICATE,
             "missed.index < 0 ? t : INFINITY", "missed.index < 0 ? t : t", SOLVE),
    Mutation("stationarity is not measured", CERTIFICATE, "double(s[x]) - combined[x]", "double(s[x]) - double(s[x])",
             SOLVE),
    Mutation("the lower bound forgets the square root", CERTIFICATE,
             "sums.length = std::sqrt(team.sum(head.dim, [=](int x) { return combined[x] * combined[x]; }))",
             "sums.length = team.sum(head.dim, [=](int x) { return combined[x] * combined[x]; })", SOLVE),
    Mutation("products are certified without allowing for the rounding of s", CERTIFICATE,
             "const double along = 2 * (std::sqrt(moved2) + rounding * norm);", "const double along = 0;", SOLVE),
    Mutation("no constraint is looked at again by the certificate", CERTIFICATE,
             "norm2[j] == 0 ? 0.0 : far > rho[j] ? far : NAN;", "norm2[j] == 0 ? 0.0 : far;", SOLVE),
    Mutation("every ray counts as proof", "csrc/core/class_solve.h",
             "exact.proves(kExact) ? kInfeasible", "true ? kInfeasible", SOLVE),
    Mutation("per sample: a start within the margin counts as solved", "csrc/core/sample_solve.h",
             "if (!(largest.value > 0))", "if (!(largest.value > args.margin))", "per_sample"),
    Mutation("the last thread's gaps are not merged", "csrc/cpu/gap_matrix.cpp",
             "int i = narrow ? 0 : 1; i < count;", "int i = narrow ? 0 : 1; i < count - 1;", GAPS),
    Mutation("the pruning test is inverted", "csrc/cpu/gap_matrix.cpp", "greater<T>(highest, load(weakest + start))",
             "greater<T>(load(weakest + start), highest)", GAPS),
    Mutation("the pruning test allows for no rounding", PRUNING,
             "return capped - 2 * Limits<T>::eps * (capped < 0 ? -capped : capped)", "return capped", GAPS),
    Mutation("the trim rank is off by one", PRUNING, "static_cast<double>(rows))) + 1", "static_cast<double>(rows)))",
             GAPS),
    Mutation("merging keeps the own gaps only", "tacfast/solver/_gap_matrix.py",
             "self._raise_to(other._gaps)", "self._raise_to(self._gaps)", GAPS),
    Mutation("kept logits are not copied", "tacfast/solver/_gap_matrix.py", "values.to(start.dtype, copy=True,",
             "values.to(start.dtype, copy=False,", GAPS),
    Mutation("reduced precision reaches the logits", "tacfast/solver/_stages.py", "if narrowed else dtype",
             "if False else dtype", "inputs"),
    Mutation("equal rows are judged by the resolution of float64", "tacfast/solver/_stages.py",
             "torch.finfo(dtype).eps", "torch.finfo(torch.float64).eps", SOLVE),
    Mutation("ties read as failures", "tacfast/solver/_results.py", "<= slack", "< 0 * slack", "results"),
]  # fmt: skip


def files(tests):
    return [next(str(p) for p in Path("tests").rglob(f"test_*{word}.py") if "detection" not in p.name)
            for word in tests.split()]  # fmt: skip


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def build():
    done = run(["ninja", "-C", "build"])
    if done.returncode:
        raise SystemExit(done.stdout[-3000:])


def failures(tests, *, deselect=(), stop=False):
    options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-W", "default", "--timeout=60"]
    skip = [f"--deselect={name}" for name in deselect]
    command = [sys.executable, "-m", "pytest", *options, *(["-x"] if stop else []), *skip, *tests]
    done = run(command, env=os.environ | {"PYTHONPATH": str(Path.cwd()), "HYPOTHESIS_PROFILE": "brief"}, timeout=1800)
    found = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode and not found:  # a crash or a hang of the whole process
        found = [f"pytest ended with {done.returncode}"]
    return found


def copy_of_last_commit(folder):
    os.chdir(folder)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "x"], input=archive, check=True)


def configure_and_build():
    room = Path("csrc/cpu/CMakeLists.txt")
    text = re.sub(r"\nif\(CMAKE_SYSTEM_PROCESSOR.*?\nendif\(\)", "", room.read_text(), flags=re.DOTALL)
    room.write_text(text.replace("-O3", "-O2 -march=native"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    import pybind11

    done = run(["cmake", "-S.", "-Bbuild", "-GNinja", "-DTACFAST_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"])  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    build()
    Path(f"tacfast/_C{suffix}").symlink_to(Path(f"build/_C{suffix}").resolve())
    run([sys.executable, "-W", "error", "-c", "import tacfast"]).check_returncode()  # with the extension


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose description holds this word")
    only = parser.parse_args().only
    rows, chosen = [], [m for m in MUTATIONS if only in m.what]
    with tempfile.TemporaryDirectory() as folder:
        copy_of_last_commit(folder)
        for m in chosen:
            if Path(m.file).read_text().count(m.old) != 1:
                raise SystemExit(f"{m.file}: expected {m.old!r} exactly once ({m.what})")
        configure_and_build()
        broken = failures(sorted({name for m in chosen for name in files(m.tests)}))
        print(f"{len(broken)} tests fail before any mutation", flush=True)
        for m in chosen:
            started, path = time.monotonic(), Path(m.file)
            before = path.read_text()
            path.write_text(before.replace(m.old, m.new))
            if m.file.startswith("csrc"):
                build()
            found = failures(files(m.tests), deselect=broken, stop=True)
            path.write_text(before)
            rows.append(f"| {m.what} | `{m.file}` | {'killed by `' + found[0] + '`' if found else '**survived**'} |")
            print(rows[-1], f"{time.monotonic() - started:.0f} s", flush=True)
    if not only:
        commit = run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).stdout.strip()
        killed = sum("killed" in row for row in rows)
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(
            f"# Mutations\n\n`tests/mutations.py` at commit {commit}: {killed} of {len(rows)} killed. "
            f"{len(broken)} tests that failed before any mutation were left out.\n\n"
            "| what was broken | where | outcome |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )


if __name__ == "__main__":
    main()
