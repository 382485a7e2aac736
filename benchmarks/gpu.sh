#!/usr/bin/env bash
# Builds, checks and measures the CUDA backend on a machine with an NVIDIA GPU. Needs no network; under nine minutes.
#
# benchmarks/gpu.sh OUTDIR
#
# Needs nvcc, CMake, Ninja, and a Python (PYTHON, default python3) with torch, scikit-build-core, pybind11 and pytest;
# CuPy for the ceiling of the max-plus stage. Where there is no git, COMMIT says what is measured.
# Every stage has its own time limit and leaves its own JSON; one that fails does not stop the others.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 OUTDIR" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
PYTHON=${PYTHON:-python3}
COMMIT=${COMMIT:-$(git describe --always --dirty --abbrev=40 2>/dev/null)}
# JAX would otherwise take most of the device's memory at once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false CUDAARCHS=90 CMAKE_GENERATOR=Ninja OUT WORK PYTHON COMMIT
failed=()

# stage NAME LIMIT [record ARGUMENTS...]: runs the function NAME for at most LIMIT seconds; gpu_record.py, given the
# ARGUMENTS, writes the JSON of a stage that writes none itself.
stage() {
  local name=$1 limit=$2 record=${3:-} status begin=$SECONDS
  shift 2
  printf '\n=== %s (%d s so far)\n' "$name" "$SECONDS"
  timeout --kill-after=5 "$limit" bash -uo pipefail -c "$name" >"$WORK/$name.log" 2>&1
  status=$?
  tail -n 25 "$WORK/$name.log"
  if [ "$record" = record ]; then
    shift
    "$PYTHON" benchmarks/gpu_record.py "$OUT/$name.json" --stage "$name" --status "$status" \
      --seconds "$((SECONDS - begin))" --limit "$limit" --log "$WORK/$name.log" "$@" || status=1
  fi
  if [ "$status" -ne 0 ]; then
    printf '%s: exit status %d after %d of %d s\n' "$name" "$status" "$((SECONDS - begin))" "$limit"
    failed+=("$name")
  fi
}

build() {
  # The executable of the stage `check` beside it.
  { cmake -S . -B "$WORK/check" -DTACFAST_CPP_TESTS=ON -DTACFAST_CUDA=ON &&
    cmake --build "$WORK/check" --target gpu_check; } >"$WORK/check.log" 2>&1 &
  TACFAST_CUDA=ON "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps --force-reinstall . ||
    { wait && return 1; } # or it would compile beside what is timed next
  wait $! || { cat "$WORK/check.log" && return 1; }
  # -P: the installed package, not the folder.
  "$PYTHON" -P -c 'from tacfast.solver import _compiled; print(_compiled.build_info())'
}

tests() {
  export PYTHONSAFEPATH=1 # the installed package, not the folder
  # Files that compare with solvers which this machine may not have.
  local rivals=absent solver=() file
  "$PYTHON" -c 'import clarabel, quadprog' 2>/dev/null && rivals=present
  for file in tests/unit/solver/test_solver_*.py tests/unit/solver/test_gap_matrix.py tests/unit/solver/test_operators.py; do
    if [ $rivals = absent ] && grep -qE '^(import|from) (clarabel|quadprog|independent)\b' "$file"; then
      echo "left out: $file (needs clarabel and quadprog)"
    else
      solver+=("$file")
    fi
  done
  local status=0 pytest=("$PYTHON" -m pytest -q -p no:cacheprovider)
  # Interrupted, pytest still writes its report. In the foreground, so that the limit of the stage ends it, too.
  timeout --foreground --signal=INT --kill-after=5 60 "${pytest[@]}" -m gpu --junitxml="$WORK/gpu.xml" tests/gpu || status=1
  # The others as far as time allows.
  timeout --foreground --signal=INT --kill-after=5 30 "${pytest[@]}" --junitxml="$WORK/solver.xml" "${solver[@]}"
  case $? in 0 | 124) ;; *) status=1 ;; esac
  return $status
}

check() {
  local check=$WORK/check/tests/cpp/gpu_check tool output result status=0
  "$check" || status=1
  if [ $status -eq 0 ]; then echo "gpu_check passed"; else echo "gpu_check failed"; fi >>"$WORK/outcomes"
  for tool in memcheck racecheck synccheck initcheck; do
    if ! command -v compute-sanitizer >/dev/null; then
      echo "$tool not installed" >>"$WORK/outcomes"
      continue
    fi
    output=$(timeout --kill-after=1 24 compute-sanitizer --tool "$tool" --error-exitcode 3 "$check" 2>&1)
    case $? in
      0) result=passed ;;
      124 | 137) result="stopped by its time limit" status=1 ;;
      *)
        # The tool may not be allowed to look at the device; that says nothing about the code.
        if grep -qiE 'device not supported|not supported on this|insufficient (permission|privilege)' <<<"$output"; then
          result=refused
        else
          result=failed status=1
        fi
        ;;
    esac
    printf -- '--- %s: %s\n%s\n' "$tool" "$result" "$(tail -n 12 <<<"$output")"
    echo "$tool $result" >>"$WORK/outcomes"
  done
  return $status
}

ceilings() { "$PYTHON" benchmarks/gpu_ceilings.py --out "$OUT/ceilings.json"; }
ours() { "$PYTHON" benchmarks/gpu_ours.py --ceilings "$OUT/ceilings.json" --out "$OUT/ours.json"; }
rivals() { "$PYTHON" benchmarks/gpu_rivals.py --out "$OUT/rivals.json"; }
table() { "$PYTHON" benchmarks/gpu_table.py "$OUT" --out "$OUT/table.md"; }

export -f build tests check ceilings ours rivals table
stage build 120 record
stage ceilings 25
stage ours 75
stage tests 100 record --junit "$WORK/gpu.xml" "$WORK/solver.xml"
stage check 110 record --outcomes "$WORK/outcomes"
stage rivals 75
stage table 10

if [ ${#failed[@]} -gt 0 ]; then
  printf '\nFAILED: %s\n' "${failed[*]}"
  exit 1
fi
printf '\neverything passed in %d s\n' "$SECONDS"
