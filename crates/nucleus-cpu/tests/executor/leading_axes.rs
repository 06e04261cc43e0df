//! Reductions whose rows lie side by side, long rows that are cut, and transpositions: every length around a chunk, a block or a vector.

use proptest::prelude::*;

use crate::harness::{Case, DEFAULT, check};

/// [T, D] → [D]: a sum of products with a factor for each token, and the largest element.
const COLUMNS: &str = "
    dim T, D;
    input x: f32[T, D] per step;
    input y: bf16[T, D] per step;
    input scale: f32[T] per step;
    output total: f32[D];
    output largest: f32[D];
    buffer b0: f32[T, D] input 0;
    buffer b1: bf16[T, D] input 1;
    buffer b2: f32[T] input 2;
    buffer b3: f32[D] output 0;
    buffer b4: f32[D] output 1;
    kernel k0(read f32, read bf16, read f32, write f32, write f32) sizes 2 row_reduction {
        rows s1;
        columns s0;
        phase {
            v0 = load o0[i0 + s1*i1];
            v1 = load o1[i0 + s1*i1];
            v2 = cast(v1, f32);
            v3 = load o2[i1];
            v4 = mul(v0, v2);
            v5 = mul(v4, v3);
        }
        reduce sum v5;
        reduce max v0;
        row {
            v0 = accumulator 0;
            store o3[i0] = v0;
            v2 = accumulator 1;
            store o4[i0] = v2;
        }
        element {
        }
    }
    launch k0(b0, b1, b2, b3, b4) sizes T, D per step;
";

#[test]
fn sums_over_a_leading_axis_at_every_length() {
    for t in [1, 3, 4, 127, 129, 300] {
        for d in [1, 3, 18, 67] {
            check(&Case { text: COLUMNS, dims: &[("T", t), ("D", d)], tolerance: 1e-5, ..DEFAULT });
        }
    }
    // More than a block of rows; so many columns that threads share them.
    for (t, d) in [(5, 2100), (140, 1100), (3000, 17), (2000, 1027)] {
        check(&Case { text: COLUMNS, dims: &[("T", t), ("D", d)], tolerance: 1e-5, ..DEFAULT });
    }
}

#[test]
fn a_nan_is_the_largest_of_its_column_wherever_it_is() {
    for at in [0, 5 * 20, 130 * 20 + 19, 2999 * 20 + 7] {
        let value = |name: &str, position: usize| match name {
            "x" if position == at => Some(f64::NAN),
            "x" => Some(-1.0 - (position % 100) as f64),
            _ => None,
        };
        let dims = [("T", 3000), ("D", 20)];
        check(&Case { text: COLUMNS, dims: &dims, value: &value, tolerance: 1e-5 });
    }
}

/// Softmax of x·m over the middle axis of [B, C, R], the sums of its exponentials, all rows and their order given.
fn softmax(rows: &str, [b, r]: [&str; 2]) -> String {
    format!(
        "
    dim B, C, R;
    input x: f32[B, C, R] per step;
    input m: f32[B, R] per step;
    output p: f32[B, C, R];
    output total: f32[B, R];
    buffer b0: f32[B, C, R] input 0;
    buffer b1: f32[B, R] input 1;
    buffer b2: f32[B, C, R] output 0;
    buffer b3: f32[B, R] output 1;
    kernel k0(read f32, read f32, write f32, write f32) sizes 4 row_reduction {{
        rows {rows};
        columns s1;
        phase {{
            v0 = load o0[s3*{b} + {r} + s2*i2];
            v1 = load o1[s2*{b} + {r}];
            v2 = mul(v0, v1);
        }}
        reduce max v2;
        phase {{
            v0 = load o0[s3*{b} + {r} + s2*i2];
            v1 = load o1[s2*{b} + {r}];
            v2 = mul(v0, v1);
            v3 = accumulator 0;
            v4 = sub(v2, v3);
            v5 = exp(v4);
        }}
        reduce sum v5;
        reduce sum v2;
        row {{
            v0 = accumulator 1;
            v1 = accumulator 2;
            v2 = add(v0, v1);
            store o3[s2*{b} + {r}] = v2;
        }}
        element {{
            v0 = load o0[s3*{b} + {r} + s2*i2];
            v1 = load o1[s2*{b} + {r}];
            v2 = mul(v0, v1);
            v3 = accumulator 0;
            v4 = sub(v2, v3);
            v5 = exp(v4);
            v6 = accumulator 1;
            v7 = div(v5, v6);
            store o2[s3*{b} + {r} + s2*i2] = v7;
        }}
    }}
    launch k0(b0, b1, b2, b3) sizes B, C, R, C*R per step;
"
    )
}

#[test]
fn phases_rows_and_elements_over_the_middle_axis() {
    let texts = [softmax("s0, s2", ["i0", "i1"]), softmax("s2, s0", ["i1", "i0"])];
    for text in &texts {
        for (b, c, r) in [(1, 1, 1), (2, 3, 5), (3, 130, 7), (2, 257, 70), (1, 5000, 9), (20, 140, 6)] {
            let dims = [("B", b), ("C", c), ("R", r)];
            check(&Case { text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
        }
        // No columns: sums of 0 and a largest of −∞.
        let empty = text
            .replace("dim B, C, R", "dim B, R")
            .replace("[B, C, R]", "[B, 0, R]")
            .replace("B, C, R, C*R", "B, 0, R, 0");
        check(&Case { text: &empty, dims: &[("B", 2), ("R", 5)], ..DEFAULT });
    }
}

/// Rows of heads and features that lie one behind the other, gathered tokens, and constant extents.
const GATHERED: &str = "
    dim T;
    input x: f32[50, 3, 8] per step;
    input index: i32[T] per step;
    output total: f32[3, 8];
    buffer b0: f32[50, 3, 8] input 0;
    buffer b1: i32[T] input 1;
    buffer b2: f32[3, 8] output 0;
    kernel k0(read f32, read i32, write f32) sizes 1 row_reduction {
        rows 3, 8;
        columns s0;
        phase {
            v0 = load o0[8*i0 + i1 + 24*o1[i2]];
            v1 = mul(v0, v0);
        }
        reduce sum v1;
        row {
            v0 = accumulator 0;
            store o2[8*i0 + i1] = v0;
        }
        element {
        }
    }
    launch k0(b0, b1, b2) sizes T per step;
";

#[test]
fn sums_over_gathered_tokens() {
    let value = |name: &str, position: usize| (name == "index").then_some((position * 7 % 50) as f64);
    for t in [1, 6, 128, 700] {
        check(&Case { text: GATHERED, dims: &[("T", t)], value: &value, tolerance: 1e-5 });
    }
}

/// Mean and variance of long rows in two phases.
pub(crate) const LONG: &str = "
    dim R, N;
    input x: f32[R, N] per step;
    output mean: f32[R];
    output variance: f32[R];
    output largest: f32[R];
    buffer b0: f32[R, N] input 0;
    buffer b1: f32[R] output 0;
    buffer b2: f32[R] output 1;
    buffer b3: f32[R] output 2;
    kernel k0(read f32, write f32, write f32, write f32) sizes 2 row_reduction {
        rows s0;
        columns s1;
        phase {
            v0 = load o0[s1*i0 + i1];
        }
        reduce sum v0;
        phase {
            v0 = load o0[s1*i0 + i1];
            v1 = accumulator 0;
            v2 = affine[s1];
            v3 = cast(v2, f32);
            v4 = div(v1, v3);
            v5 = sub(v0, v4);
            v6 = mul(v5, v5);
        }
        reduce sum v6;
        reduce max v5;
        row {
            v0 = accumulator 0;
            v1 = affine[s1];
            v2 = cast(v1, f32);
            v3 = div(v0, v2);
            store o1[i0] = v3;
            v5 = accumulator 1;
            v6 = div(v5, v2);
            store o2[i0] = v6;
            v8 = accumulator 2;
            store o3[i0] = v8;
        }
        element {
        }
    }
    launch k0(b0, b1, b2, b3) sizes R, N per step;
";

#[test]
fn long_rows_are_cut_at_the_same_places_by_any_threads() {
    for (r, n) in [(1, 16384), (1, 16385), (2, 18_432), (3, 40_000), (1, 100_001), (20, 16_400)] {
        let value = |_: &str, position: usize| Some(1.0 + (position * 7919 % 1000) as f64 / 500.0);
        check(&Case { text: LONG, dims: &[("R", r), ("N", n)], value: &value, tolerance: 1e-6 });
    }
}

#[test]
fn sums_of_many_equal_numbers_do_not_drift() {
    let value = |_: &str, position: usize| Some(if position == 0 { 0.2 } else { 0.1 });
    check(&Case { text: LONG, dims: &[("R", 1), ("N", 1_000_000)], value: &value, tolerance: 2e-6 });
    check(&Case { text: COLUMNS, dims: &[("T", 150_000), ("D", 4)], value: &value, tolerance: 2e-6 });
}

/// [A, B, C] → [C, B, A], with a factor that lies as the result does.
const TRANSPOSED: &str = "
    dim A, B, C;
    input x: bf16[A, B, C] per step;
    input y: f32[C, B, A] per step;
    output z: f32[C, B, A];
    buffer b0: bf16[A, B, C] input 0;
    buffer b1: f32[C, B, A] input 1;
    buffer b2: f32[C, B, A] output 0;
    kernel k0(read bf16, read f32, write f32) sizes 5 map {
        space s2, s1, s0;
        function {
            v0 = load o0[i0 + s2*i1 + s3*i2];
            v1 = cast(v0, f32);
            v2 = load o1[s4*i0 + s0*i1 + i2];
            v3 = mul(v1, v2);
            store o2[s4*i0 + s0*i1 + i2] = v3;
        }
    }
    launch k0(b0, b1, b2) sizes A, B, C, B*C, A*B per step;
";

#[test]
fn transposing_maps_of_every_shape() {
    for (a, b, c) in [(1, 1, 1), (2, 2, 3), (16, 1, 32), (17, 2, 33), (200, 1, 3), (3, 1, 500), (40, 5, 70)] {
        let dims = [("A", a), ("B", b), ("C", c)];
        check(&Case { text: TRANSPOSED, dims: &dims, tolerance: 0.0, ..DEFAULT });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn random_shapes_agree(b in 1i64..5, c in 1i64..300, r in 1i64..80, swapped: bool) {
        let text = if swapped { softmax("s2, s0", ["i1", "i0"]) } else { softmax("s0, s2", ["i0", "i1"]) };
        let dims = [("B", b), ("C", c), ("R", r)];
        check(&Case { text: &text, dims: &dims, tolerance: 1e-5, ..DEFAULT });
        // Of one sign: a few sums, of any shape, may otherwise all nearly vanish.
        let positive = |_: &str, position: usize| Some(0.5 + (position * 37 % 101) as f64 / 64.0);
        let dims = [("T", c), ("D", r)];
        check(&Case { text: COLUMNS, dims: &dims, value: &positive, tolerance: 1e-5 });
    }
}
