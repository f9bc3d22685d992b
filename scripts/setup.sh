#!/usr/bin/env bash
# Makes .venv with the exact versions of requirements/ and installs this package into it, editable.
#
# Safe to call at any time, and by several processes at once: it does nothing when nothing has changed.
# PYTHON=/path/to/python chooses the interpreter (3.11 or 3.12; otherwise the first one found). Where
# packages come from is pip's own setting. On a machine without a GPU, let PIP_EXTRA_INDEX_URL name
# PyTorch's CPU index, and torch does not bring several GB of CUDA libraries with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec 9<scripts/setup.sh
flock 9  # one set-up at a time; the lock goes with the process

is_usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' &>/dev/null; }

python=""
for candidate in ${PYTHON:-.venv/bin/python python3.11 python3.12 python3 python}; do
  if is_usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "setup: needs Python 3.11 or 3.12 with the venv module${PYTHON:+, and PYTHON=$PYTHON is not one}." >&2
  echo "setup: install one (Debian, Ubuntu: apt-get install python3.11-venv) or set PYTHON=/path/to/python." >&2
  exit 1
fi

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }
wanted=$(version "$python")
state="python $wanted $(cat requirements/cpu.txt requirements/dev.txt setup.py pyproject.toml | sha256sum | cut -c1-64)"
stamp=.venv/set-up
if [ "$(version .venv/bin/python)" = "$wanted" ] && [ "$(cat $stamp 2>/dev/null)" = "$state" ]; then
  echo "setup: .venv is up to date (Python $wanted)"
  exit 0
fi

if [ "$(version .venv/bin/python)" != "$wanted" ]; then
  echo "setup: [1/4] making .venv with Python $wanted"
  "$python" -m venv --clear .venv
fi
rm -f $stamp
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
echo "setup: [2/4] installing torch"
pip install --constraint requirements/cpu.txt "$(grep '^torch==' requirements/cpu.txt)"
echo "setup: [3/4] installing what else is needed (some minutes the first time)"
pip install -r requirements/cpu.txt -r requirements/dev.txt
echo "setup: [4/4] installing rs-aligner itself"
pip install --no-deps --no-build-isolation --editable .
echo "$state" >$stamp
echo "setup: done"
