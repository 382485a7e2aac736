#!/usr/bin/env bash
# Compiles every CUDA source for each architecture we name, with warnings as errors, and lists what each kernel uses.
# Needs nvcc, but no GPU.
#
# benchmarks/cuda_archs.sh [ARCH...]    (default: 80 86 89 90 100 120)
set -euo pipefail

cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 80 86 89 90 100 120
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

# From the report of ptxas, one line per kernel: registers, stack, spills, name.
summarise() {
  awk '
    /Function properties for/ { name = $NF; gsub("\047", "", name) }
    /bytes stack frame/       { stack = $1; spills = $5 + $9 }
    /Used [0-9]+ registers/   { match($0, /Used [0-9]+/)
                                printf "  %4d  %5d  %6d  %s\n", substr($0, RSTART + 5, RLENGTH - 5), stack, spills, name }
  ' "$1"
}

for arch in "$@"; do
  for source in csrc/cuda/*.cu; do
    printf '%s for sm_%s\n' "$source" "$arch"
    if nvcc -std=c++17 -O3 --extended-lambda --expt-relaxed-constexpr -Werror=all-warnings -Xcompiler -Wall -Icsrc \
      -gencode "arch=compute_$arch,code=sm_$arch" -Xptxas -v -c "$source" -o "$work/out.o" >"$work/report" 2>&1; then
      grep -q __global__ "$source" && printf '  regs  stack  spills  kernel\n'
      summarise "$work/report"
    else
      cat "$work/report"
      failed+=("$source for sm_$arch")
    fi
  done
done

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
printf 'everything compiles for: %s\n' "$*"
