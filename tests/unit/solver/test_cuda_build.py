"""When the CUDA kernels are built, and what ptxas says of them: none may spill registers or use (slow) local memory."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

SOURCES = pathlib.Path(__file__).parents[3] / "csrc"
FLAGS = ["-std=c++17", "-O3", "--extended-lambda", "--expt-relaxed-constexpr", "-Werror=all-warnings"]

# Parts of mangled names of kernels that are not hot, each with the reason why it may have a stack frame. Never spills.
STACK_ALLOWED: dict[str, str] = {}

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake on the PATH")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler (nvcc) on the PATH")


class Usage(NamedTuple):
    """What one function costs, in bytes and registers; a device function that was not inlined has no registers."""

    stack: int
    spill_stores: int
    spill_loads: int
    registers: int | None


def parse_report(text: str) -> dict[str, Usage]:
    """Read the report of ``ptxas -v``: the usage by mangled name.

    Raises
    ------
    ValueError
        If a kernel was compiled and its usage is not in the report.
    """
    usage: dict[str, Usage] = {}
    name = None
    for line in text.splitlines():
        if found := re.search(r"Function properties for '?([\w$.]+)'?", line):
            name = found[1]
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if name is None:
                raise ValueError(f"usage of no function: {line}")
            usage[name] = Usage(*map(int, found.groups()), None)
        elif (found := re.search(r"Used (\d+) registers", line)) and name in usage:
            usage[name] = usage[name]._replace(registers=int(found[1]))
    kernels = set(re.findall(r"Compiling entry function '([\w$.]+)'", text))
    if incomplete := [kernel for kernel in kernels if kernel not in usage or usage[kernel].registers is None]:
        raise ValueError(f"no usage reported for {', '.join(sorted(incomplete))}")
    return usage


def complaints(usage: dict[str, Usage], allowed: dict[str, str]) -> list[str]:
    """One line for each function that spills, or that has a stack frame without being allowed to."""
    lines = []
    for name, found in usage.items():
        excused = any(part in name for part in allowed)
        if found.spill_stores or found.spill_loads or (found.stack and not excused):
            lines.append(f"{name}: {found}")
    return lines


def compile_report(source: pathlib.Path, folder: pathlib.Path) -> str:
    """Compile for one architecture, device code alone, and return what ptxas reports."""
    output = folder / f"{source.stem}.cubin"
    command = ["nvcc", *FLAGS, f"-I{SOURCES}", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-o", output, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# ---- the kernels --------------------------------------------------------------------------------


KERNELS = sorted((SOURCES / "cuda").glob("*.cu"))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What ptxas says of each source; they are compiled side by side, since the largest takes most of a minute."""
    folder = tmp_path_factory.mktemp("cubins")
    with ThreadPoolExecutor() as pool:
        yield {source: pool.submit(compile_report, source, folder) for source in KERNELS}


@needs_nvcc
@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.stem)
def test_kernels_stay_in_registers(source, reports):
    usage = parse_report(reports[source].result())
    assert bool(usage) == ("__global__" in source.read_text()), "kernels without a report, or the reverse"
    assert not complaints(usage, STACK_ALLOWED)


def test_all_sources_are_found():
    listed = re.search(r"add_library\(tacfast_cuda STATIC ([^)]*)\)", (SOURCES / "cuda" / "CMakeLists.txt").read_text())
    assert set(listed[1].split()) == {source.name for source in (SOURCES / "cuda").glob("*.cu")}


# ---- whether the test above can fail ------------------------------------------------------------

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4foldPf' for 'sm_90'
ptxas info    : Function properties for _Z4foldPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 42 registers, used 1 barriers, 1024 bytes smem
"""
SPILLS = """\
ptxas info    : Compiling entry function '_Z5solvePd' for 'sm_90'
ptxas info    : Function properties for _Z5solvePd
    48 bytes stack frame, 44 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""
FRAME = """\
ptxas info    : Function properties for _Z6helperi
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_parser_reads_every_function():
    assert parse_report(CLEAN + SPILLS + FRAME) == {
        "_Z4foldPf": Usage(0, 0, 0, 42),
        "_Z5solvePd": Usage(48, 44, 40, 255),
        "_Z6helperi": Usage(16, 0, 0, None),
    }


def test_spills_and_frames_are_complained_about():
    usage = parse_report(CLEAN + SPILLS + FRAME)
    assert [line.split(":")[0] for line in complaints(usage, {})] == ["_Z5solvePd", "_Z6helperi"]
    reasons = {"helper": "not hot", "solve": "not hot"}
    assert [line.split(":")[0] for line in complaints(usage, reasons)] == ["_Z5solvePd"]  # a spill is never excused


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_incomplete_reports_are_refused(kept):
    with pytest.raises(ValueError, match="no usage reported for _Z5solvePd"):
        parse_report(CLEAN + "\n".join(SPILLS.splitlines()[:kept]))


@needs_nvcc
def test_a_planted_stack_frame_is_found(tmp_path):
    source = tmp_path / "planted.cu"
    source.write_text(
        "__global__ void planted(int* x, int n) {\n"
        "    int local[64];\n"
        "    for (int i = 0; i < n; ++i) local[x[i] % 64] = i;  // an index that registers cannot have\n"
        "    x[0] = local[x[1] % 64];\n"
        "}\n"
    )
    (line,) = complaints(parse_report(compile_report(source, tmp_path)), {})
    assert "planted" in line


# ---- when they are built ------------------------------------------------------------------------


@needs_cmake
@needs_nvcc
@pytest.mark.parametrize(
    ("choice", "gpu", "built"),
    [("AUTO", False, "OFF"), ("AUTO", True, "ON"), ("ON", False, "ON"), ("OFF", True, "OFF")],
)
def test_a_compiler_without_a_gpu_is_no_reason_to_build(tmp_path, choice, gpu, built):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0)'\n" if gpu else "#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    command = ["cmake", "-S", SOURCES.parent, "-B", tmp_path / "build", "-DTACFAST_CPP_TESTS=ON"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDAARCHS": "90"}
    done = subprocess.run([*command, f"-DTACFAST_CUDA={choice}"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"tacfast: CUDA backend {built}\n" in done.stdout
