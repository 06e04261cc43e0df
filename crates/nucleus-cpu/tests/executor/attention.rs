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
