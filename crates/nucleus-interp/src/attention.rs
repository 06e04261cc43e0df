//! Scaled dot-product attention.

use crate::real::Real;

/// `softmax(scale · q kᵀ) v` per head for q [B, S, A, d] and k, v [B, L, G, d]; query head h uses key head ⌊h·G/A⌋. Keys whose mask
/// [B, L] is false are left out; a query without any key gives zeros. Not causal.
pub(crate) fn attention<F: Real>(
    (q, q_shape): (&[F], &[usize]),
    (k, k_shape): (&[F], &[usize]),
    v: &[F],
    mask: Option<&[bool]>,
    scale: F,
) -> Vec<F> {
    let [batch, queries, heads, size] = [q_shape[0], q_shape[1], q_shape[2], q_shape[3]];
    let [keys, key_heads] = [k_shape[1], k_shape[2]];
    let mut result = Vec::with_capacity(q.len());
    for b in 0..batch {
        let visible: Vec<usize> = (0..keys).filter(|l| mask.is_none_or(|mask| mask[b * keys + l])).collect();
        for s in 0..queries {
            for h in 0..heads {
                let query = row(q, ((b * queries + s) * heads) + h, size);
                let key_row = |l: usize| (b * keys + l) * key_heads + h * key_heads / heads;
                let scores: Vec<F> =
                    visible.iter().map(|l| scale * dot(query, row(k, key_row(*l), size))).collect();
                let start = result.len();
                result.resize(start + size, F::ZERO);
                for (l, weight) in visible.iter().zip(softmax(&scores)) {
                    for (sum, v) in result[start..].iter_mut().zip(row(v, key_row(*l), size)) {
                        *sum += weight * *v;
                    }
                }
            }
        }
    }
    result
}

/// The gradients of [`attention`] with respect to q, k and v, given that with respect to its result. With probabilities p and scores
/// s = scale · q·k: dv = Σ p·dy, dp = dy·v, ds = p·(dp − Σ p·dp), dq = scale · Σ ds·k, dk = scale · Σ ds·q.
pub(crate) fn attention_grad<F: Real>(
    (q, q_shape): (&[F], &[usize]),
    (k, k_shape): (&[F], &[usize]),
    v: &[F],
    dy: &[F],
    mask: Option<&[bool]>,
    scale: F,
) -> [Vec<F>; 3] {
    let [batch, queries, heads, size] = [q_shape[0], q_shape[1], q_shape[2], q_shape[3]];
    let [keys, key_heads] = [k_shape[1], k_shape[2]];
    let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|count| vec![F::ZERO; count]);
    for b in 0..batch {
        let visible: Vec<usize> = (0..keys).filter(|l| mask.is_none_or(|mask| mask[b * keys + l])).collect();
        for s in 0..queries {
            for h in 0..heads {
                let query_row = (b * queries + s) * heads + h;
                let (query, dy) = (row(q, query_row, size), row(dy, query_row, size));
                let key_row = |l: usize| (b * keys + l) * key_heads + h * key_heads / heads;
                let scores: Vec<F> =
                    visible.iter().map(|l| scale * dot(query, row(k, key_row(*l), size))).collect();
                let p = softmax(&scores);
                let dp: Vec<F> = visible.iter().map(|l| dot(dy, row(v, key_row(*l), size))).collect();
                let mean = dot(&p, &dp);
                for ((l, p), dp) in visible.iter().zip(&p).zip(&dp) {
                    let ds = scale * *p * (*dp - mean);
                    let key = key_row(*l);
                    for i in 0..size {
                        dq[query_row * size + i] += ds * k[key * size + i];
                        dk[key * size + i] += ds * query[i];
                        dv[key * size + i] += *p * dy[i];
                    }
                }
            }
        }
    }
    [dq, dk, dv]
}

fn row<F>(x: &[F], index: usize, size: usize) -> &[F] {
    &x[index * size..(index + 1) * size]
}

fn dot<F: Real>(x: &[F], y: &[F]) -> F {
    x.iter().zip(y).fold(F::ZERO, |sum, (x, y)| sum + *x * *y)
}

/// `e^(xᵢ − max x) / Σⱼ e^(xⱼ − max x)`: shifting by the maximum changes no quotient and keeps every power at most 1.
fn softmax<F: Real>(x: &[F]) -> Vec<F> {
    let max = x.iter().fold(F::NEG_INFINITY, |max, x| Real::max(max, *x));
    let powers: Vec<F> = x.iter().map(|x| (*x - max).exp()).collect();
    let sum = powers.iter().fold(F::ZERO, |sum, power| sum + *power);
    powers.into_iter().map(|power| power / sum).collect()
}
