"""The ledger of a run: its causes sum up to the time it took, over a kill; steps done twice count as repeated."""

import json
import os
import threading
import time
import types
from unittest import mock

import pytest

from tests.helpers.experiment import STEPS, experiment
from tests.helpers.interrupt import killed_after
from vivit_jax import train
from vivit_jax.utils import goodput, storage


def total(found):
    return sum(found["seconds"].values())


@pytest.mark.slow
@pytest.mark.long
def test_causes_of_an_interrupted_run_sum_up_to_its_time(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(goodput.Ledger, "_first", False)  # the clock of a program's first run starts with the program
    run, began = experiment(data_dir, checkpoint__every_steps=2), time.time()
    with killed_after(STEPS - 1), pytest.raises(KeyboardInterrupt):
        train.train(run, tmp_path)
    first = time.time() - began
    time.sleep(1.0)
    again = time.time()
    train.train(run, tmp_path)
    found = goodput.read(tmp_path)
    assert total(found) == pytest.approx(first + time.time() - again, rel=0.01)
    assert found["away"] > 0.9
    assert found["starts"] == 2
    assert {"step", "start", "compile", "data", "evaluation", "checkpoint", "repeated", "end"} <= set(found["seconds"])
    report = (tmp_path / "report.html").read_text()
    assert "Time by cause" in report
    assert "repeated" in report


def test_time_of_a_killed_process_after_its_last_line_is_lost(tmp_path):
    killed = goodput.Ledger()
    killed.open(tmp_path)
    killed.stepped(3)
    killed.write()
    killed._ended.set()  # no more signs of life
    file, now = tmp_path / goodput.FILE, time.time()
    with file.open("a") as torn:
        torn.write('\n{"started": 1, "st')
    os.utime(file, (now - 1, now + 2.0))  # it lived for two more seconds, and was away for five
    following = goodput.Ledger()
    following._line["started"] = now + 7.0
    following.open(tmp_path)
    following.stepped(3)
    following.stepped(4)
    following.write()
    following._ended.set()
    found = goodput.read(tmp_path)
    assert found["seconds"]["lost"] == pytest.approx(2.0, abs=1.0)
    assert found["away"] == pytest.approx(5.0, abs=1.0)
    assert following.parts.keys() == {"repeated", "step"}
    assert json.loads(file.read_text().splitlines()[-1])["step"] == 4


def test_wait_for_data_counts_only_where_the_devices_are_idle():
    ledger, computed = goodput.Ledger(), threading.Event()
    ledger.stepped(1, types.SimpleNamespace(block_until_ready=computed.wait))
    time.sleep(0.1)
    ledger.waited(2)
    assert ledger.parts["data"] < 0.1 <= ledger.parts["step"]
    computed.set()
    ledger._computed.result()
    time.sleep(0.1)
    ledger.waited(2)
    assert ledger.parts["data"] >= 0.1


def test_a_bucket_that_does_not_answer_does_not_end_the_run():
    class Refusal(Exception):
        """As TensorFlow's errors, no OSError."""

    message = "Error executing an HTTP request: libcurl code 6 meaning 'Could not resolve hostname'"
    ledger = goodput.Ledger()
    ledger._file = mock.Mock(open=mock.Mock(side_effect=Refusal(message)))
    ledger.write()
    assert storage.is_outage(Refusal(message))
    assert not storage.is_outage(Refusal("Error executing an HTTP request: HTTP response code 404"))
