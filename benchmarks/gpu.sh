#!/usr/bin/env bash
# Everything that needs a GPU: benchmarks/gpu.sh OUTDIR [PART...]
#
# Builds the package with this machine's own python and nvcc (no network, no build isolation), or takes
# the extension that RESQUE_PREBUILT names, then runs the parts named, in their order, or the first three:
#   correct     single instructions, every kernel against plain PyTorch, then the kernels' tests, on the
#               GPU; under 2 minutes
#   kernels     the kernels' benchmarks, in one process with one measured bound
#   overhead    end to end: score and retrain beside the bare passes
#   sanitizers  compute-sanitizer's memcheck and racecheck over every kernel of this package
#   ncu         Nsight Compute over each kernel at the benchmarks' sizes
# OUTDIR gets a log of each step and results.jsonl, a line for each benchmark as soon as it has ended; the
# table of it comes last. A part that runs out of time is interrupted and keeps what it has measured. All
# ends within nine and a half minutes, or within SECONDS_LEFT.
#
#   PYTHON=python3          the interpreter, with torch, pytest and pytest-benchmark
#   RESQUE_PREBUILT=FILE    a _C*.so built for that interpreter; where it does not load, one is built here
#   SECONDS_LEFT=570        for everything
#   LIMIT_PART=SECONDS      for one part, e.g. LIMIT_kernels=120
set -uo pipefail
known=(correct kernels overhead sanitizers ncu)
usage() {
    echo "usage: benchmarks/gpu.sh OUTDIR [$(IFS='|'; echo "${known[*]}")]..." >&2
    exit 2
}
[ $# -ge 1 ] || usage
out=$1
shift
parts=("$@")
[ $# -gt 0 ] || parts=(correct kernels overhead)
for part in "${parts[@]}"; do
    [[ " ${known[*]} " == *" $part "* ]] || usage
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
root=$PWD
deadline=$((SECONDS + ${SECONDS_LEFT:-570}))
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
export PYTHONUNBUFFERED=1

step() {  # step NAME SECONDS COMMAND...: output to OUTDIR/NAME.log as it comes, the verdict here
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status=0
    shift 2
    if [ "$left" -le 0 ] || [ "$limit" -le 0 ]; then
        echo "$name: NOT RUN, no time left"
        failed=1
        return 1
    fi
    [ "$limit" -lt "$left" ] || limit=$left
    # An interrupt, so that pytest still reports; a program that ignores it is killed.
    timeout --signal=INT --kill-after=15 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    if [ $status = 0 ]; then
        echo "$name: ok, $((SECONDS - begin)) s: $(tail -n 1 "$out/$name.log" | cut -c1-140)"
    else
        [ $status != 124 ] || echo "$name: INTERRUPTED after $limit s"
        echo "$name: FAILED (status $status), $((SECONDS - begin)) s; the end of $name.log:"
        tail -n 15 "$out/$name.log" | cut -c1-300
        failed=1
    fi
    return $status
}

limit() {  # limit PART SECONDS: of the environment, else these
    local variable=LIMIT_$1
    echo "${!variable:-$2}"
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda)' || exit 1
rm -f "$out"/{build,instructions,every_kernel,tests,kernels,overhead,memcheck,racecheck,ncu}.log "$out/results.jsonl"

install() {  # a copy of the package on PYTHONPATH, with the extension in it
    mkdir "$scratch/site"
    cp -r "$root/resque_ext" "$scratch/site/"
    rm -f "$scratch"/site/resque_ext/_C*.so
    export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH}
    if [ -n "${RESQUE_PREBUILT:-}" ]; then
        cp "$RESQUE_PREBUILT" "$scratch/site/resque_ext/" || return 1
        # An installed package may have an extension of its own, which is not the one to be tried.
        if (cd "$scratch" && "$python" -c 'import sys; from resque_ext.ops.backend import extension as e; assert e().__file__.startswith(sys.argv[1]), "another is loaded: " + e().__file__; assert hasattr(e(), "cuda"), "no CUDA kernels in it"' "$scratch/site") >"$out/build.log" 2>&1; then
            echo "build: $RESQUE_PREBUILT loads"
            return 0
        fi
        echo "build: $RESQUE_PREBUILT does not load here: $(tail -n 1 "$out/build.log"); building"
        rm -f "$scratch"/site/resque_ext/_C*.so
    fi
    local arch
    arch=$("$python" -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())))') || return 1
    RESQUE_CUDA=1 RESQUE_CUDA_ARCHS=$arch step build 240 "$python" setup.py -q build_ext \
        --build-lib "$scratch/lib" --build-temp "$scratch/temp" || return 1
    cp "$scratch"/lib/resque_ext/_C*.so "$scratch/site/resque_ext/"
}
install || exit 1

# From another folder, so that the copy is imported and not this checkout.
cd "$scratch" || exit 2
# Options of its own: plugins that pyproject.toml's ask for need not be there.
pytest=("$python" -m pytest -q -p no:cacheprovider -p no:randomly --rootdir "$root" -c "$root/pyproject.toml"
    -o "addopts=--import-mode=importlib --strict-markers")

run_correct() {
    local end=$((SECONDS + $(limit correct 115))) name files=()
    device_tests instructions $((end - SECONDS)) test_instructions
    step every_kernel $((end - SECONDS)) "$python" "$root/benchmarks/every_kernel.py"
    for name in class_order class_moments class_moments_cuda class_moments_laws class_moments_refused \
        spatial_mean value_histogram value_histogram_any row_distances row_distances_any lloyd_step \
        pair_counts; do
        files+=("test_$name")
    done
    device_tests tests $((end - SECONDS)) "${files[@]}"
}

device_tests() {  # device_tests NAME SECONDS FILE...: of these tests/ops, those on the GPU
    local name=$1 seconds=$2 files=("${@:3}")
    files=("${files[@]/#/$root/tests/ops/}")
    step "$name" "$seconds" "${pytest[@]}" -k "cuda and not cuda_on_cpu" "${files[@]/%/.py}"
}

benchmark() {  # benchmark NAME SECONDS FILE...
    local name=$1 seconds=$2
    shift 2
    step "$name" "$seconds" "${pytest[@]}" -s --only-cuda --benchmark-only --benchmark-quiet \
        --results="$out/results.jsonl" "${@/#/$root/benchmarks/}"
}

run_kernels() {
    benchmark kernels "$(limit kernels 330)" test_class_moments_speed.py test_value_histogram_speed.py \
        test_row_distances_speed.py test_lloyd_step_speed.py test_resque_task_speed.py
}

run_overhead() {
    benchmark overhead "$(limit overhead 150)" test_score_overhead.py test_retraining_overhead.py
}

run_sanitizers() {
    local tool
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer: NOT FOUND, not run"
        failed=1
        return
    fi
    for tool in memcheck racecheck; do
        # This package's kernels alone: those of torch would take most of the time.
        step $tool "$(limit sanitizers 200)" compute-sanitizer --tool $tool --error-exitcode 9 \
            --print-limit 5 --kernel-regex kns=resque "$python" "$root/benchmarks/every_kernel.py"
    done
}

run_ncu() {
    if ! command -v ncu >/dev/null; then
        echo "ncu: NOT FOUND, not run"
        failed=1
        return
    fi
    step ncu "$(limit ncu 300)" ncu --clock-control none --kernel-name-base demangled \
        --kernel-name regex:resque --launch-count 150 --print-summary per-kernel \
        --section SpeedOfLight --section MemoryWorkloadAnalysis --section LaunchStats \
        --section Occupancy "$python" "$root/benchmarks/kernels_at_size.py"
}

for part in "${parts[@]}"; do "run_$part"; done
[ ! -f "$out/results.jsonl" ] || "$python" "$root/benchmarks/results_table.py" "$out/results.jsonl"
exit $failed
