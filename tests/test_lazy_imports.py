"""What programs do not import before they need it, so that --help and errors in a config answer at once."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Each takes from a tenth of a second (PyAV) to five seconds (TensorFlow with Keras) to import.
HEAVY = {"tensorflow", "tensorflow_datasets", "keras", "tensorboard", "sklearn", "scipy", "matplotlib", "orbax"}
PROGRAMS = """
main features search predict predict.__main__ preview probe.__main__ sweep compile.__main__ cost.__main__
convert.__main__ report.__main__ serve.__main__ train
data.build.__main__ data.catalog data.index data.moving_digits data.verify
"""
LOADED = f"print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {HEAVY}))"


def loaded_after(code: str) -> str:
    """Returns the heavy packages that are loaded after `code` in a new interpreter."""
    command = [sys.executable, "-c", f"import sys\n{code}\n{LOADED}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_importing_a_program_imports_nothing_heavy():
    code = f"""
import importlib
from absl import flags
for name in {PROGRAMS!r}.split():
    importlib.import_module("vivit_jax." + name)
    for flag in list(flags.FLAGS):  # programs have flags of the same names
        delattr(flags.FLAGS, flag)
"""
    assert loaded_after(code) == ""


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.batch_sizee=3", "config.batch_sizee does not exist"),
        ("--config.batch_size=0", "config.batch_size=0 must be at least 1"),
        ("--config.data.name=kinetics400", "no records in"),
    ],
    ids=["unknown field", "bad value", "missing data"],
)
def test_an_error_in_the_config_imports_nothing_heavy(flag, message, tmp_path):
    paths = [f"--workdir={tmp_path}/run", f"--config.data.dir={tmp_path}"]
    arguments = ["main.py", "--config=configs/moving_digits.py", *paths, flag]
    code = f"""
import contextlib, io, runpy
sys.argv = {arguments!r}
errors = io.StringIO()
try:
    with contextlib.redirect_stderr(errors):
        runpy.run_module("vivit_jax.main", run_name="__main__", alter_sys=True)
except SystemExit as error:
    text = errors.getvalue() + str(error)
    assert {message!r} in text, text
"""
    assert loaded_after(code) == ""


def test_the_writer_of_a_run_imports_tensorflow_without_keras(tmp_path):
    code = f"""
from vivit_jax.data.host_tf import tf
from vivit_jax.utils import logs
tf.constant(0)
logs.make_writer({str(tmp_path)!r}).close()
"""
    assert loaded_after(code) == "scipy tensorboard tensorflow"  # TensorFlow imports scipy
