#!/usr/bin/env bash
# Everything that only a GPU can show, its summary last, in parts that fit a short loan of one.
#
#   bench/on_gpu.sh OUT [DATA] [PART] [SECONDS]
#
# OUT: a folder for logs; DATA: a --data SPEC (default photos); PART: ops, step, both of these
# (default), sizes, the step's ladder for L and at other batches, tune, launch settings of the
# kernels, or path, the miniature trajectory, which goes on where it stopped in the same OUT; older
# logs there are removed. SIZES: of the part sizes, which ladders, as "L:64 L:8".
# SECONDS: in all (default 560, for a limit of ten minutes); what matters most comes first, and what
# no longer fits is cut short or left out: both and sizes want 700. photos must be installed or
# within reach: a machine without a network needs DATA.
# WHEELS=DIR installs from the wheels in DIR, this package's own among them, and builds nothing.
#
# Uses the python on PATH, with the project's requirements (xformers is not needed), pytest,
# pytest-xdist and pytest-benchmark. A machine just started reads its disk slowly and in small
# pieces: what torch consists of is read in whole first. Nothing runs beside what is timed.
set -uo pipefail
data=${2:-photos} part=${3:-both} most=${4:-560}
[[ $part =~ ^(ops|step|both|sizes|tune|path)$ ]] || {
  echo "PART must be ops, step, both, sizes, tune or path; got $part" >&2; exit 2; }
[[ $most =~ ^[0-9]+$ ]] || { echo "SECONDS must be a whole number; got $most" >&2; exit 2; }
mkdir -p "${1:?usage: bench/on_gpu.sh OUT [DATA]}"
out=$(realpath "$1")
run=$out/run-$(date +%Y%m%d-%H%M%S)
# Of another day: not to be told as new.
rm -f "$out"/ladder-*.{log,json} "$out"/{tests,train,bench,table,huge,tune}.log "$out"/bench.{json,png}
WHEELS=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "$0")/.."
summary=()

granted() {  # granted SECONDS: at most so many, as time is left; 20 of it to end and to tell
  local left=$((most - SECONDS - 20))
  echo $((left < $1 ? left : $1))
}

stage() {  # stage NAME SECONDS COMMAND...: runs it, keeps its log, goes on whatever comes
  local name=$1 limit began=$SECONDS
  limit=$(granted "$2")
  shift 2
  if ((limit < 5)); then summary+=("$name: NOT RUN, no time left"); return; fi
  # Ctrl-C first, also where a shell in the background has it ignored: benchmarks are then written.
  if env --default-signal=INT timeout --signal INT --kill-after 15 "$limit" "$@" \
    >"$out/$name.log" 2>&1; then state=passed
  else state="FAILED ($?)"; fi
  summary+=("$name: $state in $((SECONDS - began)) s")
  tail -n 25 "$out/$name.log"
}

read_in() {  # the libraries and modules of torch and what it uses, many files at a time
  local site
  site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  find "$site"/{torch,nvidia,triton,numpy,sympy,pyarrow} -type f \( -name '*.so*' -o -name '*.py' \
    -o -name '*.pyc' \) -print0 2>/dev/null | xargs -0 -P 16 -n 64 cat | wc -c
}

install() {
  if [[ -n ${WHEELS:-} ]]; then
    python -m pip install --quiet --no-index --no-deps --upgrade --target "$out/site" "$WHEELS"/*.whl
  else
    LDAE_NATIVE=1 python -m pip install --quiet --no-deps --no-build-isolation --upgrade \
      --target "$out/site" .
  fi
}
export -f read_in install
export WHEELS out

stage read 60 bash -c read_in
stage install 150 bash -c install
export PYTHONPATH="$out/site:${PYTHONPATH:-}"
export PYTHONSAFEPATH=1  # the checkout's own ldae_fast/ has no kernels in it; the installed one has
bench=(env PYTHONPATH="$PWD/bench:$PYTHONPATH")
some="(cuda and 256) or gpu-L or gpu-d16 or gpu-d32 or (cuda and gelu)"
others=adamw_ema,denoise_loss,gate_residual_layernorm_modulate,layernorm_modulate,mlp_gelu,normal
others+=,patch_pca_noise,quantise_float8  # bench_attention.py has attention, all back ends in a row

ladder() {  # ladder SIZE BATCH SECONDS ROW...: these rows first, then others while there is time
  local rows=() row name=ladder-$1-$2 begin side=256
  begin=$(($(granted "$3") - 60))  # no row after so long: the last wants a minute
  if ((begin < 1)); then summary+=("$name: NOT RUN, no time left"); return; fi
  if [[ $1 == tiny ]]; then side=32; fi
  for row in "${@:4}"; do rows+=(--first "$row"); done
  stage "$name" "$3" "${bench[@]}" python bench/ladder.py --device cuda --size "$1" \
    --image-size $side --batch "$2" --apart --steps 12 --kernels 24 --json "$out/$name.json" \
    --stop-after $begin "${rows[@]}"
}

stage machine 10 nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.draw --format=csv
stage info 40 python -m ldae_fast.cli info
if [[ $part =~ ^(step|both)$ ]]; then
  ladder half-L 256 170 "a graph for all blocks" "by blocks" "captured in a graph" "float8"
fi
if [[ $part =~ ^(ops|both)$ ]]; then
  # Triton's interpreter, which these tests run besides the GPU, is for machines without one.
  stage tests 130 "${bench[@]}" python -m pytest -q -p at_once -n $(($(nproc) * 3 / 4)) \
    --dist worksteal --assert plain -p no:cacheprovider tests/test_gpu.py tests/test_contract.py \
    tests/test_attention_kernels.py tests/test_noise_kernels.py \
    -k "not interpreter and not cpp and not huge"
  stage train 70 python -m ldae_fast.cli train ldae --data "$data" --steps 200 --device cuda \
    --out "$run" --evaluate.epochs 20 --profile
fi
if [[ $part =~ ^(step|both)$ ]]; then
  ladder half-L 8 100 "captured in a graph" "in CUDA graphs" "plain model, bfloat16" "by blocks"
fi
if [[ $part == sizes ]]; then
  for one in ${SIZES:-L:64 tiny:128 half-L:64 half-L:32 L:8 L:256}; do
    ladder "${one%:*}" "${one#*:}" 110 "a graph" "nothing is said" "plain model, bfloat16"
  done
fi
if [[ $part =~ ^(ops|both)$ ]]; then
  stage bench 150 python -m pytest bench/bench_attention.py bench/bench_ops.py bench/bench_gelu.py \
    -q -k "$some" --ops "$others" --seconds 0.1 --stop-after $(($(granted 150) - 30)) \
    --benchmark-json="$out/bench.json"
  stage table 15 "${bench[@]}" python bench/table.py "$out/bench.json" --png "$out/bench.png"
  stage huge 60 python -m pytest -q --assert plain -p no:cacheprovider tests/test_gpu.py -k huge
fi
if [[ $part == tune ]]; then
  stage tune 400 "${bench[@]}" python bench/tune.py --jobs 8
fi
if [[ $part == path ]]; then
  stage path 470 python -m ldae_fast.cli trajectory --data "$data" --device cuda --seeds 3 \
    --rows 7,10,12,13,even,pixel --steps 2000 --speed.compile off --out "$out/path"
fi

echo
cat "$out/path/trajectory.md" "$out/table.log" "$out/tune.log" "$out"/ladder-*.log \
  "$run/profile/table.txt" 2>/dev/null
echo
printf '%s\n' "${summary[@]}"
grep -h -E '^(linear probe|trained encoder|untrained|raw pixels|steps|images)' "$out/train.log" 2>/dev/null
grep -h -E '^(FAILED|ERROR)' "$out"/{tests,huge,bench}.log 2>/dev/null
