//! Linear combinations of finished sums and stored matrices: what most epilogues of products are.

use super::element::Element;
use super::isa::Isa;
use super::simd::kernels;

/// The most matrices that a combination adds to the sums.
pub const MOST_TERMS: usize = 2;
/// The most matrices that it is stored to.
pub const MOST_OUTPUTS: usize = 2;

/// A matrix that is added; columns are contiguous, its elements need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Element [0, 0].
    pub data: *const u8,
    /// f32 or bf16.
    pub element: Element,
    /// Elements from one row to the next.
    pub row_stride: isize,
    /// What elements are multiplied by.
    pub factor: f32,
}

/// A matrix that is written; columns are contiguous, its elements need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Element [0, 0].
    pub data: *mut u8,
    /// f32, or bf16, to which values are rounded.
    pub element: Element,
    /// Elements from one row to the next.
    pub row_stride: isize,
    /// What the combination is multiplied by.
    pub factor: f32,
}

/// `output_j[row, col] = factor_j · (sum_factor · sums[row, col] + Σ_i factor_i · term_i[row, col])`, terms added in their order. An output may be a
/// term, element for element.
#[derive(Clone, Copy, Debug)]
pub struct Combination<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Rows of all matrices.
    pub rows: usize,
    /// Columns of all matrices.
    pub cols: usize,
    /// Sum [0, 0].
    pub sums: *const f32,
    /// f32s from one row of sums to the next.
    pub sums_stride: usize,
    /// What sums are multiplied by.
    pub sum_factor: f32,
    /// At most [`MOST_TERMS`].
    pub terms: &'a [Term],
    /// One to [`MOST_OUTPUTS`].
    pub outputs: &'a [Output],
}

/// Computes a combination.
///
/// # Safety
/// `isa` comes from [`Isa::supported`] or [`Isa::named`]. Sums and terms are readable and outputs writable over [rows, cols], and nothing else touches
/// the outputs meanwhile.
///
/// # Panics
/// There are more terms or outputs than that, no output, or elements of another type.
pub unsafe fn combine(combination: &Combination) {
    let Combination { terms, outputs, .. } = *combination;
    let float = |element: Element| matches!(element, Element::F32 | Element::Bf16);
    assert!(
        terms.iter().all(|term| float(term.element)) && outputs.iter().all(|output| float(output.element)),
        "combinations are of f32 and bf16"
    );
    let of_terms = &kernels(combination.isa).combine[terms.len()];
    // SAFETY: the table fits the machine and the function the numbers of terms and outputs; the rest is the caller's promise.
    unsafe { of_terms[outputs.len() - 1](combination) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::element::{bf16_from_f32, f32_from_bf16, load_f32, store_f32};

    /// Numbers of both signs that bf16 does not hold.
    fn value(seed: usize, at: usize) -> f32 {
        ((at * 37 + seed * 101) % 211) as f32 / 97.3 - 1.0
    }

    #[test]
    fn combinations_are_those_of_the_definition_and_touch_nothing_else() {
        const STRIDE: usize = 91;
        for isa in Isa::supported() {
            for (case, cols) in [1, 7, 16, 31, 33, 64, 90].into_iter().enumerate() {
                for terms in 0..=MOST_TERMS {
                    for outputs in 1..=MOST_OUTPUTS {
                        let element =
                            |which: usize| [Element::F32, Element::Bf16][(case + which + outputs) % 2];
                        check(isa, (5, cols, STRIDE), terms, outputs, element);
                    }
                }
            }
        }
    }

    fn check(
        isa: Isa,
        (rows, cols, stride): (usize, usize, usize),
        terms: usize,
        outputs: usize,
        element: impl Fn(usize) -> Element,
    ) {
        let sums: Vec<f32> = (0..rows * stride).map(|at| value(0, at)).collect();
        let stored = |seed: usize| {
            let mut data = vec![0u8; 4 * rows * stride];
            for at in 0..rows * stride {
                // SAFETY: four bytes for each element.
                unsafe { store_f32(data.as_mut_ptr(), element(seed), at, value(seed, at)) };
            }
            data
        };
        let given: Vec<Vec<u8>> = (1..=terms).map(stored).collect();
        let mut results: Vec<Vec<u8>> = (10..10 + outputs).map(stored).collect();
        let before = results.clone();
        let factors = [1.0f32, -2.5];
        let terms: Vec<Term> = given
            .iter()
            .enumerate()
            .map(|(i, data)| Term {
                data: data.as_ptr(),
                element: element(i + 1),
                // The last is one row for all.
                row_stride: if i == 1 { 0 } else { stride as isize },
                factor: [3.4445, 0.3][i],
            })
            .collect();
        let matrices: Vec<Output> = results
            .iter_mut()
            .enumerate()
            .map(|(j, data)| Output {
                data: data.as_mut_ptr(),
                element: element(10 + j),
                row_stride: stride as isize,
                factor: factors[j],
            })
            .collect();
        let (sums_stride, sum_factor) = (stride, 2.0315);
        let sums_at = sums.as_ptr();
        // SAFETY: all matrices have so many rows and columns.
        unsafe {
            combine(&Combination {
                isa,
                rows,
                cols,
                sums: sums_at,
                sums_stride,
                sum_factor,
                terms: &terms,
                outputs: &matrices,
            });
        }
        for (j, (result, before)) in results.iter().zip(&before).enumerate() {
            for (row, col) in (0..rows).flat_map(|row| (0..stride).map(move |col| (row, col))) {
                let at = row * stride + col;
                let load = |data: &[u8], element, at| {
                    // SAFETY: four bytes for each element.
                    unsafe { load_f32(data.as_ptr(), element, at) }
                };
                let found = load(result, element(10 + j), at);
                if col >= cols {
                    assert_eq!(found, load(before, element(10 + j), at), "{isa}: {row}, {col} was written");
                    continue;
                }
                let mut exact = f64::from(sum_factor) * f64::from(sums[at]);
                for (i, term) in terms.iter().enumerate() {
                    let place = (row as isize * term.row_stride) as usize + col;
                    exact += f64::from(term.factor) * f64::from(load(&given[i], term.element, place));
                }
                exact *= f64::from(factors[j]);
                // Half a unit in the last place of bf16 where the result is rounded, a few of f32 always.
                let unit = if element(10 + j) == Element::Bf16 { 1.0 / 256.0 } else { 0.0 };
                let error = (f64::from(found) - exact).abs();
                assert!(
                    error <= exact.abs() * unit + 2e-5,
                    "{isa} {j}: [{row}, {col}] is {found}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let sums = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001), f32::MAX, -0.0];
        for isa in Isa::supported() {
            for cols in [sums.len(), 4 * sums.len()] {
                let row: Vec<f32> = sums.iter().copied().cycle().take(cols).collect();
                let mut stored = vec![0u16; cols];
                let output = Output {
                    data: stored.as_mut_ptr().cast(),
                    element: Element::Bf16,
                    row_stride: cols as isize,
                    factor: 1.0,
                };
                // SAFETY: one row of so many columns.
                unsafe {
                    combine(&Combination {
                        isa,
                        rows: 1,
                        cols,
                        sums: row.as_ptr(),
                        sums_stride: cols,
                        sum_factor: 1.0,
                        terms: &[],
                        outputs: &[output],
                    });
                }
                for (found, sum) in stored.iter().zip(&row) {
                    let (found, wanted) = (f32_from_bf16(*found), f32_from_bf16(bf16_from_f32(*sum)));
                    assert!(
                        found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(),
                        "{isa} {sum}"
                    );
                }
            }
        }
    }
}
