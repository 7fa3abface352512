"""Collectives parsed from program text: programs of known traffic, and each form that compilers write."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vivit_jax import sharding
from vivit_jax.compile.hlo import Traffic, collectives

MESH = {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}


def test_traffic_counts_loops_and_names_mesh_axes():
    mesh = sharding.make_mesh(MESH)

    def program(x, y):
        def layer(carry, _):
            return jnp.sin(jax.lax.psum(carry, "data")), None  # [8, 16] float32

        total, _ = jax.lax.scan(layer, y, length=5)
        return total, jax.lax.all_gather(x, "tensor")  # twice [3, 5] float32

    mapped = jax.shard_map(program, mesh=mesh, in_specs=(P(), P()), out_specs=(P(), P()), check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones((3, 5)), jnp.ones((8, 16))).compile().as_text()
    traffic = {one.kind: one for one in collectives(text, dict(mesh.shape))}
    assert set(traffic) == {"all-reduce", "all-gather"}
    assert traffic["all-reduce"] == Traffic("all-reduce", "data", "f32", count=5, bytes=5 * 8 * 16 * 4)
    all_gather = traffic["all-gather"]
    assert (all_gather.axis, all_gather.dtype, all_gather.bytes) == ("tensor", "f32", 2 * 3 * 5 * 4)


PROGRAM = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(256)} constant(24)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[] compare(%counter, %limit), direction=LT
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  INSTRUCTION
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%init), condition=%condition, body=%body
}
"""
ROWS = {
    # bf16 and float32 in one instruction, the axes by name
    "%r = (bf16[1,768]{1,0:T(8,128)(2,1)}, f32[10]{0}) all-reduce(%a, %b), replica_groups=mesh['axis_0'=4,'axis_1'=1,"
    "'axis_2'=2,'axis_3'=1] {'axis_0','axis_1'}, use_global_device_ids=true, to_apply=%add": [
        Traffic("all-reduce", "data", "bf16", 24, 24 * 768 * 2),
        Traffic("all-reduce", "data", "f32", 24, 24 * 10 * 4),
    ],
    # part of an axis of another mesh over the same devices: (4 = 2 x 2) x 2
    "%r = f32[6]{0} all-gather(%a), replica_groups=mesh['x'=8] {'x':(4)2}, dimensions={0}": [
        Traffic("all-gather", "tensor", "f32", 24, 24 * 6 * 4),
    ],
    # a reduce-scatter counts its input, which is larger than its result; groups in order
    "%r = f32[8]{0} reduce-scatter(%a), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add": [
        Traffic("reduce-scatter", "tensor", "f32", 24, 24 * 2 * 8 * 4),
    ],
    # an asynchronous start returns its operand too; groups transposed
    "%r = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%a), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}": [
        Traffic("all-gather", "data", "bf16", 24, 24 * 32 * 2),
    ],
    "%r = f32[6]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}": [
        Traffic("collective-permute", "tensor", "f32", 24, 24 * 6 * 4),
    ],
    "%r = f32[6]{0} all-to-all(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}": [
        Traffic("all-to-all", "data+tensor", "f32", 24, 24 * 6 * 4),
    ],
    # to another slice, through the hosts; then within a slice, where only its devices are named
    "%r = (f32[16,8]{1,0:T(8,128)}, u32[], token[]) send(%a, %after-all), channel_id=2, is_host_transfer=true, "
    'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}': [
        Traffic("send", "slices", "f32", 24, 24 * 16 * 8 * 4),
    ],
    "%r = f32[8]{0} reduce-scatter(%a), replica_groups={{0,2}}, dimensions={0}, to_apply=%add": [
        Traffic("reduce-scatter", "data", "f32", 24, 24 * 2 * 8 * 4),
    ],
    "%r = f32[6]{0} add(%a, %b)": [],
}


@pytest.mark.parametrize("instruction", ROWS, ids=lambda text: text.split("(%")[0].split()[-1])
def test_each_form_of_a_collective_is_parsed(instruction):
    assert collectives(PROGRAM.replace("INSTRUCTION", instruction), MESH) == ROWS[instruction]
