//! Every instruction set against softmax written out in f64.

use super::*;
use crate::kernels::element::{load_f32, round_to_bf16, store_f32};

pub(in crate::kernels::attention) struct Case {
    pub(in crate::kernels::attention) batch: usize,
    pub(in crate::kernels::attention) q_rows: usize,
    pub(in crate::kernels::attention) q_heads: usize,
    pub(in crate::kernels::attention) kv_heads: usize,
    pub(in crate::kernels::attention) dim: usize,
    pub(in crate::kernels::attention) segments: Vec<(usize, Option<Vec<u8>>)>,
}

pub(in crate::kernels::attention) fn value(seed: usize, at: usize) -> f32 {
    let mut bits = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed as u64) << 21;
    bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    2.0 * ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0)
}

impl Case {
    pub(in crate::kernels::attention) fn q(&self, b: usize, row: usize, head: usize, i: usize) -> f32 {
        value(1, ((b * self.q_rows + row) * self.q_heads + head) * self.dim + i)
    }

    pub(in crate::kernels::attention) fn kv(
        &self,
        seed: usize,
        segment: usize,
        b: usize,
        key: usize,
        head: usize,
        i: usize,
    ) -> f32 {
        let at = ((b * self.segments[segment].0 + key) * self.kv_heads + head) * self.dim + i;
        value(seed + 2 * segment, at)
    }

    pub(in crate::kernels::attention) fn taken(&self, segment: usize, b: usize, key: usize) -> bool {
        let (len, mask) = &self.segments[segment];
        mask.as_ref().is_none_or(|mask| mask[b * len + key] != 0)
    }

    /// [batch, q_rows, q_heads, dim].
    fn exact(&self, operand: Operand) -> Vec<f64> {
        let round =
            |value: f32| f64::from(if operand == Operand::Bf16 { round_to_bf16(value) } else { value });
        let scale = f64::from(self.scale());
        let mut out = Vec::new();
        for b in 0..self.batch {
            for row in 0..self.q_rows {
                for head in 0..self.q_heads {
                    let kv_head = head / (self.q_heads / self.kv_heads);
                    let mut keys = Vec::new();
                    for (segment, &(len, _)) in self.segments.iter().enumerate() {
                        keys.extend(
                            (0..len).filter(|&key| self.taken(segment, b, key)).map(|key| (segment, key)),
                        );
                    }
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|&(segment, key)| {
                            let products = (0..self.dim).map(|i| {
                                round(self.q(b, row, head, i))
                                    * round(self.kv(100, segment, b, key, kv_head, i))
                            });
                            products.sum::<f64>() * scale
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                    for i in 0..self.dim {
                        let terms = keys.iter().zip(&scores).map(|(&(segment, key), score)| {
                            (score - largest).exp() / total * round(self.kv(101, segment, b, key, kv_head, i))
                        });
                        out.push(terms.sum());
                    }
                }
            }
        }
        out
    }

    pub(in crate::kernels::attention) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Runs the kernel; `poison` is written over every masked key and value.
    fn run(
        &self,
        threads: &Threads,
        isa: Isa,
        operand: Operand,
        element: Element,
        poison: Option<f32>,
    ) -> Vec<f32> {
        // A gap behind every row, so that strides are not the sizes.
        let store = |rows: usize, heads: usize, at: &dyn Fn(usize, usize, usize, usize) -> f32| {
            let row_stride = heads * self.dim + 3;
            let mut stored = vec![0u8; 4 * self.batch * rows.max(1) * row_stride];
            for b in 0..self.batch {
                for row in 0..rows {
                    for head in 0..heads {
                        for i in 0..self.dim {
                            let place = (b * rows + row) * row_stride + head * self.dim + i;
                            // SAFETY: the vector has four bytes for each place.
                            unsafe { store_f32(stored.as_mut_ptr(), element, place, at(b, row, head, i)) };
                        }
                    }
                }
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
        let mut out = vec![f32::NAN; self.batch * self.q_rows * self.q_heads * self.dim];
        let problem = Attention {
            isa,
            operand,
            batch: self.batch,
            q_rows: self.q_rows,
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale: self.scale(),
            q: view(&q, self.q_rows, self.q_heads),
            segments: &segments,
            output: AttentionOutput::Store {
                data: out.as_mut_ptr().cast(),
                element: Element::F32,
                batch_stride: self.q_rows * self.q_heads * self.dim,
                row_stride: self.q_heads * self.dim,
                head_stride: self.dim,
            },
        };
        // SAFETY: every tensor has the stated sizes and strides.
        unsafe { attention(threads, &problem) };
        out
    }
}

pub(in crate::kernels::attention) fn cases() -> Vec<Case> {
    let every_third =
        |len: usize, batch: usize| Some((0..len * batch).map(|i| u8::from(i % 3 != 0)).collect());
    let mut second_item_masked = vec![1; 80];
    second_item_masked[40..].fill(0);
    vec![
        Case { batch: 1, q_rows: 1, q_heads: 1, kv_heads: 1, dim: 1, segments: vec![(1, None)] },
        Case {
            batch: 2,
            q_rows: 37,
            q_heads: 4,
            kv_heads: 2,
            dim: 20,
            segments: vec![(37, None), (9, every_third(9, 2))],
        },
        Case {
            batch: 1,
            q_rows: 150,
            q_heads: 3,
            kv_heads: 1,
            dim: 64,
            segments: vec![(300, None), (0, None), (33, None)],
        },
        Case {
            batch: 2,
            q_rows: 5,
            q_heads: 2,
            kv_heads: 2,
            dim: 33,
            segments: vec![(40, Some(second_item_masked))],
        },
        Case {
            batch: 1,
            q_rows: 13,
            q_heads: 2,
            kv_heads: 1,
            dim: 256,
            segments: vec![(131, every_third(131, 1)), (64, None)],
        },
        // Several blocks of keys and several jobs, heads that begin within a panel, an odd number of keys.
        Case {
            batch: 1,
            q_rows: 75,
            q_heads: 8,
            kv_heads: 2,
            dim: 24,
            segments: vec![(511, None), (64, every_third(64, 1)), (2, None)],
        },
        // The first segment is masked as a whole.
        Case {
            batch: 1,
            q_rows: 3,
            q_heads: 1,
            kv_heads: 1,
            dim: 5,
            segments: vec![(7, Some(vec![0; 7])), (3, None)],
        },
    ]
}

#[test]
fn attention_agrees_with_the_definition() {
    let threads = Threads::new(2).unwrap();
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            // Values below 2 are averaged; bf16 probabilities are off by 2^-9 of each term.
            let tolerance = if operand == Operand::Bf16 { 2.0 / 512.0 } else { 2e-5 };
            for (number, case) in cases().iter().enumerate() {
                let exact = case.exact(operand);
                let found = case.run(&threads, isa, operand, Element::F32, None);
                for (at, (&found, &exact)) in found.iter().zip(&exact).enumerate() {
                    let error = (f64::from(found) - exact).abs();
                    assert!(
                        error <= tolerance,
                        "{isa} {operand:?} case {number} at {at}: {found} for {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_masked_keys_hold_has_no_influence() {
    let threads = Threads::new(1).unwrap();
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            for case in cases() {
                let clean = case.run(&threads, isa, operand, Element::Bf16, None);
                let poisoned = case.run(&threads, isa, operand, Element::Bf16, Some(f32::NAN));
                assert!(clean == poisoned, "{isa} {operand:?}");
            }
        }
    }
}

#[test]
fn a_query_whose_keys_are_all_masked_gives_zeros() {
    let case = &cases()[3];
    for isa in Isa::supported() {
        let found = case.run(&Threads::new(1).unwrap(), isa, Operand::F32, Element::F32, None);
        let (first, second) = found.split_at(found.len() / 2);
        assert!(first.iter().any(|&value| value != 0.0) && second.iter().all(|&value| value == 0.0), "{isa}");
    }
    let no_keys = Case { batch: 1, q_rows: 3, q_heads: 1, kv_heads: 1, dim: 4, segments: vec![] };
    let found = no_keys.run(&Threads::new(1).unwrap(), Isa::fastest(), Operand::F32, Element::F32, None);
    assert_eq!(found, [0.0; 12]);
}

#[test]
fn a_masked_tail_is_as_if_it_were_absent() {
    let threads = Threads::new(2).unwrap();
    let mask = (0..700).map(|key| u8::from(key < 301)).collect();
    let case = |len, mask| Case {
        batch: 1,
        q_rows: 40,
        q_heads: 2,
        kv_heads: 1,
        dim: 16,
        segments: vec![(len, mask)],
    };
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            let masked = case(700, Some(Vec::clone(&mask))).run(&threads, isa, operand, Element::F32, None);
            let absent = case(301, None).run(&threads, isa, operand, Element::F32, None);
            assert!(masked == absent, "{isa} {operand:?}");
        }
    }
}

/// Attention of one query over keys with the given scores, whose values are their numbers.
fn expected_key(isa: Isa, operand: Operand, scale: f32, scores: &[f32]) -> f32 {
    let values: Vec<f32> = (0..scores.len()).map(|key| key as f32).collect();
    let view = |data: &[f32]| HeadView {
        data: data.as_ptr().cast(),
        element: Element::F32,
        batch_stride: 0,
        row_stride: 1,
        head_stride: 0,
    };
    let mut out = [f32::NAN];
    let segments = [KeySegment { keys: view(scores), values: view(&values), len: scores.len(), mask: None }];
    let problem = Attention {
        isa,
        operand,
        batch: 1,
        q_rows: 1,
        q_heads: 1,
        kv_heads: 1,
        head_dim: 1,
        scale,
        q: view(&[1.0]),
        segments: &segments,
        output: AttentionOutput::Store {
            data: out.as_mut_ptr().cast(),
            element: Element::F32,
            batch_stride: 0,
            row_stride: 0,
            head_stride: 0,
        },
    };
    // SAFETY: every tensor has the stated sizes.
    unsafe { attention(&Threads::new(1).unwrap(), &problem) };
    out[0]
}

#[test]
fn the_scale_may_be_negative_or_zero() {
    let scores = [500.0, -500.0, 0.0];
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            assert_eq!(expected_key(isa, operand, 1.0, &scores), 0.0, "{isa} {operand:?}");
            assert_eq!(expected_key(isa, operand, -1.0, &scores), 1.0, "{isa} {operand:?}");
            assert_eq!(expected_key(isa, operand, 0.0, &scores), 1.0, "{isa} {operand:?}");
        }
    }
}

#[test]
fn a_maximum_that_rises_with_every_block_leaves_the_last_key() {
    let mut scores: Vec<f32> = (0..1000).map(|key| 4.0 * key as f32).collect();
    for isa in Isa::supported() {
        for operand in [Operand::F32, Operand::Bf16] {
            let last = expected_key(isa, operand, 100.0, &scores);
            // bf16 has the same score for the last few keys, and their values are rounded up to 1000.
            let nearly = if operand == Operand::Bf16 { 990.0..=1000.0 } else { 999.0..=999.0 };
            assert!(nearly.contains(&last), "{isa} {operand:?}: {last}");
        }
    }
    scores[600..].fill(f32::NEG_INFINITY);
    for isa in Isa::supported() {
        assert_eq!(expected_key(isa, Operand::F32, 100.0, &scores), 599.0, "{isa}");
        assert_eq!(expected_key(isa, Operand::F32, 100.0, &scores[600..]), 0.0, "{isa}");
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads_or_the_stored_type() {
    for isa in Isa::supported() {
        for case in cases() {
            for operand in [Operand::F32, Operand::Bf16] {
                let one = case.run(&Threads::new(1).unwrap(), isa, operand, Element::F32, None);
                for count in [2, 4] {
                    let more = case.run(&Threads::new(count).unwrap(), isa, operand, Element::F32, None);
                    assert!(one == more, "{isa} {operand:?} {count}");
                }
            }
            let single = case.run(&Threads::new(1).unwrap(), isa, Operand::Bf16, Element::F32, None);
            let stored = case.run(&Threads::new(1).unwrap(), isa, Operand::Bf16, Element::Bf16, None);
            assert!(single == stored, "{isa}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    // One key far ahead of the others takes everything.
    let (keys, dim) = (50, 8);
    let k: Vec<f32> = (0..keys * dim).map(|at| if at / dim == 33 { 100.0 } else { -100.0 }).collect();
    let v: Vec<f32> = (0..keys * dim).map(|at| (at / dim) as f32).collect();
    let q = vec![50.0f32; dim];
    let view = |data: &[f32]| HeadView {
        data: data.as_ptr().cast(),
        element: Element::F32,
        batch_stride: 0,
        row_stride: dim,
        head_stride: 0,
    };
    for isa in Isa::supported() {
        let mut out = vec![0u8; 4 * dim];
        let segments = [KeySegment { keys: view(&k), values: view(&v), len: keys, mask: None }];
        let problem = Attention {
            isa,
            operand: Operand::F32,
            batch: 1,
            q_rows: 1,
            q_heads: 1,
            kv_heads: 1,
            head_dim: dim,
            scale: 1.0,
            q: view(&q),
            segments: &segments,
            output: AttentionOutput::Store {
                data: out.as_mut_ptr(),
                element: Element::F32,
                batch_stride: 0,
                row_stride: 0,
                head_stride: 0,
            },
        };
        // SAFETY: every tensor has the stated sizes.
        unsafe { attention(&Threads::new(1).unwrap(), &problem) };
        for i in 0..dim {
            // SAFETY: `out` holds `dim` f32s.
            assert_eq!(unsafe { load_f32(out.as_ptr(), Element::F32, i) }, 33.0, "{isa}");
        }
    }
}
