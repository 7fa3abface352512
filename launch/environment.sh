#!/usr/bin/env bash
# Sourced by the other scripts: finds a Python, creates the virtual environment, installs the package in it.

# The versions that the dependencies support. The newest comes with the newest jax, which is faster on many CPUs.
pythons="3.13 3.12 3.11"

# The version of a Python that can make virtual environments, as 3.13.
version_of() { "$1" -c 'import sys, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# The path of PYTHON if it is set, else of the newest Python on PATH of these versions.
find_python() {
  local version candidate candidates
  for version in $pythons; do
    candidates=("python$version" python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
      if [ "$(version_of "$candidate")" = "$version" ]; then
        command -v "$candidate"
        return 0
      fi
    done
  done
  candidate=${PYTHON:-python3}
  echo "error: vivit_jax needs Python ${pythons// / or } with the module ensurepip (on Debian in python3.13-venv)." >&2
  echo "$candidate is $("$candidate" --version 2>/dev/null || echo absent). Install a Python (e.g. from python.org, your" \
    "package manager, pyenv or 'uv python install 3.13') and set PYTHON=/path/to/python3.13." >&2
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
  elif python=$(find_python 2>/dev/null) && [ "$(version_of "$python")" != "$(version_of "$folder/bin/python")" ]; then
    echo "$folder has $("$folder/bin/python" --version); delete the folder to use $("$python" --version)."
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
