//! Products with weights of bytes, of any alignment, over several tiles in every direction.

use crate::harness::{Case, DEFAULT, check};

/// Products of one left factor with bytes stored (out, in), two segments, with bytes stored (in, out), and with a weight of its own type: those of
/// bytes alone, and all three at once.
fn products(dtype: &str, depth: i64, columns: i64) -> String {
    let both = 2 * columns;
    // Operands: the left factor, then weight and result of every part.
    let part = |kind: usize, weight: usize| {
        let result = weight + 1;
        let factor = match kind {
            0 => format!("v0 = load o{weight}[i0 + {depth}*i1]; v1 = cast(v0, {dtype}); return v1;"),
            1 => format!("v0 = load o{weight}[{columns}*i0 + i1]; v1 = cast(v0, {dtype}); return v1;"),
            _ => format!("v0 = load o{weight}[i0 + {depth}*i1]; return v0;"),
        };
        let store = |value: &str| format!("store o{result}[{columns}*i0 + i1] = {value};");
        let (segments, epilogue) = match kind {
            0 => (2, format!("v0 = accumulator 0; v1 = accumulator 1; v2 = add(v0, v1); {}", store("v2"))),
            _ => (1, format!("v0 = accumulator 0; {}", store("v0"))),
        };
        format!(
            "columns {columns}; segments {segments}; {{depth}}
        b {{ {factor} }}
        epilogue {{ {epilogue} }}"
        )
    };
    let types = ["i8", "i8", dtype];
    let left = format!("a {{ v0 = load o0[{depth}*i0 + i1]; return v0; }}");
    let alone = |kind: usize| {
        let text = part(kind, 1).replace("{depth}", &format!("depth {depth};\n        {left}"));
        format!(
            "
    kernel k{kind}(read {dtype}, read {}, write f32) sizes 1 matmul {dtype} {{
        batch;
        rows s0;
        {text}
    }}",
            types[kind]
        )
    };
    let parts: String = (0..3)
        .map(|kind| format!("\n        part {}", part(kind, 2 * kind + 1).replace("{depth}", "")))
        .collect();
    format!(
        "
    dim N;
    input x: {dtype}[N, {depth}] per step;
    output y0: f32[N, {columns}];
    output y1: f32[N, {columns}];
    output z0: f32[N, {columns}];
    output z1: f32[N, {columns}];
    output z2: f32[N, {columns}];
    weight \"w0\": i8[{both}, {depth}];
    weight \"w1\": i8[{depth}, {columns}];
    weight \"w2\": {dtype}[{columns}, {depth}];
    buffer b0: {dtype}[N, {depth}] input 0;
    buffer b1: i8[{both}, {depth}] weight \"w0\";
    buffer b2: i8[{depth}, {columns}] weight \"w1\";
    buffer b3: {dtype}[{columns}, {depth}] weight \"w2\";
    buffer b4: f32[N, {columns}] output 0;
    buffer b5: f32[N, {columns}] output 1;
    buffer b6: f32[N, {columns}] output 2;
    buffer b7: f32[N, {columns}] output 3;
    buffer b8: f32[N, {columns}] output 4;{}{}
    kernel k2(read {dtype}, read i8, write f32, read i8, write f32, read {dtype}, write f32) sizes 1 matmul {dtype} {{
        batch;
        rows s0;
        depth {depth};
        {left}{parts}
    }}
    launch k0(b0, b1, b4) sizes N per step;
    launch k1(b0, b2, b5) sizes N per step;
    launch k2(b0, b1, b6, b2, b7, b3, b8) sizes N per step;
",
        alone(0),
        alone(1),
    )
}

#[test]
fn bytes_of_any_alignment() {
    for (dtype, depth, columns) in [("bf16", 320, 144), ("bf16", 24, 100), ("f16", 208, 50), ("f32", 48, 40)]
    {
        let text = products(dtype, depth, columns);
        for n in [1, 70] {
            check(&Case { text: &text, dims: &[("N", n)], tolerance: 1e-5, ..DEFAULT });
        }
    }
}
