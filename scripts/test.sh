#!/usr/bin/env bash
# Set-up, lint, types, import rules, then the tests. Arguments go to pytest:
#   bash scripts/test.sh                  everything
#   bash scripts/test.sh -m "not slow"    the fast part
#   TEST_WORKERS=0 bash scripts/test.sh   one test after the other; two processes otherwise, a test file in one of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # tests start several processes each

unset PYTHONDONTWRITEBYTECODE  # some machines set it; then each of a few hundred processes compiles all it imports

step() { echo "== $*"; "$@"; }
step ruff check .
step ruff format --check .
step mypy rs_aligner
step lint-imports
step python -m pytest --numprocesses "${TEST_WORKERS:-2}" --dist loadfile "$@"
