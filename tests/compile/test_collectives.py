"""What a program sends, read off its text: programs of known traffic, and the forms that compilers write."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vivit_jax import sharding
from vivit_jax.compile import collectives
from vivit_jax.compile.collectives import Traffic

MESH = {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1}


def test_the_traffic_of_a_program_is_that_of_its_loops_and_axes():
    mesh = sharding.make_mesh(MESH)

    def program(x, y):
        def layer(carry, _):
            return jnp.sin(jax.lax.psum(carry, "data")), None  # [8, 16] float32

        total, _ = jax.lax.scan(layer, y, length=5)
        return total, jax.lax.all_gather(x, "tensor")  # twice [3, 5] float32

    mapped = jax.shard_map(program, mesh=mesh, in_specs=(P(), P()), out_specs=(P(), P()), check_vma=False)
    text = jax.jit(mapped).lower(jnp.ones((3, 5)), jnp.ones((8, 16))).compile().as_text()
    found = collectives.find(text, dict(mesh.shape))
    assert {(one.kind, one.axis, one.dtype) for one in found} == {
        ("all-reduce", "data", "f32"), ("all-gather", "tensor", "f32"),
    }  # fmt: skip
    reduced = next(one for one in found if one.kind == "all-reduce")
    assert (reduced.bytes, reduced.times) == (5 * 8 * 16 * 4, 5)
    assert next(one for one in found if one.kind == "all-gather").bytes == 2 * 3 * 5 * 4


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
    # a part of an axis of another mesh over the same devices: (4 = 2 x 2) x 2
    "%r = f32[6]{0} all-gather(%a), replica_groups=mesh['x'=8] {'x':(4)2}, dimensions={0}": [
        Traffic("all-gather", "tensor", "f32", 24, 24 * 6 * 4),
    ],
    # what is put in counts, not the share that comes out; groups as numbers in order
    "%r = f32[8]{0} reduce-scatter(%a), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add": [
        Traffic("reduce-scatter", "tensor", "f32", 24, 24 * 2 * 8 * 4),
    ],
    # an asynchronous start hands on its operand too; groups transposed
    "%r = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%a), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}": [
        Traffic("all-gather", "data", "bf16", 24, 24 * 32 * 2),
    ],
    "%r = f32[6]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}": [
        Traffic("collective-permute", "tensor", "f32", 24, 24 * 6 * 4),
    ],
    "%r = f32[6]{0} all-to-all(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}": [
        Traffic("all-to-all", "data+tensor", "f32", 24, 24 * 6 * 4),
    ],
    # to another slice, through the hosts; the same in a slice, whose devices alone are named
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
def test_each_form_of_a_collective_in_a_loop_of_24_layers(instruction):
    assert collectives.find(PROGRAM.replace("INSTRUCTION", instruction), MESH) == ROWS[instruction]
