"""Every command of the documentation is valid: programs parse it, launch scripts accept it in a dry run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.digits import build_digits

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# External programs, whose command lines are not checked.
FOREIGN = {"awk", "cd", "curl", "export", "ffmpeg", "gcloud", "kubectl", "ls", "source", "tensorboard", "tfds"}


class Command(NamedTuple):
    page: str
    line: int
    words: tuple[str, ...]
    whole: bool  # in prose, required flags may be left out


def commands() -> list[Command]:
    """The commands of all ```bash blocks, and those in backticks that begin with `python -m vivit_jax`."""
    found = []
    for page in PAGES:
        text = page.read_text()
        inline = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S | re.M)
        for block in re.finditer(r"^```bash\n(.*?)^```", text, re.S | re.M):
            first = text[: block.start(1)].count("\n") + 1
            variables = {}
            for number, line in _logical_lines(block[1], first):
                assigned = re.fullmatch(r"(\w+)=(\S+|\".*?\")(?:\s+#.*)?", line)
                if assigned:
                    variables["$" + assigned[1]] = assigned[2].strip('"')
                    continue
                for name, value in variables.items():
                    line = line.replace(name, value)
                line = re.sub(r"\"\$\(.*?\)\"", "SUBSTITUTED", line)
                for part in re.split(r"\s&&\s|\s\|\s", line):
                    words = shlex.split(part, comments=True)
                    if words:
                        found.append(Command(page.name, number, tuple(words), True))
        for match in re.finditer(r"`(python -m (?:vivit_jax|benchmarks)[^`]*)`", inline):
            words = tuple(shlex.split(match[1].replace("\n", " "), comments=True))
            if len(words) > 3:  # a program's name alone is checked by test_programs_exist
                found.append(Command(page.name, inline[: match.start()].count("\n") + 1, words, False))
    return found


def _logical_lines(block: str, first: int):
    whole, start = "", first
    for number, line in enumerate(block.splitlines(), start=first):
        start = start if whole else number
        whole += line.rstrip("\\").strip() + " " if line.endswith("\\") else line
        if not line.endswith("\\"):
            yield start, whole
            whole = ""


COMMANDS = commands()


def of_module() -> dict[str, list[Command]]:
    """{module: its commands}."""
    grouped = defaultdict(list)
    for command in COMMANDS:
        if command.words[:2] == ("python", "-m") and command.words[2].startswith(("vivit_jax", "benchmarks")):
            grouped[command.words[2]].append(command)
    return grouped


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(of_module()))
def test_program_accepts_documented_flags(module):
    documented = of_module()[module]
    argv = [[_example(word) for word in command.words[3:]] for command in documented]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.dry_run", module],
        input=json.dumps(argv), capture_output=True, text=True, cwd=REPOSITORY, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    wrong = [
        f"{command.page}:{command.line}: {shlex.join(command.words)}\n  {error}"
        for command, error in zip(documented, errors, strict=True)
        if error and (command.whole or not re.search(r"must have a value|arguments are required", error))
    ]
    assert not wrong, "\n".join(wrong)


def _example(word: str) -> str:
    """Puts an existing config in the place of a placeholder."""
    return re.sub(r"^--config=(CONFIG|FILE)$", "--config=configs/study.py", word)


def test_programs_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    for module in sorted(set(re.findall(r"python -m ((?:vivit_jax|benchmarks)[\w.]*\w)", text))):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.words[0].startswith("launch/")], ids=lambda c: f"{c.page}:{c.line}"
)
def test_launch_script_accepts_documented_flags(command):
    # Placeholders in capitals are no valid names of buckets and projects.
    script, *arguments = (re.sub(r"\b[A-Z_]{4,}\b", lambda m: m[0].lower(), word) for word in command.words)
    assert (REPOSITORY / script).is_file()
    if script in ("launch/quickstart.sh", "launch/test.sh"):  # CI runs them
        return
    at = arguments.index("--") if "--" in arguments else len(arguments)
    arguments = [*arguments[:at], "--dry-run", *arguments[at:]]
    done = subprocess.run([REPOSITORY / script, *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr


def test_installed_extras_exist():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(page.read_text() for page in [*PAGES, *(REPOSITORY / "launch").glob("*.sh")])
    named = re.findall(r"pip install[^\n`]*?(?:vivit_jax|\.)\[([\w,]+)\]", text)
    assert named
    assert not {name for group in named for name in group.split(",")} - set(extras)


def test_no_command_is_left_unchecked():
    checked = {"python", "pip", "python3.13", "sbatch", ".venv/bin/pip"} | FOREIGN
    unknown = {c.words[0] for c in COMMANDS if not c.words[0].startswith("launch/")} - checked
    assert not unknown


# Makes the embedded job small.
SMALL = [
    "--config.num_steps=2", "--config.batch_size=8", "--config.optimizer.warmup_epochs=0.",
    "--config.evaluation.every_epochs=0.", "--config.evaluation.batch_size=8", "--config.model.hidden_size=12",
    "--config.model.num_heads=2", "--config.model.mlp_dim=16", "--config.compilation_cache=off",
    "--config.init_from.image_epochs=1.0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_readme_programs_run(tmp_path):
    """Commands on the embedded data set do their work; the others end in an error that names what is missing."""
    build_digits(tmp_path / "data", 32, 16)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    videos = sorted((tmp_path / "data" / "moving_digits" / "videos").rglob("*.mp4"))
    for name, video in zip(("clip.mp4", "another.webm"), videos, strict=False):
        shutil.copy(video, tmp_path / name)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    succeeded = set()
    for command in COMMANDS:
        if command.page != "README.md" or not command.whole or command.words[:2] != ("python", "-m"):
            continue
        if command.words[2] == "vivit_jax.serve":  # does not end
            continue
        words = [re.sub(r"^--config=(CONFIG|FILE)$", "--config=configs/moving_digits.py", w) for w in command.words[1:]]
        embedded = "--config=configs/moving_digits.py" in words
        if embedded and command.words[2] in ("vivit_jax.main", "vivit_jax.probe"):
            words += SMALL
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900
        )
        assert "Traceback" not in done.stderr, f"{command}: {done.stderr[-2000:]}"
        if done.returncode == 0:
            succeeded.add((command.words[2], embedded))
        else:
            assert done.returncode == 1, f"{command}: {done.stderr[-2000:]}"
            assert "error: " in done.stderr, command
    assert {("vivit_jax.main", True), ("vivit_jax.predict", False), ("vivit_jax.convert", False)} <= succeeded
