//! Expert-choice routing (Y. Zhou et al., "Mixture-of-Experts with Expert Choice Routing", 2022): every expert chooses its tokens.

use std::cmp::Ordering;

use crate::error::NodeError;
use crate::real::Real;

/// For every batch item and expert the `capacity` tokens of largest affinity [B, S, E], in ascending token order, and their affinities:
/// both [B, E, capacity]. Ties go to the lowest token index; NaN counts as smaller than every number.
pub(crate) fn expert_choice<F: Real>(
    affinity: &[F],
    shape: &[usize],
    capacity: usize,
) -> Result<(Vec<i32>, Vec<F>), NodeError> {
    let [batch, tokens, experts] = [shape[0], shape[1], shape[2]];
    if i32::try_from(tokens).is_err() {
        return Err(NodeError::IndexRange { what: "the number of tokens", size: tokens as i64 });
    }
    let (mut slot_token, mut gate) = (Vec::new(), Vec::new());
    for b in 0..batch {
        for e in 0..experts {
            let affinity = |token: usize| affinity[(b * tokens + token) * experts + e];
            let mut order: Vec<usize> = (0..tokens).collect();
            // The sort is stable: equal affinities stay in token order.
            order.sort_by(|left, right| descending(affinity(*left), affinity(*right)));
            let mut chosen = order[..capacity].to_vec();
            chosen.sort_unstable();
            slot_token.extend(chosen.iter().map(|token| *token as i32));
            gate.extend(chosen.iter().map(|token| affinity(*token)));
        }
    }
    Ok((slot_token, gate))
}

/// Larger before smaller, numbers before NaN.
fn descending<F: Real>(left: F, right: F) -> Ordering {
    right.partial_cmp(&left).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}
