"""tf.data service: two servers on this machine give the same batches as one process."""

import numpy as np
import pytest

from tests.helpers.batches import VARIED, assert_same, take
from vivit_jax.data import pipeline, service
from vivit_jax.data.config import PipelineOptions
from vivit_jax.data.host_tf import tf
from vivit_jax.data.records.split import open_split


@pytest.fixture(scope="module")
def machines():
    servers = [service.Server(), service.Server()]
    yield [server.address for server in servers]
    for server in servers:
        server.stop()


@pytest.mark.parametrize(("step", "rows"), [(0, None), (900_000, (3, 8))])
def test_two_machines_give_equal_batches(tiny_records, machines, step, rows):
    train = open_split(tiny_records, "train")
    arguments = {"batch_size": 10, "seed": 3, "start_step": step, "rows": rows}
    expected = take(pipeline.train_batches(train, VARIED, **arguments), 4)
    batches = pipeline.train_batches(
        train, VARIED, **arguments, options=PipelineOptions(service_address=",".join(machines))
    )
    assert machines[1] in batches.description
    for first, second in zip(expected, take(batches, 4), strict=True):
        assert_same(first, second)


def test_two_workers_at_one_address_are_an_error(tiny_records):
    """They would hand out every clip twice."""
    train = open_split(tiny_records, "train")
    server = service.Server()
    config = tf.data.experimental.service.WorkerConfig(dispatcher_address=server.address.removeprefix("grpc://"))
    second = tf.data.experimental.service.WorkerServer(config)
    batches = pipeline.train_batches(train, VARIED, 8, seed=0, options=PipelineOptions(service_address=server.address))
    with batches, pytest.raises(RuntimeError, match="no address has more than one worker"):
        list(batches)
    second._stop()
    server.stop()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:1", "not of the form grpc://host:port"),
        ("grpc://localhost:1", "no tf.data service at grpc://localhost:1 .*--port=1 --host=localhost"),
        ("grpc://a:1,grpc://a:1", "names a machine twice"),
    ],
)
def test_address_without_service_is_an_error(tiny_records, address, message):
    train = open_split(tiny_records, "train")
    with pytest.raises(service.ServiceError, match=message):
        pipeline.train_batches(train, VARIED, 8, seed=0, options=PipelineOptions(service_address=address))


def test_out_of_order_batches_are_an_error(tiny_records):
    train = open_split(tiny_records, "train")
    batches = pipeline.train_batches(train, VARIED, 8, seed=0)
    batches.step = 1  # as if batch 0 had been taken
    with batches, pytest.raises(RuntimeError, match=r"batch 1 holds the positions \[0, 1, .*not \[8, 9"):
        next(batches)


def test_batches_have_no_position(tiny_records):
    train = open_split(tiny_records, "train")
    (batch,) = take(pipeline.train_batches(train, VARIED, 8, seed=0), 1)
    assert set(batch) == {"video", "label", "mask", "index"}
    assert np.ndim(batch["index"]) == 1
