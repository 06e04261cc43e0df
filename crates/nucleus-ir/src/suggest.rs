//! Nearest names, for the `help:` of a diagnostic about an unknown name.

/// Names longer than this are not compared.
const MAX_LENGTH: usize = 64;
/// At most so many candidates are looked at, so that a hostile text cannot make a diagnostic slow.
const MAX_CANDIDATES: usize = 10_000;

/// The candidate that `name` was probably meant to be: the one with the fewest edits, at most one in three characters.
/// Ties go to the alphabetically first.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MAX_LENGTH {
        return None;
    }
    let limit = name.chars().count() / 3 + 1;
    candidates
        .into_iter()
        .take(MAX_CANDIDATES)
        .filter(|candidate| *candidate != name && candidate.len().abs_diff(name.len()) <= limit)
        .filter(|candidate| candidate.len() <= MAX_LENGTH)
        .map(|candidate| (distance(name, candidate), candidate))
        // Replacing every character of a short name is no resemblance.
        .filter(|(edits, candidate)| *edits <= limit && *edits < candidate.len().min(name.len()))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            let mut edits = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                edits = edits.min(before[j - 1] + 1);
            }
            row.push(edits);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["linear", "layer_norm", "silu", "rms_norm"];
        assert_eq!(nearest("liner", names), Some("linear"));
        assert_eq!(nearest("layernorm", names), Some("layer_norm"));
        assert_eq!(nearest("slíu", names), Some("silu"));
        assert_eq!(nearest("attention", names), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"x".repeat(1000), names), None);
    }

    #[test]
    fn a_swap_is_one_edit() {
        assert_eq!(distance("silu", "sliu"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
