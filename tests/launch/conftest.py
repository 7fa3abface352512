"""Fake programs on PATH (gcloud, kubectl, ...): they record their arguments and print prepared answers."""

import json
import os
import stat
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PROGRAM = """#!{python} -S
import fcntl, json, os, re, sys
folder = os.environ["FAKE_FOLDER"]
name = os.path.basename(sys.argv[0])
alone = open(os.path.join(folder, "lock"), "w")
fcntl.flock(alone, fcntl.LOCK_EX)  # scripts start several programs at once
with open(os.path.join(folder, "calls"), "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if "--filename=-" in sys.argv:  # read to the end, else the writer gets a broken pipe
    with open(os.path.join(folder, "stdin"), "w") as file:
        file.write(sys.stdin.read())
line = " ".join([name, *sys.argv[1:]])
path = os.path.join(folder, "answers")
answers = json.load(open(path))
for pattern, queue in answers:
    if re.search(pattern, line):
        code, out, err = queue.pop(0) if len(queue) > 1 else queue[0]
        with open(path, "w") as file:
            json.dump(answers, file)
        print(out, end="\\n" if out else "")
        print(err, end="\\n" if err else "", file=sys.stderr)
        sys.exit(code)
"""


class Fake:
    """Runs a launch script with fake programs on PATH.

    `answer(pattern, ...)` sets the answers to command lines that match the pattern, used in turn, the last repeatedly:
    a text for standard output, or (exit code, standard error). Other commands succeed without output. The standard
    input of a command with `--filename=-` is in the folder's file `stdin`.
    """

    def __init__(self, folder, *programs):
        self.folder, self._answers = folder, []
        for program in programs:
            path = folder / "bin" / program
            path.parent.mkdir(exist_ok=True)
            path.write_text(PROGRAM.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IEXEC)
        (folder / "calls").touch()

    def answer(self, pattern, *answers):
        self._answers.append((pattern, [(0, a, "") if isinstance(a, str) else (a[0], "", a[1]) for a in answers]))

    def run(self, *arguments, **variables):
        (self.folder / "answers").write_text(json.dumps(self._answers))
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_FOLDER": str(self.folder),
            "VIVIT_JAX_SLEEP": "true",
            **variables,
        }
        return subprocess.run(
            [str(a) for a in arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def calls(self):
        """The recorded command lines, each a list."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def fake(tmp_path):
    return lambda *programs: Fake(tmp_path, *programs)
