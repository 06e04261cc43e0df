//! Matrix products: factors from loads, gathers and functions, segments, batches, packed weights.

use crate::harness::{Case, DEFAULT, check};

/// `y = silu(x W₀ᵀ) · (x W₁ᵀ) + r`, the weight stored (out, in), with a copy in bf16.
fn gated(dtype: &str, a: &str) -> String {
    format!(
        "
    dim B, S;
    input x: {dtype}[B, S, 37] per step;
    input r: f32[B, S, 21] per step;
    output y: f32[B, S, 21];
    output z: bf16[B, S, 21];
    weight \"w\": {dtype}[42, 37];
    buffer b0: {dtype}[B, S, 37] input 0;
    buffer b1: {dtype}[42, 37] weight \"w\";
    buffer b2: f32[B, S, 21] input 1;
    buffer b3: f32[B, S, 21] output 0;
    buffer b4: bf16[B, S, 21] output 1;
    kernel k0(read {dtype}, read {dtype}, read f32, write f32, write bf16) sizes 4 matmul {dtype} {{
        batch;
        rows s0, s1;
        columns 21; segments 2; depth 37;
        a {{
            {a}
        }}
        b {{
            v0 = load o1[i0 + 37*i1];
            return v0;
        }}
        epilogue {{
            v0 = accumulator 0;
            v1 = sigmoid(v0);
            v2 = mul(v0, v1);
            v3 = accumulator 1;
            v4 = mul(v2, v3);
            v5 = load o2[s3*i0 + 21*i1 + i2];
            v6 = add(v4, v5);
            store o3[s3*i0 + 21*i1 + i2] = v6;
            v8 = cast(v6, bf16);
            store o4[s3*i0 + 21*i1 + i2] = v8;
        }}
    }}
    launch k0(b0, b1, b2, b3, b4) sizes B, S, 37*S, 21*S per step;
"
    )
}

pub(crate) const PLAIN: &str = "v0 = load o0[s2*i0 + 37*i1 + i2]; return v0;";
const SIZES: [(i64, i64); 6] = [(1, 1), (1, 2), (2, 3), (1, 31), (3, 33), (2, 70)];

#[test]
fn gated_products_of_every_type() {
    for dtype in ["f32", "bf16", "f16"] {
        let text = gated(dtype, PLAIN);
        for (b, s) in SIZES {
            check(&Case { text: &text, dims: &[("B", b), ("S", s)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

#[test]
fn a_left_factor_may_be_a_function() {
    let a = "v0 = load o0[s2*i0 + 37*i1 + i2]; v1 = tanh(v0); v2 = add(v1, v1); return v2;";
    for dtype in ["f32", "bf16", "f16"] {
        let tolerance = if dtype == "f32" { 1e-5 } else { 2e-3 };
        for (b, s) in SIZES {
            check(&Case { text: &gated(dtype, a), dims: &[("B", b), ("S", s)], tolerance, ..DEFAULT });
        }
    }
}

#[test]
fn left_rows_may_run_backwards_or_be_broadcast() {
    for a in [
        "v0 = load o0[s2*i0 + i2]; return v0;",
        "v0 = load o0[36 + s2*i0 + 37*i1 + -1*i2]; return v0;",
        "v0 = load o0[37*i1 + i2]; return v0;",
    ] {
        check(&Case { text: &gated("f32", a), dims: &[("B", 2), ("S", 13)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// The experts' first product: tokens gathered by slot, weights (expert, in, out).
fn experts(dtype: &str) -> String {
    format!(
        "
    dim B, S, C;
    input x: {dtype}[B, S, 24] per step;
    input slot: i32[B, 3, C] per step;
    output y: f32[3, B, C, 10];
    weight \"w\": {dtype}[3, 24, 20];
    buffer b0: {dtype}[B, S, 24] input 0;
    buffer b1: i32[B, 3, C] input 1;
    buffer b2: {dtype}[3, 24, 20] weight \"w\";
    buffer b3: f32[3, B, C, 10] output 0;
    kernel k0(read {dtype}, read i32, read {dtype}, write f32) sizes 6 grouped_matmul {dtype} {{
        batch 3;
        rows s0, s1;
        columns 10; segments 2; depth 24;
        a {{
            v0 = load o0[s2*i1 + i3 + 24*o1[s1*i0 + s3*i1 + i2]];
            return v0;
        }}
        b {{
            v0 = load o2[480*i0 + 20*i1 + i2];
            return v0;
        }}
        epilogue {{
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = mul(v0, v1);
            store o3[s4*i0 + s5*i1 + 10*i2 + i3] = v2;
        }}
    }}
    launch k0(b0, b1, b2, b3) sizes B, C, 24*S, 3*C, 10*B*C, 10*C per step;
"
    )
}

#[test]
fn experts_gather_their_tokens() {
    let value = |name: &str, position: usize| (name == "slot").then_some((position * 5 % 7) as f64);
    for dtype in ["f32", "bf16"] {
        for (b, c) in [(1, 1), (2, 3), (3, 17), (70, 2)] {
            let dims = [("B", b), ("S", 7), ("C", c)];
            check(&Case { text: &experts(dtype), dims: &dims, value: &value, tolerance: 1e-5 });
        }
    }
}

/// Both factors are activations, with two batch axes of which one broadcasts the right one.
const BATCHED: &str = "
    dim B, H, N, K, M;
    input x: f32[B, H, N, K] per step;
    input y: f32[B, 1, K, M] per step;
    output z: f32[B, H, N, M];
    buffer b0: f32[B, H, N, K] input 0;
    buffer b1: f32[B, 1, K, M] input 1;
    buffer b2: f32[B, H, N, M] output 0;
    kernel k0(read f32, read f32, write f32) sizes 11 matmul f32 {
        batch s0, s1;
        rows s2;
        columns s4; segments 1; depth s3;
        a {
            v0 = load o0[s5*i0 + s6*i1 + s3*i2 + i3];
            return v0;
        }
        b {
            v0 = load o1[s7*i0 + s4*i2 + i3];
            return v0;
        }
        epilogue {
            v0 = accumulator 0;
            store o2[s8*i0 + s9*i1 + s4*i2 + i3] = v0;
        }
    }
    launch k0(b0, b1, b2) sizes B, H, N, K, M, H*N*K, N*K, K*M, H*N*M, N*M, 0 per step;
";

#[test]
fn batches_of_activations() {
    for [b, h, n, k, m] in [[1, 1, 1, 1, 1], [2, 3, 5, 7, 9], [1, 4, 33, 16, 35]] {
        let dims = [("B", b), ("H", h), ("N", n), ("K", k), ("M", m)];
        check(&Case { text: BATCHED, dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}

#[test]
fn a_right_factor_may_be_a_function() {
    let text = BATCHED.replace(
        "v0 = load o1[s7*i0 + s4*i2 + i3];\n            return v0;",
        "v0 = load o1[s7*i0 + s4*i2 + i3];\n            v1 = exp(v0);\n            return v1;",
    );
    assert_ne!(text, BATCHED);
    let dims = [("B", 2), ("H", 3), ("N", 5), ("K", 7), ("M", 9)];
    check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
}

#[test]
fn a_product_over_nothing_is_zero() {
    let text = gated("f32", PLAIN).replace("37", "0");
    check(&Case { text: &text, dims: &[("B", 2), ("S", 3)], ..DEFAULT });
}

#[test]
fn values_of_stage_model_are_packed_like_weights() {
    let text = "
    dim N;
    input x: f32[N, 8] per step;
    output y: f32[N, 6];
    weight \"w\": f32[8, 6];
    buffer b0: f32[8, 6] weight \"w\";
    buffer b1: f32[8, 6] arena model;
    buffer b2: f32[N, 8] input 0;
    buffer b3: f32[N, 6] output 0;
    kernel k0(read f32, write f32) sizes 0 map {
        space 48;
        function {
            v0 = load o0[i0];
            v1 = add(v0, v0);
            store o1[i0] = v1;
        }
    }
    kernel k1(read f32, read f32, write f32) sizes 1 matmul f32 {
        batch;
        rows s0;
        columns 6; segments 1; depth 8;
        a { v0 = load o0[8*i0 + i1]; return v0; }
        b { v0 = load o1[6*i0 + i1]; return v0; }
        epilogue { v0 = accumulator 0; store o2[6*i0 + i1] = v0; }
    }
    launch k0(b0, b1) per model;
    launch k1(b2, b1, b3) sizes N per step;
";
    check(&Case { text, dims: &[("N", 5)], tolerance: 1e-5, ..DEFAULT });
}

/// Three products of x: gated halves with a residual and a second store, keys that are stored transposed in bf16, and a product with
/// an activation as its right factor. Their operands and sizes differ, and so do their epilogues.
pub(crate) fn parts(dtype: &str, a: &str) -> String {
    format!(
        "
    dim B, S, M;
    input x: {dtype}[B, S, 37] per step;
    input r: f32[B, S, 21] per step;
    input t: {dtype}[37, M] per step;
    output y: f32[B, S, 21];
    output z: f32[B, S, 21];
    output k: bf16[B, 70, S];
    output m: f32[B, S, M];
    weight \"w\": {dtype}[42, 37];
    weight \"v\": {dtype}[37, 70];
    buffer b0: {dtype}[B, S, 37] input 0;
    buffer b1: f32[B, S, 21] input 1;
    buffer b2: {dtype}[37, M] input 2;
    buffer b3: f32[B, S, 21] output 0;
    buffer b4: f32[B, S, 21] output 1;
    buffer b5: bf16[B, 70, S] output 2;
    buffer b6: f32[B, S, M] output 3;
    buffer b7: {dtype}[42, 37] weight \"w\";
    buffer b8: {dtype}[37, 70] weight \"v\";
    kernel k0(read {dtype}, read {dtype}, read f32, write f32, write f32, read {dtype}, write bf16, read {dtype}, write f32) sizes 7 matmul {dtype} {{
        batch;
        rows s0, s1;
        depth 37;
        a {{
            {a}
        }}
        part columns 21; segments 2;
        b {{
            v0 = load o1[i0 + 37*i1];
            return v0;
        }}
        epilogue {{
            v0 = accumulator 0;
            v1 = sigmoid(v0);
            v2 = mul(v0, v1);
            v3 = accumulator 1;
            v4 = mul(v2, v3);
            v5 = load o2[s3*i0 + 21*i1 + i2];
            v6 = add(v4, v5);
            store o3[s3*i0 + 21*i1 + i2] = v6;
            store o4[s3*i0 + 21*i1 + i2] = v0;
        }}
        part columns 70; segments 1;
        b {{
            v0 = load o5[70*i0 + i1];
            return v0;
        }}
        epilogue {{
            v0 = accumulator 0;
            v1 = cast(v0, bf16);
            store o6[s4*i0 + i1 + s1*i2] = v1;
        }}
        part columns s5; segments 1;
        b {{
            v0 = load o7[s5*i0 + i1];
            v1 = add(v0, v0);
            return v1;
        }}
        epilogue {{
            v0 = accumulator 0;
            store o8[s6*i0 + s5*i1 + i2] = v0;
        }}
    }}
    launch k0(b0, b7, b1, b3, b4, b8, b5, b2, b6) sizes B, S, 37*S, 21*S, 70*S, M, S*M per step;
"
    )
}

#[test]
fn products_of_one_left_factor() {
    for dtype in ["f32", "bf16", "f16"] {
        for (b, s) in SIZES {
            for m in [1, 40] {
                let dims = [("B", b), ("S", s), ("M", m)];
                check(&Case { text: &parts(dtype, PLAIN), dims: &dims, tolerance: 1e-5, ..DEFAULT });
            }
        }
    }
}

#[test]
fn products_of_one_computed_left_factor() {
    let a = "v0 = load o0[s2*i0 + 37*i1 + i2]; v1 = tanh(v0); v2 = add(v1, v1); return v2;";
    for (b, s) in SIZES {
        let dims = [("B", b), ("S", s), ("M", 5)];
        check(&Case { text: &parts("f32", a), dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}

#[test]
fn experts_may_have_several_products() {
    let text = experts("bf16");
    // A second right factor, w transposed in its last axes, whose product is the twelve rows of another output.
    let text = text
        .replace("    weight", "    output z: f32[3, B, C, 12];\n    weight")
        .replace("    kernel k0", "    buffer b4: f32[3, B, C, 12] output 1;\n    kernel k0")
        .replace("write f32) sizes 6", "write f32, write f32) sizes 8")
        .replace("        columns 10; segments 2; depth 24;", "        depth 24;")
        .replace("        b {", "        part columns 10; segments 2;\n        b {")
        .replace(
            "    }\n    launch",
            "        part columns 12; segments 1;
        b {
            v0 = load o2[480*i0 + i1 + 24*i2];
            return v0;
        }
        epilogue {
            v0 = accumulator 0;
            v1 = exp(v0);
            store o4[s6*i0 + s7*i1 + 12*i2 + i3] = v1;
        }
    }
    launch",
        )
        .replace("(b0, b1, b2, b3)", "(b0, b1, b2, b3, b4)")
        .replace("10*C per step", "10*C, 12*B*C, 12*C per step");
    // Small numbers, so that no exponential is far larger than the others.
    let value = |name: &str, position: usize| match name {
        "slot" => Some((position * 5 % 7) as f64),
        _ => Some((position * 7 % 13) as f64 / 16.0 - 0.375),
    };
    for (b, c) in [(1, 1), (2, 3), (3, 17)] {
        let dims = [("B", b), ("S", 7), ("C", c)];
        check(&Case { text: &text, dims: &dims, value: &value, tolerance: 1e-5 });
    }
}

#[test]
fn batches_with_several_products() {
    let text = BATCHED
        .replace("    buffer b0", "    output u: f32[B, H, M, N];\n    buffer b0")
        .replace("    kernel k0", "    buffer b3: f32[B, H, M, N] output 1;\n    kernel k0")
        .replace("write f32) sizes 11", "write f32, write f32) sizes 11")
        .replace("        columns s4; segments 1; depth s3;", "        depth s3;")
        .replace("        b {", "        part columns s4; segments 1;\n        b {")
        .replace(
            "    }\n    launch",
            "        part columns s4; segments 1;
        b {
            v0 = load o1[s7*i0 + s4*i2 + i3];
            v1 = tanh(v0);
            return v1;
        }
        epilogue {
            v0 = accumulator 0;
            store o3[s8*i0 + s9*i1 + i2 + s2*i3] = v0;
        }
    }
    launch",
        )
        .replace("(b0, b1, b2)", "(b0, b1, b2, b3)");
    for [b, h, n, k, m] in [[1, 1, 1, 1, 1], [2, 3, 5, 7, 9], [1, 4, 33, 16, 35]] {
        let dims = [("B", b), ("H", h), ("N", n), ("K", k), ("M", m)];
        check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}

/// Quantised weights, stored (out, in) and (in, out): `y = x Qᵀ · s` and `z = x R`, and a copy of the first column of Q.
fn quantised(dtype: &str) -> String {
    format!(
        "
    dim B, S;
    input x: {dtype}[B, S, 37] per step;
    output y: f32[B, S, 21];
    output z: f32[B, S, 21];
    output q: {dtype}[21, 37];
    output r: f32[21];
    weight \"w\": i8[21, 37];
    weight \"w.scale\": f32[21, 1];
    weight \"u\": i8[37, 21];
    buffer b0: {dtype}[B, S, 37] input 0;
    buffer b1: i8[21, 37] weight \"w\";
    buffer b2: f32[21, 1] weight \"w.scale\";
    buffer b3: i8[37, 21] weight \"u\";
    buffer b4: f32[B, S, 21] output 0;
    buffer b5: f32[B, S, 21] output 1;
    buffer b6: {dtype}[21, 37] output 2;
    buffer b7: f32[21] output 3;
    kernel k0(read {dtype}, read i8, read f32, write f32) sizes 4 matmul {dtype} {{
        batch;
        rows s0, s1;
        columns 21; segments 1; depth 37;
        a {{ v0 = load o0[s2*i0 + 37*i1 + i2]; return v0; }}
        b {{ v0 = load o1[i0 + 37*i1]; v1 = cast(v0, {dtype}); return v1; }}
        epilogue {{
            v0 = accumulator 0;
            v1 = load o2[i2];
            v2 = mul(v0, v1);
            store o3[s3*i0 + 21*i1 + i2] = v2;
        }}
    }}
    kernel k1(read {dtype}, read i8, write f32) sizes 4 matmul {dtype} {{
        batch;
        rows s0, s1;
        columns 21; segments 1; depth 37;
        a {{ v0 = load o0[s2*i0 + 37*i1 + i2]; return v0; }}
        b {{ v0 = load o1[21*i0 + i1]; v1 = cast(v0, {dtype}); return v1; }}
        epilogue {{ v0 = accumulator 0; store o2[s3*i0 + 21*i1 + i2] = v0; }}
    }}
    kernel k2(read i8, write {dtype}) sizes 0 map {{
        space 21, 37;
        function {{ v0 = load o0[37*i0 + i1]; v1 = cast(v0, {dtype}); store o1[37*i0 + i1] = v1; }}
    }}
    kernel k3(read i8, write f32) sizes 0 map {{
        space 21;
        function {{ v0 = load o0[37*i0]; v1 = cast(v0, f32); store o1[i0] = v1; }}
    }}
    launch k0(b0, b1, b2, b4) sizes B, S, 37*S, 21*S per step;
    launch k1(b0, b3, b5) sizes B, S, 37*S, 21*S per step;
    launch k2(b1, b6) per step;
    launch k3(b1, b7) per step;
"
    )
}

#[test]
fn right_factors_may_be_bytes() {
    for dtype in ["f32", "bf16", "f16"] {
        for (b, s) in SIZES {
            let text = quantised(dtype);
            check(&Case { text: &text, dims: &[("B", b), ("S", s)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

#[test]
fn a_left_factor_may_be_bytes() {
    let text = "
    output y: f32[5, 21];
    weight \"a\": i8[5, 37];
    weight \"b\": i8[21, 37];
    buffer b0: i8[5, 37] weight \"a\";
    buffer b1: i8[21, 37] weight \"b\";
    buffer b2: f32[5, 21] output 0;
    kernel k0(read i8, read i8, write f32) sizes 0 matmul bf16 {
        batch;
        rows 5;
        columns 21; segments 1; depth 37;
        a { v0 = load o0[37*i0 + i1]; v1 = cast(v0, bf16); return v1; }
        b { v0 = load o1[i0 + 37*i1]; v1 = cast(v0, bf16); return v1; }
        epilogue { v0 = accumulator 0; store o2[21*i0 + i1] = v0; }
    }
    launch k0(b0, b1, b2) per step;
";
    // Sums of products of bytes below 2²⁴ are exact.
    check(&Case { text, dims: &[], tolerance: 0.0, ..DEFAULT });
}

/// `z = x y` for batches of matrices that lie by rows or by columns, with factors rounded to `dtype` where they are packed.
fn changing(dtype: &str, a: &str, b: &str) -> String {
    format!(
        "
    dim G, M, K, N;
    input x: f32[G, M, K] per step;
    input y: f32[G, K, N] per step;
    output z: f32[G, M, N];
    buffer b0: f32[G, M, K] input 0;
    buffer b1: f32[G, K, N] input 1;
    buffer b2: f32[G, M, N] output 0;
    kernel k0(read f32, read f32, write f32) sizes 7 matmul {dtype} {{
        batch s0;
        rows s1;
        columns s3; segments 1; depth s2;
        a {{ v0 = load {a}; v1 = cast(v0, {dtype}); return v1; }}
        b {{ v0 = load {b}; v1 = cast(v0, {dtype}); return v1; }}
        epilogue {{
            v0 = accumulator 0;
            store o2[s6*i0 + s3*i1 + i2] = v0;
        }}
    }}
    launch k0(b0, b1, b2) sizes G, M, K, N, K*M, K*N, M*N per step;
"
    )
}

#[test]
fn changing_factors_of_all_orders() {
    let left = ["o0[s4*i0 + s2*i1 + i2]", "o0[s4*i0 + i1 + s1*i2]"];
    let right = ["o1[s5*i0 + s3*i1 + i2]", "o1[s5*i0 + i1 + s2*i2]", "o1[i1 + s2*i2]"];
    for dtype in ["f32", "bf16"] {
        for (a, b) in left.into_iter().flat_map(|a| right.map(|b| (a, b))) {
            let text = changing(dtype, a, b);
            // In one block of rows and in several.
            for [g, m, k, n] in [[1, 1, 1, 1], [3, 37, 70, 33], [2, 70, 33, 130], [1, 600, 19, 35]] {
                let dims = [("G", g), ("M", m), ("K", k), ("N", n)];
                check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
            }
        }
    }
}

#[test]
fn a_matrix_times_itself_transposed() {
    // Both factors are one operand.
    let text = changing("f32", "o0[s4*i0 + s2*i1 + i2]", "o0[s4*i0 + i1 + s2*i2]");
    for [g, m, k] in [[3, 37, 70], [1, 70, 19]] {
        let dims = [("G", g), ("M", m), ("K", k), ("N", m)];
        check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}
