#!/usr/bin/env bash
# Sees to it that a CI machine has what the tests need of the system; only .ci/run calls it.
#
# Does nothing where all is there. What is missing is installed by apt-get, as root; where that cannot be done it
# says so and goes on: a test that needs it skips, saying so, and with CI=true it fails.
# To add something: a line here, and in tests/conftest.py a fixture that calls `does_without`.
set -euo pipefail

missing=()
need() {  # a command, and the packages that bring it
  command -v "$1" >/dev/null || missing+=("${@:2}")
}
need cc gcc libc6-dev  # the kernels of the CPU's decoder
need slurmctld slurmctld  # the scripts of scripts/slurm under a Slurm of two nodes
need slurmd slurmd
need srun slurm-client
need munged munge
need chromium chromium  # the report in a browser
need jq jq  # data files as other programs write them
need gzip gzip

[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "ci_packages: ${missing[*]} cannot be installed without root and apt-get" >&2
  exit 0
fi
echo "ci_packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && apt-get -qq install --yes --no-install-recommends "${missing[@]}"; } >/dev/null ||
  echo "ci_packages: ${missing[*]} could not be installed" >&2
