//! Where sharing is allowed and where it is refused.

use super::{in_place, next_values};
use crate::text::parse_plan;

/// A plan with inputs `x` and `g` and outputs `x` and `y`, all f32[8, 8] and in this order, and an index into rows.
fn shares(kernels_and_launches: &str) -> Vec<Option<u32>> {
    let text = format!(
        "plan step {{
    dim N;
    input x: f32[8, 8] per step;
    input g: f32[8, 8] per step;
    input rows: i32[8] per step;
    output x: f32[8, 8];
    output y: f32[8, 8];
    arenas model 0, prompt 0, step 0;
    buffer b0: f32[8, 8] input 0;
    buffer b1: f32[8, 8] input 1;
    buffer b2: i32[8] input 2;
    buffer b3: f32[8, 8] output 0;
    buffer b4: f32[8, 8] output 1;
{kernels_and_launches}
}}
"
    );
    let plan = parse_plan(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(next_values(&plan), [Some(0), None], "`y` is no input");
    in_place(&plan)
}

fn map(number: usize, operands: &str, body: &str) -> String {
    format!("kernel k{number}({operands}) sizes 0 map {{ space 8, 8; function {{ {body} }} }}\n")
}

fn launch(number: usize, operands: &str) -> String {
    format!("launch k{number}({operands}) per step flops 0 bytes 0;\n")
}

/// One map from `x` and `g` to the output `x`.
fn one_map(body: &str) -> Option<u32> {
    shares(&(map(0, "read f32, read f32, write f32", body) + &launch(0, "b0, b1, b3")))[0]
}

#[test]
fn an_update_element_by_element_is_in_place() {
    let body =
        "v0 = load o0[8*i0 + i1]; v1 = load o1[8*i0 + i1]; v2 = sub(v0, v1); store o2[8*i0 + i1] = v2;";
    assert_eq!(one_map(body), Some(0));
    // What else is read may be read anywhere.
    let body =
        "v0 = load o0[8*i0 + i1]; v1 = load o1[i0 + 8*i1]; v2 = sub(v0, v1); store o2[8*i0 + i1] = v2;";
    assert_eq!(one_map(body), Some(0));
    // Nothing is read: the old value is lost, which nobody wants.
    assert_eq!(one_map("v0 = load o1[8*i0 + i1]; store o2[8*i0 + i1] = v0;"), Some(0));
}

#[test]
fn elements_that_another_point_writes_are_not() {
    for body in [
        // Transposed.
        "v0 = load o0[i0 + 8*i1]; store o2[8*i0 + i1] = v0;",
        // The whole row's first element.
        "v0 = load o0[8*i0]; store o2[8*i0 + i1] = v0;",
        // The next element, and the element itself.
        "v0 = load o0[8*i0 + i1]; v1 = load o0[1 + 8*i0 + i1]; v2 = add(v0, v1); store o2[8*i0 + i1] = v2;",
        // Read after it was written.
        "v0 = load o1[8*i0 + i1]; store o2[8*i0 + i1] = v0; v2 = load o0[8*i0 + i1];",
        // Written twice.
        "v0 = load o0[8*i0 + i1]; store o2[8*i0 + i1] = v0; store o2[8*i0 + i1] = v0;",
    ] {
        assert_eq!(one_map(body), None, "{body}");
    }
}

#[test]
fn rows_by_index_are_not() {
    let operands = "read f32, read i32, write f32";
    for body in [
        "v0 = load o0[8*o1[i0] + i1]; store o2[8*i0 + i1] = v0;",
        "v0 = load o0[8*i0 + i1]; store o2[8*o1[i0] + i1] = v0;",
    ] {
        assert_eq!(shares(&(map(0, operands, body) + &launch(0, "b0, b2, b3")))[0], None, "{body}");
    }
}

const UPDATE: &str =
    "v0 = load o0[8*i0 + i1]; v1 = load o1[8*i0 + i1]; v2 = sub(v0, v1); store o2[8*i0 + i1] = v2;";
const COPY: &str = "v0 = load o0[8*i0 + i1]; store o1[8*i0 + i1] = v0;";

#[test]
fn an_input_may_be_read_before_its_next_value_is_written_and_not_after() {
    let kernels = map(0, "read f32, read f32, write f32", UPDATE) + &map(1, "read f32, write f32", COPY);
    let (update, copy) = (launch(0, "b0, b1, b3"), launch(1, "b0, b4"));
    assert_eq!(shares(&format!("{kernels}{copy}{update}")), [Some(0), None]);
    assert_eq!(shares(&format!("{kernels}{update}{copy}")), [None, None]);
    // The next value may be read.
    let after = launch(1, "b3, b4");
    assert_eq!(shares(&format!("{kernels}{update}{after}")), [Some(0), None]);
}

#[test]
fn a_launch_that_writes_without_reading_ends_the_input() {
    let kernels = map(0, "read f32, write f32", COPY);
    assert_eq!(shares(&format!("{kernels}{}{}", launch(0, "b1, b3"), launch(0, "b0, b4"))), [None, None]);
    assert_eq!(shares(&format!("{kernels}{}{}", launch(0, "b0, b4"), launch(0, "b1, b3"))), [Some(0), None]);
}

#[test]
fn an_output_that_nothing_writes_is_not() {
    let text = map(0, "read f32, write f32", COPY) + &launch(0, "b0, b4");
    assert_eq!(shares(&text), [None, None]);
}

#[test]
fn factors_of_products_are_not() {
    let matmul = "kernel k0(read f32, read f32, write f32) sizes 0 matmul f32 {
        batch;
        rows 8;
        columns 8; segments 1; depth 8; tile 12, 32, 128;
        a { v0 = load o0[8*i0 + i1]; return v0; }
        b { v0 = load o1[8*i0 + i1]; return v0; }
        epilogue { v0 = accumulator 0; store o2[8*i0 + i1] = v0; }
    }
";
    for operands in ["b0, b1, b3", "b1, b0, b3"] {
        assert_eq!(shares(&format!("{matmul}{}", launch(0, operands)))[0], None, "{operands}");
    }
    let epilogue = "v0 = accumulator 0; v1 = load o3[8*i0 + i1]; v2 = add(v0, v1); store o2[8*i0 + i1] = v2;";
    let added = matmul
        .replace("(read f32, read f32, write f32)", "(read f32, read f32, write f32, read f32)")
        .replace("v0 = accumulator 0; store o2[8*i0 + i1] = v0;", epilogue);
    // x ← x + g·g: only the epilogue reads x, where it writes.
    assert_eq!(shares(&format!("{added}{}", launch(0, "b1, b1, b3, b0")))[0], Some(0));
    // x ← x + x·g
    assert_eq!(shares(&format!("{added}{}", launch(0, "b0, b1, b3, b0")))[0], None);
}

#[test]
fn another_type_is_another_tensor() {
    let text = "plan step {
    dim N;
    input x: f32[N, 8] per step;
    input y: f32[N, 8] per step;
    output x: bf16[N, 8];
    output y: f32[N, 4];
    arenas model 0, prompt 0, step 0;
}
";
    let plan = parse_plan(text).expect("a sound text");
    assert_eq!(next_values(&plan), [None, None]);
}
