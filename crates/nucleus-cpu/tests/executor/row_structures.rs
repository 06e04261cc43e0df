//! Row reductions over constant and over large sizes: backends choose other loops for them than for small run-time ones.

use std::fmt::Write;

use crate::harness::{Case, DEFAULT, check};
use crate::leading_axes::LONG;

/// A plan in the making: buffers of inputs and outputs, and kernels, each launched once.
#[derive(Default)]
struct Text {
    inputs: String,
    outputs: String,
    buffers: String,
    kernels: String,
    launches: String,
    counts: [usize; 4],
}

impl Text {
    /// An input or output of this type; gives the buffer's name.
    fn buffer(&mut self, kind: &str, ty: &str) -> String {
        let [inputs, outputs, buffers, _] = &mut self.counts;
        let (list, count, rate) = if kind == "input" {
            (&mut self.inputs, inputs, " per step")
        } else {
            (&mut self.outputs, outputs, "")
        };
        let position = *count;
        writeln!(list, "    {kind} {}{position}: {ty}{rate};", &kind[..1]).unwrap();
        let name = format!("b{buffers}");
        writeln!(self.buffers, "    buffer {name}: {ty} {kind} {position};").unwrap();
        *count += 1;
        *buffers += 1;
        name
    }

    fn kernel(&mut self, head: &str, body: &str, operands: &[&str], sizes: &str) {
        let number = self.counts[3];
        writeln!(self.kernels, "    kernel k{number}{head} {{\n{body}\n    }}").unwrap();
        writeln!(self.launches, "    launch k{number}({}) sizes {sizes} per step;", operands.join(", "))
            .unwrap();
        self.counts[3] += 1;
    }

    fn finish(&self, dims: &str) -> String {
        [
            &format!("    dim {dims};\n"),
            &self.inputs,
            &self.outputs,
            &self.buffers,
            &self.kernels,
            &self.launches,
        ]
        .map(String::as_str)
        .concat()
    }
}

/// The gradient of a norm in the manner of training: two phases over three operands, a result of the row, results in two types.
fn gradient(text: &mut Text, dtype: &str, columns: i64) {
    let wide = |ty: &str| format!("{ty}[A*B*C, {columns}]");
    let x = text.buffer("input", &wide(dtype));
    let y = text.buffer("input", &wide("f32"));
    let gain = text.buffer("input", &format!("f32[{columns}]"));
    let row = text.buffer("output", "f32[A*B*C]");
    let u = text.buffer("output", &wide("f32"));
    let v = text.buffer("output", &wide("bf16"));
    let at = format!("{columns}*i0 + i1");
    let body = format!(
        "
        rows s0;
        columns {columns};
        phase {{
            v0 = load o0[{at}];
            v1 = mul(v0, v0);
            v2 = cast(v1, f32);
        }}
        reduce sum v2;
        reduce max v2;
        phase {{
            v0 = load o0[{at}];
            v1 = cast(v0, f32);
            v2 = load o1[{at}];
            v3 = mul(v1, v2);
            v4 = accumulator 0;
            v5 = mul(v3, v4);
            v6 = load o2[i1];
            v7 = mul(v5, v6);
        }}
        reduce sum v7;
        row {{
            v0 = accumulator 2;
            v1 = accumulator 1;
            v2 = sub(v0, v1);
            store o3[i0] = v2;
        }}
        element {{
            v0 = load o1[{at}];
            v1 = accumulator 1;
            v2 = mul(v0, v1);
            v3 = load o2[i1];
            v4 = add(v2, v3);
            store o4[{at}] = v4;
            v6 = load o0[{at}];
            v7 = cast(v6, f32);
            v8 = sub(v4, v7);
            v9 = cast(v8, bf16);
            store o5[{at}] = v9;
        }}"
    );
    let head =
        format!("(read {dtype}, read f32, read f32, write f32, write f32, write bf16) sizes 1 row_reduction");
    text.kernel(&head, &body, &[&x, &y, &gain, &row, &u, &v], "A*B*C");
}

#[test]
fn rows_of_constant_size() {
    // Many rows at the sizes that structures are chosen by; few run.
    for (dtype, widths) in [
        ("f32", &[1, 2, 3, 20, 64, 77, 128, 500][..]),
        ("f32", &[516, 1028, 2048, 4100, 20_000]),
        ("bf16", &[8, 40, 1024, 1030]),
    ] {
        let mut text = Text::default();
        widths.iter().for_each(|width| gradient(&mut text, dtype, *width));
        let text = text.finish("A, B, C");
        for b in [1, 5] {
            check(&Case { text: &text, dims: &[("A", 1), ("B", b), ("C", 1)], tolerance: 1e-5, ..DEFAULT });
        }
    }
    // Few rows.
    let mut text = Text::default();
    [64, 1028, 2048, 4100].iter().for_each(|width| gradient(&mut text, "f32", *width));
    let text = text.finish("A, B, C").replace("A*B*C", "A").replace("rows s0", "rows 3");
    check(&Case { text: &text.replace("A, B, C", "A"), dims: &[("A", 3)], tolerance: 1e-5, ..DEFAULT });
}

/// Norms of heads and the elements of pairs that a rotation mixes.
const ROTATED: &str = "
    dim B, S, T;
    input x: f32[B, S*T, 4, 16] per step;
    input angle: f32[S*T, 8] per step;
    output y: bf16[B, S*T, 4, 16];
    output norm: f32[B, S*T, 4];
    buffer b0: f32[B, S*T, 4, 16] input 0;
    buffer b1: f32[S*T, 8] input 1;
    buffer b2: bf16[B, S*T, 4, 16] output 0;
    buffer b3: f32[B, S*T, 4] output 1;
    kernel k0(read f32, read f32, write bf16, write f32) sizes 4 row_reduction {
        rows s0, s1, 4;
        columns 8;
        phase {
            v0 = load o0[s2*i0 + 64*i1 + 16*i2 + 2*i3];
            v1 = mul(v0, v0);
            v2 = load o0[1 + s2*i0 + 64*i1 + 16*i2 + 2*i3];
            v3 = mul(v2, v2);
            v4 = add(v1, v3);
        }
        reduce sum v4;
        row {
            v0 = accumulator 0;
            v1 = constant 0.0625 f32;
            v2 = mul(v0, v1);
            v3 = rsqrt(v2);
            store o3[s3*i0 + 4*i1 + i2] = v3;
        }
        element {
            v0 = load o0[s2*i0 + 64*i1 + 16*i2 + 2*i3];
            v1 = load o0[1 + s2*i0 + 64*i1 + 16*i2 + 2*i3];
            v2 = accumulator 0;
            v3 = constant 0.0625 f32;
            v4 = mul(v2, v3);
            v5 = rsqrt(v4);
            v6 = load o1[8*i1 + i3];
            v7 = cos(v6);
            v8 = sin(v6);
            v9 = mul(v0, v7);
            v10 = mul(v1, v8);
            v11 = sub(v9, v10);
            v12 = mul(v11, v5);
            v13 = cast(v12, bf16);
            store o2[s2*i0 + 64*i1 + 16*i2 + 2*i3] = v13;
            v15 = mul(v0, v8);
            v16 = mul(v1, v7);
            v17 = add(v15, v16);
            v18 = mul(v17, v5);
            v19 = cast(v18, bf16);
            store o2[1 + s2*i0 + 64*i1 + 16*i2 + 2*i3] = v19;
        }
    }
    launch k0(b0, b1, b2, b3) sizes B, S*T, 64*S*T, 4*S*T per step;
";

#[test]
fn pairs_of_elements() {
    for (b, s, t) in [(1, 1, 1), (2, 3, 5)] {
        check(&Case { text: ROTATED, dims: &[("B", b), ("S", s), ("T", t)], tolerance: 1e-5, ..DEFAULT });
    }
}

/// Mean, variance and normalised elements of rows whose number is constant; their length is not.
fn few_long_rows(rows: i64, rest: &str) -> String {
    format!(
        "
    dim N;
    input x: f32[{rows}, {rest}N] per step;
    output mean: f32[{rows}];
    output y: f32[{rows}, {rest}N];
    buffer b0: f32[{rows}, {rest}N] input 0;
    buffer b1: f32[{rows}] output 0;
    buffer b2: f32[{rows}, {rest}N] output 1;
    kernel k0(read f32, write f32, write f32) sizes 1 row_reduction {{
        rows {rows};
        columns s0;
        phase {{
            v0 = load o0[s0*i0 + i1];
        }}
        reduce sum v0;
        reduce max v0;
        phase {{
            v0 = load o0[s0*i0 + i1];
            v1 = accumulator 0;
            v2 = affine[s0];
            v3 = cast(v2, f32);
            v4 = div(v1, v3);
            v5 = sub(v0, v4);
            v6 = mul(v5, v5);
        }}
        reduce sum v6;
        row {{
            v0 = accumulator 0;
            v1 = accumulator 1;
            v2 = add(v0, v1);
            store o1[i0] = v2;
        }}
        element {{
            v0 = load o0[s0*i0 + i1];
            v1 = accumulator 2;
            v2 = constant 1.0 f32;
            v3 = add(v1, v2);
            v4 = sqrt(v3);
            v5 = div(v0, v4);
            store o2[s0*i0 + i1] = v5;
        }}
    }}
    launch k0(b0, b1, b2) sizes {rest}N per step;
"
    )
}

#[test]
fn few_rows_of_any_length() {
    for (rows, rest) in [(1, ""), (3, "4*")] {
        let text = few_long_rows(rows, rest);
        for n in [1, 3, 511, 512, 513, 2049, 20_001] {
            check(&Case { text: &text, dims: &[("N", n)], tolerance: 1e-5, ..DEFAULT });
        }
    }
    // The sum and the largest of nothing.
    let text = few_long_rows(2, "")
        .replace("dim N;", "dim K;")
        .replace("2, N]", "2, 0]")
        .replace("sizes N", "sizes 0");
    check(&Case { text: &text, dims: &[("K", 1)], ..DEFAULT });
}

#[test]
fn a_sum_of_a_million_is_as_good_as_one_of_hundreds() {
    let text = LONG.replace("rows s0;", "rows 1;");
    let value = |_: &str, position: usize| Some(if position == 0 { 0.2 } else { 0.1 });
    check(&Case { text: &text, dims: &[("R", 1), ("N", 1_000_003)], value: &value, tolerance: 2e-6 });
}

#[test]
fn a_nan_in_a_long_row() {
    let text = few_long_rows(3, "4*");
    let value = |_: &str, position: usize| (position == 9000).then_some(f64::NAN);
    check(&Case { text: &text, dims: &[("N", 1500)], value: &value, tolerance: 1e-5 });
}

/// Softmax over the middle axis of [2, N, rows], the sums of its exponentials; only N is a run-time size.
fn few_columns(rows: i64) -> String {
    let both = 2 * rows;
    format!(
        "
    dim N;
    input x: f32[2, N, {rows}] per step;
    output p: bf16[2, N, {rows}];
    output total: f32[{both}];
    buffer b0: f32[2, N, {rows}] input 0;
    buffer b1: bf16[2, N, {rows}] output 0;
    buffer b2: f32[{both}] output 1;
    kernel k0(read f32, write bf16, write f32) sizes 2 row_reduction {{
        rows 2, {rows};
        columns s0;
        phase {{
            v0 = load o0[s1*i0 + i1 + {rows}*i2];
        }}
        reduce max v0;
        phase {{
            v0 = load o0[s1*i0 + i1 + {rows}*i2];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
        }}
        reduce sum v3;
        reduce sum v0;
        row {{
            v0 = accumulator 1;
            v1 = accumulator 2;
            v2 = add(v0, v1);
            store o2[{rows}*i0 + i1] = v2;
        }}
        element {{
            v0 = load o0[s1*i0 + i1 + {rows}*i2];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
            v4 = accumulator 1;
            v5 = div(v3, v4);
            v6 = cast(v5, bf16);
            store o1[s1*i0 + i1 + {rows}*i2] = v6;
        }}
    }}
    launch k0(b0, b1, b2) sizes N, {rows}*N per step;
"
    )
}

#[test]
fn rows_side_by_side_that_are_cut() {
    for rows in [1, 5, 24, 260] {
        let text = few_columns(rows);
        for n in [1, 31, 65, 700] {
            check(&Case { text: &text, dims: &[("N", n)], tolerance: 1e-5, ..DEFAULT });
        }
    }
    let text = few_columns(24);
    let value = |_: &str, position: usize| Some(if position == 0 { 0.2 } else { 0.1 });
    check(&Case { text: &text, dims: &[("N", 6000)], value: &value, tolerance: 2e-6 });
    let empty =
        text.replace("dim N;", "dim K;").replace("2, N,", "2, 0,").replace("sizes N, 24*N", "sizes 0, 0");
    check(&Case { text: &empty, dims: &[("K", 1)], ..DEFAULT });
}

/// Softmax of rows where they lie: every function but the row's reads what the element function writes.
const IN_PLACE: &str = "
    dim R, N;
    input x: f32[R, N] per step;
    output y: f32[R, N];
    output sum: f32[R];
    buffer b0: f32[R, N] input 0;
    buffer b1: f32[R, N] arena step;
    buffer b2: f32[R, N] output 0;
    buffer b3: f32[R] output 1;
    kernel k0(read f32, write f32) sizes 2 map {
        space s0, s1;
        function {
            v0 = load o0[s1*i0 + i1];
            store o1[s1*i0 + i1] = v0;
        }
    }
    kernel k1(update f32, write f32) sizes 2 row_reduction {
        rows s0;
        columns s1;
        phase {
            v0 = load o0[s1*i0 + i1];
        }
        reduce max v0;
        phase {
            v0 = load o0[s1*i0 + i1];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
        }
        reduce sum v3;
        row {
            v0 = accumulator 1;
            store o1[i0] = v0;
        }
        element {
            v0 = load o0[s1*i0 + i1];
            v1 = accumulator 0;
            v2 = sub(v0, v1);
            v3 = exp(v2);
            v4 = accumulator 1;
            v5 = div(v3, v4);
            store o0[s1*i0 + i1] = v5;
        }
    }
    launch k0(b0, b1) sizes R, N per step;
    launch k1(b1, b3) sizes R, N per step;
    launch k0(b1, b2) sizes R, N per step;
";

#[test]
fn rows_are_computed_where_they_lie() {
    let constant =
        IN_PLACE.replace("dim R, N", "dim R").replace("R, N", "R, 200").replace("columns s1", "columns 200");
    let cut = IN_PLACE
        .replace("dim R, N", "dim N")
        .replace("[R]", "[3]")
        .replace("R, N", "3, N")
        .replace("rows s0", "rows 3");
    check(&Case { text: IN_PLACE, dims: &[("R", 5), ("N", 37)], tolerance: 1e-5, ..DEFAULT });
    check(&Case { text: &constant, dims: &[("R", 3)], tolerance: 1e-5, ..DEFAULT });
    check(&Case { text: &cut, dims: &[("N", 200)], tolerance: 1e-5, ..DEFAULT });
}

/// The element function reads what the row function stored; then the row function reads what the element function will store.
#[test]
fn row_functions_come_before_element_functions() {
    let stored = IN_PLACE
        .replace("(update f32, write f32)", "(update f32, update f32)")
        .replace("v4 = accumulator 1;\n            v5", "v4 = load o1[i0];\n            v5");
    let read = IN_PLACE
        .replace("v0 = accumulator 1;\n            store o1", "v0 = load o0[s1*i0];\n            store o1");
    for text in [&stored, &read] {
        assert_ne!(text, IN_PLACE);
        for columns in ["s1", "200"] {
            let text = text.replace("columns s1", &format!("columns {columns}"));
            check(&Case { text: &text, dims: &[("R", 5), ("N", 200)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}

/// Rows along which nothing is reduced.
#[test]
fn rows_without_phases() {
    let text = |load: &str| {
        format!(
            "
    dim R, N;
    input x: f32[R, N] per step;
    output y: f32[R, N];
    output z: f32[R];
    buffer b0: f32[R, N] input 0;
    buffer b1: f32[R, N] output 0;
    buffer b2: f32[R] output 1;
    kernel k0(read f32, write f32, write f32) sizes 2 row_reduction {{
        rows s0;
        columns s1;
        row {{
            v0 = affine[2*i0];
            v1 = cast(v0, f32);
            store o2[i0] = v1;
        }}
        element {{
            v0 = load o0[{load}];
            v1 = neg(v0);
            store o1[{load}] = v1;
        }}
    }}
    launch k0(b0, b1, b2) sizes R, N per step;
"
        )
    };
    check(&Case { text: &text("s1*i0 + i1"), dims: &[("R", 3), ("N", 50)], tolerance: 0.0, ..DEFAULT });
    check(&Case { text: &text("i0 + s0*i1"), dims: &[("R", 3), ("N", 50)], tolerance: 0.0, ..DEFAULT });
}
