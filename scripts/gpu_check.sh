#!/usr/bin/env bash
# The first ten minutes on a machine with an NVIDIA GPU: its tests and benchmarks, and one JSON file of what they gave.
#   bash scripts/gpu_check.sh [FILE]            FILE: gpu_check.json, unless it is named
#   PYTHON=python bash scripts/gpu_check.sh     an interpreter that is not .venv's
# Nothing is fetched. Ends with 0 where all went well, 1 where something failed or did not run, and 2 at once where there is
# no GPU to check. docs/gpu.md says what is in the file.
set -euo pipefail
file=$(realpath -m "${1:-gpu_check.json}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}

refuse() { echo "gpu_check: $*" >&2; exit 2; }
[ -n "$(command -v "$python")" ] || refuse "there is no $python: run bash scripts/setup.sh, or set PYTHON=/path/to/python"
[ -n "$(command -v nvidia-smi)" ] || refuse "there is no NVIDIA GPU here, or no driver: nvidia-smi is missing"
query=(nvidia-smi "--query-gpu=name,memory.total,driver_version" "--format=csv,noheader,nounits")
cards=$("${query[@]}" 2>&1) || refuse "there is no NVIDIA GPU that works here: nvidia-smi says: ${cards//$'\n'/ }"
sees='import sys, torch
sys.exit(not torch.cuda.is_available() and f"torch {torch.__version__} (built for CUDA: {torch.version.cuda}) sees none of them")'
found=$("$python" -c "$sees" 2>&1) ||
  refuse "nvidia-smi shows ${cards//$'\n'/; }, but ${found##*$'\n'}; $python needs a torch that is built for CUDA"

export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
work=$(mktemp -d)
child=""
echo "$cards" >"$work/cards"
finish() {
  local status=0
  "$python" scripts/gpu_report.py "$work" "$file" "$SECONDS" || status=1
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT  # whatever was found until then is written, also when this is ended early
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 1' INT TERM

# step NAME SECONDS COMMAND...: what it says, how it ended, how long it took
step() {
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  echo "gpu_check: $name, at most $limit s"
  timeout --kill-after=10 "$limit" "$@" >"$work/$name.log" 2>&1 &
  child=$!
  wait "$child" || status=$?  # in the background, so that a signal is taken at once
  child=""
  echo "$status $((SECONDS - began))" >"$work/$name.ended"
}

# benchmark SHAPE SECONDS MIB: the decoder on random weights of that shape, where the first card has so much memory
benchmark() {
  local memory
  memory=$(head -n 1 "$work/cards" | cut -d, -f2)
  if [ "$((memory))" -lt "$3" ]; then
    echo "needs a card of $3 MiB" >"$work/$1.left_out"
  else
    step "$1" "$2" "$python" benchmarks/generation.py --device cuda --shapes "$1" --repeats 2 --out "$work/$1.json"
  fi
}

# No test is begun after 4 minutes; one that then hangs is ended in the fifth, and what came before it is in the log.
step tests 300 "$python" -m pytest -v -m gpu tests/gpu -p no:cacheprovider --session-timeout=240 "--junitxml=$work/tests.xml"
benchmark 1b 120 23000
benchmark 8b 180 72000
