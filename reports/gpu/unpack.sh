# shellcheck shell=bash
# Sourced: unpacks what pack.py has written and puts it, with the repository, on the path of Python.
site=${SLIMSWEEP_SITE:-/tmp/slimsweep-site}
if [ ! -d "$site/ray" ]; then
  mkdir -p "$site"
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$1"/*.whl
  tar -xJf "$1/ray.tar.xz" -C "$site"
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
