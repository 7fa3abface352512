#!/usr/bin/env bash
# The environment with the test extra, then ruff and pytest. Arguments go to pytest, e.g. `launch/test.sh -m slow`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
make_environment .venv "[test]"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3} TF_ENABLE_ONEDNN_OPTS=${TF_ENABLE_ONEDNN_OPTS:-0}
ruff check .
ruff format --check .
if [ $# -eq 0 ]; then
  set -- -m "not slow"
fi
# A process a core, up to four: most of the time is spent compiling small programs, which takes one core each.
exec python -m pytest -n auto --maxprocesses=4 --dist=loadgroup "$@"
