"""The packages import downward only (docs/architecture.md)."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "vivit_jax"
# From the bottom to the top. A package imports those of lower layers, and itself.
LAYERS = (
    {"utils"},
    {"distributed"},
    {"data", "optim", "sharding", "checkpoint"},
    {"models", "augment"},
    {"train_step"},
    {"config"},
    {"evaluation", "convert", "cost"},
    {"finetuning"},
    {"report", "preview", "predict"},
    {"train"},
    {"main", "sweep", "probe", "compile", "export", "serve"},
    {"features"},
    {"search"},
)
DATA_LAYERS = (
    {"workers", "host_tf", "video", "paths"},
    {"catalog"},
    {"annotations"},
    {"records"},
    {"selection"},
    {"config", "moving_digits"},
    {"pipeline"},
    {"build"},
    {"open", "index", "verify"},
)
FRAMEWORKS = {"tensorflow", "tensorflow_datasets", "clu"}  # of the extra `train`
LIGHT = {"models", "augment", "train_step", "optim", "sharding", "convert"}


def imports(folder: Path):
    """(file, dotted module or name) of every import in a folder."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)


def upward(root: Path, prefix: str, layers) -> list[str]:
    layer = {name: number for number, names in enumerate(layers) for name in names}
    found = []
    for file, target in imports(root):
        here = file.relative_to(root).parts[0].removesuffix(".py")
        if here == "__init__" or not target.startswith(prefix):
            continue
        there = target.removeprefix(prefix).split(".")[0]
        if there in layer and there != here and layer[there] >= layer[here]:
            found.append(f"{file.relative_to(PACKAGE)} imports {target}")
    return found


def test_imports_run_downward():
    assert upward(PACKAGE, "vivit_jax.", LAYERS) == []


def test_imports_run_downward_in_data():
    assert upward(PACKAGE / "data", "vivit_jax.data.", DATA_LAYERS) == []


def test_light_packages_import_no_training_framework():
    heavy = [
        f"{file.relative_to(PACKAGE)} imports {target}"
        for file, target in imports(PACKAGE)
        if file.relative_to(PACKAGE).parts[0].removesuffix(".py") in LIGHT and target.split(".")[0] in FRAMEWORKS
    ]
    assert heavy == []
