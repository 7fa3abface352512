#!/usr/bin/env bash
# Installs the package with the extra [test], runs ruff and pytest. Arguments go to pytest: `launch/test.sh -m slow`.
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
# One process per core, up to four: most of the time goes into compiling small programs on one core each. The tests of a
# file run in one process, since they share fixtures that are slow to make.
exec python -m pytest -n auto --maxprocesses=4 --dist=loadfile "$@"
