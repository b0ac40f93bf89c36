#!/bin/sh
# Make .venv and install slimsweep with the versions and hashes of requirements.lock; quick if that is done already.
# Bytecode is compiled once, here. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of Ray's processes would
# otherwise compile torch and timm again, which takes longer than training a small point.
set -eu
cd "$(dirname "$0")"
[ -x .venv/bin/python ] || python3 -m venv .venv
uv=$(command -v uv || echo .venv/bin/uv)
[ -x "$uv" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
"$uv" pip install --compile-bytecode --quiet --python .venv/bin/python --requirement requirements.lock --editable .
