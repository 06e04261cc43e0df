//! Where indices come from decides what is left to check.

use nucleus_ir::Bindings;

use super::{IndexCheck, index_checks};
use crate::bind::{BindError, BoundPlan};
use crate::text::parse_plan;

fn checks(buffers: &str, kernels: &str, launches: &str) -> Result<Vec<IndexCheck>, BindError> {
    let launches: String = launches.lines().map(|line| format!("{line} flops 0 bytes 0;\n")).collect();
    let text = format!("plan test {{\n{buffers}\n{kernels}\n{launches}}}\n");
    let plan = parse_plan(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let dims: Bindings = plan.dims.iter().map(|dim| (dim.as_str(), 5)).collect();
    let bound = BoundPlan::new(&plan, &dims, 1 << 30).unwrap();
    index_checks(&plan, &bound)
}

/// Gathers rows of four from operand 0 by the indices in operand 1.
const GATHER: &str = "kernel k0(read f32, read i32, write f32) sizes 1 map {
    space s0, 4;
    function {
        v0 = load o0[i1 + 4*o1[i0]];
        store o2[4*i0 + i1] = v0;
    }
}";

#[test]
fn indices_of_an_input_are_checked_when_it_is_given() {
    let list = checks(
        "dim N;
         input x: f32[7, 4] per step;
         input i: i32[N] per step;
         output y: f32[N, 4];
         buffer b0: f32[7, 4] input 0;
         buffer b1: i32[N] input 1;
         buffer b2: f32[N, 4] output 0;",
        GATHER,
        "launch k0(b0, b1, b2) sizes N per step",
    )
    .unwrap();
    let [check] = list.as_slice() else { panic!("{list:?}") };
    assert_eq!((check.input, check.allowed.clone(), check.slot.as_str()), (1, 0..7, "function"));
    assert_eq!(check.find_outside(&[0, 6, 3, 2, 1]), None);
    assert_eq!(check.find_outside(&[0, 6, 7, 2, 1]), Some(7));
    assert_eq!(check.find_outside(&[0, 6, 3, 2, -1]), Some(-1));
}

#[test]
fn arithmetic_on_coordinates_is_bounded() {
    let buffers = "dim N;
         input x: f32[9, 4] per step;
         output y: f32[N, 4];
         buffer b0: f32[9, 4] input 0;
         buffer b1: i32[N] arena step;
         buffer b2: f32[N, 4] output 0;";
    let kernels = |factor: u32| {
        format!(
            "{GATHER}
             kernel k1(write i32) sizes 1 map {{
                 space s0;
                 function {{
                     v0 = affine[{factor}*i0];
                     v1 = constant 8 i32;
                     v2 = sub(v1, v0);
                     store o0[i0] = v2;
                 }}
             }}"
        )
    };
    let launches = "launch k1(b1) sizes N per step\nlaunch k0(b0, b1, b2) sizes N per step";
    assert_eq!(checks(buffers, &kernels(2), launches), Ok(Vec::new()), "8, 6, 4, 2, 0");
    let error = checks(buffers, &kernels(3), launches).unwrap_err().to_string();
    assert!(error.contains("launch 1 (map)") && error.contains("known to stay in range"), "{error}");
}

#[test]
fn inverted_maps_are_rows_of_what_sums_over_them() {
    let buffers = "dim N;
         input x: f32[1, N] per step;
         input i: i32[1, N] per step;
         output y: f32[1, 6];
         buffer b0: f32[1, N] input 0;
         buffer b1: i32[1, N] input 1;
         buffer b2: i32[1, 7] arena step;
         buffer b3: i32[1, N] arena step;
         buffer b4: f32[1, 6] output 0;";
    let kernels = |targets: u32| {
        format!(
            "kernel k0(read i32, write i32, write i32) sizes 1 invert_index {{
                 batch 1;
                 positions s0;
                 targets 6;
                 index o0;
                 offsets_out o1;
                 positions_out o2;
             }}
             kernel k1(read i32, read i32, read f32, write f32) sizes 1 segment_sum {{
                 batch 1;
                 targets {targets};
                 rest;
                 offsets o0;
                 positions o1;
                 position_count s0;
                 base {{
                     v0 = constant 0 f32;
                     return v0;
                 }}
                 update {{
                     v0 = load o2[i1];
                     return v0;
                 }}
                 epilogue {{
                     v0 = accumulator 0;
                     store o3[i1] = v0;
                 }}
             }}"
        )
    };
    let launches = "launch k0(b1, b2, b3) sizes N per step\nlaunch k1(b2, b3, b0, b4) sizes N per step";
    let list = checks(buffers, &kernels(6), launches).unwrap();
    let [check] = list.as_slice() else { panic!("{list:?}") };
    assert_eq!((check.input, check.allowed.clone()), (1, 0..6));
    assert_eq!(check.find_outside(&[0, 5, 5, 6, 1]), Some(6));
    assert!(checks(buffers, &kernels(5), launches).is_err(), "the map has six targets");
}
