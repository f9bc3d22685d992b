#!/usr/bin/env bash
# Tests of model, policy, generation and layouts with another Megatron than the pinned one, which needs Python 3.12:
#   bash scripts/test_newest.sh                  with the newest that is tested (requirements/newest.txt)
#   bash scripts/test_newest.sh 0.17.1 0.18.2    with these, one after the other
#   FAST=1 bash scripts/test_newest.sh 0.17.1    without the slow ones, among them those of more than one rank
#   bash scripts/test_newest.sh 0.19.2 -- -k checkpoint    what follows -- goes to pytest, and nothing is recorded
#
# PYTHON=/path/to/python3.12 names the interpreter; otherwise the first one found. The packages lie in an environment of their
# own in the user's cache folder, under a name that follows from interpreter and pins, and are installed once: some minutes, and
# 2 GB with a CPU build of torch, 6 GB with another (scripts/setup.sh says how pip finds the former). What ran is recorded in
# benchmarks/results/newest_megatron.json. Ends with 1 where a test failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/tested_with.sh
source scripts/tested_with.sh

versions=("${wanted[@]}")
[ ${#versions[@]} -gt 0 ] || versions=("$(sed -n 's/^megatron-core==//p' requirements/newest.txt)")

is_usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 12))' &>/dev/null; }
python=""
candidates=("${PYTHON:-}")
[ -n "${PYTHON:-}" ] || candidates=(python3.12 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python "$(uv python find 3.12 2>/dev/null || true)")
for candidate in "${candidates[@]}"; do
  if [ -n "$candidate" ] && is_usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "test_newest: needs Python 3.12 with the venv module${PYTHON:+, and PYTHON=$PYTHON is not one}." >&2
  echo "test_newest: install one (Ubuntu 24.04: apt-get install python3.12-venv; pyenv install 3.12; uv python install 3.12)," >&2
  echo "test_newest: or set PYTHON=/path/to/python3.12." >&2
  exit 2
fi

pins=$(grep -v '^megatron-core==' requirements/cpu.txt; cat requirements/dev.txt requirements/newest.txt)
hash=$({ "$python" -VV; echo "$pins"; } | sha256sum | cut -c1-12)
env=${XDG_CACHE_HOME:-$HOME/.cache}/rs_aligner/newest-$hash
mkdir -p "$env"
exec 9<"$env"
flock 9  # one set-up and one Megatron at a time; the lock goes with the process

pip() { "$env/bin/python" -m pip --disable-pip-version-check "$@"; }
if [ ! -e "$env/set-up" ]; then
  echo "test_newest: making $env"
  "$python" -m venv --clear "$env"
  pip install --quiet -r <(echo "$pins")
  touch "$env/set-up"
fi
pip install --quiet --no-deps --no-build-isolation --editable .

failed=0
for version in "${versions[@]}"; do
  pip install --quiet --no-deps "megatron-core==$version"
  echo "== megatron-core $version"
  tests=(tests/model tests/policy tests/generation)
  [ -z "${FAST:-}" ] || tests+=(-m "not slow")
  tested "$env" benchmarks/results/newest_megatron.json "$version" "megatron-core numpy torch transformers triton" \
    "${tests[@]}" || failed=1
done
exit $failed
