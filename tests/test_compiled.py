"""What a compiled program sends between devices, read out of its text."""

from instructrec_jax.parallel.compiled import collectives, totals

GATHER = (
    "  %g.{n} = bf16[64,8]{{1,0:T(8,128)(2,1)}} all-gather(%p), channel_id=7, dimensions={{0}}, "
    'metadata={{op_name="jit(step)/weights"}}'
)
# As a TPU's compiler writes it: a loop without a known count, an exchange in parts beside two
# computations, a sum of which each device keeps a part, an exchange begun and ended.
TPU = f"""HloModule step
%fused_computation.1 (p: bf16[8,8]) -> bf16[64,8] {{
{GATHER.format(n=1)}
}}
%async_collective_fusion.2 (p: bf16[8,8]) -> bf16[64,8] {{
{GATHER.format(n=2)}
}}
%all-reduce-scatter (input: f32[64,8]) -> f32[8,8] {{
  %all-reduce.1 = f32[64,8]{{1,0}} all-reduce(%input), channel_id=9, to_apply=%add
  ROOT %slice = f32[8,8]{{1,0}} dynamic-slice(%all-reduce.1, %a, %b), dynamic_slice_sizes={{8,8}}
}}
%body (arg: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %start = bf16[64,8]{{1,0}} fusion(%x), kind=kCustom, calls=%fused_computation.1
  %beside = bf16[64,8]{{1,0}} fusion(%y), kind=kOutput, calls=%async_collective_fusion.2
  %part = f32[8,8]{{1,0}} fusion(%z), kind=kCustom, calls=%all-reduce-scatter
}}
%condition (arg: (s32[], bf16[8,8])) -> pred[] {{
  %constant.3 = s32[]{{:T(128)}} constant(24)
  %counter = s32[]{{:T(128)}} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%counter, %constant.3), direction=LT
}}
ENTRY %main (arg: bf16[8,8]) -> bf16[8,8] {{
  %while = (s32[], bf16[8,8]) while(%tuple), condition=%condition, body=%body
  %moved = (f32[4,8]{{1,0}}, f32[4,8]{{1,0}}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) \
collective-permute-start(%w), channel_id=7
}}
"""


def test_a_program_for_a_tpu_is_read():
    by_kind = {one.kind: one for one in collectives(TPU)}
    assert by_kind.keys() == {"all-gather", "reduce-scatter", "collective-permute"}
    gather, scatter = by_kind["all-gather"], by_kind["reduce-scatter"]
    assert (gather.times, gather.shapes, gather.num_bytes) == (24, ((64, 8),), 64 * 8 * 2)
    assert (scatter.times, scatter.shapes, scatter.num_bytes) == (24, ((8, 8),), 8 * 8 * 4)
    assert by_kind["collective-permute"].shapes == ((4, 8),)
    assert totals(collectives(TPU))["all-gather"] == {
        "held": 1,
        "runs": 24,
        "bytes": 24 * 64 * 8 * 2,
    }
