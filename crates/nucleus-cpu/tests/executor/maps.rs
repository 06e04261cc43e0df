//! Maps: element types, positions, strides, broadcasts, gathers.

use crate::harness::{Case, DEFAULT, check};

const FLOATS: &str = "
    dim N;
    input x: f32[N] per step;
    input y: bf16[N] per step;
    input z: f16[N] per step;
    output a: f32[N];
    output b: bf16[N];
    output c: f16[N];
    buffer b0: f32[N] input 0;
    buffer b1: bf16[N] input 1;
    buffer b2: f16[N] input 2;
    buffer b3: f32[N] output 0;
    buffer b4: bf16[N] output 1;
    buffer b5: f16[N] output 2;
    kernel k0(read f32, read bf16, read f16, write f32, write bf16, write f16) sizes 1 map {
        space s0;
        function {
            v0 = load o0[i0];
            v1 = load o1[i0];
            v2 = load o2[i0];
            v3 = cast(v1, f32);
            v4 = cast(v2, f32);
            v5 = mul(v0, v3);
            v6 = sub(v5, v4);
            store o3[i0] = v6;
            v8 = cast(v6, bf16);
            v9 = add(v8, v1);
            store o4[i0] = v9;
            v11 = cast(v0, f16);
            v12 = div(v11, v2);
            store o5[i0] = v12;
        }
    }
    launch k0(b0, b1, b2, b3, b4, b5) sizes N per step;
";

#[test]
fn every_float_type_at_every_length() {
    for n in 1..=40 {
        check(&Case { text: FLOATS, dims: &[("N", n)], ..DEFAULT });
    }
    check(&Case { text: FLOATS, dims: &[("N", 100_003)], ..DEFAULT });
}

#[test]
fn integers_and_booleans() {
    let text = "
    dim N;
    input x: i32[N] per step;
    input y: i32[N] per step;
    input p: bool[N] per step;
    output a: i32[N];
    output b: bool[N];
    output c: f32[N];
    output d: bool[N];
    buffer b0: i32[N] input 0;
    buffer b1: i32[N] input 1;
    buffer b2: bool[N] input 2;
    buffer b3: i32[N] output 0;
    buffer b4: bool[N] output 1;
    buffer b5: f32[N] output 2;
    buffer b6: bool[N] output 3;
    kernel k0(read i32, read i32, read bool, write i32, write bool, write f32, write bool) sizes 1 map {
        space s0;
        function {
            v0 = load o0[i0];
            v1 = load o1[i0];
            v2 = load o2[i0];
            v3 = div(v0, v1);
            v4 = mul(v3, v0);
            v5 = select(v2, v4, v1);
            v6 = max(v5, v0);
            v7 = neg(v1);
            v8 = abs(v7);
            v9 = min(v6, v8);
            v10 = affine[3 + -2*i0];
            v11 = sub(v9, v10);
            store o3[i0] = v11;
            v13 = less(v0, v1);
            v14 = not(v13);
            v15 = and(v14, v2);
            v16 = equal(v0, v1);
            v17 = or(v15, v16);
            store o4[i0] = v17;
            v19 = cast(v0, f32);
            v20 = cast(v2, f32);
            v21 = add(v19, v20);
            store o5[i0] = v21;
            v23 = less_equal(v2, v13);
            v24 = cast(v1, bool);
            v25 = equal(v23, v24);
            store o6[i0] = v25;
        }
    }
    launch k0(b0, b1, b2, b3, b4, b5, b6) sizes N per step;
";
    let value = |name: &str, position: usize| match (name, position % 7) {
        ("y", 0) => Some(0.0),
        ("y", 1) => Some(-1.0),
        ("x", 1) => Some(f64::from(i32::MIN)),
        ("x", 2) => Some(f64::from(i32::MAX)),
        _ => None,
    };
    for n in [1, 2, 3, 4, 5, 7, 8, 9, 15, 33] {
        check(&Case { text, dims: &[("N", n)], value: &value, ..DEFAULT });
    }
}

#[test]
fn conversions_keep_infinities_and_nan_and_round_to_even() {
    let text = "
    input x: f32[64] per step;
    output a: bf16[64];
    output b: f16[64];
    output c: i32[64];
    output d: bool[64];
    buffer b0: f32[64] input 0;
    buffer b1: bf16[64] output 0;
    buffer b2: f16[64] output 1;
    buffer b3: i32[64] output 2;
    buffer b4: bool[64] output 3;
    kernel k0(read f32, write bf16, write f16, write i32, write bool) sizes 0 map {
        space 64;
        function {
            v0 = load o0[i0];
            v1 = cast(v0, bf16);
            store o1[i0] = v1;
            v3 = cast(v0, f16);
            store o2[i0] = v3;
            v5 = cast(v0, i32);
            store o3[i0] = v5;
            v7 = cast(v0, bool);
            store o4[i0] = v7;
        }
    }
    launch k0(b0, b1, b2, b3, b4) per step;
";
    let special = [
        0.0,
        -0.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        3e9,
        -3e9,
        65504.0,
        65519.9,
        65520.0,
        -65520.0,
        65535.0,
        6e-8,
        2.9e-8,
        3e-8,
        -6.1e-5,
        6.2e-5,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        3.39e38,
        f64::from(f32::MAX),
        1e-40,
        2.5,
        -2.5,
    ];
    for shift in 0..4 {
        let value = |_: &str, position: usize| special.get(position.wrapping_sub(shift)).copied();
        // The tolerance of a unit at the largest value says little here: infinities and NaN must be in their places.
        check(&Case { text, value: &value, ..DEFAULT });
    }
}

#[test]
fn unary_functions_of_every_float_type() {
    for dtype in ["f32", "bf16", "f16"] {
        for op in ["exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "neg", "abs"] {
            let text = format!(
                "
    dim N;
    input x: {dtype}[N] per step;
    output y: {dtype}[N];
    buffer b0: {dtype}[N] input 0;
    buffer b1: {dtype}[N] output 0;
    kernel k0(read {dtype}, write {dtype}) sizes 1 map {{
        space s0;
        function {{
            v0 = load o0[i0];
            v1 = {op}(v0);
            store o1[i0] = v1;
        }}
    }}
    launch k0(b0, b1) sizes N per step;
"
            );
            check(&Case { text: &text, dims: &[("N", 37)], ..DEFAULT });
        }
    }
}

#[test]
fn strides_offsets_broadcasts_and_transposes() {
    let text = "
    dim B, N, M;
    input x: f32[B, N, M] per step;
    input g: bf16[B, 1, M] per step;
    input r: f32[N] per step;
    output y: f32[B, M, N];
    output z: bool[B, N, M];
    output w: bf16[B, N, 2*M];
    buffer b0: f32[B, N, M] input 0;
    buffer b1: bf16[B, 1, M] input 1;
    buffer b2: f32[N] input 2;
    buffer b3: f32[B, M, N] output 0;
    buffer b4: bool[B, N, M] output 1;
    buffer b5: bf16[B, N, 2*M] output 2;
    kernel k0(read f32, read bf16, read f32, write f32, write bool, write bf16) sizes 6 map {
        space s0, s1, s2;
        function {
            v0 = load o0[s3*i0 + s2*i1 + i2];
            v1 = load o1[s2*i0 + i2];
            v2 = load o2[s4 + -1*i1];
            v3 = cast(v1, f32);
            v4 = mul(v0, v3);
            v5 = add(v4, v2);
            store o3[s3*i0 + s1*i2 + i1] = v5;
            v7 = less(v5, v3);
            store o4[s3*i0 + s2*i1 + i2] = v7;
            v9 = cast(v5, bf16);
            store o5[s5*i0 + 2*i2 + s5*i1] = v9;
            v11 = cast(v2, bf16);
            store o5[1 + s5*i0 + 2*i2 + s5*i1] = v11;
        }
    }
    launch k0(b0, b1, b2, b3, b4, b5) sizes B, N, M, N*M, N - 1, 2*M per step;
";
    // With one batch item both outer strides of the last output may be the same.
    for (n, m) in [(1, 1), (3, 5), (8, 16), (7, 33), (64, 3)] {
        check(&Case { text, dims: &[("B", 1), ("N", n), ("M", m)], ..DEFAULT });
    }
}

const GATHER: &str = "
    dim B, C, S;
    input x: f32[B, S, 24] per step;
    input token: i32[B, C] per step;
    input column: i32[24] per step;
    output y: f32[B, C, 24];
    output z: f32[B, C, 24];
    buffer b0: f32[B, S, 24] input 0;
    buffer b1: i32[B, C] input 1;
    buffer b2: i32[24] input 2;
    buffer b3: f32[B, C, 24] output 0;
    buffer b4: f32[B, C, 24] output 1;
    kernel k0(read f32, read i32, read i32, write f32, write f32) sizes 4 map {
        space s0, s1, 24;
        function {
            v0 = load o0[s2*i0 + i2 + 24*o1[s1*i0 + i1]];
            v1 = load o0[s2*i0 + 1*o2[i2]];
            store o3[s3*i0 + 24*i1 + i2] = v0;
            store o4[s3*i0 + 24*i1 + i2] = v1;
        }
    }
    launch k0(b0, b1, b2, b3, b4) sizes B, C, 24*S, 24*C per step;
";

#[test]
fn gathers_of_rows_and_of_elements() {
    let value = |name: &str, position: usize| match name {
        "token" => Some((position * 7 % 5) as f64),
        "column" => Some((position * 11 % 24) as f64),
        _ => None,
    };
    for (b, c) in [(1, 1), (2, 3), (3, 9)] {
        check(&Case { text: GATHER, dims: &[("B", b), ("C", c), ("S", 5)], value: &value, ..DEFAULT });
    }
}

/// Two of three matrices have the axes of the space in another order of memory, in which the map is then walked; the output is in the space's.
#[test]
fn axes_are_walked_as_most_of_memory_lies() {
    let text = "
    dim N;
    input x: f32[3, 700, 2, 36] per step;
    input y: bf16[3, 700, 2, 36] per step;
    input s: f32[N] per step;
    output z: f32[N, 3, 2, 700, 36];
    buffer b0: f32[3, 700, 2, 36] input 0;
    buffer b1: bf16[3, 700, 2, 36] input 1;
    buffer b2: f32[N] input 2;
    buffer b3: f32[N, 3, 2, 700, 36] output 0;
    kernel k0(read f32, read bf16, read f32, write f32) sizes 1 map {
        space s0, 3, 2, 700, 36;
        function {
            v0 = load o0[50400*i1 + 36*i2 + 72*i3 + i4];
            v1 = load o1[50400*i1 + 36*i2 + 72*i3 + i4];
            v2 = cast(v1, f32);
            v3 = load o2[i0];
            v4 = mul(v2, v3);
            v5 = add(v0, v4);
            store o3[151200*i0 + 50400*i1 + 25200*i2 + 36*i3 + i4] = v5;
        }
    }
    launch k0(b0, b1, b2, b3) sizes N per step;
";
    for n in [1, 2] {
        check(&Case { text, dims: &[("N", n)], ..DEFAULT });
    }
    // Without the broadcast axis all strides are known and not zero.
    let fixed = text.replace("space s0, ", "space ").replace("151200*i0 + ", "").replace("o2[i0]", "o2[0]");
    let fixed = fixed.replace("[N, 3, 2, 700, 36]", "[3, 2, 700, 36]");
    let fixed =
        (1..=4).fold(fixed, |text, axis| text.replace(&format!("i{axis}"), &format!("i{}", axis - 1)));
    check(&Case { text: &fixed, dims: &[("N", 1)], ..DEFAULT });
}
