#!/usr/bin/env bash
# Everything that needs a GPU, in one call: benchmarks/gpu.sh OUTDIR
#
# Builds the package with this machine's own python and nvcc (no network, no build isolation), runs the
# GPU tests, compute-sanitizer over every kernel, and every GPU benchmark; prints a short table last.
# OUTDIR gets build.log, tests.log, memcheck.log, racecheck.log, benchmarks.json and benchmarks.log.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
deadline=$((SECONDS + 470))  # everything together in under eight minutes
python=${PYTHON:-python3}
failed=0
step() {  # step NAME SECONDS COMMAND...: output to OUTDIR/NAME.log, the verdict here
    local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS))
    shift 2
    [ $limit -lt $left ] || limit=$((left > 1 ? left : 1))
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        echo "$name: ok, $((SECONDS - begin)) s: $(tail -n 1 "$out/$name.log" | cut -c1-140)"
    else
        echo "$name: FAILED (status $?), $((SECONDS - begin)) s; the end of $name.log:"
        tail -n 15 "$out/$name.log"
        failed=1
    fi
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda)' || exit 1
arch=$("$python" -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())))')
RESQUE_CUDA=1 RESQUE_CUDA_ARCHS=$arch step build 150 \
    "$python" -m pip install --no-build-isolation --no-deps --force-reinstall .
[ $failed = 0 ] || exit 1

# From another folder, so that the installed package is imported and not this checkout's.
cd "$out" || exit 2
root=$OLDPWD
pytest=("$python" -m pytest -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml")
step tests 120 "${pytest[@]}" -q -k "cuda and not cuda_on_cpu" "$root/tests"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        step $tool 45 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 5 \
            "$python" "$root/benchmarks/every_kernel.py"
    done
else
    echo "compute-sanitizer: not found, not run"
fi
step benchmarks 200 "${pytest[@]}" -q -s -k cuda --benchmark-only --benchmark-quiet \
    --benchmark-json="$out/benchmarks.json" "$root/benchmarks"
grep -E "GB/s|share|% of|of the bare passes|^torch " "$out/benchmarks.log"
exit $failed
