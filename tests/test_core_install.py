"""What `pip install vivit_jax` without extras can do."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

# Hides the packages of the extras `train` and `report`.
HIDE = "import sys; sys.modules.update(dict.fromkeys({modules!r})); "


@pytest.mark.parametrize(
    "code",
    [
        "import vivit_jax.models, vivit_jax.convert, vivit_jax.train_step",
        "import vivit_jax.compile.__main__, vivit_jax.compile.program",
        "sys.argv = ['cost', '--config=k400_vivit_b', '--nocompile']; "
        "import runpy; runpy.run_module('vivit_jax.cost', run_name='__main__')",
    ],
    ids=["library", "compile", "cost"],
)
def test_core_programs_need_no_extra(code):
    from vivit_jax.utils.extras import MODULES

    hidden = sorted(set.union(*MODULES.values()))
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(modules=hidden) + code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
