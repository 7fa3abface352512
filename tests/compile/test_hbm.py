"""HBM traffic of program text: loops, memory on the chip, slices in fusions, padding, kernels."""

import pytest

from vivit_jax.compile import hlo

# Each instruction in a loop of 24 iterations; %a and %x are [24, 100, 128] float32 in HBM, %v is on the chip.
PROGRAM = """\
HloModule jit_step

%sliced (p: f32[24,100,128], i: s32[]) -> f32[1,100,128] {
  %p = f32[24,100,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  ROOT %s = f32[1,100,128]{2,1,0:T(8,128)} dynamic-slice(%p, %i), dynamic_slice_sizes={1,100,128}
}

%updated (p: f32[24,100,128], u: f32[1,100,128], i: s32[]) -> f32[24,100,128] {
  %p = f32[24,100,128]{2,1,0:T(8,128)} parameter(0)
  %u = f32[1,100,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %d = f32[24,100,128]{2,1,0:T(8,128)} dynamic-update-slice(%p, %u, %i)
  ROOT %b = f32[24,100,128]{2,1,0:T(8,128)} bitcast(%d)
}

%body (state: (s32[], f32[24,100,128])) -> (s32[], f32[24,100,128]) {
  %state = (s32[]{:T(128)}, f32[24,100,128]{2,1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %a = f32[24,100,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %u = f32[1,100,128]{2,1,0:T(8,128)} bitcast(%a)
  %v = f32[1,100,128]{2,1,0:T(8,128)S(1)} bitcast(%a)
  INSTRUCTION
}

%condition (state: (s32[], f32[24,100,128])) -> pred[] {
  %state = (s32[]{:T(128)S(6)}, f32[24,100,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %c = pred[]{:T(512)S(6)} bitcast(%state)
}

ENTRY %main (x: f32[24,100,128]) -> f32[24,100,128] {
  %x = f32[24,100,128]{2,1,0:T(8,128)} parameter(0)
  %w = (s32[], f32[24,100,128]) while(%x), condition=%condition, body=%body, TRIPS
}
"""
TRIPS = 'backend_config={"known_trip_count":{"n":"24"}}'
LAYER = 104 * 128 * 4  # 100 rows in tiles of 8
ROWS = {
    "whole arrays": ("%r = f32[24,100,128]{2,1,0:T(8,128)} copy(%a)", 2 * 24 * LAYER),
    "on the chip": ("%r = f32[1,100,128]{2,1,0:T(8,128)S(1)} fusion(%v), kind=kLoop, calls=%none", 0),
    "slice": ("%r = f32[1,100,128]{2,1,0:T(8,128)} fusion(%a, %n), kind=kLoop, calls=%sliced, metadata={}", 2 * LAYER),
    "update in place": (
        "%r = f32[24,100,128]{2,1,0:T(8,128)} fusion(%a, %u, %n), kind=kLoop, calls=%updated, metadata={}",
        2 * LAYER,
    ),
    "to the chip": (
        "%r = (f32[1,100,128]{2,1,0:T(8,128)S(1)}, f32[1,100,128]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%u)",
        LAYER,
    ),
    "end of a copy": ("%r = f32[1,100,128]{2,1,0:T(8,128)} copy-done(%u)", 0),
    "kernel": (
        "%r = (bf16[16,100,128]{2,1,0:T(8,128)(2,1)}, f32[100]{0:T(128)}) custom-call(%u, %u, %v), "
        'custom_call_target="tpu_custom_call", attributes={kernel={\n"is_dkv": false\n}}, metadata={}\n'
        "  %after = f32[1,100,128]{2,1,0:T(8,128)} copy(%v)",
        2 * LAYER + 16 * LAYER // 2 + 128 * 4 + LAYER,  # attributes of several lines do not end the loop's body
    ),
}


@pytest.mark.parametrize(("instruction", "expected"), ROWS.values(), ids=ROWS)
def test_bytes_of_an_instruction_in_a_loop(instruction, expected):
    assert hlo.hbm_traffic(PROGRAM.replace("TRIPS", TRIPS).replace("INSTRUCTION", instruction)) == 24 * expected
