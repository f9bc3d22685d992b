#!/usr/bin/env bash
# Makes vLLM's own environment, in which `rs-aligner serve-rollouts` runs its servers:
#   bash scripts/setup_vllm.sh            the build for this machine
#   bash scripts/setup_vllm.sh cpu        or gpu: that build, say on a login node that has no GPU
#   PYTHON=python bash scripts/...        a project's interpreter that is not .venv's
#
# It lies in the user's cache folder under a name with the checksum of its pins, requirements/vllm_*.txt. The CPU's
# borrows torch from the project's environment. Safe to call at any time, and by several processes at once: it does
# nothing where all is there, and one that was left half made is made again. The last line is its Python's path.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
refuse() { echo "setup_vllm: $*" >&2; exit 2; }
[ -n "$(command -v "$python")" ] || refuse "there is no $python: run bash scripts/setup.sh, or set PYTHON=/path/to/python"
found=$("$python" -m rs_aligner.rollout_server.environment "$@") || exit 2
read -r build folder <<<"$found"
mkdir -p "${folder%/*}"
exec 9>"$folder.lock"
flock 9  # one at a time; the lock goes with the process

# Links to the project's torch, renewed where that project is gone.
borrow() {
  local where name wanted=2.13.0
  where=$("$python" -c 'import importlib.metadata as m; d = m.distribution("torch"); print(d.version, d.locate_file(""))') ||
    refuse "$python has no torch to borrow"
  [ "${where%%[+ ]*}" = "$wanted" ] || refuse "vLLM on a CPU needs torch $wanted, and $python has ${where%% *}"
  rm -rf "$folder/borrowed"
  mkdir "$folder/borrowed"
  for name in "${where#* }"/{torch,torchgen,functorch,torch-*.dist-info}; do ln -s "$name" "$folder/borrowed/"; done
}

if [ "$(cat "$folder/made" 2>/dev/null)" != "$build" ]; then
  echo "setup_vllm: making $folder (some minutes)"
  rm -rf "$folder"
  "$python" -m venv "$folder"
  [ "$build" = gpu ] || borrow
  "$folder/bin/python" -m pip --disable-pip-version-check install -qq --no-deps -r "requirements/vllm_$build.txt"
  [ "$build" = gpu ] || "$folder/bin/python" -c 'import pathlib, site, sys
pathlib.Path(site.getsitepackages()[0], "borrowed.pth").write_text(sys.argv[1])' "$folder/borrowed"
  "$folder/bin/python" -c 'import vllm.version' || refuse "vLLM cannot be imported from $folder"
  echo "$build" >"$folder/made"
elif [ "$build" = cpu ] && [ ! -e "$folder/borrowed/torch/" ]; then
  borrow
fi
for other in "${folder%/*}"/vllm-*/; do
  [ "$other" = "$folder/" ] || echo "setup_vllm: $other is of other pins, and may be removed"
done
echo "$folder/bin/python"
