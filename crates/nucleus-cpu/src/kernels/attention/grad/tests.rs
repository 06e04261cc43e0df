//! Every instruction set against the gradients written out in f64.

use std::sync::Mutex;

use super::*;
use crate::kernels::attention::KeyMask;
use crate::kernels::attention::tests::{Case, cases, value};
use crate::kernels::element::{Element, round_to_bf16, store_f32};

/// dq, and dk and dv of every segment, each row-major.
type Gradients = Vec<Vec<f32>>;

impl Case {
    fn dy(&self, b: usize, row: usize, head: usize, i: usize) -> f32 {
        value(7, ((b * self.q_rows + row) * self.q_heads + head) * self.dim + i)
    }

    fn key(&self, segment: usize, b: usize, key: usize, head: usize) -> usize {
        ((b * self.segments[segment].0 + key) * self.kv_heads + head) * self.dim
    }

    fn empty(&self) -> Gradients {
        let mut all = vec![vec![f32::NAN; self.batch * self.q_rows * self.q_heads * self.dim]];
        for (len, _) in &self.segments {
            let one = vec![f32::NAN; self.batch * len * self.kv_heads * self.dim];
            all.extend([one.clone(), one]);
        }
        all
    }

    /// The gradients, and for each the sum of the sizes of its terms: products with a probability or the gradient of a score.
    fn exact_gradients(&self, operand: Operand, scale: f32) -> Vec<Vec<(f64, f64)>> {
        let round =
            |value: f32| f64::from(if operand == Operand::Bf16 { round_to_bf16(value) } else { value });
        let mut all: Vec<Vec<(f64, f64)>> =
            self.empty().iter().map(|one| vec![(0.0, 0.0); one.len()]).collect();
        let add = |(sum, size): &mut (f64, f64), term: f64| {
            *sum += term;
            *size += term.abs();
        };
        let (scale, dims) = (f64::from(scale), 0..self.dim);
        for b in 0..self.batch {
            for (row, head) in (0..self.q_rows).flat_map(|row| (0..self.q_heads).map(move |head| (row, head)))
            {
                let kv_head = head / (self.q_heads / self.kv_heads);
                let keys: Vec<(usize, usize)> = (0..self.segments.len())
                    .flat_map(|segment| (0..self.segments[segment].0).map(move |key| (segment, key)))
                    .filter(|(segment, key)| self.taken(*segment, b, *key))
                    .collect();
                let kv = |seed, (segment, key): (usize, usize), i| {
                    round(self.kv(seed, segment, b, key, kv_head, i))
                };
                let q = |i| round(self.q(b, row, head, i));
                let dy = |i| round(self.dy(b, row, head, i));
                let dot = |x: &dyn Fn(usize) -> f64, y: &dyn Fn(usize) -> f64| {
                    dims.clone().map(|i| x(i) * y(i)).sum::<f64>()
                };
                let scores: Vec<f64> =
                    keys.iter().map(|&key| scale * dot(&q, &|i| kv(100, key, i))).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|score| (score - largest).exp() / total).collect();
                let slopes: Vec<f64> = keys.iter().map(|&key| dot(&dy, &|i| kv(101, key, i))).collect();
                let mean: f64 = p.iter().zip(&slopes).map(|(p, slope)| p * slope).sum();
                for ((&key, p), slope) in keys.iter().zip(p).zip(slopes) {
                    let u = scale * p * (slope - mean);
                    let at = self.key(key.0, b, key.1, kv_head);
                    for i in dims.clone() {
                        let query = ((b * self.q_rows + row) * self.q_heads + head) * self.dim + i;
                        add(&mut all[0][query], u * kv(100, key, i));
                        add(&mut all[1 + 2 * key.0][at + i], u * q(i));
                        add(&mut all[2 + 2 * key.0][at + i], p * dy(i));
                    }
                }
            }
        }
        all
    }

    /// Runs the kernel; `poison` is written over every masked key and value.
    fn run_gradients(
        &self,
        threads: &Threads,
        isa: Isa,
        (operand, element): (Operand, Element),
        scale: f32,
        poison: Option<f32>,
    ) -> Gradients {
        // A gap behind every row, so that strides are not the sizes.
        let store = |rows: usize, heads: usize, at: &dyn Fn(usize, usize, usize, usize) -> f32| {
            let row_stride = heads * self.dim + 3;
            let mut stored = vec![0u8; 4 * self.batch * rows.max(1) * row_stride];
            for place in 0..self.batch * rows * heads * self.dim {
                let (row, column) = (place / (heads * self.dim), place % (heads * self.dim));
                let value = at(row / rows, row % rows, column / self.dim, column % self.dim);
                // SAFETY: the vector has four bytes for each place.
                unsafe { store_f32(stored.as_mut_ptr(), element, row * row_stride + column, value) };
            }
            stored
        };
        let view = |stored: &[u8], rows: usize, heads: usize| HeadView {
            data: stored.as_ptr(),
            element,
            batch_stride: rows * (heads * self.dim + 3),
            row_stride: heads * self.dim + 3,
            head_stride: self.dim,
        };
        let q = store(self.q_rows, self.q_heads, &|b, row, head, i| self.q(b, row, head, i));
        let dy = store(self.q_rows, self.q_heads, &|b, row, head, i| self.dy(b, row, head, i));
        let stored: Vec<[Vec<u8>; 2]> = (0..self.segments.len())
            .map(|segment| {
                [100, 101].map(|seed| {
                    store(self.segments[segment].0, self.kv_heads, &|b, key, head, i| match poison {
                        Some(poison) if !self.taken(segment, b, key) => poison,
                        _ => self.kv(seed, segment, b, key, head, i),
                    })
                })
            })
            .collect();
        let segments: Vec<KeySegment> = self
            .segments
            .iter()
            .zip(&stored)
            .map(|((len, mask), [keys, values])| KeySegment {
                keys: view(keys, *len, self.kv_heads),
                values: view(values, *len, self.kv_heads),
                len: *len,
                mask: mask.as_ref().map(|mask| KeyMask { data: mask.as_ptr(), batch_stride: *len }),
            })
            .collect();
        let all = Mutex::new(self.empty());
        let output = |gradient: Gradient, tile: &AttentionTile| {
            let mut all = all.lock().unwrap();
            for row in 0..tile.rows {
                let (number, at) = match gradient {
                    Gradient::Queries => (
                        0,
                        ((tile.batch * self.q_rows + tile.row + row) * self.q_heads + tile.head) * self.dim,
                    ),
                    Gradient::Keys(segment) => {
                        (1 + 2 * segment, self.key(segment, tile.batch, tile.row + row, tile.head))
                    }
                    Gradient::Values(segment) => {
                        (2 + 2 * segment, self.key(segment, tile.batch, tile.row + row, tile.head))
                    }
                };
                for i in 0..self.dim {
                    let to = &mut all[number][at + i];
                    assert!(to.is_nan(), "{gradient:?} row {} comes twice", tile.row + row);
                    // SAFETY: the tile has so many rows.
                    *to = unsafe { *tile.values.add(row * tile.row_stride + i) };
                }
            }
        };
        let problem = AttentionGrad {
            isa,
            operand,
            batch: self.batch,
            q_rows: self.q_rows,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale,
            q: view(&q, self.q_rows, self.q_heads),
            dy: view(&dy, self.q_rows, self.q_heads),
            segments: &segments,
            output: &output,
        };
        // SAFETY: every tensor has the stated sizes and strides.
        unsafe { attention_grad(threads, &problem) };
        all.into_inner().unwrap()
    }
}

/// Those of attention, and one whose queries are several tasks.
fn grad_cases() -> Vec<Case> {
    let mut all = cases();
    let tail = Some((0..45).map(|key| u8::from(key < 30)).collect());
    all.push(Case {
        batch: 1,
        q_rows: 700,
        q_heads: 2,
        kv_heads: 1,
        dim: 8,
        segments: vec![(60, None), (45, tail)],
    });
    all
}

#[test]
fn gradients_agree_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    for operand in [Operand::F32, Operand::Bf16] {
        for (number, case) in grad_cases().iter().enumerate() {
            for scale in [case.scale(), -0.3 * case.scale()] {
                let exact = case.exact_gradients(operand, scale);
                for isa in Isa::supported() {
                    let found = case.run_gradients(&threads, isa, (operand, Element::F32), scale, None);
                    // One factor of every term is rounded to a bf16 where these are multiplied.
                    let rounding = match attention_kernels(isa, operand).words {
                        Operand::F32 => 0.0,
                        Operand::Bf16 => 1.0 / 256.0,
                    };
                    for (which, (found, exact)) in found.iter().zip(&exact).enumerate() {
                        let largest = exact.iter().fold(1e-3, |largest: f64, (x, _)| largest.max(x.abs()));
                        for (at, (&found, &(exact, size))) in found.iter().zip(exact).enumerate() {
                            assert!(
                                (f64::from(found) - exact).abs() <= 2e-5 * largest + rounding * size,
                                "{isa} {operand:?} case {number}, gradient {which} at {at}: {found} for {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_masked_keys_hold_has_no_influence() {
    let threads = Threads::new(1).unwrap();
    for isa in Isa::supported() {
        for case in grad_cases() {
            let kind = (Operand::Bf16, Element::Bf16);
            let clean = case.run_gradients(&threads, isa, kind, case.scale(), None);
            let poisoned = case.run_gradients(&threads, isa, kind, case.scale(), Some(f32::NAN));
            assert!(clean == poisoned, "{isa}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads_or_the_stored_type() {
    for isa in Isa::supported() {
        for case in grad_cases() {
            let run = |count, operand, element| {
                case.run_gradients(&Threads::new(count).unwrap(), isa, (operand, element), case.scale(), None)
            };
            let one = run(1, Operand::F32, Element::F32);
            for count in [2, 4] {
                assert!(one == run(count, Operand::F32, Element::F32), "{isa} {count}");
            }
            let rounded = run(1, Operand::Bf16, Element::F32);
            assert!(rounded == run(4, Operand::Bf16, Element::Bf16), "{isa}");
        }
    }
}

#[test]
fn keys_without_queries_and_queries_without_keys_have_no_gradient() {
    let threads = Threads::new(2).unwrap();
    let case = |q_rows, segments| Case { batch: 2, q_rows, q_heads: 2, kv_heads: 1, dim: 6, segments };
    for isa in Isa::supported() {
        for case in [case(0, vec![(5, None), (70, None)]), case(40, vec![(0, None)]), case(3, vec![])] {
            let found = case.run_gradients(&threads, isa, (Operand::F32, Element::F32), 0.5, None);
            assert!(found.iter().flatten().all(|&value| value == 0.0), "{isa}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    // One key far ahead of the others takes everything: its value has the gradient of the result, nothing else has any.
    let (keys, dim) = (50, 8);
    let k: Vec<f32> = (0..keys * dim).map(|at| if at / dim == 33 { 100.0 } else { -100.0 }).collect();
    let (q, v, dy) = (vec![50.0f32; dim], vec![1.0f32; keys * dim], vec![3.0f32; dim]);
    let view = |data: &[f32]| HeadView {
        data: data.as_ptr().cast(),
        element: Element::F32,
        batch_stride: 0,
        row_stride: dim,
        head_stride: 0,
    };
    for isa in Isa::supported() {
        let checked = Mutex::new(0);
        let output = |gradient: Gradient, tile: &AttentionTile| {
            for (row, i) in (0..tile.rows).flat_map(|row| (0..dim).map(move |i| (row, i))) {
                // SAFETY: the tile has so many rows.
                let found = unsafe { *tile.values.add(row * tile.row_stride + i) };
                let winner = gradient == Gradient::Values(0) && tile.row + row == 33;
                assert_eq!(found, if winner { 3.0 } else { 0.0 }, "{isa} {gradient:?}");
                *checked.lock().unwrap() += 1;
            }
        };
        let problem = AttentionGrad {
            isa,
            operand: Operand::F32,
            batch: 1,
            q_rows: 1,
            q_heads: 1,
            kv_heads: 1,
            head_dim: dim,
            scale: 1.0,
            q: view(&q),
            dy: view(&dy),
            segments: &[KeySegment { keys: view(&k), values: view(&v), len: keys, mask: None }],
            output: &output,
        };
        // SAFETY: every tensor has the stated sizes.
        unsafe { attention_grad(&Threads::new(1).unwrap(), &problem) };
        assert_eq!(*checked.lock().unwrap(), dim + 2 * keys * dim);
    }
}
