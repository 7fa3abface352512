"""Does damage to runs, checkpoints and videos, and counts what comes of it; the results are in docs/reliability.md.

    python -m benchmarks.chaos --workdir=/tmp/chaos [--kills=40] [--processes=1,2] [--damages=200] [--videos=2000]

* Kills: a small run is killed with SIGKILL at random times and started again by the same command until it is finished.
  Its last checkpoint must be that of an undisturbed run, to the bit, and no start may repeat more steps than lie
  between two checkpoints. With several processes a kill hits one of them, and the others must end by themselves.
* Damages: the newest step of a copied run is damaged (a bit, zeros, a file cut or removed) and restored. It must be the
  step as it was saved, or an older one, or an error of one line.
* Videos: encoded clips are mutated and decoded. Each must be decoded or rejected; no crash, no hang.

Prints a table and writes `chaos.json` to the workdir.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EVERY_STEPS = 10  # between two checkpoints
NUM_STEPS = 300
_EXIT_SECONDS = 120  # of the other processes after one was killed: twice what jax needs to notice
_DECODE_SECONDS = 60


def start(workdir: Path, data_dir: Path, processes: int) -> list[subprocess.Popen]:
    """Starts the processes of the small run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    model = {"hidden_size": 24, "num_layers": 2, "temporal_layers": 1, "mlp_dim": 32, "num_frames": 8}
    fields = {f"model.{name}": value for name, value in model.items()} | {
        "model.tubelet_size": "(4,14,14)", "data.dir": data_dir, "batch_size": 8, "num_steps": NUM_STEPS,
        "init_from.image_epochs": 0.0, "optimizer.warmup_epochs": 0.1, "log_every_steps": 1,
        "checkpoint.every_steps": EVERY_STEPS, "checkpoint.keep_latest": 3, "evaluation.every_epochs": 0.0,
        "evaluation.every_steps": 6 * EVERY_STEPS, "evaluation.num_videos": 64,
    }  # fmt: skip
    command = [sys.executable, "-m", "vivit_jax.main", "--config=moving_digits", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    children = []
    for process in range(processes):
        several = [f"--coordinator_address=localhost:{port}", f"--num_processes={processes}", f"--process_id={process}"]
        with open(f"{workdir}.{process}.log", "a") as log:
            arguments = command + (several if processes > 1 else [])
            children.append(subprocess.Popen(arguments, stdout=log, stderr=log, env=environment))
    return children


def finish(children: list[subprocess.Popen], seconds: float | None = None) -> list[int]:
    """Waits for processes and returns their exit codes; TimeoutExpired after `seconds`."""
    end = None if seconds is None else time.monotonic() + seconds
    return [child.wait(None if end is None else max(0.1, end - time.monotonic())) for child in children]


def logged_steps(workdir: Path) -> list[int]:
    """Returns the steps of a run's log in the order in which they were written."""
    from vivit_jax.utils import logs

    return [row["step"] for row in logs.read_lines(workdir / logs.METRICS_FILE) if "train/loss" in row]


def differing_arrays(first: Path, second: Path) -> int:
    """Returns how many arrays of two runs' last checkpoints differ in any bit."""
    import jax
    import orbax.checkpoint as ocp
    from jax.tree_util import tree_leaves_with_path

    def last(workdir: Path) -> dict[str, bytes]:
        folder, checkpointer = workdir / "checkpoints" / str(NUM_STEPS) / "state", ocp.PyTreeCheckpointer()
        # As NumPy arrays: those of several processes do not fit the devices of this one.
        names = checkpointer.metadata(folder).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        state = checkpointer.restore(folder, restore_args=arguments)
        return {str(path): np.asarray(leaf).tobytes() for path, leaf in tree_leaves_with_path(state)}

    first, second = last(first), last(second)
    return sum(first.get(name) != second.get(name) for name in first.keys() | second.keys())


def kill_and_resume(workdir: Path, data_dir: Path, processes: int, kills: int, rng: random.Random) -> dict[str, object]:
    """Runs once undisturbed and once with kills; returns the counts."""
    reference, disturbed = workdir / f"reference_{processes}", workdir / f"killed_{processes}"
    began = time.monotonic()
    if any(finish(start(reference, data_dir, processes))):
        raise RuntimeError(f"the undisturbed run failed: see {reference}.0.log")
    whole = time.monotonic() - began
    result = dict.fromkeys(
        ["runs", "kills", "kills while starting", "steps repeated at most", "arrays that differ at the end", "stuck"], 0
    )
    while True:
        before = logged_steps(disturbed)
        children = start(disturbed, data_dir, processes)
        try:
            # A life must be long enough to come further, or the run would never end.
            finish(children[:1], rng.uniform(0.1, 0.8) * whole if result["kills"] < kills else None)
        except subprocess.TimeoutExpired:
            rng.choice(children).send_signal(signal.SIGKILL)
            result["kills"] += 1
        try:
            codes = finish(children, _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            result["stuck"] += 1
            codes = [child.kill() or child.wait() for child in children]
        after = logged_steps(disturbed)[len(before) :]
        result["kills while starting"] += not after
        if before and after:
            result["steps repeated at most"] = max(result["steps repeated at most"], before[-1] + 1 - after[0])
        if not any(codes):
            result["runs"] += 1
            result["arrays that differ at the end"] += differing_arrays(reference, disturbed)
            if result["kills"] >= kills:
                return result
            shutil.rmtree(disturbed)
            continue
        if -signal.SIGKILL not in codes:
            raise RuntimeError(f"the run failed by itself ({codes}): see {disturbed}.0.log")


def damage(file: Path, kind: str, rng: random.Random) -> None:
    """Damages one file."""
    content = bytearray(file.read_bytes())
    if kind == "removed":
        file.unlink()
        return
    place = rng.randrange(max(1, len(content)))
    if kind == "bit" and content:
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == "cut":
        del content[place:]
    file.write_bytes(content)


def damage_checkpoints(workdir: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Damages the newest step of copies of a finished run and restores them; returns the counts."""
    import jax
    from absl import logging

    from vivit_jax.checkpoint import CheckpointError, Checkpoints
    from vivit_jax.config.experiment import Experiment
    from vivit_jax.train.setup import set_up

    logging.set_verbosity(logging.FATAL)
    experiment = Experiment.from_config(json.loads((workdir / "config.json").read_text()))
    setup = set_up(experiment, workdir)
    result = {"damaged": 0, "harmless": 0, "older step used": 0, "error": 0, "wrong state": 0, "other exception": 0}
    with jax.set_mesh(setup.mesh):
        with Checkpoints(workdir / "checkpoints", read_only=True) as sound:
            saved = {step: sound.restore(setup.program.state, step)[0] for step in sound.steps()}
        for _ in range(count):
            with tempfile.TemporaryDirectory(dir=workdir.parent) as folder:
                root = Path(folder) / "checkpoints"
                shutil.copytree(workdir / "checkpoints", root)
                newest = root / str(max(saved))
                files = sorted(file for file in newest.rglob("*") if file.is_file())
                for file in rng.sample(files, rng.choice([1, 1, 1, 3])):
                    damage(file, rng.choice(["bit", "zeros", "cut", "removed"]), rng)
                result["damaged"] += 1
                try:
                    with Checkpoints(root) as checkpoints:
                        state, _ = checkpoints.restore(setup.program.state)
                except CheckpointError:
                    result["error"] += 1
                    continue
                except Exception as error:
                    result["other exception"] += 1
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                    continue
                expected = saved.get(int(state.step))
                same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), state, expected)
                if not jax.tree.all(same):
                    result["wrong state"] += 1
                else:
                    result["harmless" if int(state.step) == max(saved) else "older step used"] += 1
    return result


def encode(file: Path, codec: str, frames: int = 24) -> None:
    """Encodes a clip of moving noise."""
    import av

    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (96, 160, 3), np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in range(frames):
            image = av.VideoFrame.from_ndarray(np.roll(texture, 3 * frame, axis=1), "rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Returns a file with one to twenty mutations."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        # The headers are a small part of a file, and the one whose damage matters most.
        place = rng.randrange(min(len(data), 512) if rng.random() < 0.4 else len(data)) if data else 0
        length = rng.choice([1, 4, 64, 1024])
        kind = rng.choice(["bits", "bytes", "zeros", "removed", "repeated", "cut"])
        piece = data[place : place + length]
        if kind == "bits" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            data[place : place + length] = rng.randbytes(len(piece))
        elif kind == "zeros":
            data[place : place + length] = bytes(len(piece))
        elif kind == "removed":
            del data[place : place + length]
        elif kind == "repeated":
            data[place:place] = piece
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


def _decode(file: str, connection: object) -> None:
    """Decodes one file in a process of its own, and sends what came of it."""
    import logging

    from vivit_jax.data.video import decode

    logging.disable()
    try:
        frames = sum(1 for frame in decode.iterate_frames(file) if frame.image is not None)
        connection.send("decoded" if frames else "decoded, but empty")
    except decode.VideoError:
        connection.send("rejected")
    except BaseException as error:
        print(f"{file}: {type(error).__name__}: {error}", file=sys.stderr)
        connection.send("other exception")


def mutate_videos(folder: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Decodes mutated clips; returns the counts. A clip that crashes or hangs stays in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for name, codec in [("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.webm", "libvpx"), ("d.mkv", "mjpeg")]:
        encode(folder / name, codec)
        clips.append((folder / name).read_bytes())
    import vivit_jax.data.video.decode  # noqa: F401 (before the forks, so that each need not import it)

    context = multiprocessing.get_context("fork")
    outcomes = ("decoded", "decoded, but empty", "rejected", "other exception", "crash", "hang")
    result = {"videos": 0} | dict.fromkeys(outcomes, 0)
    for number in range(count):
        kind = rng.randrange(len(clips))
        file = folder / f"mutated_{number}{['.mp4', '.avi', '.webm', '.mkv'][kind]}"
        file.write_bytes(mutate(clips[kind], rng))
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_decode, args=(str(file), sender))
        child.start()
        child.join(_DECODE_SECONDS)
        outcome = "hang" if child.is_alive() else receiver.recv() if receiver.poll() else "crash"
        child.kill()
        child.join()
        receiver.close(), sender.close()
        result["videos"] += 1
        result[outcome] += 1
        if outcome in ("decoded", "rejected"):
            file.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="empty or new folder for runs, copies and clips")
    parser.add_argument("--kills", type=int, default=40, help="for each number of processes; 0: none")
    parser.add_argument("--processes", default="1,2", help="numbers of processes to kill")
    parser.add_argument("--damages", type=int, default=200, help="damaged checkpoints; they need the killed runs")
    parser.add_argument("--videos", type=int, default=2000, help="mutated videos")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    workdir, rng = flags.workdir.absolute(), random.Random(flags.seed)
    workdir.mkdir(parents=True, exist_ok=True)
    results = {}
    if flags.videos:
        results["mutated videos"] = mutate_videos(workdir / "videos", flags.videos, rng)
    for processes in map(int, flags.processes.split(",") if flags.kills else ()):
        name = f"kills of {processes} process{'es' if processes > 1 else ''}"
        results[name] = kill_and_resume(workdir, workdir / "data", processes, flags.kills, rng)
        print(name, results[name], flush=True)
    if flags.damages:
        run = min(workdir.glob("killed_*/checkpoints"), default=None)
        if run is None:
            parser.error("--damages needs a run of --kills in the workdir")
        results["damaged checkpoints"] = damage_checkpoints(run.parent, flags.damages, rng)
    (workdir / "chaos.json").write_text(json.dumps(results, indent=1))
    print("| damage | result |\n|---|---|")
    for name, counts in results.items():
        print(f"| {name} | {', '.join(f'{what}: {count}' for what, count in counts.items())} |")


if __name__ == "__main__":
    main()
