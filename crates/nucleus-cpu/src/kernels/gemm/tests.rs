//! Every instruction set against a plain f64 product.

use std::sync::Mutex;

use super::*;
use crate::buffer::AlignedBuffer;
use crate::kernels::element::{f32_from_bf16, load_f32, round_to_bf16, store_f32};
use crate::kernels::pack::{Matrix, pack_b, packed_bytes};
use crate::kernels::rows::RowBlock;

/// Reproducible values in -1..1 that bf16 does not hold exactly.
fn value(seed: usize, at: usize) -> f32 {
    let mut bits = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed as u64) << 17;
    bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|at| value(seed, at)).collect()
}

fn rounded(operand: Operand, value: f32) -> f64 {
    f64::from(if operand == Operand::Bf16 { round_to_bf16(value) } else { value })
}

fn pack(
    threads: &Threads,
    isa: Isa,
    operand: Operand,
    b: &[f32],
    [k, n, segments]: [usize; 3],
) -> AlignedBuffer {
    let packed = AlignedBuffer::zeroed(segments * packed_bytes(isa, operand, k, n));
    let source =
        Matrix { data: b.as_ptr().cast(), element: Element::F32, row_stride: segments * n, col_stride: 1 };
    // SAFETY: `b` is [k, segments * n], and the buffer was made for it.
    unsafe { pack_b(threads, isa, operand, source, k, n, segments, packed.as_ptr()) };
    packed
}

/// Largest error allowed for a dot product of k terms below 1: each of k roundings is at most half a unit in the
/// last place of a partial sum, and partial sums of random signs stay below 4·√k.
fn tolerance(k: usize) -> f64 {
    let k = k as f64;
    k * 4.0 * k.sqrt() * f64::from(f32::EPSILON) / 2.0 + 1e-12
}

fn everything(mut body: impl FnMut(Isa, Operand)) {
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            body(isa, operand);
        }
    }
}

#[test]
fn ragged_sizes_agree_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    let sizes = [1, 2, 3, 31, 33, 130];
    everything(|isa, operand| {
        for m in sizes {
            for n in sizes {
                for k in [1, 2, 3, 33, 600] {
                    let (a, b) = (values(1, m * k), values(2, k * n));
                    let packed = pack(&threads, isa, operand, &b, [k, n, 1]);
                    let mut c = vec![f32::NAN; m * n];
                    let a_rows = RowSource::Memory {
                        data: a.as_ptr().cast(),
                        element: Element::F32,
                        row_stride: k,
                        index: None,
                    };
                    let products = [Product { rows: m, a: a_rows, b: packed.as_ptr() }];
                    let problem = Gemm { isa, operand, k, n, segments: 1, tile_cols: 0, products: &products };
                    let outputs = [c.as_mut_ptr().cast()];
                    // SAFETY: a, b and c have the sizes of the problem.
                    unsafe {
                        gemm(
                            &threads,
                            &problem,
                            &Epilogue::Store { outputs: &outputs, element: Element::F32, row_stride: n },
                        );
                    }
                    for row in 0..m {
                        for col in 0..n {
                            let exact: f64 = (0..k)
                                .map(|i| rounded(operand, a[row * k + i]) * rounded(operand, b[i * n + col]))
                                .sum();
                            let error = (f64::from(c[row * n + col]) - exact).abs();
                            assert!(
                                error <= tolerance(k),
                                "{isa} {operand:?} {m}x{n}x{k} [{row}, {col}]: error {error:e}"
                            );
                        }
                    }
                }
            }
        }
    });
}

/// A grouped product with everything at once: two segments, gathered and computed rows, ragged products of which
/// some are empty and some share their right operand, a callback that keeps what it saw.
fn grouped(
    threads: &Threads,
    isa: Isa,
    operand: Operand,
    tile_cols: usize,
) -> (Vec<Vec<f32>>, Vec<Vec<f64>>) {
    let (k, n, segments) = (77, 70, 2);
    let rows = [5usize, 0, 40, 13, 1];
    let right = [0usize, 0, 0, 1, 2];
    let tokens = 50;
    let a = values(3, tokens * k);
    let index: Vec<i32> = (0..64).map(|slot| (slot * 29 + 3) % tokens as i32).collect();
    let b: Vec<Vec<f32>> = (0..3).map(|seed| values(10 + seed, k * n * segments)).collect();
    let packed: Vec<AlignedBuffer> =
        b.iter().map(|b| pack(threads, isa, operand, b, [k, n, segments])).collect();
    let computed = |product: usize, row: usize, col: usize| value(90 + product, row * k + col);
    let fill = |block: &RowBlock| {
        for row in 0..block.rows {
            for col in 0..k {
                let at = row * block.row_stride + col;
                let value = computed(block.product, block.row + row, col);
                // SAFETY: the block has room for its rows.
                unsafe { store_f32(block.destination, operand.element(), at, value) };
            }
        }
    };
    let is_computed = |product: usize| product == 2 || product == 4;
    let products: Vec<Product> = (0..rows.len())
        .map(|product| Product {
            rows: rows[product],
            a: if is_computed(product) {
                RowSource::Fill(&fill)
            } else {
                RowSource::Memory {
                    data: a.as_ptr().cast(),
                    element: Element::F32,
                    row_stride: k,
                    index: Some(index.as_ptr()),
                }
            },
            b: packed[right[product]].as_ptr(),
        })
        .collect();
    let seen = Mutex::new(rows.map(|rows| vec![f32::NAN; rows * n * segments]).to_vec());
    let store = |tile: &Tile| {
        let mut seen = seen.lock().unwrap();
        assert!(tile_cols == 0 || tile.col.is_multiple_of(tile_cols), "{tile:?}");
        for segment in 0..segments {
            for row in 0..tile.rows {
                for col in 0..tile.cols {
                    // SAFETY: the sums of the tile are readable.
                    let sum =
                        unsafe { *tile.acc.add(segment * tile.segment_stride + row * tile.row_stride + col) };
                    let at = ((tile.row + row) * segments + segment) * n + tile.col + col;
                    let place = &mut seen[tile.product][at];
                    assert!(place.is_nan(), "[{}, {at}] is computed twice", tile.product);
                    *place = sum;
                }
            }
        }
    };
    let problem = Gemm { isa, operand, k, n, segments, tile_cols, products: &products };
    // SAFETY: all operands have the sizes of the problem.
    unsafe { gemm(threads, &problem, &Epilogue::Call(&store)) };
    let exact = (0..rows.len())
        .map(|product| {
            let left = |row: usize, i: usize| {
                let value = if is_computed(product) {
                    computed(product, row, i)
                } else {
                    a[index[row] as usize * k + i]
                };
                rounded(operand, value)
            };
            let b = &b[right[product]];
            (0..rows[product] * segments * n)
                .map(|at| {
                    let (row, col) = (at / (segments * n), at % (segments * n));
                    (0..k).map(|i| left(row, i) * rounded(operand, b[i * segments * n + col])).sum()
                })
                .collect()
        })
        .collect();
    (seen.into_inner().unwrap(), exact)
}

#[test]
fn grouped_products_agree_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    everything(|isa, operand| {
        for tile_cols in [0, 32, 64, 1000] {
            let (found, exact) = grouped(&threads, isa, operand, tile_cols);
            for (product, (found, exact)) in found.iter().zip(&exact).enumerate() {
                for (at, (&found, &exact)) in found.iter().zip(exact).enumerate() {
                    let error = (f64::from(found) - exact).abs();
                    assert!(
                        error <= tolerance(77),
                        "{isa} {operand:?} [{product}, {at}]: {found} for {exact}"
                    );
                }
            }
        }
    });
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads_or_the_width_of_tiles() {
    everything(|isa, operand| {
        let one = grouped(&Threads::new(1).unwrap(), isa, operand, 0).0;
        for (count, tile_cols) in [(2, 0), (4, 0), (4, 64)] {
            assert!(
                one == grouped(&Threads::new(count).unwrap(), isa, operand, tile_cols).0,
                "{isa} {operand:?} {count}"
            );
        }
    });
}

#[test]
fn bits_do_not_depend_on_a_rows_position_or_its_company() {
    let threads = Threads::new(2).unwrap();
    let (k, n, most) = (1101, 40, 300);
    let row = values(5, k);
    let b = values(6, k * n);
    everything(|isa, operand| {
        let packed = pack(&threads, isa, operand, &b, [k, n, 1]);
        let mut first: Option<Vec<f32>> = None;
        for m in [1, 2, 5, 12, 13, 47, most] {
            // Every row of A is the same row, so that every row of C must be.
            let a = RowSource::Memory {
                data: row.as_ptr().cast(),
                element: Element::F32,
                row_stride: 0,
                index: None,
            };
            let products = [Product { rows: m, a, b: packed.as_ptr() }];
            let problem = Gemm { isa, operand, k, n, segments: 1, tile_cols: 0, products: &products };
            let mut c = vec![f32::NAN; m * n];
            let outputs = [c.as_mut_ptr().cast()];
            let epilogue = Epilogue::Store { outputs: &outputs, element: Element::F32, row_stride: n };
            // SAFETY: a, b and c have the sizes of the problem.
            unsafe { gemm(&threads, &problem, &epilogue) };
            let first = first.get_or_insert_with(|| c[..n].to_vec());
            assert!(c.chunks(n).all(|row| row == first), "{isa} {operand:?} {m}");
        }
    });
}

#[test]
fn more_rows_than_one_round_stages_are_all_computed() {
    let threads = Threads::new(2).unwrap();
    // 16 MB of staged rows are 4 million words.
    let (m, k, n) = (1100, 4100, 3);
    let isa = Isa::fastest();
    let packed = pack(&threads, isa, Operand::F32, &vec![1.0; k * n], [k, n, 1]);
    let ones = vec![1.0f32; k];
    let a =
        RowSource::Memory { data: ones.as_ptr().cast(), element: Element::F32, row_stride: 0, index: None };
    let products = [Product { rows: m, a, b: packed.as_ptr() }];
    let problem = Gemm { isa, operand: Operand::F32, k, n, segments: 1, tile_cols: 0, products: &products };
    let mut c = vec![0u16; m * n];
    let outputs = [c.as_mut_ptr().cast()];
    // SAFETY: a, b and c have the sizes of the problem.
    unsafe {
        gemm(
            &threads,
            &problem,
            &Epilogue::Store { outputs: &outputs, element: Element::Bf16, row_stride: n },
        );
    }
    assert!(c.iter().all(|&bits| f32_from_bf16(bits) == 4096.0));
}

#[test]
fn stored_types_of_the_left_operand_are_rounded_to_the_operand_type() {
    let threads = Threads::new(1).unwrap();
    let (m, k, n) = (7, 19, 5);
    let exact_a: Vec<f32> = (0..m * k).map(|at| (at % 31) as f32 - 15.0).collect();
    let b: Vec<f32> = (0..k * n).map(|at| (at % 7) as f32 - 3.0).collect();
    everything(|isa, operand| {
        let packed = pack(&threads, isa, operand, &b, [k, n, 1]);
        for element in [Element::F32, Element::Bf16, Element::F16] {
            let mut stored = vec![0u8; 4 * m * k];
            for (at, &value) in exact_a.iter().enumerate() {
                // SAFETY: four bytes for each element.
                unsafe { store_f32(stored.as_mut_ptr(), element, at, value) };
            }
            let a = RowSource::Memory { data: stored.as_ptr(), element, row_stride: k, index: None };
            let products = [Product { rows: m, a, b: packed.as_ptr() }];
            let problem = Gemm { isa, operand, k, n, segments: 1, tile_cols: 0, products: &products };
            let mut c = vec![0u8; 4 * m * n];
            let outputs = [c.as_mut_ptr()];
            // SAFETY: a, b and c have the sizes of the problem.
            unsafe {
                gemm(
                    &threads,
                    &problem,
                    &Epilogue::Store { outputs: &outputs, element: Element::F32, row_stride: n },
                );
            }
            for row in 0..m {
                for col in 0..n {
                    let exact: f32 = (0..k).map(|i| exact_a[row * k + i] * b[i * n + col]).sum();
                    // SAFETY: c holds m * n f32s.
                    let found = unsafe { load_f32(c.as_ptr(), Element::F32, row * n + col) };
                    assert_eq!(found, exact, "{isa} {operand:?} {element:?} [{row}, {col}]");
                }
            }
        }
    });
}
