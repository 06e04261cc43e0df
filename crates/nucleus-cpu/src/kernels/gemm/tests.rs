//! Every instruction set against a plain f64 product.

use std::sync::Mutex;

use super::*;
use crate::buffer::AlignedBuffer;
use crate::kernels::element::{round_to_bf16, store_f32};
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

/// What the tests multiply: the operand type, and the stored type of the right factor.
type Kind = (Operand, Element);

/// A value of the right factor as it is multiplied: i8 holds hundredths.
fn right(kind: Kind, value: f32) -> f64 {
    if kind.1 == Element::I8 { f64::from((value * 100.0).round_ties_even()) } else { rounded(kind.0, value) }
}

fn pack(threads: &Threads, isa: Isa, kind: Kind, b: &[f32], [k, n, segments]: [usize; 3]) -> AlignedBuffer {
    let packing = Packing::of(kind.0, kind.1);
    let packed = AlignedBuffer::zeroed(segments * packed_bytes(isa, packing, k, n));
    let bytes: Vec<i8> = b.iter().map(|&value| (value * 100.0).round_ties_even() as i8).collect();
    let data = if kind.1 == Element::I8 { bytes.as_ptr().cast() } else { b.as_ptr().cast() };
    let source = Matrix { data, element: kind.1, row_stride: segments * n, col_stride: 1 };
    // SAFETY: `b` is [k, segments * n], and the buffer was made for it.
    unsafe { pack_b(threads, isa, packing, source, k, n, segments, packed.as_ptr()) };
    packed
}

/// One product with one part, into f32.
fn product(
    threads: &Threads,
    isa: Isa,
    kind: Kind,
    a: RowSource,
    b: *const u8,
    [m, k, n]: [usize; 3],
) -> Vec<f32> {
    let mut c = vec![f32::NAN; m * n];
    let outputs = [c.as_mut_ptr().cast()];
    let epilogue = Epilogue::Store { outputs: &outputs, element: Element::F32, row_stride: n };
    let part = Part {
        n,
        segments: 1,
        column_multiple: 1,
        symmetric: false,
        packing: Packing::of(kind.0, kind.1),
        b: Right::Packed(&[b]),
        epilogue,
    };
    let products = [Product { rows: m, a }];
    let blocking = Blocking::default();
    let problem = Gemm { isa, operand: kind.0, k, blocking, products: &products, parts: &[part] };
    // SAFETY: a, b and c have the sizes of the problem.
    unsafe { gemm(threads, &problem) };
    c
}

/// Largest error allowed for a dot product of k terms below 1: each of k roundings is at most half a unit in the
/// last place of a partial sum, and partial sums of random signs stay below 4·√k.
fn tolerance(kind: Kind, k: usize) -> f64 {
    let (k, unit) = (k as f64, if kind.1 == Element::I8 { 100.0 } else { 1.0 });
    unit * (k * 4.0 * k.sqrt() * f64::from(f32::EPSILON) / 2.0 + 1e-12)
}

fn everything(mut body: impl FnMut(Isa, Kind)) {
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            for element in [Element::F32, Element::I8] {
                body(isa, (operand, element));
            }
        }
    }
}

fn rows_of(a: &[f32], k: usize) -> RowSource<'static> {
    RowSource::Memory {
        data: a.as_ptr().cast(),
        element: Element::F32,
        row_stride: k,
        col_stride: 1,
        index: None,
    }
}

#[test]
fn ragged_sizes_agree_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    let sizes = [1, 2, 3, 31, 33, 130];
    everything(|isa, kind| {
        for m in sizes {
            for n in sizes {
                for k in [1, 2, 3, 33, 600] {
                    let (a, b) = (values(1, m * k), values(2, k * n));
                    let packed = pack(&threads, isa, kind, &b, [k, n, 1]);
                    let c = product(&threads, isa, kind, rows_of(&a, k), packed.as_ptr(), [m, k, n]);
                    for row in 0..m {
                        for col in 0..n {
                            let exact: f64 = (0..k)
                                .map(|i| rounded(kind.0, a[row * k + i]) * right(kind, b[i * n + col]))
                                .sum();
                            let error = (f64::from(c[row * n + col]) - exact).abs();
                            assert!(
                                error <= tolerance(kind, k),
                                "{isa} {kind:?} {m}x{n}x{k} [{row}, {col}]: error {error:e}"
                            );
                        }
                    }
                }
            }
        }
    });
}

/// A grouped product with everything at once: two parts, one of two segments, gathered and computed rows, ragged products of
/// which some are empty and some share their right operand, a callback that keeps what it saw.
struct Grouped {
    k: usize,
    /// Columns of a segment, and segments, of each part.
    parts: [(usize, usize); 2],
    rows: [usize; 5],
    /// The right factor of each product.
    right: [usize; 5],
    a: Vec<f32>,
    index: Vec<i32>,
    /// For each part and each right factor.
    b: Vec<Vec<Vec<f32>>>,
}

/// Sums of each part and product.
type Sums<T> = Vec<Vec<Vec<T>>>;

impl Grouped {
    fn new() -> Self {
        let (k, tokens) = (1077, 50);
        let parts = [(70, 2), (33, 1)];
        let rows = [5, 0, 40, 13, 1];
        let index = (0..64).map(|slot| (slot * 29 + 3) % tokens as i32).collect();
        let of = |part: usize| {
            let (n, segments) = parts[part];
            (0..3).map(|seed| values(10 * part + seed, k * n * segments)).collect()
        };
        let b = (0..2).map(of).collect();
        Self { k, parts, rows, right: [0, 0, 0, 1, 2], a: values(3, tokens * k), index, b }
    }

    fn is_computed(product: usize) -> bool {
        product == 2 || product == 4
    }

    fn left(&self, product: usize, row: usize, col: usize) -> f32 {
        if Self::is_computed(product) {
            value(90 + product, row * self.k + col)
        } else {
            self.a[self.index[row] as usize * self.k + col]
        }
    }

    fn run(&self, threads: &Threads, isa: Isa, kind: Kind, blocking: Blocking) -> Sums<f32> {
        let k = self.k;
        let fill = |block: &RowBlock| {
            for row in 0..block.rows {
                for col in 0..k {
                    let at = row * block.row_stride + col;
                    let value = self.left(block.product, block.row + row, col);
                    // SAFETY: the block has room for its rows.
                    unsafe { store_f32(block.destination, kind.0.element(), at, value) };
                }
            }
        };
        let gathered = RowSource::Memory {
            data: self.a.as_ptr().cast(),
            element: Element::F32,
            row_stride: k,
            col_stride: 1,
            index: Some(self.index.as_ptr()),
        };
        let source = |product| if Self::is_computed(product) { RowSource::Fill(&fill) } else { gathered };
        let products: Vec<Product> =
            (0..5).map(|product| Product { rows: self.rows[product], a: source(product) }).collect();
        let seen: Vec<Mutex<Vec<Vec<f32>>>> = self
            .parts
            .iter()
            .map(|(n, segments)| {
                Mutex::new(self.rows.map(|rows| vec![f32::NAN; rows * n * segments]).to_vec())
            })
            .collect();
        let store = |part: usize, tile: &Tile| {
            let mut seen = seen[part].lock().unwrap();
            let (n, segments) = self.parts[part];
            for segment in 0..segments {
                for row in 0..tile.rows {
                    for col in 0..tile.cols {
                        let at = segment * tile.segment_stride + row * tile.row_stride + col;
                        // SAFETY: the sums of the tile are readable.
                        let sum = unsafe { *tile.acc.add(at) };
                        let at = ((tile.row + row) * segments + segment) * n + tile.col + col;
                        let place = &mut seen[tile.product][at];
                        assert!(place.is_nan(), "[{}, {at}] is computed twice", tile.product);
                        *place = sum;
                    }
                }
            }
        };
        let (first, second) = (|tile: &Tile| store(0, tile), |tile: &Tile| store(1, tile));
        let packed: Vec<Vec<AlignedBuffer>> = (0..2)
            .map(|part| {
                let (n, segments) = self.parts[part];
                self.b[part].iter().map(|b| pack(threads, isa, kind, b, [k, n, segments])).collect()
            })
            .collect();
        let right: Vec<Vec<*const u8>> = packed
            .iter()
            .map(|packed| self.right.iter().map(|&right| packed[right].as_ptr().cast_const()).collect())
            .collect();
        let parts: Vec<Part> = (0..2)
            .map(|part| Part {
                n: self.parts[part].0,
                segments: self.parts[part].1,
                column_multiple: 1,
                symmetric: false,
                packing: Packing::of(kind.0, kind.1),
                b: Right::Packed(&right[part]),
                epilogue: Epilogue::Call(if part == 0 { &first } else { &second }),
            })
            .collect();
        let problem = Gemm { isa, operand: kind.0, k, blocking, products: &products, parts: &parts };
        // SAFETY: all operands have the sizes of the problem.
        unsafe { gemm(threads, &problem) };
        seen.into_iter().map(|seen| seen.into_inner().unwrap()).collect()
    }

    fn exact(&self, kind: Kind) -> Sums<f64> {
        let of = |part: usize, product: usize| {
            let (n, segments) = self.parts[part];
            let (columns, b) = (segments * n, &self.b[part][self.right[product]]);
            let element = |at: usize| {
                let (row, col) = (at / columns, at % columns);
                let term =
                    |i| rounded(kind.0, self.left(product, row, i)) * right(kind, b[i * columns + col]);
                (0..self.k).map(term).sum()
            };
            (0..self.rows[product] * columns).map(element).collect()
        };
        (0..2).map(|part| (0..5).map(|product| of(part, product)).collect()).collect()
    }
}

const SMALL: Blocking = Blocking { rows: 24, columns: 32, depth: 96 };

#[test]
fn grouped_products_agree_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    let grouped = Grouped::new();
    everything(|isa, kind| {
        let exact = grouped.exact(kind);
        for blocking in [Blocking::default(), SMALL, Blocking { rows: 1, columns: 1, depth: 1077 }] {
            let found = grouped.run(&threads, isa, kind, blocking);
            for (part, (found, exact)) in found.iter().zip(&exact).enumerate() {
                for (product, (found, exact)) in found.iter().zip(exact).enumerate() {
                    for (at, (&found, &exact)) in found.iter().zip(exact).enumerate() {
                        let error = (f64::from(found) - exact).abs();
                        assert!(
                            error <= tolerance(kind, grouped.k),
                            "{isa} {kind:?} {blocking:?} part {part} [{product}, {at}]: {found} for {exact}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads_or_the_blocking() {
    let grouped = Grouped::new();
    everything(|isa, kind| {
        let one = grouped.run(&Threads::new(1).unwrap(), isa, kind, Blocking::default());
        for (count, blocking) in [(2, Blocking::default()), (4, Blocking::default()), (4, SMALL)] {
            let threads = Threads::new(count).unwrap();
            assert!(one == grouped.run(&threads, isa, kind, blocking), "{isa} {kind:?} {count}");
        }
    });
}

#[test]
fn bits_do_not_depend_on_a_rows_position_or_its_company() {
    let threads = Threads::new(2).unwrap();
    let (k, n, most) = (1101, 40, 300);
    let row = values(5, k);
    let b = values(6, k * n);
    everything(|isa, kind| {
        let packed = pack(&threads, isa, kind, &b, [k, n, 1]);
        let mut first: Option<Vec<f32>> = None;
        for m in [1, 2, 5, 12, 13, 47, most] {
            // Every row of A is the same row, so that every row of C must be.
            let c = product(&threads, isa, kind, rows_of(&row, 0), packed.as_ptr(), [m, k, n]);
            let first = first.get_or_insert_with(|| c[..n].to_vec());
            assert!(c.chunks(n).all(|row| row == first), "{isa} {kind:?} {m}");
        }
    });
}

#[test]
fn more_rows_than_one_round_stages_are_all_computed() {
    let threads = Threads::new(2).unwrap();
    // 32 MB of staged rows are 8 million words.
    let (m, k, n) = (2200, 4100, 3);
    let isa = Isa::fastest();
    let kind = (Operand::F32, Element::F32);
    let packed = pack(&threads, isa, kind, &vec![1.0; k * n], [k, n, 1]);
    let ones = vec![1.0f32; k];
    let c = product(&threads, isa, kind, rows_of(&ones, 0), packed.as_ptr(), [m, k, n]);
    assert!(c.iter().all(|&sum| sum == 4100.0));
}

#[test]
fn a_product_over_no_k_is_zero_and_one_without_columns_is_nothing() {
    let threads = Threads::new(2).unwrap();
    everything(|isa, kind| {
        let nothing = pack(&threads, isa, kind, &[], [0, 5, 1]);
        let c = product(&threads, isa, kind, rows_of(&[], 0), nothing.as_ptr(), [3, 0, 5]);
        assert!(c.iter().all(|&sum| sum == 0.0), "{isa} {kind:?}");
        assert!(product(&threads, isa, kind, rows_of(&[1.0; 3], 1), nothing.as_ptr(), [3, 1, 0]).is_empty());
    });
}

#[test]
fn stored_types_are_rounded_to_the_operand_type() {
    let threads = Threads::new(1).unwrap();
    let (m, k, n) = (7, 19, 5);
    let exact_a: Vec<f32> = (0..m * k).map(|at| (at % 31) as f32 - 15.0).collect();
    let b: Vec<f32> = (0..k * n).map(|at| (at % 7) as f32 - 3.0).collect();
    for (isa, operand) in
        Isa::supported().into_iter().flat_map(|isa| [(isa, Operand::F32), (isa, Operand::Bf16)])
    {
        let kind = (operand, Element::F32);
        let packed = pack(&threads, isa, kind, &b, [k, n, 1]);
        for element in [Element::F32, Element::Bf16, Element::F16] {
            let mut stored = vec![0u8; 4 * m * k];
            for (at, &value) in exact_a.iter().enumerate() {
                // SAFETY: four bytes for each element.
                unsafe { store_f32(stored.as_mut_ptr(), element, at, value) };
            }
            let a = RowSource::Memory {
                data: stored.as_ptr(),
                element,
                row_stride: k,
                col_stride: 1,
                index: None,
            };
            let c = product(&threads, isa, kind, a, packed.as_ptr(), [m, k, n]);
            for row in 0..m {
                for col in 0..n {
                    let exact: f32 = (0..k).map(|i| exact_a[row * k + i] * b[i * n + col]).sum();
                    assert_eq!(c[row * n + col], exact, "{isa} {operand:?} {element:?} [{row}, {col}]");
                }
            }
        }
    }
}

#[test]
fn tiles_have_whole_groups_of_columns() {
    let (k, rows) = (5, 70);
    for (isa, threads) in Isa::supported().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
        let threads = Threads::new(threads).unwrap();
        for (column_multiple, groups, segments) in
            [(1, 100, 1), (3, 40, 2), (48, 5, 2), (64, 9, 1), (100, 1, 3)]
        {
            let n = column_multiple * groups;
            let a = vec![1.0f32; rows * k];
            let b = vec![1.0f32; k * n * segments];
            let packed = pack(&threads, isa, (Operand::F32, Element::F32), &b, [k, n, segments]);
            let seen = Mutex::new(vec![0usize; rows * n]);
            let call = |tile: &Tile| {
                assert!(
                    tile.col.is_multiple_of(column_multiple) && tile.cols.is_multiple_of(column_multiple)
                );
                let mut seen = seen.lock().unwrap();
                for row in tile.row..tile.row + tile.rows {
                    (tile.col..tile.col + tile.cols).for_each(|col| seen[row * n + col] += 1);
                }
            };
            let source = RowSource::Memory {
                data: a.as_ptr().cast(),
                element: Element::F32,
                row_stride: k,
                col_stride: 1,
                index: None,
            };
            let part = Part {
                n,
                segments,
                column_multiple,
                symmetric: false,
                packing: Packing::of(Operand::F32, Element::F32),
                b: Right::Packed(&[packed.as_ptr().cast_const()]),
                epilogue: Epilogue::Call(&call),
            };
            let blocking = Blocking { rows: 24, columns: 40, depth: 64 };
            let products = [Product { rows, a: source }];
            let problem =
                Gemm { isa, operand: Operand::F32, k, blocking, products: &products, parts: &[part] };
            // SAFETY: the operands have the sizes of the problem.
            unsafe { gemm(&threads, &problem) };
            assert!(seen.into_inner().unwrap().iter().all(|count| *count == 1));
        }
    }
}

/// Products of matrices as they are stored, of two segments each.
struct StoredFactors {
    sizes: [usize; 3],
    /// Strides of the left factor's rows and columns, and of the right one's.
    a: (usize, usize),
    b: (usize, usize),
    element: Element,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl StoredFactors {
    const SEGMENTS: usize = 2;

    /// `transposed`: columns are the contiguous axis. Neither has the stride 1 if `loose`.
    fn new(sizes: [usize; 3], element: Element, [a, b, loose]: [bool; 3]) -> Self {
        let [m, k, n] = sizes;
        let strides = |transposed: bool, rows: usize, cols: usize| match (transposed, loose) {
            (false, false) => (cols + 3, 1),
            (true, false) => (1, rows + 5),
            (false, true) => (2 * cols, 2),
            (true, true) => (3, 3 * rows + 1),
        };
        let stored = |seed, (row_stride, col_stride): (usize, usize), rows: usize, cols: usize| {
            let mut bytes = vec![0u8; 4 * (rows * row_stride + cols * col_stride)];
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let (at, value) = (row * row_stride + col * col_stride, value(seed, row * cols + col));
                let value = if element == Element::I8 { value * 100.0 } else { value };
                // SAFETY: four bytes for each element.
                unsafe { store_f32(bytes.as_mut_ptr(), element, at, value) };
            }
            bytes
        };
        let (a, b) = (strides(a, m, k), strides(b, k, Self::SEGMENTS * n));
        let (left, right) = (stored(7, a, m, k), stored(8, b, k, Self::SEGMENTS * n));
        Self { sizes, a, b, element, left, right }
    }

    fn right(&self) -> Matrix {
        Matrix {
            data: self.right.as_ptr(),
            element: self.element,
            row_stride: self.b.0,
            col_stride: self.b.1,
        }
    }

    fn run(&self, threads: &Threads, isa: Isa, operand: Operand, packing: Packing, b: Right) -> Vec<f32> {
        let [m, k, n] = self.sizes;
        // Rows of bytes are gathered, last first: index and strides together.
        let index: Vec<i32> = (0..m as i32).rev().collect();
        let gathers = self.element == Element::I8;
        let a = RowSource::Memory {
            data: self.left.as_ptr(),
            element: self.element,
            row_stride: self.a.0,
            col_stride: self.a.1,
            index: gathers.then_some(index.as_ptr()),
        };
        let mut c = vec![f32::NAN; m * n * Self::SEGMENTS];
        let outputs = [c.as_mut_ptr().cast()];
        let row_stride = n * Self::SEGMENTS;
        let epilogue = Epilogue::Store { outputs: &outputs, element: Element::F32, row_stride };
        let part =
            Part { n, segments: Self::SEGMENTS, column_multiple: 1, symmetric: false, packing, b, epilogue };
        let products = [Product { rows: m, a }];
        let blocking = Blocking::default();
        let problem = Gemm { isa, operand, k, blocking, products: &products, parts: &[part] };
        // SAFETY: all operands have the sizes of the problem.
        unsafe { gemm(threads, &problem) };
        if gathers { c.chunks(row_stride).rev().flatten().copied().collect() } else { c }
    }

    fn exact(&self, operand: Operand) -> Vec<f64> {
        let [m, k, n] = self.sizes;
        let at = |bytes: &[u8], at: usize| {
            // SAFETY: four bytes for each element.
            let value = unsafe { crate::kernels::element::load_f32(bytes.as_ptr(), self.element, at) };
            rounded(operand, value)
        };
        let sum = |row: usize, col: usize| {
            let term = |i: usize| {
                at(&self.left, row * self.a.0 + i * self.a.1) * at(&self.right, i * self.b.0 + col * self.b.1)
            };
            (0..k).map(term).sum()
        };
        let columns = Self::SEGMENTS * n;
        (0..m * columns).map(|at| sum(at / columns, at % columns)).collect()
    }
}

#[test]
fn factors_in_memory_of_every_order_and_type_agree_with_the_definition_and_with_packed_ones() {
    let threads = [1, 2, 4].map(|count| Threads::new(count).unwrap());
    let orders = [[false; 3], [false, true, false], [true, false, false], [true, true, false], [true; 3]];
    for (sizes, order) in [[1, 1, 1], [70, 37, 33], [13, 530, 20], [150, 65, 70]]
        .into_iter()
        .flat_map(|sizes| orders.map(|order| (sizes, order)))
    {
        for element in [Element::F32, Element::Bf16, Element::F16, Element::I8] {
            let factors = StoredFactors::new(sizes, element, order);
            let [_, k, n] = sizes;
            for operand in [Operand::F32, Operand::Bf16] {
                let exact = factors.exact(operand);
                for isa in Isa::supported() {
                    let at = format!("{isa} {operand:?} {element:?} {sizes:?} {order:?}");
                    let source = factors.right();
                    let packing = Packing::of(operand, element);
                    let segments = StoredFactors::SEGMENTS;
                    let packed = AlignedBuffer::zeroed(segments * packed_bytes(isa, packing, k, n));
                    // SAFETY: the factor has these sizes, and the buffer was made for it.
                    unsafe { pack_b(&threads[0], isa, packing, source, k, n, segments, packed.as_ptr()) };
                    let packed = [packed.as_ptr().cast_const()];
                    let first = factors.run(&threads[0], isa, operand, packing, Right::Packed(&packed));
                    let unit = if element == Element::I8 { 1e4 } else { 1.0 };
                    for (found, exact) in first.iter().zip(&exact) {
                        let error = (f64::from(*found) - exact).abs();
                        assert!(
                            error <= unit * tolerance((operand, Element::F32), k),
                            "{at}: {found} for {exact}"
                        );
                    }
                    let matrices = [source];
                    let segment_stride = n * source.col_stride;
                    let stored = Right::Stored { matrices: &matrices, segment_stride };
                    let packing = Packing::for_one_use(isa, operand, element);
                    for threads in &threads {
                        let found = factors.run(threads, isa, operand, packing, stored);
                        assert!(found == first, "{at}, {} threads", threads.count());
                    }
                }
            }
        }
    }
}

/// A symmetric product has the bits of the same product computed whole, however it is cut.
#[test]
fn symmetric_products_have_the_same_bits() {
    for (n, k, batch) in [(1, 3, 1), (31, 40, 2), (150, 65, 3), (336, 100, 2), (600, 33, 1)] {
        let matrices: Vec<Vec<f32>> = (0..batch).map(|item| values(7 + item, n * k)).collect();
        let kinds =
            Isa::supported().into_iter().flat_map(|isa| [Operand::F32, Operand::Bf16].map(|to| (isa, to)));
        for kind in kinds {
            let whole = square(kind, &matrices, (n, k), (false, 1, Blocking::default()));
            for threads in [1, 2, 4] {
                for blocking in [Blocking::default(), Blocking { rows: 36, columns: 64, depth: 32 }] {
                    let half = square(kind, &matrices, (n, k), (true, threads, blocking));
                    let same = half.iter().zip(&whole).all(|(half, whole)| half.to_bits() == whole.to_bits());
                    assert!(same, "{n} × {k}, {kind:?}, {threads} threads, {blocking:?}");
                }
            }
        }
    }
}

/// x·xᵀ of every matrix, by an epilogue that overwrites the sums that it is given.
fn square(
    (isa, operand): (Isa, Operand),
    matrices: &[Vec<f32>],
    (n, k): (usize, usize),
    (symmetric, threads, blocking): (bool, usize, Blocking),
) -> Vec<f32> {
    let threads = Threads::new(threads).expect("threads start");
    let c: Vec<std::sync::atomic::AtomicU32> =
        (0..matrices.len() * n * n).map(|_| std::sync::atomic::AtomicU32::new(f32::NAN.to_bits())).collect();
    let finish = |tile: &Tile| {
        for row in 0..tile.rows {
            for col in 0..tile.cols {
                let at = tile.acc.wrapping_add(row * tile.row_stride + col);
                // SAFETY: within the tile.
                let sum = unsafe { at.replace(f32::NAN) };
                let place = (tile.product * n + tile.row + row) * n + tile.col + col;
                let before = c[place].swap(sum.to_bits(), std::sync::atomic::Ordering::Relaxed);
                assert!(f32::from_bits(before).is_nan(), "element {place} is finished twice");
            }
        }
    };
    let right: Vec<Matrix> = matrices
        .iter()
        .map(|x| Matrix { data: x.as_ptr().cast(), element: Element::F32, row_stride: 1, col_stride: k })
        .collect();
    let products: Vec<Product> = matrices
        .iter()
        .map(|x| {
            let a = RowSource::Memory {
                data: x.as_ptr().cast(),
                element: Element::F32,
                row_stride: k,
                col_stride: 1,
                index: None,
            };
            Product { rows: n, a }
        })
        .collect();
    let part = Part {
        n,
        segments: 1,
        column_multiple: 1,
        symmetric,
        packing: Packing::of(operand, Element::F32),
        b: Right::Stored { matrices: &right, segment_stride: 0 },
        epilogue: Epilogue::Call(&finish),
    };
    let problem = Gemm { isa, operand, k, blocking, products: &products, parts: &[part] };
    // SAFETY: matrices have the sizes of the problem, and every element of c has a place.
    unsafe { gemm(&threads, &problem) };
    c.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect()
}
