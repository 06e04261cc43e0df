//! A plan of one product.

use nucleus_plan::Plan;
use nucleus_plan::text::parse_plan;

/// `x wᵀ` for `parts` weights of 256 columns.
pub(crate) fn product(rows: &str, depth: u32, parts: u32) -> Plan {
    let list = |item: &dyn Fn(u32) -> String| (0..parts).map(item).collect::<String>();
    let text = format!(
        "plan test {{
    dim T;
    input x: bf16[{rows}, {depth}] per step;
{}{}    buffer b0: bf16[{rows}, {depth}] input 0;
{}    kernel k0(read bf16{}) sizes 1 matmul bf16 {{
        batch;
        rows s0;
        depth {depth};
        a {{ v0 = load o0[{depth}*i0 + i1]; return v0; }}
{}    }}
    launch k0(b0{}) sizes {rows} per step flops 0 bytes 0;
}}
",
        list(&|n| format!("    output y{n}: bf16[{rows}, 256];\n")),
        list(&|n| format!("    weight \"w{n}\": bf16[256, {depth}];\n")),
        list(&|n| format!(
            "    buffer b{}: bf16[256, {depth}] weight \"w{n}\";\n    buffer b{}: bf16[{rows}, 256] output {n};\n",
            2 * n + 1,
            2 * n + 2
        )),
        list(&|_| ", read bf16, write bf16".to_owned()),
        list(&|n| format!(
            "        part columns 256; segments 1;
        b {{ v0 = load o{}[i0 + {depth}*i1]; return v0; }}
        epilogue {{ v0 = accumulator 0; v1 = cast(v0, bf16); store o{}[256*i0 + i1] = v1; }}
",
            2 * n + 1,
            2 * n + 2
        )),
        list(&|n| format!(", b{}, b{}", 2 * n + 1, 2 * n + 2)),
    );
    parse_plan(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}
