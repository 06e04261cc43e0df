//! Row reductions: layer norm, softmax, strided columns, empty rows.

use crate::harness::{Case, DEFAULT, check};

/// Layer norm with a modulated and a plain result, mean and reciprocal deviation as row results.
fn layer_norm(dtype: &str) -> String {
    format!(
        "
    dim B, S, D;
    input x: {dtype}[B, S, D] per step;
    input scale: f32[B, 1, D] per step;
    output u: {dtype}[B, S, D];
    output m: f32[B, S, D];
    output mean: f32[B, S];
    buffer b0: {dtype}[B, S, D] input 0;
    buffer b1: f32[B, 1, D] input 1;
    buffer b2: {dtype}[B, S, D] output 0;
    buffer b3: f32[B, S, D] output 1;
    buffer b4: f32[B, S] output 2;
    kernel k0(read {dtype}, read f32, write {dtype}, write f32, write f32) sizes 4 row_reduction {{
        rows s0, s1;
        columns s2;
        phase {{
            v0 = load o0[s3*i0 + s2*i1 + i2];
            v1 = cast(v0, f32);
        }}
        reduce sum v1;
        phase {{
            v0 = load o0[s3*i0 + s2*i1 + i2];
            v1 = cast(v0, f32);
            v2 = accumulator 0;
            v3 = affine[s2];
            v4 = cast(v3, f32);
            v5 = div(v2, v4);
            v6 = sub(v1, v5);
            v7 = mul(v6, v6);
        }}
        reduce sum v7;
        reduce max v6;
        row {{
            v0 = accumulator 0;
            v1 = affine[s2];
            v2 = cast(v1, f32);
            v3 = div(v0, v2);
            store o4[s1*i0 + i1] = v3;
        }}
        element {{
            v0 = load o0[s3*i0 + s2*i1 + i2];
            v1 = cast(v0, f32);
            v2 = accumulator 0;
            v3 = affine[s2];
            v4 = cast(v3, f32);
            v5 = div(v2, v4);
            v6 = sub(v1, v5);
            v7 = accumulator 1;
            v8 = div(v7, v4);
            v9 = constant 0.000001 f32;
            v10 = add(v8, v9);
            v11 = rsqrt(v10);
            v12 = mul(v6, v11);
            v13 = cast(v12, {dtype});
            store o2[s3*i0 + s2*i1 + i2] = v13;
            v15 = load o1[s2*i0 + i2];
            v16 = constant 1.0 f32;
            v17 = add(v16, v15);
            v18 = mul(v12, v17);
            v19 = accumulator 2;
            v20 = mul(v18, v19);
            store o3[s3*i0 + s2*i1 + i2] = v20;
        }}
    }}
    launch k0(b0, b1, b2, b3, b4) sizes B, S, D, S*D per step;
"
    )
}

#[test]
fn layer_norms_of_every_width() {
    let text = layer_norm("f32");
    for d in 1..=40 {
        check(&Case { text: &text, dims: &[("B", 2), ("S", 3), ("D", d)], tolerance: 1e-5, ..DEFAULT });
    }
    check(&Case { text: &text, dims: &[("B", 2), ("S", 57), ("D", 301)], tolerance: 1e-5, ..DEFAULT });
    check(&Case {
        text: &layer_norm("bf16"),
        dims: &[("B", 2), ("S", 5), ("D", 77)],
        tolerance: 1e-5,
        ..DEFAULT
    });
    check(&Case {
        text: &layer_norm("f16"),
        dims: &[("B", 1), ("S", 5), ("D", 18)],
        tolerance: 1e-5,
        ..DEFAULT
    });
}

const SOFTMAX: &str = "
    dim R, C;
    input x: f32[C, R] per step;
    output p: f32[R, C];
    output largest: f32[R];
    buffer b0: f32[C, R] input 0;
    buffer b1: f32[R, C] output 0;
    buffer b2: f32[R] output 1;
    kernel k0(read f32, write f32, write f32) sizes 2 row_reduction {
        rows s0;
        columns s1;
        phase {
            v0 = load o0[i0 + s0*i1];
        }
        reduce max v0;
        phase {
            v0 = load o0[i0 + s0*i1];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
        }
        reduce sum v3;
        row {
            v0 = accumulator 0;
            store o2[i0] = v0;
        }
        element {
            v0 = load o0[i0 + s0*i1];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
            v4 = accumulator 1;
            v5 = div(v3, v4);
            store o1[s1*i0 + i1] = v5;
        }
    }
    launch k0(b0, b1, b2) sizes R, C per step;
";

#[test]
fn softmax_over_strided_columns() {
    for (r, c) in [(1, 1), (4, 3), (5, 16), (3, 64), (17, 35)] {
        check(&Case { text: SOFTMAX, dims: &[("R", r), ("C", c)], ..DEFAULT });
    }
}

#[test]
fn a_nan_is_the_largest_of_its_row() {
    let value = |_: &str, position: usize| (position == 19).then_some(f64::NAN);
    check(&Case { text: SOFTMAX, dims: &[("R", 4), ("C", 21)], value: &value, ..DEFAULT });
}

#[test]
fn rows_without_columns_have_the_neutral_results() {
    let text = "
    dim R;
    input x: f32[R, 0] per step;
    output total: f32[R];
    output largest: f32[R];
    buffer b0: f32[R, 0] input 0;
    buffer b1: f32[R] output 0;
    buffer b2: f32[R] output 1;
    kernel k0(read f32, write f32, write f32) sizes 2 row_reduction {
        rows s0;
        columns s1;
        phase {
            v0 = load o0[s1*i0 + i1];
            v1 = load o0[0];
            v2 = add(v0, v1);
        }
        reduce sum v2;
        reduce max v2;
        row {
            v0 = accumulator 0;
            store o1[i0] = v0;
            v2 = accumulator 1;
            store o2[i0] = v2;
        }
        element { }
    }
    launch k0(b0, b1, b2) sizes R, 0 per step;
";
    check(&Case { text, dims: &[("R", 3)], ..DEFAULT });
}
