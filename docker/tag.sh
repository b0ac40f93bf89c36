#!/bin/sh
# The image's tag, as jobs/base/rayjob.yaml has it: slimsweep's version and Ray's.
set -eu
cd "$(dirname "$0")/.."
sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | tr -d '\n'
sed -n 's/^ray==\([0-9.]*\).*/-ray\1/p' requirements.lock
