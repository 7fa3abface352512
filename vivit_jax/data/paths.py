"""Names of the files in a folder of records, where the folder is, and what its summary says."""

import json
from typing import Any

from vivit_jax.utils import storage

VERSION = "1.0.0"
SUMMARY_FILE = "summary.json"  # counts of the build; written last, so that records with it are complete
CLASS_NAMES_FILE = "class_names.json"  # head -> name of each class id
REJECTS_FILE = "rejects.csv"  # rows or records that cannot be used, with the reason


def records_folder(name: str, data_dir: storage.PathLike) -> storage.AnyPath:
    """Returns the folder of the records of data set `name`: `data_dir/NAME/1.0.0`."""
    return storage.path(data_dir) / name / VERSION


def read_summary(folder: storage.PathLike) -> dict[str, Any]:
    """Returns the content of `summary.json`, {} where there is none; ValueError, with its path, if it is damaged."""
    path = storage.path(folder) / SUMMARY_FILE
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        numbers = [summary.get("short_side"), summary.get("rejects")]
        if all(isinstance(x, int | None) for x in numbers) and all(dict(of) for of in summary["splits"].values()):
            return summary
        problem = "a value of a wrong kind"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = repr(error)
    raise ValueError(f"{path} is damaged ({problem}): copy it again from its origin, or build the records again")
