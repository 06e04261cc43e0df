//! Matrix products over several tiles in every direction: factors in all orders of memory and of any alignment, symmetric ones, parts that
//! are alike, groups and segments wider than a tile.

use crate::harness::{Case, DEFAULT, check};

/// `z = x y` for a batch, all extents multiples of `unit`, which is then what all places in memory are multiples of.
pub(crate) fn aligned(dtype: &str, unit: i64, a: &str, b: &str) -> String {
    format!(
        "
    dim G, M, K, N;
    input x: {dtype}[G, {unit}*M, {unit}*K] per step;
    input y: {dtype}[G, {unit}*K, {unit}*N] per step;
    output z: f32[G, {unit}*M, {unit}*N];
    buffer b0: {dtype}[G, {unit}*M, {unit}*K] input 0;
    buffer b1: {dtype}[G, {unit}*K, {unit}*N] input 1;
    buffer b2: f32[G, {unit}*M, {unit}*N] output 0;
    kernel k0(read {dtype}, read {dtype}, write f32) sizes 7 matmul {dtype} {{
        batch s0;
        rows s1;
        columns s3; segments 1; depth s2;
        a {{ v0 = load {a}; return v0; }}
        b {{ v0 = load {b}; return v0; }}
        epilogue {{
            v0 = accumulator 0;
            store o2[s6*i0 + s3*i1 + i2] = v0;
        }}
    }}
    launch k0(b0, b1, b2) sizes G, {unit}*M, {unit}*K, {unit}*N, {square}*K*M, {square}*K*N, {square}*M*N per step;
",
        square = unit * unit,
    )
}

pub(crate) const LEFT: [&str; 2] = ["o0[s4*i0 + s2*i1 + i2]", "o0[s4*i0 + i1 + s1*i2]"];
pub(crate) const RIGHT: [&str; 2] = ["o1[s5*i0 + s3*i1 + i2]", "o1[s5*i0 + i1 + s2*i2]"];

fn of_several_tiles(dtype: &str, unit: i64, a: &str, b: &str) {
    let text = aligned(dtype, unit, a, b);
    for [g, m, k, n] in [[1, 8, 8, 8], [2, 152, 104, 136], [1, 24, 328, 264]] {
        let dims = [("G", g), ("M", m / unit), ("K", k / unit), ("N", n / unit)];
        check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
    }
}

#[test]
fn factors_of_all_orders() {
    for (a, b) in LEFT.into_iter().flat_map(|a| RIGHT.map(|b| (a, b))) {
        of_several_tiles("bf16", 8, a, b);
    }
    of_several_tiles("f32", 4, LEFT[0], RIGHT[0]);
    of_several_tiles("f32", 4, LEFT[1], RIGHT[1]);
}

#[test]
fn factors_of_less_alignment() {
    of_several_tiles("bf16", 4, LEFT[0], RIGHT[0]);
    of_several_tiles("f16", 2, LEFT[1], RIGHT[1]);
    of_several_tiles("f16", 2, LEFT[0], RIGHT[0]);
    of_several_tiles("f32", 1, LEFT[1], RIGHT[0]);
    of_several_tiles("f32", 1, LEFT[0], RIGHT[1]);
}

/// Weight gradients: rows of both factors lie side by side, and the depth is images and tokens.
#[test]
fn depth_may_be_ragged_where_lines_are_not() {
    let text = "
    dim T;
    input x: bf16[T, 72] per step;
    input y: bf16[T, 136] per step;
    output z: f32[72, 136];
    buffer b0: bf16[T, 72] input 0;
    buffer b1: bf16[T, 136] input 1;
    buffer b2: f32[72, 136] output 0;
    kernel k0(read bf16, read bf16, write f32) sizes 1 matmul bf16 {
        batch;
        rows 72;
        columns 136; segments 1; depth s0;
        a { v0 = load o0[i0 + 72*i1]; return v0; }
        b { v0 = load o1[136*i0 + i1]; return v0; }
        epilogue { v0 = accumulator 0; store o2[136*i0 + i1] = v0; }
    }
    launch k0(b0, b1, b2) sizes T per step;
";
    for t in [1, 31, 64, 333] {
        check(&Case { text, dims: &[("T", t)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// Few rows, long depth: what modulation vectors are made by. The rows have two axes, and so do the lines of x, which lie side by side.
#[test]
fn few_rows_and_a_long_depth() {
    let text = "
    dim B;
    input x: bf16[1000, B, 8] per step;
    output z: bf16[B, 8, 72];
    weight \"w\": bf16[72, 1000];
    buffer b0: bf16[1000, B, 8] input 0;
    buffer b1: bf16[72, 1000] weight \"w\";
    buffer b2: bf16[B, 8, 72] output 0;
    kernel k0(read bf16, read bf16, write bf16) sizes 2 matmul bf16 {
        batch;
        rows s0, 8;
        columns 72; segments 1; depth 1000;
        a { v0 = load o0[8*i0 + i1 + s1*i2]; return v0; }
        b { v0 = load o1[i0 + 1000*i1]; return v0; }
        epilogue { v0 = accumulator 0; v1 = cast(v0, bf16); store o2[576*i0 + 72*i1 + i2] = v1; }
    }
    launch k0(b0, b1, b2) sizes B, 8*B per step;
";
    for b in [1, 2, 3] {
        check(&Case { text, dims: &[("B", b)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// `y = x xᵀ + x xᵀ`, of which one half need be computed.
#[test]
fn symmetric_products() {
    for dtype in ["bf16", "f32"] {
        let text = format!(
            "
    dim G, M, K;
    input x: {dtype}[G, M, 8*K] per step;
    output y: f32[G, M, M];
    buffer b0: {dtype}[G, M, 8*K] input 0;
    buffer b1: f32[G, M, M] output 0;
    kernel k0(read {dtype}, write f32) sizes 5 matmul {dtype} {{
        batch s0;
        rows s1;
        columns s1; segments 1; depth s2;
        a {{ v0 = load o0[s3*i0 + s2*i1 + i2]; return v0; }}
        symmetric;
        b {{ v0 = load o0[s3*i0 + i1 + s2*i2]; return v0; }}
        epilogue {{ v0 = accumulator 0; v1 = add(v0, v0); store o1[s4*i0 + s1*i1 + i2] = v1; }}
    }}
    launch k0(b0, b1) sizes G, M, 8*K, 8*K*M, M*M per step;
"
        );
        for [g, m, k] in [[1, 1, 1], [2, 70, 3], [1, 333, 2]] {
            let dims = [("G", g), ("M", m), ("K", k)];
            check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
        }
    }
}

/// Several products of one shape, whose weights, biases and results are operands of their own, and one of another.
#[test]
fn parts_that_are_alike() {
    for dtype in ["bf16", "f32"] {
        let (mut operands, mut parts, mut bindings) = (String::new(), String::new(), String::new());
        let mut tensors = String::new();
        for part in 0..5 {
            let columns = if part == 3 { 24 } else { 40 };
            let first = 1 + 3 * part;
            let (w, bias, y) = (first, first + 1, first + 2);
            operands += &format!(", read {dtype}, read f32, write f32");
            bindings += &format!(", b{w}, b{bias}, b{y}");
            tensors += &format!(
                "
    weight \"w{part}\": {dtype}[{both}, 64];
    weight \"bias{part}\": f32[{both}];
    output y{part}: f32[N, {columns}];
    buffer b{w}: {dtype}[{both}, 64] weight \"w{part}\";
    buffer b{bias}: f32[{both}] weight \"bias{part}\";
    buffer b{y}: f32[N, {columns}] output {part};",
                both = 2 * columns,
            );
            parts += &format!(
                "
        part columns {columns}; segments 2;
        b {{ v0 = load o{w}[i0 + 64*i1]; return v0; }}
        epilogue {{
            v0 = accumulator 0;
            v1 = load o{bias}[i1];
            v2 = add(v0, v1);
            v3 = accumulator 1;
            v4 = load o{bias}[{columns} + i1];
            v5 = add(v3, v4);
            v6 = mul(v2, v5);
            store o{y}[{columns}*i0 + i1] = v6;
        }}"
            );
        }
        let (declared, buffers): (Vec<&str>, Vec<&str>) =
            tensors.lines().partition(|line| !line.trim_start().starts_with("buffer"));
        let text = format!(
            "
    dim N;
    input x: {dtype}[N, 64] per step;
{}
    buffer b0: {dtype}[N, 64] input 0;
{}
    kernel k0(read {dtype}{operands}) sizes 1 matmul {dtype} {{
        batch;
        rows s0;
        depth 64;
        a {{ v0 = load o0[64*i0 + i1]; return v0; }}{parts}
    }}
    launch k0(b0{bindings}) sizes N per step;
",
            by_kind(&declared),
            buffers.join("\n"),
        );
        for n in [1, 40] {
            check(&Case { text: &text, dims: &[("N", n)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

/// Declarations in the order in which a plan has them: outputs before weights.
fn by_kind(lines: &[&str]) -> String {
    let of = |kind: &str| {
        lines.iter().filter(|line| line.trim_start().starts_with(kind)).copied().collect::<Vec<_>>()
    };
    [of("output"), of("weight")].concat().join("\n")
}

/// A norm over all columns, of which no tile has so many, beside a part that is not wide.
#[test]
fn groups_wider_than_a_tile() {
    for dtype in ["bf16", "f32"] {
        let text = format!(
            "
    dim B, S;
    input x: {dtype}[B, S, 16] per step;
    output y: {dtype}[B, S, 600];
    output z: f32[B, S, 8];
    weight \"w\": {dtype}[600, 16];
    weight \"v\": {dtype}[8, 16];
    buffer b0: {dtype}[B, S, 16] input 0;
    buffer b1: {dtype}[600, 16] weight \"w\";
    buffer b2: {dtype}[B, S, 600] output 0;
    buffer b3: {dtype}[8, 16] weight \"v\";
    buffer b4: f32[B, S, 8] output 1;
    kernel k0(read {dtype}, read {dtype}, write {dtype}, read {dtype}, write f32) sizes 5 matmul {dtype} {{
        batch;
        rows s0, s1;
        depth 16;
        a {{ v0 = load o0[s2*i0 + 16*i1 + i2]; return v0; }}
        part columns 300; interleaved 2;
        b {{ v0 = load o1[i0 + 16*i1]; return v0; }}
        width 150;
        phase {{ v0 = accumulator 0; v1 = mul(v0, v0); v2 = accumulator 1; v3 = mul(v2, v2); v4 = add(v1, v3); }}
        reduce sum v4;
        epilogue {{
            v0 = accumulator 2;
            v1 = rsqrt(v0);
            v2 = accumulator 0;
            v3 = mul(v2, v1);
            v4 = cast(v3, {dtype});
            store o2[s3*i0 + 600*i1 + 300*i2 + 2*i3] = v4;
            v6 = accumulator 1;
            v7 = mul(v6, v1);
            v8 = cast(v7, {dtype});
            store o2[1 + s3*i0 + 600*i1 + 300*i2 + 2*i3] = v8;
        }}
        part columns 8; segments 1;
        b {{ v0 = load o3[i0 + 16*i1]; return v0; }}
        epilogue {{ v0 = accumulator 0; store o4[s4*i0 + 8*i1 + i2] = v0; }}
    }}
    launch k0(b0, b1, b2, b3, b4) sizes B, S, 16*S, 600*S, 8*S per step;
"
        );
        for (b, s) in [(1, 1), (2, 9)] {
            check(&Case { text: &text, dims: &[("B", b), ("S", s)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

/// More segments than a tile has columns; how many columns each has is a size.
#[test]
fn many_segments() {
    let text = "
    dim G, N, M;
    input x: f32[G, N, 5] per step;
    input w: f32[G, 5, 300*M] per step;
    output y: f32[G, N, M];
    buffer b0: f32[G, N, 5] input 0;
    buffer b1: f32[G, 5, 300*M] input 1;
    buffer b2: f32[G, N, M] output 0;
    kernel k0(read f32, read f32, write f32) sizes 7 matmul f32 {
        batch s0;
        rows s1;
        columns s2; segments 300; depth 5;
        a { v0 = load o0[s3*i0 + 5*i1 + i2]; return v0; }
        b { v0 = load o1[s4*i0 + s5*i1 + i2]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = accumulator 299;
            v2 = sub(v0, v1);
            store o2[s6*i0 + s2*i1 + i2] = v2;
        }
    }
    launch k0(b0, b1, b2) sizes G, N, M, 5*N, 1500*M, 300*M, M*N per step;
";
    for [g, n, m] in [[1, 1, 1], [2, 7, 3]] {
        check(&Case { text, dims: &[("G", g), ("N", n), ("M", m)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// `z = 3 (2 x y - w) + v`, rounded as well, where v is one row for each of the first axis and w the same columns for all batches.
#[test]
fn epilogues_that_are_linear_combinations() {
    let text = "
    dim G, M, N;
    input x: bf16[G, 3, M, 24] per step;
    input y: bf16[G, 24, N] per step;
    input v: f32[3, N] per step;
    input w: bf16[M, N] per step;
    output z: f32[G, 3, M, N];
    output r: bf16[G, 3, M, N];
    buffer b0: bf16[G, 3, M, 24] input 0;
    buffer b1: bf16[G, 24, N] input 1;
    buffer b2: f32[3, N] input 2;
    buffer b3: bf16[M, N] input 3;
    buffer b4: f32[G, 3, M, N] output 0;
    buffer b5: bf16[G, 3, M, N] output 1;
    kernel k0(read bf16, read bf16, read f32, read bf16, write f32, write bf16) sizes 7 matmul bf16 {
        batch s0;
        rows 3, s1;
        columns s2; segments 1; depth 24;
        a { v0 = load o0[s3*i0 + s4*i1 + 24*i2 + i3]; return v0; }
        b { v0 = load o1[s5*i0 + s2*i1 + i2]; return v0; }
        epilogue {
            v0 = accumulator 0;
            v1 = constant 2.0 f32;
            v2 = mul(v0, v1);
            v3 = load o3[s2*i2 + i3];
            v4 = cast(v3, f32);
            v5 = sub(v2, v4);
            v6 = constant 3.0 f32;
            v7 = mul(v6, v5);
            v8 = load o2[s2*i1 + i3];
            v9 = add(v7, v8);
            v10 = cast(v9, bf16);
            store o5[3*s6*i0 + s6*i1 + s2*i2 + i3] = v10;
            v12 = neg(v9);
            store o4[3*s6*i0 + s6*i1 + s2*i2 + i3] = v12;
        }
    }
    launch k0(b0, b1, b2, b3, b4, b5) sizes G, M, N, 72*M, 24*M, 24*N, M*N per step;
";
    // Strides are arguments of their own.
    let text = text
        .replace("3*s6*i0", "s7*i0")
        .replace("sizes 7", "sizes 8")
        .replace("M*N per step", "M*N, 3*M*N per step");
    for [g, m, n] in [[1, 1, 1], [2, 7, 33], [3, 50, 150]] {
        let dims = [("G", g), ("M", m), ("N", n)];
        check(&Case { text: &text, dims: &dims, tolerance: 1e-2, ..DEFAULT });
    }
}

/// `z = x y s / 4 + (1 - l s) w` and half of it rounded, where l is one number and s one for each item of the batch.
#[test]
fn combinations_whose_factors_are_in_memory() {
    let text = "
    dim G, M, N;
    input x: f32[G, M, 24] per step;
    input y: f32[G, 24, N] per step;
    input s: f32[G] per step;
    input l: f32[] per step;
    input w: f32[M, N] per step;
    output z: f32[G, M, N];
    output r: bf16[G, M, N];
    buffer b0: f32[G, M, 24] input 0;
    buffer b1: f32[G, 24, N] input 1;
    buffer b2: f32[G] input 2;
    buffer b3: f32[] input 3;
    buffer b4: f32[M, N] input 4;
    buffer b5: f32[G, M, N] output 0;
    buffer b6: bf16[G, M, N] output 1;
    kernel k0(read f32, read f32, read f32, read f32, read f32, write f32, write bf16) sizes 6 matmul f32 {
        batch s0;
        rows s1;
        columns s2; segments 1; depth 24;
        a { v0 = load o0[s3*i0 + 24*i1 + i2]; return v0; }
        b { v0 = load o1[s4*i0 + s2*i1 + i2]; return v0; }
        epilogue {
            v0 = load o2[i0];
            v1 = constant 4.0 f32;
            v2 = div(v0, v1);
            v3 = accumulator 0;
            v4 = mul(v3, v2);
            v5 = load o3[0];
            v6 = mul(v5, v0);
            v7 = constant 1.0 f32;
            v8 = sub(v7, v6);
            v9 = load o4[s2*i1 + i2];
            v10 = mul(v8, v9);
            v11 = add(v4, v10);
            store o5[s5*i0 + s2*i1 + i2] = v11;
            v13 = constant 0.5 f32;
            v14 = mul(v11, v13);
            v15 = cast(v14, bf16);
            store o6[s5*i0 + s2*i1 + i2] = v15;
        }
    }
    launch k0(b0, b1, b2, b3, b4, b5, b6) sizes G, M, N, 24*M, 24*N, M*N per step;
";
    for [g, m, n] in [[1, 1, 1], [1, 40, 9], [3, 1, 20], [3, 50, 150]] {
        let dims = [("G", g), ("M", m), ("N", n)];
        check(&Case { text, dims: &dims, tolerance: 1e-2, ..DEFAULT });
    }
}
