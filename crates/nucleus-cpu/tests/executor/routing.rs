//! Expert choice, inverted index maps, and the sums over them.

use crate::harness::{Case, DEFAULT, check};

/// Tokens choose nothing, experts choose tokens; every chosen token gets its expert's row times the gate on top of a base.
fn combine(affinity: &str) -> String {
    format!(
        "
    dim B, S, C;
    input affinity: f32[B, S, 3] per step;
    input rows: bf16[B, 3, C, 2, 5] per step;
    input base: f32[B, S, 2, 5] per step;
    output slot: i32[B, 3, C];
    output y: f32[B, S, 2, 5];
    output total: f32[B, S];
    buffer b0: f32[B, S, 3] input 0;
    buffer b1: bf16[B, 3, C, 2, 5] input 1;
    buffer b2: f32[B, S, 2, 5] input 2;
    buffer b3: i32[B, 3, C] output 0;
    buffer b4: f32[B, 3, C] arena step;
    buffer b5: i32[B, S + 1] arena step;
    buffer b6: i32[B, 3*C] arena step;
    buffer b7: f32[B, S, 2, 5] output 1;
    buffer b8: f32[B, S] output 2;
    kernel k0(read f32, write i32, write f32) sizes 4 expert_choice {{
        batch s0; tokens s1; experts 3; capacity s2; slot_token o1;
        affinity {{ {affinity} }}
    }}
    kernel k1(read i32, write i32, write i32) sizes 3 invert_index {{
        batch s0; positions s1; targets s2; index o0; offsets_out o1; positions_out o2;
    }}
    kernel k2(read i32, read i32, read f32, read bf16, read f32, write f32) sizes 5 segment_sum {{
        batch s0; targets s1;
        rest 2, 5;
        offsets o0; positions o1; position_count s2;
        base {{ v0 = load o2[s3*i0 + 10*i1 + 5*i2 + i3]; return v0; }}
        update {{
            v0 = load o3[s4*i0 + 10*i1 + 5*i2 + i3];
            v1 = cast(v0, f32);
            v2 = load o4[s2*i0 + i1];
            v3 = mul(v1, v2);
            return v3;
        }}
        epilogue {{
            v0 = accumulator 0;
            v1 = tanh(v0);
            v2 = load o2[s3*i0 + 10*i1 + 5*i2 + i3];
            v3 = add(v1, v2);
            store o5[s3*i0 + 10*i1 + 5*i2 + i3] = v3;
        }}
    }}
    kernel k3(read i32, read i32, read f32, write f32) sizes 3 segment_sum {{
        batch s0; targets s1;
        rest;
        offsets o0; positions o1; position_count s2;
        base {{ v0 = constant 0.5 f32; return v0; }}
        update {{ v0 = load o2[s2*i0 + i1]; return v0; }}
        epilogue {{ v0 = accumulator 0; store o3[s1*i0 + i1] = v0; }}
    }}
    launch k0(b0, b3, b4) sizes B, S, C, 3*S per step;
    launch k1(b3, b5, b6) sizes B, 3*C, S per step;
    launch k2(b5, b6, b2, b1, b4, b7) sizes B, S, 3*C, 10*S, 30*C per step;
    launch k3(b5, b6, b4, b8) sizes B, S, 3*C per step;
"
    )
}

#[test]
fn experts_choose_and_their_rows_are_summed() {
    let plain = "v0 = load o0[s3*i0 + 3*i1 + i2]; return v0;";
    let computed = "v0 = load o0[s3*i0 + 3*i1 + i2]; v1 = neg(v0); return v1;";
    for affinity in [plain, computed] {
        for [b, s, c] in [[1, 1, 1], [2, 7, 3], [1, 40, 40], [3, 65, 16]] {
            let dims = [("B", b), ("S", s), ("C", c)];
            check(&Case { text: &combine(affinity), dims: &dims, tolerance: 1e-5, ..DEFAULT });
        }
    }
}

#[test]
fn ties_go_to_the_lowest_token() {
    let value = |name: &str, position: usize| (name == "affinity").then_some((position % 2) as f64);
    let plain = "v0 = load o0[s3*i0 + 3*i1 + i2]; return v0;";
    check(&Case {
        text: &combine(plain),
        dims: &[("B", 2), ("S", 9), ("C", 4)],
        value: &value,
        tolerance: 1e-5,
    });
}
