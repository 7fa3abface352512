"""tf.data service: other machines make the clips, in the same exact order.

    python -m vivit_jax.data.service --port=5050 --host=host1          (on host1; so on host2)

and in the config of the run `data.service_address = "grpc://host1:5050,grpc://host2:5050"`. All machines see
the records under the same path.

How the order is kept: machine i of W, by its place in the config, makes the clips i, i + W, i + 2 W, ... of a process's
stream, and the reader takes from the machines in turn. Each machine is a service by itself, a dispatcher with one
worker: with several workers behind one dispatcher, no mode of the service keeps an order (`OFF` hands out every clip
once a worker, `DYNAMIC`, `DATA` and `HINT` what is ready, and even coordinated reads take the workers in an order of
their own). The price is that the slowest machine sets the pace, and one that dies holds up the stream until the run is
started again.
"""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Callable, Sequence

from vivit_jax.data.host_tf import tf

_ADDRESS = re.compile(r"grpc://(?P<host>[^:/,]+|\[[^\]]+\]):(?P<port>\d+)")


class ServiceError(ValueError):
    """The service cannot be used: no address, the same one twice, nobody there."""


class Server:
    """A dispatcher and its worker, in threads of this process, until `stop`.

    Args:
      port: to be reached at; 0 for any free one.
      host: name by which the machines that train reach this one.
      worker_port: that the clips come from; 0 for any free one.

    Attributes:
      address: "grpc://host:port", for the config.
    """

    def __init__(self, port: int = 0, host: str = "localhost", worker_port: int = 0):
        service = tf.data.experimental.service
        self._dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
        port = self._dispatcher.target.rpartition(":")[2]
        self._worker = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=f"localhost:{port}", worker_address=f"{host}:%port%", port=worker_port
            )
        )
        self.address = f"grpc://{host}:{port}"

    def join(self) -> None:
        """Waits for ever."""
        self._dispatcher.join()

    def stop(self) -> None:
        """Ends it; whoever reads from it gets an error."""
        # What TensorFlow has for its own tests; the servers also end when they are collected.
        self._worker._stop()
        self._dispatcher._stop()


def addresses_of(text: str, seconds: float = 10.0) -> list[str]:
    """The addresses in "grpc://host:port,grpc://host:port", where somebody listens. TensorFlow would wait for hours.

    Raises:
      ServiceError: an address of another form, one that comes twice, or one where nobody listens.
    """
    addresses = [part.strip() for part in text.split(",")]
    if len(set(addresses)) != len(addresses):
        raise ServiceError(f"data.service_address={text!r} names a machine twice")
    for address in addresses:
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise ServiceError(
                f"data.service_address: {address!r} is not of the form grpc://host:port (several: with commas)"
            )
        try:
            socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=seconds).close()
        except OSError as error:
            raise ServiceError(
                f"no tf.data service at {address} ({error}); start it there: "
                f"python -m vivit_jax.data.service --port={match['port']} --host={match['host']}"
            ) from None
    return addresses


def distribute(
    positions: tf.data.Dataset, make: Callable[[tf.data.Dataset], tf.data.Dataset], addresses: Sequence[str]
) -> tf.data.Dataset:
    """`make(positions)`, made by the machines of a service, in the order that it has without them.

    Args:
      positions: endless.
      make: maps each element of a data set to one; must not depend on what was before.
      addresses: of the machines. Each process of a run makes jobs of its own there, for its own rows.
    """
    service = tf.data.experimental.service
    parts = [
        make(positions.shard(len(addresses), place)).apply(
            # Without compression: of pixels it would cost more than it saves.
            service.distribute(processing_mode=service.ShardingPolicy.OFF, service=address, compression=None)
        )
        for place, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(len(parts)).repeat()
    return tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="to be reached at; 0 for any free one")
    parser.add_argument("--host", default=socket.getfqdn(), help="name by which others reach this machine")
    parser.add_argument("--worker_port", type=int, default=0, help="that the clips come from; default: any free one")
    flags = parser.parse_args(argv)
    server = Server(flags.port, flags.host, flags.worker_port)
    print(f"making clips; data.service_address={server.address}", flush=True)
    server.join()


if __name__ == "__main__":
    main()
