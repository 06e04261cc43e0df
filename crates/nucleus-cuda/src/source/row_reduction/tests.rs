//! The structures of typical kernels.

use nucleus_plan::text::parse_plan;
use nucleus_plan::{Anchor, KernelId};

use super::shape::{Shape, choose};
use crate::facts::Facts;

/// The structure of a reduction of `x`, of this shape, over the sizes `S, B` and what follows from them.
fn shape_of(x: &str, rows: &str, columns: &str, access: &str, sizes: &str) -> Shape {
    let count = sizes.split(',').count();
    let text = format!(
        "plan test {{
    dim B, S, U;
    input x: f32[{x}] per step;
    output y: f32[{x}];
    buffer b0: f32[{x}] input 0;
    buffer b1: f32[{x}] output 0;
    kernel k0(read f32, write f32) sizes {count} row_reduction {{
        rows {rows};
        columns {columns};
        phase {{
            v0 = load o0[{access}];
        }}
        reduce sum v0;
        row {{ }}
        element {{
            v0 = load o0[{access}];
            v1 = accumulator 0;
            v2 = mul(v0, v1);
            store o1[{access}] = v2;
        }}
    }}
    launch k0(b0, b1) sizes {sizes} per step flops 0 bytes 0;
}}
"
    );
    let plan = parse_plan(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let Anchor::RowReduction(reduction) = &plan.kernel(KernelId(0)).anchor else { panic!("{text}") };
    choose(plan.kernel(KernelId(0)), reduction, &Facts::of(&plan, KernelId(0)))
}

/// Norms of tokens: four vectors of a row in the registers of each thread of a block.
#[test]
fn tokens_stay_in_registers() {
    let shape = shape_of("S*U, 2048", "s0", "2048", "2048*i0 + i1", "S*U");
    let Shape::Side { threads: 128, team: 128, lanes: 4, vectors: 4, cached } = shape else {
        panic!("{shape:?}")
    };
    assert_eq!(cached.len(), 1);
}

/// Softmax over experts: half a warp for each token, no barrier.
#[test]
fn short_rows_share_a_warp() {
    let shape = shape_of("S*U, 64", "s0", "64", "64*i0 + i1", "S*U");
    assert!(matches!(shape, Shape::Side { threads: 128, team: 16, lanes: 4, vectors: 1, .. }), "{shape:?}");
}

/// Sums over tokens: enough blocks for a large device only if the tokens are cut.
#[test]
fn sums_over_tokens_are_cut() {
    let shape = shape_of("S*U, 2048", "2048", "s0", "i0 + 2048*i1", "S*U");
    assert!(matches!(shape, Shape::ColumnsCut { axis: 0, tx: 32, ty: 8, lanes: 4, chunk: 64 }), "{shape:?}");
    let shape = shape_of("8, 1048576", "1048576", "8", "i0 + 1048576*i1", "S");
    assert!(matches!(shape, Shape::Columns { axis: 0, tx: 256, ty: 1, lanes: 4, short: true }), "{shape:?}");
}

/// One row of all gradients, whose number no sample says.
#[test]
fn a_single_row_is_cut_whatever_the_sample() {
    let shape = shape_of("B", "1", "s0", "i1", "B");
    assert!(matches!(shape, Shape::SideCut { threads: 256, lanes: 1, chunk: 512 }), "{shape:?}");
}
