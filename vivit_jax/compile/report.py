"""What the compiler found, in words."""

from __future__ import annotations

from vivit_jax.compile import slices
from vivit_jax.compile.ahead import Compiled, compile_ahead
from vivit_jax.compile.program import Target
from vivit_jax.compile.search import largest_batch
from vivit_jax.compile.slices import Slice
from vivit_jax.train import compiled_step, throughput

GIB = slices.GIB


def tell(target: Target, slice_: Slice, step: str) -> bool:
    """Compiles a step, 'train' or 'eval', at the config's batch size, and prints what it needs; whether it fits."""
    experiment = target.experiment
    training = step == "train"
    batch = experiment.batch_size if training else experiment.evaluation.batch_size
    clips = target.clips_per_part(batch)
    axes = ", ".join(f"{axis} {size}" for axis, size in dict(target.mesh.shape).items() if size > 1) or "one device"
    model = experiment.model_config(target.heads)
    what = f"training step, {batch} clips" if training else f"evaluation, {batch} videos"
    views = "" if training else f" of {experiment.evaluation.views} views"
    print(f"{what}{views} on {slice_}; mesh: {axes}; {clips} to a part; {model.dtype}, remat {model.remat}", flush=True)
    found = compile_ahead(target.lower_train(clips) if training else target.lower_eval(clips), target.mesh)
    for line in in_words(found, slice_):
        print(f"  {line}")
    if training and found.fits:
        operations = 2 * target.multiply_adds(clips) / slice_.num_devices
        peak = throughput.peak_flops(target.mesh.devices.flat[0].device_kind)
        print(
            f"  work       {operations / 1e12:.2f} TFLOP on each device, {1e3 * operations / peak:.0f} ms at its peak"
        )
    if not found.fits:
        helps = compiled_step.training_advice(experiment, target.mesh.size)
        for line in helps if training else compiled_step.evaluation_advice(experiment):
            print(f"  what takes less: {line}")
    return found.fits


def in_words(found: Compiled, slice_: Slice) -> list[str]:
    """The memory, traffic and time of a compiled program, a line each."""
    available = (found.available or slice_.memory) / GIB
    if not found.fits:
        return [f"DOES NOT FIT: {found.peak / GIB:.1f} GiB needed of {available:.1f} on each device", found.message]
    lines = [
        f"memory     {found.peak / GIB:.2f} GiB of {available:.0f} on each device at the worst moment; arguments "
        f"{found.argument / GIB:.2f}, temporaries {found.temporary / GIB:.2f}"
    ]
    for one in found.traffic:
        if one.bytes >= 2**20 or one.kind == "send":  # between slices little is much
            size = f"{one.bytes / 2**20:,.{0 if one.bytes >= 2**20 else 2}f} MiB of {one.dtype}"
            lines.append(f"traffic    {one.kind} over {one.axis}: {size} in {one.times} pieces")
    if len(lines) == 1:
        lines.append("traffic    less than 1 MiB")
    return [*lines, f"compiled   in {found.seconds:.0f} s"]


def tell_largest(target: Target, slice_: Slice) -> int:
    """Searches and prints the largest training batch that fits; returns it."""

    def compile_with(clips: int) -> Compiled:
        found = compile_ahead(target.lower_train(clips), target.mesh)
        said = f"{found.peak / GIB:.2f} GiB" if found.fits else f"does not fit ({found.peak / GIB:.1f} GiB)"
        print(f"  {clips} to a part: {said}", flush=True)
        return found

    print("largest batch")
    start = max(1, target.experiment.batch_size // target.ways)
    clips, _ = largest_batch(compile_with, slice_.memory, start)
    print(f"  {clips * target.ways} clips, {clips} to each of {target.ways} parts")
    return clips * target.ways
