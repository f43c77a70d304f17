#!/usr/bin/env bash
# The compiled ops under AddressSanitizer and UBSan, then once more with a bug put in on purpose,
# which must be reported. Takes some minutes; run by `make sanitize`.
# Accuracy is not asserted: checked loops are not vectorised, so their sums are longer chains.
#
#   tests/sanitize.sh PYTHON
set -euo pipefail
python=$(realpath -s "${1:?usage: tests/sanitize.sh PYTHON}")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# check SOURCE: builds that tree with the sanitizers and runs the tests of its compiled ops, and then
# what each op does at two sizes on every lesser instruction set.
check() {
  local flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g"
  (cd "$1" && CFLAGS="$flags" LDFLAGS="$flags" LDAE_NATIVE=1 "$python" -m pip install --quiet \
    --no-deps --no-build-isolation --upgrade --target "$1/site" .)
  local most="(cpp or heads or valid or byte_products) and not twice_torchs"
  tests "$1" "" "$most" test_{contract,fuzz,ops,byte_products,attention_kernels}.py || return
  for isa in generic avx2; do
    tests "$1" $isa "cpp and threads" test_contract.py || return
  done
}

tests() {  # tests SOURCE ISA SELECTION FILE...
  (cd "$1/tests" && PYTHONSAFEPATH=1 PYTHONPATH="$1/site:$1/tests" LDAE_NATIVE=1 LDAE_ISA=$2 \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -x -s -p no:cacheprovider -k "$3" "${@:4}" \
    --deselect test_contract.py::test_each_instruction_set \
    --deselect test_attention_kernels.py::test_each_instruction_set)
}

for name in clean broken; do
  mkdir "$work/$name"
  cp -r setup.py pyproject.toml README.md csrc kernels ldae_fast tests "$work/$name"
  rm -f "$work/$name"/kernels/*.so
done
check "$work/clean"
# The last row's gradient is written past its end.
source=csrc/denoise_loss.cpp
sed -i 's/out\[t \* P + i\] = from_float<T>/out[t * P + i + 64] = from_float<T>/' "$work/broken/$source"
if cmp -s "$source" "$work/broken/$source"; then
  echo "the bug was not put in: $source has another line there now; mend this script" >&2
  exit 1
fi
if check "$work/broken" >"$work/log" 2>&1; then
  echo "the bug put in on purpose was not reported" >&2
  exit 1
fi
grep -m1 "ERROR: AddressSanitizer" "$work/log"
echo "sanitizers: no report on the library, and the bug put in on purpose was reported"
