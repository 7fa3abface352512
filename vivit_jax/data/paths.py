"""Names of the files in a folder of records, and where the folder is."""

from vivit_jax.utils import storage

VERSION = "1.0.0"
SUMMARY_FILE = "summary.json"  # counts of the build; written last, so that records with it are complete
CLASS_NAMES_FILE = "class_names.json"  # head -> name of each class id
REJECTS_FILE = "rejects.csv"  # rows or records that cannot be used, with the reason


def records_folder(name: str, data_dir: storage.PathLike) -> storage.AnyPath:
    """Returns the folder of the records of data set `name`: `data_dir/NAME/1.0.0`."""
    return storage.path(data_dir) / name / VERSION
