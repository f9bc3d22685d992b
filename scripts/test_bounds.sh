#!/usr/bin/env bash
# The fast tests at both ends of what setup.py allows, where requirements/ has one set of versions between them:
#   bash scripts/test_bounds.sh newest oldest     with what pip brings today, then with the oldest that setup.py allows
#   bash scripts/test_bounds.sh newest -- -k gloo  what follows -- goes to pytest, and nothing is recorded
#
# PYTHON=/path/to/python3.11 names the interpreter; otherwise python3.11. The packages lie in environments of their own in the
# user's cache folder, 7 GB each where torch is a CUDA build: `newest` asks pip each time for what is newer, `oldest` is made anew
# when setup.py changes. What ran is recorded in benchmarks/results/bounds.json. Ends with 1 where a test failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/tested_with.sh
source scripts/tested_with.sh

for end in "${wanted[@]:-}"; do
  [[ "$end" =~ ^(newest|oldest)$ ]] || { echo "test_bounds: say newest, oldest, or both, not '$end'" >&2; exit 2; }
done
python=${PYTHON:-python3.11}
if ! "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' &>/dev/null; then
  echo "test_bounds: needs Python 3.11 with the venv module, and $python is not one: set PYTHON=/path/to/python3.11" >&2
  exit 2
fi

failed=0
for end in "${wanted[@]}"; do
  env=${XDG_CACHE_HOME:-$HOME/.cache}/rs_aligner/bounds-$end
  mkdir -p "$env"
  exec 9<"$env"
  flock 9  # one set-up at a time; the lock goes with the process
  pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
  constraints=$(mktemp)
  [ "$end" = newest ] || "$python" scripts/bounds.py oldest >"$constraints"
  state=$({ "$python" -VV; cat setup.py "$constraints"; } | sha256sum)
  if [ "$(cat "$env/set-up" 2>/dev/null)" != "$state" ]; then
    echo "test_bounds: making $env (some minutes)"
    "$python" -m venv --clear "$env"
    pip install --upgrade pip
  fi
  upgrade=()
  [ "$end" = oldest ] || upgrade=(--upgrade --upgrade-strategy eager)
  pip install "${upgrade[@]}" --constraint "$constraints" --editable ".[dev,sentiment]"
  echo "$state" >"$env/set-up"
  rm -f "$constraints"

  echo "== $end"
  # All but those that look at the record.
  tested "$env" benchmarks/results/bounds.json "$end" "$("$python" scripts/bounds.py | xargs)" \
    tests --ignore tests/test_bounds.py -m "not slow" || failed=1
done
exit $failed
