#!/usr/bin/env bash
# Everything that needs a GPU, in one call: benchmarks/gpu.sh OUTDIR [PART...]
#
# Builds the package with this machine's own python and nvcc (no network, no build isolation), then runs
# the parts named, in their order, or the first three:
#   tests       the tests of the kernels, on the GPU
#   sanitizers  compute-sanitizer's memcheck and racecheck over every kernel
#   benchmarks  every GPU benchmark, each file by itself, so that one that fails costs no other
#   ncu         Nsight Compute over each kernel at the benchmarks' sizes
# OUTDIR gets a log of each step and benchmarks.json; a short table comes last. All ends within nine and
# a half minutes, or within SECONDS_LEFT.
set -uo pipefail
usage() {
    echo "usage: benchmarks/gpu.sh OUTDIR [tests|sanitizers|benchmarks|ncu]..." >&2
    exit 2
}
[ $# -ge 1 ] || usage
out=$1
shift
parts=("$@")
[ $# -gt 0 ] || parts=(tests sanitizers benchmarks)
for part in "${parts[@]}"; do
    case $part in tests | sanitizers | benchmarks | ncu) ;; *) usage ;; esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
root=$PWD
deadline=$((SECONDS + ${SECONDS_LEFT:-570}))
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
step() {  # step NAME SECONDS COMMAND...: output appended to OUTDIR/NAME.log, the verdict here
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status=0
    shift 2
    if [ "$left" -le 0 ]; then
        echo "$name: NOT RUN, no time left"
        failed=1
        return 1
    fi
    [ "$limit" -lt "$left" ] || limit=$left
    timeout --kill-after=5 "$limit" "$@" >"$scratch/log" 2>&1 || status=$?
    cat "$scratch/log" >>"$out/$name.log"
    if [ $status = 0 ]; then
        echo "$name: ok, $((SECONDS - begin)) s: $(tail -n 1 "$scratch/log" | cut -c1-140)"
    else
        echo "$name: FAILED (status $status), $((SECONDS - begin)) s; the end of $name.log:"
        tail -n 15 "$scratch/log"
        failed=1
    fi
    return $status
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda)' || exit 1
arch=$("$python" -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())))') || exit 1
rm -f "$out"/{build,tests,memcheck,racecheck,benchmarks,ncu}.log "$out/benchmarks.json"
RESQUE_CUDA=1 RESQUE_CUDA_ARCHS=$arch step build 200 \
    "$python" -m pip install --no-build-isolation --no-deps --force-reinstall . || exit 1

# From another folder, so that the installed package is imported and not this checkout's.
cd "$scratch" || exit 2
pytest=("$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml")

run_tests() {
    # What some of the tests import may not be there; the others run all the same.
    step tests 180 "${pytest[@]}" --continue-on-collection-errors \
        -k "cuda and not cuda_on_cpu" "$root/tests"
}

run_sanitizers() {
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer: NOT FOUND, not run"
        failed=1
        return
    fi
    for tool in memcheck racecheck; do
        step $tool 120 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 5 \
            "$python" "$root/benchmarks/every_kernel.py"
    done
}

run_benchmarks() {
    local file
    for file in "$root"/benchmarks/test_*_speed.py "$root"/benchmarks/test_*_overhead.py; do
        echo "- ${file##*/}"
        step benchmarks 150 "${pytest[@]}" -s -k cuda --benchmark-only --benchmark-quiet \
            --benchmark-json="$scratch/${file##*/}.json" "$file"
    done
    # One file of all: the first one's machine, everybody's benchmarks.
    "$python" - "$out/benchmarks.json" "$scratch"/*.json <<'PYTHON' || failed=1
import json, pathlib, sys
found = [json.loads(text) for path in sys.argv[2:] if (text := pathlib.Path(path).read_text())]
found[0]["benchmarks"] = [benchmark for part in found for benchmark in part["benchmarks"]]
pathlib.Path(sys.argv[1]).write_text(json.dumps(found[0], indent=1))
PYTHON
}

run_ncu() {
    if ! command -v ncu >/dev/null; then
        echo "ncu: NOT FOUND, not run"
        failed=1
        return
    fi
    step ncu 300 ncu --kernel-name-base demangled --kernel-name regex:resque --print-summary per-kernel \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section LaunchStats --section Occupancy \
        "$python" "$root/benchmarks/kernels_at_size.py"
}

for part in "${parts[@]}"; do "run_$part"; done
[ ! -f "$out/benchmarks.log" ] ||
    grep -E "GB/s|share|% of|of the bare|faster|^torch " "$out/benchmarks.log"
exit $failed
