#!/usr/bin/env bash
# On a machine with a GPU and without a network: `bash reports/gpu/run.sh PACKED OUTPUT`, from the root of the repository, with the
# folder that pack.py has written. It unpacks that, runs the GPU tests and measures; all that is to be kept goes to OUTPUT.
set -uo pipefail
packed=$1 output=$2
mkdir -p "$output"
source reports/gpu/unpack.sh "$packed"
timeout "${TEST_SECONDS:-150}" python3 -m pytest -m gpu -n 8 -p no:cacheprovider -p no:randomly -rA tests/test_gpu_*.py 2>&1 | tee "$output/tests.log"
python3 reports/gpu/measure.py measure --output "$output" --seconds "${MEASURE_SECONDS:-330}" 2>&1 | tee "$output/measure.log"
