//! Expert choice, inverted index maps, and the sums over them.

use crate::harness::{Case, DEFAULT, check};

/// Kernel k0, kernel k3 if there is one, and their launches.
pub(crate) type Choice = [&'static str; 3];

/// The choice and the inverse of its slots as two kernels; the gate is the affinity.
const SEPARATE: Choice = [
    "kernel k0(read f32, write i32, write f32) sizes 5 expert_choice {
        batch s0; tokens s1; experts 3; capacity s2; slot_token o1;
        affinity { AFFINITY }
        epilogue { v0 = accumulator 0; store o2[s4*i0 + s2*i1 + i2] = v0; }
    }",
    "kernel k3(read i32, write i32, write i32) sizes 3 invert_index {
        batch s0; positions s1; targets s2; index o0; offsets_out o1; positions_out o2;
    }",
    "launch k0(b0, b3, b4) sizes B, S, C, 3*S, 3*C per step;
    launch k3(b3, b5, b6) sizes B, 3*C, S per step;",
];
/// Both as one kernel; the gate is the affinity as a share of all that its token got, times what the slot brings along.
pub(crate) const TOGETHER: Choice = [
    "kernel k0(read f32, write i32, write i32, write i32, read bf16, write f32) sizes 7 expert_choice {
        batch s0; tokens s1; experts 3; capacity s2; slot_token o1; offsets o2; positions o3;
        affinity { AFFINITY }
        epilogue {
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = abs(v1);
            v3 = constant 0.125 f32;
            v4 = add(v2, v3);
            v5 = div(v0, v4);
            v6 = load o4[s5*i0 + s6*i1 + 10*i2];
            v7 = cast(v6, f32);
            v8 = mul(v5, v7);
            store o5[s4*i0 + s2*i1 + i2] = v8;
        }
    }",
    "",
    "launch k0(b0, b3, b5, b6, b1, b4) sizes B, S, C, 3*S, 3*C, 30*C, 10*C per step;",
];

/// Tokens choose nothing, experts choose tokens; every chosen token gets its expert's row times the gate on top of a base.
pub(crate) fn combine([choice, inverse, launches]: Choice, affinity: &str) -> String {
    let choice = choice.replace("AFFINITY", affinity);
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
    {choice}
    kernel k1(read i32, read i32, read f32, read bf16, read f32, write f32) sizes 5 segment_sum {{
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
    kernel k2(read i32, read i32, read f32, write f32) sizes 3 segment_sum {{
        batch s0; targets s1;
        rest;
        offsets o0; positions o1; position_count s2;
        base {{ v0 = constant 0.5 f32; return v0; }}
        update {{ v0 = load o2[s2*i0 + i1]; return v0; }}
        epilogue {{ v0 = accumulator 0; store o3[s1*i0 + i1] = v0; }}
    }}
    {inverse}
    {launches}
    launch k1(b5, b6, b2, b1, b4, b7) sizes B, S, 3*C, 10*S, 30*C per step;
    launch k2(b5, b6, b4, b8) sizes B, S, 3*C per step;
"
    )
}

pub(crate) const PLAIN: &str = "v0 = load o0[s3*i0 + 3*i1 + i2]; return v0;";

#[test]
fn experts_choose_and_their_rows_are_summed() {
    let computed = "v0 = load o0[s3*i0 + 3*i1 + i2]; v1 = neg(v0); return v1;";
    for choice in [SEPARATE, TOGETHER] {
        for affinity in [PLAIN, computed] {
            for [b, s, c] in [[1, 1, 1], [2, 7, 3], [1, 40, 40], [3, 65, 16], [2, 600, 520]] {
                let dims = [("B", b), ("S", s), ("C", c)];
                check(&Case { text: &combine(choice, affinity), dims: &dims, tolerance: 1e-5, ..DEFAULT });
            }
        }
    }
    // More slots than a backend may give one worker.
    let dims = [("B", 1), ("S", 9000), ("C", 4000)];
    check(&Case { text: &combine(TOGETHER, PLAIN), dims: &dims, tolerance: 1e-5, ..DEFAULT });
}

#[test]
fn ties_go_to_the_lowest_token() {
    let value = |name: &str, position: usize| (name == "affinity").then_some((position % 2) as f64);
    for choice in [SEPARATE, TOGETHER] {
        check(&Case {
            text: &combine(choice, PLAIN),
            dims: &[("B", 2), ("S", 9), ("C", 4)],
            value: &value,
            tolerance: 1e-5,
        });
    }
}

/// Tokens with a NaN come last, and what they bring stays with them: each has the sums of its own slots.
#[test]
fn affinities_that_are_not_finite() {
    let value = |name: &str, position: usize| {
        let special = [f64::NAN, f64::INFINITY, -0.0, 0.0, f64::NEG_INFINITY, 1.0, -1.0];
        (name == "affinity").then_some(special[position * 5 % 7])
    };
    for capacity in [1, 4, 6, 9] {
        let dims = [("B", 2), ("S", 9), ("C", capacity)];
        check(&Case { text: &combine(TOGETHER, PLAIN), dims: &dims, value: &value, tolerance: 1e-5 });
    }
}

#[test]
fn many_equal_affinities() {
    let value = |name: &str, position: usize| (name == "affinity").then_some((position / 3 % 5) as f64 - 2.0);
    for capacity in [1, 260, 700, 1300] {
        let dims = [("B", 1), ("S", 1300), ("C", capacity)];
        check(&Case { text: &combine(TOGETHER, PLAIN), dims: &dims, value: &value, tolerance: 1e-5 });
    }
}

/// Rows of two times 64 elements: whole vectors.
#[test]
fn sums_of_wide_rows() {
    for choice in [SEPARATE, TOGETHER] {
        let text = combine(choice, PLAIN)
            .replace("2, 5", "2, 64")
            .replace("10*i1 + 5*i2", "128*i1 + 64*i2")
            .replace("10*i2]", "128*i2]")
            .replace("10*S, 30*C", "128*S, 384*C")
            .replace("30*C, 10*C", "384*C, 128*C");
        check(&Case { text: &text, dims: &[("B", 2), ("S", 11), ("C", 7)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// More experts than a warp has lanes; tokens that many of them take.
const MANY: &str = "
    dim B, S, C;
    input affinity: f32[B, 40, S] per step;
    output slot: i32[B, 40, C];
    output offsets: i32[B, S + 1];
    output positions: i32[B, 40*C];
    output share: f32[B, 40, C];
    buffer b0: f32[B, 40, S] input 0;
    buffer b1: i32[B, 40, C] output 0;
    buffer b2: i32[B, S + 1] output 1;
    buffer b3: i32[B, 40*C] output 2;
    buffer b4: f32[B, 40, C] output 3;
    kernel k0(read f32, write i32, write i32, write i32, write f32) sizes 5 expert_choice {
        batch s0; tokens s1; experts 40; capacity s2; slot_token o1; offsets o2; positions o3;
        affinity { v0 = load o0[s3*i0 + i1 + s1*i2]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = div(v0, v1);
            store o4[s4*i0 + s2*i1 + i2] = v2;
        }
    }
    launch k0(b0, b1, b2, b3, b4) sizes B, S, C, 40*S, 40*C per step;
";

#[test]
fn many_experts_take_the_same_tokens() {
    let value = |_: &str, position: usize| Some((position * 7919 % 101) as f64 / 50.0 + 0.25);
    for (b, s, c) in [(1, 1, 1), (2, 70, 3), (1, 33, 33), (2, 1030, 300)] {
        let dims = [("B", b), ("S", s), ("C", c)];
        check(&Case { text: MANY, dims: &dims, value: &value, tolerance: 2e-6 });
    }
}

/// The sums of the products of two inputs over the positions of every target.
const INVERTED: &str = "
    dim B, P, T;
    input index: i32[B, P] per step;
    input x: f32[B, P] per step;
    input y: f32[B, P] per step;
    output offsets: i32[B, T + 1];
    output positions: i32[B, P];
    output total: f32[B, T];
    buffer b0: i32[B, P] input 0;
    buffer b1: f32[B, P] input 1;
    buffer b2: f32[B, P] input 2;
    buffer b3: i32[B, T + 1] output 0;
    buffer b4: i32[B, P] output 1;
    buffer b5: f32[B, T] output 2;
    kernel k0(read i32, write i32, write i32) sizes 3 invert_index {
        batch s0; positions s1; targets s2; index o0; offsets_out o1; positions_out o2;
    }
    kernel k1(read i32, read i32, read f32, read f32, write f32) sizes 3 segment_sum {
        batch s0; targets s1;
        rest;
        offsets o0; positions o1; position_count s2;
        base { v0 = constant 0.1 f32; return v0; }
        update {
            v0 = load o2[s2*i0 + i1];
            v1 = load o3[s2*i0 + i1];
            v2 = mul(v0, v1);
            return v2;
        }
        epilogue { v0 = accumulator 0; store o4[s1*i0 + i1] = v0; }
    }
    launch k0(b0, b3, b4) sizes B, P, T per step;
    launch k1(b3, b4, b1, b2, b5) sizes B, T, P per step;
";

/// Long lists, short ones and empty ones; sums have the bits of additions in order.
#[test]
fn targets_of_any_number_of_positions() {
    for (b, p, t) in [(1, 1, 1), (2, 200, 3), (1, 700, 3000), (3, 65, 40)] {
        // Most positions of the second half have target 0.
        let value = |name: &str, position: usize| {
            let spread = position * 7919 % 97 * 31 % t as usize;
            let target = if position > p as usize / 2 && !position.is_multiple_of(5) { 0 } else { spread };
            (name == "index").then_some(target as f64)
        };
        let dims = [("B", b), ("P", p), ("T", t)];
        check(&Case { text: INVERTED, dims: &dims, value: &value, tolerance: 0.0 });
    }
}
