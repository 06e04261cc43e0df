//! Matrix products, one multiplication and one addition at a time in `F`, each sum in ascending order of k.

use std::borrow::Cow;

use crate::real::Real;

/// `y[l, m, n] = Σ_k a[l, m, k] · b[l, k, n]`; a rank-2 `b` serves every l. Operands come with their stored shapes.
pub(crate) fn matmul<F: Real>(
    (a, a_shape): (&[F], &[usize]),
    (b, b_shape): (&[F], &[usize]),
    transpose_a: bool,
    transpose_b: bool,
) -> Vec<F> {
    let batch: usize = a_shape[..a_shape.len() - 2].iter().product();
    let (m, k) = stored_size(a_shape, transpose_a);
    let (_, n) = stored_size(b_shape, transpose_b);
    let shared = (b_shape.len() == 2).then(|| row_major(b, k, n, transpose_b));
    let mut result = Vec::with_capacity(batch * m * n);
    for l in 0..batch {
        let a = row_major(&a[l * m * k..(l + 1) * m * k], m, k, transpose_a);
        match &shared {
            Some(b) => product(&a, b, m, k, n, &mut result),
            None => {
                let b = row_major(&b[l * k * n..(l + 1) * k * n], k, n, transpose_b);
                product(&a, &b, m, k, n, &mut result);
            }
        }
    }
    result
}

/// `y[b, e] = x[b, e] · w[e]` for x [B, E, C, K] and w [E, K, N], or [E, N, K] with `transpose_b`.
pub(crate) fn grouped_matmul<F: Real>(
    (x, x_shape): (&[F], &[usize]),
    (w, w_shape): (&[F], &[usize]),
    transpose_b: bool,
) -> Vec<F> {
    let [batch, groups, rows, k] = [x_shape[0], x_shape[1], x_shape[2], x_shape[3]];
    let (_, n) = stored_size(w_shape, transpose_b);
    let mut result = Vec::with_capacity(batch * groups * rows * n);
    for b in 0..batch {
        for e in 0..groups {
            let from = (b * groups + e) * rows * k;
            let w = row_major(&w[e * k * n..(e + 1) * k * n], k, n, transpose_b);
            product(&x[from..from + rows * k], &w, rows, k, n, &mut result);
        }
    }
    result
}

/// Rows and columns of the matrix that the last two axes hold.
fn stored_size(shape: &[usize], transposed: bool) -> (usize, usize) {
    let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    if transposed { (columns, rows) } else { (rows, columns) }
}

/// A matrix in row-major order, from itself or from its transpose.
fn row_major<F: Real>(x: &[F], rows: usize, columns: usize, transposed: bool) -> Cow<'_, [F]> {
    if !transposed {
        return Cow::Borrowed(x);
    }
    let mut result = Vec::with_capacity(x.len());
    for row in 0..rows {
        result.extend((0..columns).map(|column| x[column * rows + row]));
    }
    Cow::Owned(result)
}

/// Appends the product of an m × k and a k × n matrix. The loops run i, k, j, so that the innermost one walks rows; for every element
/// the order of summation is the same as that of i, j, k.
fn product<F: Real>(a: &[F], b: &[F], m: usize, k: usize, n: usize, result: &mut Vec<F>) {
    for i in 0..m {
        let start = result.len();
        result.resize(start + n, F::ZERO);
        let row = &mut result[start..];
        for p in 0..k {
            let factor = a[i * k + p];
            for (sum, b) in row.iter_mut().zip(&b[p * n..(p + 1) * n]) {
                *sum += factor * *b;
            }
        }
    }
}
