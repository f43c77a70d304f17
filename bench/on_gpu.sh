#!/usr/bin/env bash
# Everything that only a GPU can show, in under nine minutes, its summary last.
#
#   bench/on_gpu.sh OUT [DATA]      OUT: a folder for logs; DATA: a --data SPEC (default photos)
#
# Uses the python on PATH, with the project's requirements (xformers is not needed) and nothing else.
set -uo pipefail
data=${2:-photos}
mkdir -p "${1:?usage: bench/on_gpu.sh OUT [DATA]}"
out=$(realpath "$1")
cd "$(dirname "$0")/.."
summary=()

stage() {  # stage NAME SECONDS COMMAND...: runs it, keeps its log, goes on whatever comes
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then state=passed; else state="FAILED ($?)"; fi
  summary+=("$name: $state in $((SECONDS - began)) s")
  tail -n 25 "$out/$name.log"
}

stage build 120 python -m pip install --quiet --no-deps --no-build-isolation --target "$out/site" .
export PYTHONPATH="$out/site:${PYTHONPATH:-}"
export PYTHONSAFEPATH=1  # the checkout's own ldae_fast/ has no kernels in it; the installed one has
stage machine 20 nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw --format=csv
stage tests 150 python -m pytest -m gpu -q tests
stage train 200 python -m ldae_fast.cli train ldae --data "$data" --minutes 1 --device cuda \
  --out "$out/run" --evaluate.epochs 30

echo
printf '%s\n' "${summary[@]}"
grep -h -E '^(linear probe|trained encoder|untrained|raw pixels|steps|images)' "$out/train.log"
