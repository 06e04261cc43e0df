//! Attention over several key segments, with masks, grouped heads, and computed operands.

use crate::harness::{Case, DEFAULT, check};

fn text(dtype: &str, q: &str, mask: &str) -> String {
    format!(
        "
    dim B, S, T;
    input q: {dtype}[B, S, 4, 24] per step;
    input k: {dtype}[B, S, 2, 24] per step;
    input v: {dtype}[B, 2, S, 24] per step;
    input tk: {dtype}[B, T, 2, 24] per prompt;
    input tv: {dtype}[B, T, 2, 24] per prompt;
    input mask: bool[B, T] per prompt;
    output y: {dtype}[B, S, 4, 24];
    buffer b0: {dtype}[B, S, 4, 24] input 0;
    buffer b1: {dtype}[B, S, 2, 24] input 1;
    buffer b2: {dtype}[B, 2, S, 24] input 2;
    buffer b3: {dtype}[B, T, 2, 24] input 3;
    buffer b4: {dtype}[B, T, 2, 24] input 4;
    buffer b5: bool[B, T] input 5;
    buffer b6: {dtype}[B, S, 4, 24] output 0;
    kernel k0(read {dtype}, read {dtype}, read {dtype}, read {dtype}, read {dtype}, read bool, write {dtype}) sizes 7 attention {dtype} {{
        batch s0; queries s1; heads 4; key_heads 2; head_size 24; scale 0.2;
        q {{ {q} }}
        keys s1;
        k {{ v0 = load o1[s3*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        v {{ v0 = load o2[s3*i0 + 24*i1 + s6*i2 + i3]; return v0; }}
        keys s2;
        k {{ v0 = load o3[s4*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        v {{ v0 = load o4[s4*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        mask {{ {mask} }}
        epilogue {{
            v0 = accumulator 0;
            v1 = cast(v0, {dtype});
            store o6[s5*i0 + 96*i1 + 24*i2 + i3] = v1;
        }}
    }}
    launch k0(b0, b1, b2, b3, b4, b5, b6) sizes B, S, T, 48*S, 48*T, 96*S, 24*S per step;
"
    )
}

const Q: &str = "v0 = load o0[s5*i0 + 96*i1 + 24*i2 + i3]; return v0;";
const MASK: &str = "v0 = load o5[s2*i0 + i1]; return v0;";

#[test]
fn plain_operands() {
    for dtype in ["f32", "bf16", "f16"] {
        for [b, s, t] in [[1, 1, 1], [2, 5, 3], [1, 37, 40], [2, 100, 70]] {
            let dims = [("B", b), ("S", s), ("T", t)];
            check(&Case { text: &text(dtype, Q, MASK), dims: &dims, tolerance: 1e-5, ..DEFAULT });
        }
    }
}

#[test]
fn computed_operands() {
    let q = "v0 = load o0[s5*i0 + 96*i1 + 24*i2 + i3]; v1 = sin(v0); return v1;";
    let mask = "v0 = load o5[s2*i0 + i1]; v1 = not(v0); return v1;";
    for dtype in ["f32", "bf16"] {
        let dims = [("B", 2), ("S", 9), ("T", 5)];
        check(&Case { text: &text(dtype, q, mask), dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}

/// Gradients over image and text: those of the keys lie together, those of values apart, and one of them is not wanted.
fn gradients(dtype: &str, dy: &str) -> String {
    format!(
        "
    dim B, S, T;
    input q: {dtype}[B, S, 4, 24] per step;
    input dy: f32[B, 4, S, 24] per step;
    input k: {dtype}[B, S, 2, 24] per step;
    input v: {dtype}[B, 2, S, 24] per step;
    input tk: {dtype}[B, T, 2, 24] per prompt;
    input mask: bool[B, T] per prompt;
    output dq: {dtype}[B, S, 4, 24];
    output dk: f32[B, S + T, 2, 24];
    output dv: f32[B, S, 2, 24];
    buffer b0: {dtype}[B, S, 4, 24] input 0;
    buffer b1: f32[B, 4, S, 24] input 1;
    buffer b2: {dtype}[B, S, 2, 24] input 2;
    buffer b3: {dtype}[B, 2, S, 24] input 3;
    buffer b4: {dtype}[B, T, 2, 24] input 4;
    buffer b5: bool[B, T] input 5;
    buffer b6: {dtype}[B, S, 4, 24] output 0;
    buffer b7: f32[B, S + T, 2, 24] output 1;
    buffer b8: f32[B, S, 2, 24] output 2;
    kernel k0(read {dtype}, read f32, read {dtype}, read {dtype}, read {dtype}, read bool, write {dtype}, write f32, write f32)
    sizes 8 attention_grad {dtype} {{
        batch s0; queries s1; heads 4; key_heads 2; head_size 24; scale 0.2;
        q {{ v0 = load o0[s5*i0 + 96*i1 + 24*i2 + i3]; return v0; }}
        dy {{ v0 = load o1[s5*i0 + 24*i1 + s6*i2 + i3]; {dy} }}
        keys s1;
        k {{ v0 = load o2[s3*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        v {{ v0 = load o3[s3*i0 + 24*i1 + s6*i2 + i3]; return v0; }}
        dk {{ v0 = accumulator 0; store o7[s7*i0 + 48*i1 + 24*i2 + i3] = v0; }}
        dv {{ v0 = accumulator 0; v1 = add(v0, v0); store o8[s3*i0 + 48*i1 + 24*i2 + i3] = v1; }}
        keys s2;
        k {{ v0 = load o4[s4*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        v {{ v0 = load o4[s4*i0 + 48*i1 + 24*i2 + i3]; return v0; }}
        mask {{ {MASK} }}
        dk {{ v0 = accumulator 0; store o7[s3 + s7*i0 + 48*i1 + 24*i2 + i3] = v0; }}
        dv {{ }}
        dq {{
            v0 = accumulator 0;
            v1 = cast(v0, {dtype});
            store o6[s5*i0 + 96*i1 + 24*i2 + i3] = v1;
        }}
    }}
    launch k0(b0, b1, b2, b3, b4, b5, b6, b7, b8) sizes B, S, T, 48*S, 48*T, 96*S, 24*S, 48*S + 48*T per step;
"
    )
}

#[test]
fn gradients_with_an_epilogue_for_each() {
    let sizes = [[2, 5, 3], [1, 1, 1], [2, 37, 40]];
    for dtype in ["f32", "bf16", "f16"] {
        // Read where it lies and rounded, or computed first.
        let ways = [
            ("v1 = cast(v0, TYPE); return v1;", &sizes[..]),
            ("v1 = sin(v0); v2 = cast(v1, TYPE); return v2;", &sizes[..1]),
        ];
        for (steps, sizes) in ways {
            let text = gradients(dtype, &steps.replace("TYPE", dtype));
            for &[b, s, t] in sizes {
                let dims = [("B", b), ("S", s), ("T", t)];
                // Results in a narrow type may be rounded to the neighbouring number.
                let tolerance = if dtype == "f32" { 1e-5 } else { 2.0_f64.powi(-8) };
                check(&Case { text: &text, dims: &dims, tolerance, ..DEFAULT });
            }
        }
    }
}
