"""A small model, and a server of it."""

import threading
import time

import numpy as np
import pytest

from tests.helpers.small_models import random_params, small_config
from tests.helpers.videos import numbered_video

LABELS = ["<b>one</b>", "two", "three", "four", "five"]


@pytest.fixture(scope="session")
def model(tmp_path_factory, video):
    import vivit_jax
    from vivit_jax import convert

    config = small_config()
    folder = tmp_path_factory.mktemp("serve") / "run"
    convert.save_params(random_params(config, dtype=np.float32), folder, "orbax", config, {"label": LABELS})
    predictor = vivit_jax.load(folder)
    predictor(video)  # compiles, for which TensorFlow writes temporary files
    return predictor


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    return numbered_video(tmp_path_factory.mktemp("uploads") / "clip.mp4", 50)


@pytest.fixture
def serve():
    """Returns a function that serves an app in a thread and returns its address."""
    uvicorn = pytest.importorskip("uvicorn")
    servers = []

    def start(app) -> str:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join()
