#!/usr/bin/env bash
# On a machine with a GPU and without a network: `bash reports/gpu/run.sh PACKED OUTPUT`, from the root of the repository, with the
# folder that pack.py has written. It unpacks that, runs the GPU tests and measures; all that is to be kept goes to OUTPUT.
set -uo pipefail
packed=$1 output=$2
mkdir -p "$output"
source reports/gpu/unpack.sh "$packed"
# When the time is over, an interrupt: what tests have failed until then, and how, is still printed.
timeout -s INT -k 30 "${TEST_SECONDS:-180}" \
  python3 -m pytest -m gpu -n 8 -v -p no:cacheprovider -p no:randomly -rA tests/test_gpu_*.py 2>&1 | tee "$output/tests.log"
python3 reports/gpu/measure.py measure --output "$output" --seconds "${MEASURE_SECONDS:-300}" 2>&1 | tee "$output/measure.log"
