"""The printed report of a config compiled for a slice."""

from vivit_jax.compile.program import Compiled, Target, compile_ahead, largest_batch
from vivit_jax.compile.slices import GIB, Slice
from vivit_jax.train import compiled_step, throughput
from vivit_jax.train_step import remat


def print_report(target: Target, slice_: Slice, step: str) -> bool:
    """Compiles a step, 'train' or 'eval', at the config's batch size, prints its figures, returns whether it fits."""
    experiment, training = target.experiment, step == "train"
    clips = target.clips_per_shard(step)
    batch = clips * target.batch_shards

    # The heading, before compilation, which takes a minute or more.
    axes = ", ".join(f"{axis} {size}" for axis, size in dict(target.mesh.shape).items() if size > 1) or "one device"
    model = experiment.model_config(target.heads)
    evaluation = f"evaluation, {batch} videos of {experiment.evaluation.views} views"
    program = f"training step, {batch} clips" if training else evaluation
    print(f"{program} on {slice_}; mesh: {axes}; {clips} per shard; {model.dtype}", flush=True)

    if training:
        model, compiled = target.compile_train(clips, log=lambda line: print(f"  {line}", flush=True))
        print(f"  model      remat {model.remat}, scan_layers {model.scan_layers}, attention {model.attention_backend}")
        work, useful = target.train_work(clips, model), throughput.model_flops(model, batch)
    else:
        compiled = compile_ahead(target.lower_eval(clips), target.mesh)
        work, useful = target.eval_work(clips), throughput.model_flops(model, batch * experiment.evaluation.views) / 3
    lines = summarize(compiled, slice_)
    if compiled.hbm:
        peak = throughput.peak_flops(target.mesh.devices.flat[0].device_kind)
        figures = roofline(work, compiled.hbm, useful / target.mesh.size, peak, slice_.kind.bandwidth)
        lines += figures[:-1] if experiment.pretraining else figures  # `model_flops` knows no masks: no bound on MFU
    elif compiled.fits:
        lines += ["HBM        unknown: jaxlib cannot read this program of a newer libtpu"]
    elif training:
        lines += [f"to reduce memory: {line}" for line in compiled_step.training_advice(experiment, target.mesh.size)]
    else:
        lines += [f"to reduce memory: {line}" for line in compiled_step.evaluation_advice(experiment)]
    print(*(f"  {line}" for line in lines), sep="\n")
    return compiled.fits


def summarize(compiled: Compiled, slice_: Slice) -> list[str]:
    """Returns lines with the memory, traffic and compilation time of a program."""
    peak, available = compiled.peak / GIB, (compiled.available or slice_.kind.memory) / GIB
    if not compiled.fits:
        return [f"DOES NOT FIT: {peak:.1f} GiB needed of {available:.1f} on each device", compiled.message]
    parts = f"arguments {compiled.argument / GIB:.2f}, temporaries {compiled.temporary / GIB:.2f}"
    lines = [f"memory     {peak:.2f} GiB of {available:.0f} on each device at the worst moment; {parts}"]
    for traffic in compiled.traffic:
        mebibytes = traffic.bytes / 2**20
        # Between slices the network is slow, so that small messages count too.
        if mebibytes >= 1 or traffic.kind == "send":
            size = f"{mebibytes:,.{0 if mebibytes >= 1 else 2}f} MiB of {traffic.dtype}"
            lines.append(f"traffic    {traffic.kind} over {traffic.axis}: {size} in {traffic.count} operations")
    if len(lines) == 1 and compiled.hbm:
        lines.append("traffic    less than 1 MiB")
    return [*lines, f"compiled   in {compiled.seconds:.0f} s"]


def roofline(work: float, moved: float, useful: float, peak: float, bandwidth: float) -> list[str]:
    """Returns lines with the work and HBM traffic of one device, and the bound that they set on the utilisation.

    A step takes at least the time of its `work` (FLOPs, with recomputation) at the `peak`, and of the bytes `moved` to
    and from HBM at the `bandwidth`; the bound is what the MFU would be if it took no longer than the larger one
    (Williams et al., "Roofline", CACM 2009). `useful`: FLOPs of the model's matrix products (`throughput.model_flops`).
    """
    compute, transfer = work / peak, moved / bandwidth
    limit = "HBM" if transfer > compute else "compute"
    return [
        f"work       {work / 1e12:.2f} TFLOP per device, {1e3 * compute:.0f} ms at its peak",
        f"HBM        {moved / GIB:.1f} GiB per device, {1e3 * transfer:.0f} ms at its bandwidth",
        f"intensity  {work / moved:.0f} FLOP per byte; the device is balanced at {peak / bandwidth:.0f}",
        f"bound      MFU at most {useful / peak / max(compute, transfer):.0%}, by {limit}",
    ]


def print_largest_batch(target: Target) -> None:
    """Searches for the largest training batch that fits, prints all attempts; of `auto` with the most recomputation."""
    program = target.experiment.train_program(target.heads, target.mesh)
    program = remat.apply(program, remat.choices(program.model.config, target.mesh.devices.flat[0].platform)[-1])

    def compile_with(microbatch: int) -> Compiled:
        clips = microbatch * parts
        compiled = compile_ahead(target.lower_train(clips, program), target.mesh)
        verdict = "" if compiled.fits else "does not fit, "
        print(f"  {clips} clips per shard: {verdict}{compiled.peak / GIB:.2f} GiB", flush=True)
        return compiled

    print(f"largest batch, remat {program.model.config.remat}")
    parts = target.experiment.optimizer.accumulate_steps  # which divides the clips per shard
    clips = parts * largest_batch(compile_with, max(1, target.experiment.batch_size // target.batch_shards // parts))
    print(f"  {clips * target.batch_shards} clips, {clips} in each of {target.batch_shards} shards")
