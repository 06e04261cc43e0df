//! Products that reduce groups of their columns: normalised and rotated heads, softmax, groups that panels cut.

use crate::harness::{Case, DEFAULT, check};

/// `groups` heads of `width` pairs, normalised by their root mean square, scaled by a bias-like row of the sequence and turned. Pairs are
/// neighbours, or the halves of all columns. A second phase finds the largest normalised element, which is stored with each pair.
fn rotated(dtype: &str, (width, groups): (i64, i64), interleaved: bool) -> String {
    let (columns, all) = (width * groups, 2 * width * groups);
    let segments = if interleaved { "interleaved" } else { "segments" };
    let mean = 1.0 / (2 * width) as f64;
    format!(
        "
    dim B, S;
    input x: {dtype}[B, S, 37] per step;
    input turn: f32[S, {width}] per step;
    output y: {dtype}[B, S, {groups}, {width}, 2];
    output m: f32[B, S, {columns}];
    weight \"w\": {dtype}[{all}, 37];
    weight \"scale\": {dtype}[{all}];
    buffer b0: {dtype}[B, S, 37] input 0;
    buffer b1: {dtype}[{all}, 37] weight \"w\";
    buffer b2: {dtype}[{all}] weight \"scale\";
    buffer b3: f32[S, {width}] input 1;
    buffer b4: {dtype}[B, S, {groups}, {width}, 2] output 0;
    buffer b5: f32[B, S, {columns}] output 1;
    kernel k0(read {dtype}, read {dtype}, read {dtype}, read f32, write {dtype}, write f32) sizes 5 matmul {dtype} {{
        batch;
        rows s0, s1;
        columns {columns}; {segments} 2; depth 37;
        a {{ v0 = load o0[s2*i0 + 37*i1 + i2]; return v0; }}
        b {{ v0 = load o1[i0 + 37*i1]; return v0; }}
        width {width};
        phase {{
            v0 = accumulator 0;
            v1 = mul(v0, v0);
            v2 = accumulator 1;
            v3 = mul(v2, v2);
            v4 = add(v1, v3);
        }}
        reduce sum v4;
        phase {{
            v0 = accumulator 2;
            v1 = constant {mean} f32;
            v2 = mul(v0, v1);
            v3 = constant 0.01 f32;
            v4 = add(v2, v3);
            v5 = rsqrt(v4);
            v6 = accumulator 1;
            v7 = mul(v5, v6);
        }}
        reduce max v7;
        epilogue {{
            v0 = accumulator 2;
            v1 = constant {mean} f32;
            v2 = mul(v0, v1);
            v3 = constant 0.01 f32;
            v4 = add(v2, v3);
            v5 = rsqrt(v4);
            v6 = accumulator 0;
            v7 = mul(v6, v5);
            v8 = load o2[{twice}*i2 + 2*i3];
            v9 = cast(v8, f32);
            v10 = mul(v7, v9);
            v11 = accumulator 1;
            v12 = mul(v11, v5);
            v13 = load o3[{width}*i1 + i3];
            v14 = mul(v10, v13);
            v15 = sub(v14, v12);
            v16 = cast(v15, {dtype});
            store o4[s3*i0 + {all}*i1 + {twice}*i2 + 2*i3] = v16;
            v18 = mul(v12, v13);
            v19 = add(v18, v10);
            v20 = cast(v19, {dtype});
            store o4[1 + s3*i0 + {all}*i1 + {twice}*i2 + 2*i3] = v20;
            v22 = accumulator 3;
            store o5[s4*i0 + {columns}*i1 + {width}*i2 + i3] = v22;
        }}
    }}
    launch k0(b0, b1, b2, b3, b4, b5) sizes B, S, 37*S, {all}*S, {columns}*S per step;
",
        twice = 2 * width,
    )
}

const SIZES: [(i64, i64); 5] = [(1, 1), (1, 3), (2, 13), (1, 33), (2, 70)];

#[test]
fn rotated_heads_of_every_type() {
    for dtype in ["f32", "bf16", "f16"] {
        for (b, s) in SIZES {
            for interleaved in [true, false] {
                let text = rotated(dtype, (16, 5), interleaved);
                check(&Case { text: &text, dims: &[("B", b), ("S", s)], tolerance: 1e-5, ..DEFAULT });
            }
        }
    }
}

#[test]
fn groups_need_not_be_whole_panels() {
    for (width, groups) in [(1, 7), (3, 11), (5, 1), (20, 8), (33, 3), (64, 4), (100, 2)] {
        let text = rotated("f32", (width, groups), true);
        for (b, s) in [(1, 1), (2, 29)] {
            check(&Case { text: &text, dims: &[("B", b), ("S", s)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

/// A softmax over every group of the columns of a product with a computed right factor.
pub(crate) fn softmax(width: i64, groups: i64) -> String {
    let all = width * groups;
    format!(
        "
    dim S;
    input x: f32[S, 9] per step;
    input w: f32[9, {all}] per step;
    output y: f32[S, {all}];
    buffer b0: f32[S, 9] input 0;
    buffer b1: f32[9, {all}] input 1;
    buffer b2: f32[S, {all}] output 0;
    kernel k0(read f32, read f32, write f32) sizes 1 matmul f32 {{
        batch;
        rows s0;
        columns {all}; segments 1; depth 9;
        a {{ v0 = load o0[9*i0 + i1]; return v0; }}
        b {{ v0 = load o1[{all}*i0 + i1]; v1 = tanh(v0); return v1; }}
        width {width};
        phase {{ v0 = accumulator 0; }}
        reduce max v0;
        phase {{ v0 = accumulator 0; v1 = accumulator 1; v2 = sub(v0, v1); v3 = exp(v2); }}
        reduce sum v3;
        epilogue {{
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = sub(v0, v1);
            v3 = exp(v2);
            v4 = accumulator 2;
            v5 = div(v3, v4);
            store o2[{all}*i0 + {width}*i1 + i2] = v5;
        }}
    }}
    launch k0(b0, b1, b2) sizes S per step;
"
    )
}

#[test]
fn softmax_of_groups() {
    for (width, groups) in [(4, 1), (64, 1), (7, 6), (40, 3)] {
        for s in [1, 5, 40] {
            let text = softmax(width, groups);
            check(&Case { text: &text, dims: &[("S", s)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}
