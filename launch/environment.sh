#!/usr/bin/env bash
# Sourced by the other scripts: finds a Python, creates the virtual environment, installs the package in it.

# The first Python, 3.11 or newer, that PYTHON or PATH offers.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
    if [ "$candidate" = "${PYTHON:-}" ]; then
      echo "error: PYTHON=$candidate is not a Python 3.11 or newer: $("$candidate" --version 2>&1 || true)" >&2
      return 1
    fi
  done
  echo "error: vivit_jax needs Python 3.11 or newer; python3 here is $(python3 --version 2>&1 || echo absent)." >&2
  echo "Install one (e.g. from python.org, your package manager or pyenv) and set PYTHON=/path/to/python3." >&2
  return 1
}

# make_environment FOLDER EXTRAS: e.g. make_environment .venv "[test]". Activates it. Installs again only when
# setup.py, pyproject.toml, the extras or the Python changed.
make_environment() {
  local folder=$1 extras=$2 python stamp
  if [ ! -x "$folder/bin/python" ]; then
    python=$(find_python)
    echo "Making $folder with $("$python" --version)"
    "$python" -m venv "$folder"
  fi
  # shellcheck disable=SC1091
  source "$folder/bin/activate"
  stamp="$(python --version) $(cat setup.py pyproject.toml | cksum)"
  if ! grep -qxF "$stamp $extras" "$folder/.installed" 2>/dev/null; then
    echo "Installing vivit_jax$extras and what it needs (a few minutes the first time)"
    python -m pip install --quiet --upgrade pip
    # setuptools warns at length about every editable installation.
    PYTHONWARNINGS=ignore python -m pip install --quiet --editable ".$extras"
    # Extras that were installed before stay in place: keep their lines.
    { grep -F "$stamp " "$folder/.installed" 2>/dev/null || true; echo "$stamp $extras"; } >"$folder/.installed.new"
    mv "$folder/.installed.new" "$folder/.installed"
  fi
}
