#!/bin/sh
# The image's tag, as in jobs/base/rayjob.yaml: the versions of slimsweep and Ray.
set -eu
cd "$(dirname "$0")/.."
sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | tr -d '\n'
sed -n 's/^ray==\([0-9.]*\).*/-ray\1/p' requirements.lock
