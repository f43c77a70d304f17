#!/usr/bin/env bash
# Everything that only a GPU can show, its summary last, in three parts of under ten minutes.
#
#   bench/on_gpu.sh OUT [DATA] [PART] [SECONDS]
#
# OUT: a folder for logs; DATA: a --data SPEC (default photos); PART: ops, step, both of these
# (default), or path, the miniature trajectory, which goes on where it stopped in the same OUT.
# SECONDS: in all; what matters most comes first, and what no longer fits is cut short or left out.
#
# Uses the python on PATH, with the project's requirements (xformers is not needed), pytest and
# pytest-benchmark. The limits of the stages sum to 535 s for ops and 565 s for step; the
# benchmarks end early by themselves and then say which rows they did not reach. path stops
# at 470 s.
set -uo pipefail
data=${2:-photos} part=${3:-both} most=${4:-1800}
[[ $part =~ ^(ops|step|both|path)$ ]] || {
  echo "PART must be ops, step, both or path; got $part" >&2; exit 2; }
[[ $most =~ ^[0-9]+$ ]] || { echo "SECONDS must be a whole number; got $most" >&2; exit 2; }
mkdir -p "${1:?usage: bench/on_gpu.sh OUT [DATA]}"
out=$(realpath "$1")
cd "$(dirname "$0")/.."
summary=()

stage() {  # stage NAME SECONDS COMMAND...: runs it, keeps its log, goes on whatever comes
  local name=$1 limit=$2 began=$SECONDS left=$((most - SECONDS))
  shift 2
  if ((left < 5)); then summary+=("$name: NOT RUN, no time left"); return; fi
  ((limit = left < limit ? left : limit))
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then state=passed; else state="FAILED ($?)"; fi
  summary+=("$name: $state in $((SECONDS - began)) s")
  tail -n 25 "$out/$name.log"
}

stage build 100 env LDAE_NATIVE=1 python -m pip install --quiet --no-deps --no-build-isolation \
  --target "$out/site" .
export PYTHONPATH="$out/site:${PYTHONPATH:-}"
export PYTHONSAFEPATH=1  # the checkout's own ldae_fast/ has no kernels in it; the installed one has
stage machine 10 nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw --format=csv
stage info 20 python -m ldae_fast.cli info
if [[ $part =~ ^(ops|both)$ ]]; then
  stage tests 60 python -m pytest -m gpu -q tests
  stage contract 130 python -m pytest -q -p no:cacheprovider tests/test_contract.py \
    tests/test_attention_kernels.py tests/test_noise_kernels.py
  stage train 70 python -m ldae_fast.cli train ldae --data "$data" --minutes 0.3 --device cuda \
    --out "$out/run" --evaluate.epochs 20 --profile
  stage bench 130 python -m pytest bench/bench_ops.py bench/bench_attention.py \
    bench/bench_gelu.py -q -k "gpu- or cuda" \
    --seconds 0.1 --stop-after 110 --benchmark-json="$out/bench.json"
  stage table 15 env PYTHONPATH="$PWD/bench:$PYTHONPATH" python bench/table.py "$out/bench.json" --png "$out/bench.png"
fi
if [[ $part =~ ^(step|both)$ ]]; then
  for batch in 256 8 64; do
    stage "ladder-$batch" 145 env PYTHONPATH="$PWD/bench:$PYTHONPATH" python bench/ladder.py \
      --device cuda --size half-L --image-size 256 --batch "$batch" --apart --steps 12 \
      --stop-after 100
  done
fi
if [[ $part == path ]]; then
  stage path 470 python -m ldae_fast.cli trajectory --data "$data" --device cuda --seeds 3 \
    --rows 7,10,12,13,pixel --steps 2000 --speed.compile off --out "$out/path"
fi

echo
cat "$out/path/trajectory.md" "$out/table.log" "$out"/ladder-*.log "$out/run/profile/table.txt" 2>/dev/null
echo
printf '%s\n' "${summary[@]}"
grep -h -E '^(linear probe|trained encoder|untrained|raw pixels|steps|images)' "$out/train.log" 2>/dev/null
