//! Plans whose points would touch what other points store are refused, by name, before they run.

use nucleus_cpu::BindError;

use crate::errors::{GATHER, bind, repeated};

/// A map from x to y, both [N, 4], of which y may be read too.
fn map(steps: &str) -> String {
    format!(
        "
    dim N;
    input x: f32[N, 4] per step;
    output y: f32[N, 4];
    buffer b0: f32[N, 4] input 0;
    buffer b1: f32[N, 4] output 0;
    kernel k0(read f32, update f32) sizes 1 map {{
        space s0, 4;
        function {{ {steps} }}
    }}
    launch k0(b0, b1) sizes N per step;
"
    )
}

#[track_caller]
fn refused(text: &str, why: &str) {
    let error = bind(text, &[("N", 3)]).unwrap_err();
    assert!(matches!(error, BindError::Bounds { launch: 0, .. }), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn points_that_store_to_one_element() {
    let fine = map("v0 = load o0[4*i0 + i1]; store o1[4*i0 + i1] = v0;");
    assert!(bind(&fine, &[("N", 3)]).is_ok());
    let stores = "slot `function`: a point stores an element of operand 1 that another point stores";
    refused(&map("v0 = load o0[4*i0 + i1]; store o1[4*i0] = v0;"), stores);
    refused(&map("v0 = load o0[4*i0 + i1]; store o1[2*i0 + i1] = v0;"), stores);
    refused(&map("v0 = load o0[0]; store o1[0] = v0;"), stores);
    let shifted = "v0 = load o0[4*i0]; store o1[4*i0 + i1] = v0;";
    let text = map(shifted).replace("space s0, 4", "space s0, 3");
    assert!(bind(&text, &[("N", 3)]).is_ok());
    let text = text.replace("= v0;", "= v0; store o1[1 + 4*i0 + i1] = v0;");
    refused(&text, stores);
}

#[test]
fn points_that_read_what_others_store() {
    let own = map("v0 = load o1[4*i0 + i1]; store o1[4*i0 + i1] = v0;");
    assert!(bind(&own, &[("N", 3)]).is_ok());
    let reads = "a point stores an element of operand 1 that another point reads";
    refused(&map("v0 = load o1[i1]; store o1[4*i0 + i1] = v0;"), reads);
    refused(&map("v0 = load o1[4*i0]; store o1[4*i0 + i1] = v0;"), reads);
}

#[test]
fn neighbours_stored_by_one_point() {
    let text = map("v0 = load o0[4*i0 + 2*i1]; store o1[4*i0 + 2*i1] = v0; store o1[1 + 4*i0 + 2*i1] = v0;");
    assert!(bind(&text.replace("space s0, 4", "space s0, 2"), &[("N", 3)]).is_ok());
}

#[test]
fn operands_in_one_memory() {
    let text = map("v0 = load o0[4*i0 + i1]; store o1[4*i0 + i1] = v0;");
    refused(&text.replace("k0(b0, b1)", "k0(b1, b1)"), "operands 0 and 1 share memory, and one is written");
}

#[test]
fn stores_through_an_index() {
    let text = GATHER.replace("load o0[i1 + 4*o1[i0]]", "load o0[i1]");
    let text = text.replace("store o2[4*i0 + i1]", "store o2[i1 + 4*o1[i0]]");
    let error = bind(&text, &[("N", 3), ("S", 2)]).unwrap_err().to_string();
    assert!(
        error.contains("slot `function`: operand 2 is stored to, and has or goes through an index"),
        "{error}"
    );
}

#[test]
fn epilogues_that_meet() {
    let fine = repeated(4);
    assert!(bind(&fine, &[("N", 3)]).is_ok());
    refused(
        &fine.replace("o1[2*i0 + i1]", "o1[i0 + i1]"),
        "slot `epilogue0`: a point stores an element of operand 1",
    );
    refused(&fine.replace("k0(b0, b1)", "k0(b1, b1)"), "operands 0 and 1 share memory");
}

#[test]
fn rows_of_a_reduction_keep_to_themselves() {
    let text = "
    dim N;
    input x: f32[N, 4] per step;
    output y: f32[N, 5];
    buffer b0: f32[N, 4] input 0;
    buffer b1: f32[N, 5] output 0;
    kernel k0(read f32, write f32) sizes 1 row_reduction {
        rows s0; columns 4;
        phase { v0 = load o0[4*i0 + i1]; }
        reduce sum v0;
        row { v0 = accumulator 0; store o1[4 + 5*i0] = v0; }
        element { v0 = load o0[4*i0 + i1]; store o1[5*i0 + i1] = v0; }
    }
    launch k0(b0, b1) sizes N per step;
";
    assert!(bind(text, &[("N", 3)]).is_ok());
    let reason = "a point stores an element of operand 1 that another point stores";
    // The sum of a row lies where the next row's elements do, or all sums in one place.
    refused(&text.replace("o1[4 + 5*i0]", "o1[5*i0]").replace("o1[5*i0 + i1]", "o1[1 + 4*i0 + i1]"), reason);
    refused(&text.replace("o1[4 + 5*i0]", "o1[4]"), reason);
}
