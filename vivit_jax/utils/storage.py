"""Files on local disks or in a bucket, through one interface.

`etils.epath` accesses the URIs it knows (gs://, s3://, ...) through `tf.io.gfile`; all other paths are `pathlib.Path`.
Here is what the two do not share. Requests to a bucket, which take tens of milliseconds, run in parallel.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import tokenize
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

PathLike = str | os.PathLike
# A local path, or a path in a bucket; `epath.Path` has the methods of `pathlib.Path`.
AnyPath = Path | epath.Path
_PARALLEL_REQUESTS = 32
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
# Outages in the errors of TensorStore and TensorFlow, which are no OSError.
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")
_FULL = {errno.ENOSPC, errno.EDQUOT}
# With the status RESOURCE_EXHAUSTED, which a device whose memory is full, or a bucket that limits requests, has too.
_FULL_MESSAGE = re.compile(r"No space left|Dis[ck] quota exceeded")
# What np.load raises for a damaged file.
NPZ_ERRORS = (zipfile.BadZipFile, tokenize.TokenError, EOFError, NotImplementedError, TypeError, ValueError)
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_STATUS = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|"
    r"(Unavailable|DeadlineExceeded|PermissionDenied|Unauthenticated|ResourceExhausted|Aborted|Cancelled)Error|"
    r"libcurl code \d+)\b"  # no such host, or no route to it: FailedPreconditionError
)


def is_remote(path_like: PathLike) -> bool:
    """Returns whether a path is a URI."""
    return _URI.match(os.fspath(path_like)) is not None


def is_outage(error: BaseException | None) -> bool:
    """Returns whether reading failed for a reason that says nothing about the file: a disk or bucket that does not
    answer, no permission, no memory. A file that is absent or cut short, or holds something else, is no outage."""
    while error is not None:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if isinstance(error, OSError | MemoryError) and not absent:
            return True
        codes = {int(code) for code in _OS_ERROR_CODE.findall(str(error))}
        if codes - _ABSENT or _STATUS.search(f"{type(error).__name__} {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_full(error: BaseException) -> bool:
    """Returns whether writing failed because the disk, or a quota, is full."""
    return getattr(error, "errno", None) in _FULL or _FULL_MESSAGE.search(str(error)) is not None


@contextlib.contextmanager
def optional(what: str) -> Iterator[None]:
    """Logs an error of the storage instead of raising it, once a minute: for files that a run can do without."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        logging.log_every_n_seconds(logging.ERROR, "%s cannot be written: %s", 60, what, error)


def reason(error: BaseException) -> str:
    """Returns the message of an error; of TensorStore's the part that says why, without specifications of pages."""
    while "TensorStore" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return re.split(r" \[(?:tensorstore_spec|source locations)=|\. See full TensorStore", str(error))[0]


def path(path_like: PathLike) -> AnyPath:
    """Returns the path object of a local path or a URI."""
    if not is_remote(path_like):
        return Path(path_like)
    text = os.fspath(path_like)
    try:
        return epath.Path(text)
    except KeyError as error:
        raise ValueError(
            f"{text}: {error.args[0]} is not a known kind of storage; use gs:// (Google Cloud Storage) or another that "
            f"etils.epath and TensorFlow support. A local file of this name is ./{text}"
        ) from None


def under(folder: PathLike, name: str) -> AnyPath:
    """Returns `folder / name`, or `name` itself if it is absolute or a URI."""
    return path(name) if is_remote(name) or os.path.isabs(name) else path(folder) / name


def absolute(path_like: PathLike) -> AnyPath:
    """Returns the absolute path; a URI as it is."""
    return path(path_like) if is_remote(path_like) else Path(path_like).absolute()


def names(folder: PathLike) -> list[str]:
    """Returns the sorted names of the files and folders in a folder; [] if it does not exist."""
    folder = path(folder)
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def size(file: PathLike) -> int:
    """Returns the size of a file in bytes."""
    return epath.Path(file).stat().length if is_remote(file) else os.stat(file).st_size


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Returns `function` of each item, called from several threads: for requests to a bucket."""
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return list(pool.map(function, items))


def absence(file: AnyPath) -> str:
    """Returns why a path is no file: "no such file", or what it is instead."""
    kind = None if is_remote(file) or not file.exists() else _KINDS.get(stat.S_IFMT(os.stat(file).st_mode))
    return f"{kind}, not a file" if kind else "no such file"


def sizes(files: Iterable[PathLike]) -> list[int | None]:
    """Returns the size of each file in bytes, None for a missing one."""

    def size_or_none(file: PathLike) -> int | None:
        try:
            return size(file)
        except FileNotFoundError:
            return None

    return in_parallel(size_or_none, files)


def write(file: PathLike, content: bytes | str) -> None:
    """Writes a file, whole or not at all; text as UTF-8, with escapes for names of files that are not."""
    with written(file) as partial:
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def written(file: PathLike) -> Iterator[Path]:
    """Yields a local path to write a file or folder to, which becomes `file` at the end; not if the context raises."""
    file = path(file)
    if is_remote(file):
        with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
            partial = Path(folder) / file.name
            yield partial
            copy(partial, file)
        return
    # A unique name: several processes may write the same file.
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


@contextlib.contextmanager
def local(file: PathLike) -> Iterator[Path]:
    """Yields the file on a local disk, for readers that seek: itself, or a temporary copy of one in a bucket."""
    file = path(file)
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="vivit_jax-") as folder:
        local_copy = Path(folder) / file.name
        file.copy(local_copy)
        yield local_copy


@contextlib.contextmanager
def locked(file: PathLike, problem: Exception) -> Iterator[None]:
    """Locks a local file or folder until the end of the context or process; raises `problem` where another one has it.

    Some network disks have no locks: there, nothing is locked.
    """
    import fcntl

    descriptor = os.open(file, os.O_RDONLY if os.path.isdir(file) else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise problem from error
    except OSError:
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def copy(source: PathLike, target: PathLike) -> None:
    """Copies a local file, or all files of a local folder, to `target`; replaces files that exist there."""
    source, target = Path(source), epath.Path(target)
    if source.is_file():
        epath.Path(source).copy(target, overwrite=True)
    for file in sorted(source.rglob("*")):
        if file.is_file():
            destination = target / file.relative_to(source).as_posix()
            destination.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(file).copy(destination, overwrite=True)
