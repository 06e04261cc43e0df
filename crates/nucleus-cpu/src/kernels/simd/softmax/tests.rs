use super::*;
use crate::kernels::isa::Isa;
use crate::kernels::simd::attention_kernels;

/// What one block makes of the scores of one query from a fresh state, in the last lane of a panel: probabilities,
/// maximum, sum. The other lanes have scores of their own.
fn softmax_of(isa: Isa, values: &[f32], round_to_bf16: bool) -> (Vec<f32>, f32, f32) {
    let table = attention_kernels(isa, Operand::F32);
    let (cols, lane) = (table.panel_cols, table.panel_cols - 1);
    let mut scores = vec![7.0f32; values.len() * cols];
    values.iter().zip(scores.chunks_mut(cols)).for_each(|(&value, row)| row[lane] = value);
    let mut state = vec![f32::NAN; 3 * cols];
    let (maximum, rest) = state.split_at_mut(cols);
    let (sum, correction) = rest.split_at_mut(cols);
    let block = SoftmaxBlock {
        keys: values.len(),
        scores: scores.as_mut_ptr(),
        scale: 1.0,
        first: true,
        maximum: maximum.as_mut_ptr(),
        sum: sum.as_mut_ptr(),
        correction: correction.as_mut_ptr(),
        round_to_bf16,
    };
    // SAFETY: all vectors have the stated lengths, and `isa` is supported.
    unsafe { (table.softmax)(&block) };
    assert!(maximum[..lane].iter().all(|&value| value == 7.0), "{isa}: the other queries");
    (scores.chunks(cols).map(|row| row[lane]).collect(), maximum[lane], sum[lane])
}

#[test]
fn powers_of_two_are_within_two_units_in_the_last_place() {
    // 0 first, so that the maximum subtracts nothing.
    let arguments: Vec<f32> = (0..=124_380).map(|i| -(i as f32) * 0.001_013).collect();
    for isa in Isa::supported() {
        let (values, _, _) = softmax_of(isa, &arguments, false);
        for (&x, &value) in arguments.iter().zip(&values) {
            let exact = f64::from(x).exp2();
            let unit = f64::from(f32::EPSILON) * 2f64.powi(exact.log2().floor() as i32);
            let error = (f64::from(value) - exact).abs() / unit;
            assert!(error <= 2.0, "{isa}: 2^{x} = {value:e}, {error:.2} units from {exact:e}");
        }
    }
}

#[test]
fn rounded_probabilities_are_the_nearest_bf16_and_the_sum_is_that_of_the_exact_ones() {
    let arguments: Vec<f32> = (0..=50_000).map(|i| -(i as f32) * 0.002_013).collect();
    for isa in Isa::supported() {
        let (exact, _, exact_sum) = softmax_of(isa, &arguments, false);
        let (rounded, _, sum) = softmax_of(isa, &arguments, true);
        assert_eq!(sum, exact_sum, "{isa}");
        for (&exact, &rounded) in exact.iter().zip(&rounded) {
            assert_eq!(rounded.to_bits() & 0xffff, 0, "{isa}: {rounded:e} for {exact:e}");
            // Half a unit of bf16, and one of f32: the polynomial is rounded once only.
            let unit = f64::from(2f32.powi(exact.log2().floor() as i32 - 7));
            let error = (f64::from(rounded) - f64::from(exact)).abs() / unit;
            assert!(error <= 0.5 + 2f64.powi(-15), "{isa}: {rounded:e} for {exact:e}");
        }
    }
}

#[test]
fn scores_of_minus_infinity_vanish() {
    for isa in Isa::supported() {
        let low = f32::NEG_INFINITY;
        assert_eq!(softmax_of(isa, &[low, 3.0, low], false), (vec![0.0, 1.0, 0.0], 3.0, 1.0), "{isa}");
        assert_eq!(softmax_of(isa, &[low; 5], false), (vec![0.0; 5], f32::MIN, 0.0), "{isa}");
        assert_eq!(softmax_of(isa, &[-1000.0, 3.0, -3e38], true), (vec![0.0, 1.0, 0.0], 3.0, 1.0), "{isa}");
    }
}

#[test]
fn a_nan_score_makes_the_sum_nan() {
    for isa in Isa::supported() {
        assert!(softmax_of(isa, &[0.0, f32::NAN, 1.0], false).2.is_nan(), "{isa}");
        assert!(softmax_of(isa, &[f32::NAN], true).2.is_nan(), "{isa}");
    }
}
