//! Graphs of as many nodes as there may be, made to take long, compile within seconds.

use std::time::{Duration, Instant};

use nucleus_ir::DType;
use nucleus_passes::fuse::fuse;
use nucleus_plan::verify_plan;

use crate::support::{placed, prepared};

#[track_caller]
fn compiles(text: &str) {
    let start = Instant::now();
    let plan = placed(fuse(&prepared(text, &[], DType::F32)).unwrap()).unwrap();
    assert_eq!(verify_plan(&plan), Ok(()));
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

fn chain(count: usize, step: &str) -> String {
    format!(
        "dim B; entry main(x: [B, 8] per step) -> (r: [B, 8]) {{
            let w = weight(\"w\", [8, 8]); var a = x; for i in 0..{count} {{ {step} }} a
        }}"
    )
}

#[test]
fn long_chains_of_views() {
    compiles(&chain(20_000, "a = reshape(transpose(reshape(a, [8, B]), [1, 0]), [B, 8]);"));
    compiles(&chain(8_000, "a = exp(reshape(transpose(reshape(a, [8, B]), [1, 0]), [B, 8])) + x;"));
}

#[test]
fn long_chains_of_kernels() {
    compiles(&chain(30_000, "a = exp(a) + x;"));
    compiles(&chain(20_000, "a = max(matmul(a, w), x);"));
    compiles(&chain(15_000, "a = a - reduce_sum(a, axis = -1, keep = true);"));
}

/// Thousands of pieces with thousands of readers, all in use at one time.
#[test]
fn wide_concatenations() {
    let count = 4000;
    let values: String = (0..count).map(|i| format!("let a{} = matmul(a{i}, w);\n", i + 1)).collect();
    let pieces: Vec<String> = (0..count).map(|i| format!("a{i}")).collect();
    compiles(&format!(
        "entry main(x: [1, 8] per step) -> (r: [1, 8]) {{
            let w = weight(\"w\", [8, 8]); let a0 = x; {values}
            let c = concat({}, axis = 0); var s = x;
            for i in 0..3900 {{
                let rows = reduce_sum(slice(c, 0, i + 1, i + 3), axis = 0, keep = true);
                s = s + matmul(rows, w);
            }}
            s
        }}",
        pieces.join(", ")
    ));
}

/// Thousands of products of the same rows, which may be merged, and which may not as each takes the one before.
#[test]
fn many_products_of_one_left_factor() {
    compiles(&chain(
        6_000,
        "a = a + reduce_max(matmul(x, weight(\"w.{i}\", [8, 8])), axis = -1, keep = true);",
    ));
    compiles(&chain(6_000, "a = max(matmul(x, weight(\"w.{i}\", [8, 8])), a);"));
}
