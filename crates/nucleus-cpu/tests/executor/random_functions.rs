//! Random scalar functions against the interpreter.

use std::fmt::Write;

use proptest::prelude::*;

use crate::harness::{Case, DEFAULT, FUNCTIONS_OF_A_PLAN, RANDOM_PLANS, check};

/// A choice among operations, and which earlier values they take.
type Draw = (u8, u8, u8, u8);

/// Builds a function from draws: values of every type are kept in lists, and each draw adds one.
fn function(draws: &[Draw]) -> (String, usize) {
    let mut text = String::new();
    let mut count = 0;
    let mut values: [Vec<usize>; 5] = Default::default();
    let types = ["f32", "bf16", "f16", "i32", "bool"];
    let mut push = |line: String, ty: usize, values: &mut [Vec<usize>; 5]| {
        writeln!(text, "            v{count} = {line};").unwrap();
        values[ty].push(count);
        count += 1;
    };
    for ty in 0..5 {
        push(format!("load o{ty}[i0]"), ty, &mut values);
    }
    push("affine[2 + 3*i0]".to_owned(), 3, &mut values);
    push("constant 0.75 f32".to_owned(), 0, &mut values);
    for &(op, x, y, z) in draws {
        let ty = usize::from(x) % 5;
        let pick =
            |ty: usize, draw: u8, values: &[Vec<usize>; 5]| values[ty][usize::from(draw) % values[ty].len()];
        let (a, b) = (pick(ty, y, &values), pick(ty, z, &values));
        let target = usize::from(op / 12) % 5;
        let condition = pick(4, x.wrapping_add(z), &values);
        let (line, result) = match (op % 12, ty) {
            (0 | 1, _) => (format!("cast(v{a}, {})", types[target]), target),
            (2, ty) => (format!("select(v{condition}, v{a}, v{b})"), ty),
            (3, _) => (format!("less(v{a}, v{b})"), 4),
            (4, _) => (format!("less_equal(v{a}, v{b})"), 4),
            (5, _) => (format!("equal(v{a}, v{b})"), 4),
            (6, 4) => (format!("and(v{a}, v{b})"), 4),
            (7, 4) => (format!("or(v{a}, v{b})"), 4),
            (_, 4) => (format!("not(v{a})"), 4),
            (6, ty) => (format!("max(v{a}, v{b})"), ty),
            (7, ty) => (format!("min(v{a}, v{b})"), ty),
            (8, ty) => (format!("sub(v{a}, v{b})"), ty),
            (9, ty) => (format!("add(v{a}, v{b})"), ty),
            (10, ty) => (format!("mul(v{a}, v{b})"), ty),
            (_, ty) => (format!("neg(v{a})"), ty),
        };
        push(line, result, &mut values);
    }
    for (ty, list) in values.iter().enumerate() {
        // Dead steps must not matter, so only the last value of each type is stored.
        writeln!(text, "            store o{}[i0] = v{};", ty + 5, list[list.len() - 1]).unwrap();
        count += 1;
    }
    (text, count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: RANDOM_PLANS, ..ProptestConfig::default() })]

    #[test]
    fn random_functions_agree(
        draws in prop::collection::vec(prop::collection::vec(any::<Draw>(), 1..24), FUNCTIONS_OF_A_PLAN),
        n in 1i64..30,
    ) {
        let types = ["f32", "bf16", "f16", "i32", "bool"];
        let modes = types.map(|ty| format!("read {ty}")).join(", ");
        let writes = types.map(|ty| format!("write {ty}")).join(", ");
        let [mut inputs, mut outputs, mut buffers, mut kernels, mut launches] = [const { String::new() }; 5];
        for (position, ty) in types.iter().enumerate() {
            writeln!(inputs, "    input x{position}: {ty}[N] per step;").unwrap();
            writeln!(buffers, "    buffer b{position}: {ty}[N] input {position};").unwrap();
        }
        for (number, draws) in draws.iter().enumerate() {
            let mut results = Vec::new();
            for (position, ty) in types.iter().enumerate() {
                let output = number * types.len() + position;
                let buffer = output + types.len();
                writeln!(outputs, "    output y{output}: {ty}[N];").unwrap();
                writeln!(buffers, "    buffer b{buffer}: {ty}[N] output {output};").unwrap();
                results.push(format!("b{buffer}"));
            }
            let (function, _) = function(draws);
            write!(
                kernels,
                "    kernel k{number}({modes}, {writes}) sizes 1 map {{
        space s0;
        function {{
{function}        }}
    }}
"
            )
            .unwrap();
            let results = results.join(", ");
            writeln!(launches, "    launch k{number}(b0, b1, b2, b3, b4, {results}) sizes N per step;").unwrap();
        }
        let text = format!("    dim N;\n{inputs}{outputs}{buffers}{kernels}{launches}");
        // Every operation here is exact or correctly rounded on both sides.
        check(&Case { text: &text, dims: &[("N", n)], tolerance: 0.0, ..DEFAULT });
    }
}
