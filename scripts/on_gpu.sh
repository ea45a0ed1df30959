#!/usr/bin/env bash
# What to ask of a GPU as soon as there is one: whether it computes right, then how fast.
#
#   scripts/on_gpu.sh OUT [FLAG OF scripts/bench.py]...                   # ten minutes at most
#   scripts/on_gpu.sh OUT --device torch-cpu --only rate --only decoder   # does it run? without a GPU
#
# PYTHON names the interpreter that has torch (default: this checkout's). OUT gets what each step prints.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=${1:?folder for what is found}
python=${PYTHON:-$(command -v .venv/bin/python || echo python3)}
shift
mkdir -p "$out" || exit
failed=0

step() { # name, seconds, command...
  timeout "$2" "$python" "${@:3}" 2>&1 | tee "$out/$1.txt" || failed=1
}

step tests 240 -m pytest -q tests/inference/test_torch_cuda.py
step bench 330 scripts/bench.py --device cuda --out "$out" "$@"
exit $failed
