"""Worker processes: order of results, crashes, exceptions, and their end."""

import os
import signal
import time

import pytest

from vivit_jax.data import workers


def work(task):
    """Runs in the child: sleeps, dies or raises, by the kind of the task."""
    kind, value = task
    if kind == "sleep":
        time.sleep(value)
        return value, os.getpid()
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "die once":
        if not value.exists():
            value.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        others = [file.read_text() for file in value.parent.glob("at work*")]
        return [other for other in others if other]
    if kind == "note":
        value.write_text("at work")
        time.sleep(0.3)
        value.write_text("")
        return None
    if kind == "modules":
        import sys

        return sorted({name.split(".")[0] for name in sys.modules} & {"jax", "tensorflow", "flax"})
    raise ValueError(f"failed with {value}")


def dies_on_b(task):
    """Runs in the child of a build: a decoder that crashes on one file."""
    from vivit_jax.data.video import encode

    if task.path.stem == "b":
        os._exit(3)
    return encode.encode_file(task)


FUNCTION = "tests.data.test_workers:work"


def test_results_in_order_with_bounded_look_ahead():
    taken = []

    def tasks():
        for i in range(12):
            taken.append(i)
            yield ("sleep", 0.05 if i % 2 == 0 else 0.0)

    results = workers.ordered_map(FUNCTION, tasks(), workers=2, look_ahead=2)
    first = next(results)
    assert len(taken) <= 5
    values = [first, *results]
    assert [value for value, _ in values] == [0.05, 0.0] * 6
    assert len({process for _, process in values}) == 2
    assert os.getpid() not in {process for _, process in values}


def test_crash_affects_one_task():
    results = list(workers.ordered_map(FUNCTION, [("sleep", 0), ("die", 0), ("sleep", 0)], workers=1))
    assert isinstance(results[1], workers.WorkerError)
    assert "died" in str(results[1])
    assert results[0][0] == results[2][0] == 0


def test_killed_task_is_tried_once_more_alone(tmp_path):
    tasks = [("die once", tmp_path / "died"), *(("note", tmp_path / f"at work {i}") for i in range(4))]
    alone, *_ = workers.ordered_map(FUNCTION, tasks, workers=2)
    assert alone == []
    (dead,) = workers.ordered_map(FUNCTION, [("die", 0)], workers=1)
    assert "exit status -9: killed, perhaps for lack of memory" in str(dead)


def test_exception_is_raised_with_traceback():
    with pytest.raises(workers.WorkerError, match="failed with 7"):
        list(workers.ordered_map(FUNCTION, [("fail", 7)], workers=1))


def test_children_are_light_and_end_with_the_consumer():
    results = workers.ordered_map("vivit_jax.data.video.encode:encode_file", iter(()), workers=1)
    assert list(results) == []
    results = workers.ordered_map(FUNCTION, [("modules", 0)] * 2 + [("sleep", 0)], workers=1)
    assert next(results) == []
    next(results)
    _, process = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_no_workers():
    assert list(workers.ordered_map("builtins:abs", [-1, -2], workers=0)) == [1, 2]
    with pytest.raises(ValueError, match="workers is -1"):
        list(workers.ordered_map("builtins:abs", [1], workers=-1))
