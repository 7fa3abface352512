"""tf.data service: other machines make the training clips, in the same exact order.

    python -m vivit_jax.data.service --port=5050 --host=host1          (on host1; likewise on host2)

and in the config of the run `data.service_address = "grpc://host1:5050,grpc://host2:5050"`. All machines must see the
records under the same path.

Machine i of W, in the order of the config, makes the clips i, i + W, i + 2 W, ... of a process's stream, and the reader
takes from the machines in turn. Each machine is a dispatcher with one worker: with several workers behind one
dispatcher, no mode of the service keeps an order. The slowest machine sets the pace; one that dies stops the run.
"""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Callable, Sequence

from vivit_jax.data.host_tf import tf

_ADDRESS = re.compile(r"grpc://(?P<host>[^:/,]+|\[[^\]]+\]):(?P<port>\d+)")


class ServiceError(ValueError):
    """The service cannot be used: a malformed or duplicate address, or no service there."""


class Server:
    """A dispatcher and its worker, in threads of this process; `address` is "grpc://host:port", for the config."""

    def __init__(self, port: int = 0, host: str = "localhost", worker_port: int = 0):
        service = tf.data.experimental.service
        self._dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        port = self._dispatcher.target.rpartition(":")[2]
        config = service.WorkerConfig(f"localhost:{port}", worker_address=f"{host}:%port%", port=worker_port)
        self._worker = service.WorkerServer(config)
        self.address = f"grpc://{host}:{port}"

    def join(self) -> None:
        self._dispatcher.join()

    def stop(self) -> None:
        # TensorFlow has this for its own tests; the servers also stop when they are garbage-collected.
        self._worker._stop()
        self._dispatcher._stop()


def addresses_of(text: str, timeout: float = 10.0) -> list[str]:
    """Splits "grpc://host:port,grpc://host:port" into addresses, and checks each: TensorFlow would wait for hours."""
    addresses = [part.strip() for part in text.split(",")]
    if len(set(addresses)) != len(addresses):
        raise ServiceError(f"data.service_address={text!r} names a machine twice")
    for address in addresses:
        match = _ADDRESS.fullmatch(address)
        if match is None:
            form = "grpc://host:port (several: with commas)"
            raise ServiceError(f"data.service_address: {address!r} is not of the form {form}")
        try:
            socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout).close()
        except OSError as error:
            raise ServiceError(
                f"no tf.data service at {address} ({error}); start it there: "
                f"python -m vivit_jax.data.service --port={match['port']} --host={match['host']}"
            ) from None
    return addresses


def distribute(
    positions: tf.data.Dataset, make: Callable[[tf.data.Dataset], tf.data.Dataset], addresses: Sequence[str]
) -> tf.data.Dataset:
    """Returns `make(positions)`, computed by the machines of a service, in the same order.

    `positions` is endless, and `make` maps each element to one, independently of earlier ones.
    """
    service = tf.data.experimental.service
    # No compression: of pixels it would cost more than it saves.
    remote = [service.distribute(service.ShardingPolicy.OFF, address, compression=None) for address in addresses]
    parts = [make(positions.shard(len(addresses), i)).apply(part) for i, part in enumerate(remote)]
    turns = tf.data.Dataset.range(len(parts)).repeat()
    return tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="port of the service; 0 for any free one")
    parser.add_argument("--host", default=socket.getfqdn(), help="name by which others reach this machine")
    parser.add_argument("--worker_port", type=int, default=0, help="port that serves the clips; default: any free one")
    flags = parser.parse_args(argv)
    server = Server(flags.port, flags.host, flags.worker_port)
    print(f"making clips; data.service_address={server.address}", flush=True)
    server.join()


if __name__ == "__main__":
    main()
