"""The log after damage: torn lines, and messages of Orbax and TensorStore."""

import logging

from absl import logging as absl_logging

from vivit_jax.utils import goodput, logs, storage


def test_a_line_begins_on_its_own_after_a_torn_one(tmp_path):
    file = tmp_path / logs.METRICS_FILE
    file.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    for step in (3, 4):
        logs.JsonLinesWriter(file).write_scalars(step, {"a": step})
    assert [row["step"] for row in logs.read_lines(file)] == [1, 3, 4]
    assert len(file.read_text().splitlines()) == 4


def test_damaged_lines_are_skipped(tmp_path):
    file, line = tmp_path / logs.METRICS_FILE, b'{"step": 1, "a": 1.0}'
    file.write_bytes(b"\n".join([line, b"\xff", b"17", b"null", b'"step"', b"[1]", b'{"a": 1}', b'{"st\x00', line]))
    assert list(logs.read_lines(file)) == [{"step": 1, "a": 1.0}] * 2
    (tmp_path / goodput.FILE).write_bytes(b'{"step": 1, "time": 2.0, "seconds": {}}\n17\n\xff')
    assert goodput.read(tmp_path) == {}


def test_orbax_is_heard_with_verbosity_1_alone():
    record = logging.LogRecord(
        "absl", logging.ERROR, "/x/orbax/checkpoint/a.py", 1, "Failed to write metadata", (), None
    )
    assert not logs._is_relevant(record)
    absl_logging.set_verbosity(1)
    assert logs._is_relevant(record)


def test_the_reason_is_a_line_of_tensorstore():
    cause = ValueError('DATA_LOSS: Error decoding local file "f": Truncated [tensorstore_spec=\'{\\"a\\": 1}\']')
    error = Exception("while reading. See full TensorStore details: TensorStore({\n 'base': {}})")
    error.__cause__ = cause
    assert storage.reason(error) == 'DATA_LOSS: Error decoding local file "f": Truncated'
    assert storage.reason(OSError(5, "Input/output error")) == "[Errno 5] Input/output error"
