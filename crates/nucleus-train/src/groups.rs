//! Which optimiser moves which weight, and how a weight splits into the matrices that Muon takes.

use std::fmt;

use nucleus_ir::DType;

use thiserror::Error;

/// Weights under one optimiser with one set of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Patterns of weight names; `*` stands for any characters.
    pub params: Vec<String>,
    /// The optimiser and its numbers.
    pub optimizer: Optimizer,
    /// True for a group that no recipe wrote.
    pub default: bool,
}

/// An optimiser and its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// Orthogonalised momentum.
    Muon(Muon),
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
}

impl Optimizer {
    /// The learning rate after warm-up.
    pub fn lr(&self) -> f64 {
        match self {
            Optimizer::Muon(muon) => muon.lr,
            Optimizer::AdamW(adamw) => adamw.lr,
        }
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Optimizer::Muon(_) => "muon",
            Optimizer::AdamW(_) => "adamw",
        })
    }
}

/// Numbers of Muon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate after warm-up.
    pub lr: f64,
    /// weight ← weight · (1 − lr · weight_decay).
    pub weight_decay: f64,
    /// μ of b ← μ·b + (1−μ)·g.
    pub momentum: f64,
    /// Step along (1−μ)·g + μ·b instead of b.
    pub nesterov: bool,
    /// Newton–Schulz steps.
    pub ns_steps: usize,
    /// What those steps multiply.
    pub ns_form: NsForm,
    /// To what those steps round the factors of products, f32 or bf16. Sums, and the matrix from step to step, are f32.
    pub ns_dtype: DType,
    /// How the step depends on the matrix's sizes.
    pub adjust_lr: AdjustLr,
    /// How a weight holds two matrices.
    pub halves: Halves,
}

impl Default for Muon {
    fn default() -> Muon {
        Muon {
            lr: 1e-4,
            weight_decay: 0.1,
            momentum: 0.95,
            nesterov: true,
            ns_steps: 5,
            ns_form: NsForm::Gram,
            ns_dtype: DType::F32,
            adjust_lr: AdjustLr::MatchRmsAdamW,
            halves: Halves::Auto,
        }
    }
}

/// What the steps of the Newton–Schulz iteration multiply. Both forms are the same function of the matrix; they round differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NsForm {
    /// The small Gram matrix XXᵀ of a matrix that is not a square: fewer operations, a digit less of precision.
    Gram,
    /// The matrix itself.
    Direct,
}

/// How Muon's step depends on the sizes of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    /// 0.2 · √max(rows, columns): updates as large as AdamW's.
    MatchRmsAdamW,
    /// √max(1, rows / columns).
    Original,
}

impl AdjustLr {
    /// What the learning rate is multiplied by for a matrix of those sizes.
    pub fn factor(self, rows: usize, columns: usize) -> f64 {
        match self {
            AdjustLr::MatchRmsAdamW => 0.2 * (rows.max(columns) as f64).sqrt(),
            AdjustLr::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
        }
    }
}

/// Numbers of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate after warm-up.
    pub lr: f64,
    /// weight ← weight · (1 − lr · weight_decay).
    pub weight_decay: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { lr: 1e-4, weight_decay: 0.01, betas: [0.9, 0.999], eps: 1e-8 }
    }
}

/// How a weight holds two matrices, as a recipe says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    /// By the names of the published checkpoint: see [`Halves::of`].
    Auto,
    /// One matrix.
    None,
    /// The first and the second half of the rows.
    Rows,
    /// The first and the second half of the columns.
    Columns,
}

/// Weights that hold two matrices: value and gate of a feed-forward layer (a row per output), gate and up of the experts (a column
/// per output).
const HALVES: &[(&str, Halves)] =
    &[("*.net.0.proj.weight", Halves::Rows), ("*.experts.gate_up_proj", Halves::Columns)];

impl Halves {
    /// What it means for a weight of that name; never `Auto`.
    pub fn of(self, name: &str) -> Halves {
        match self {
            Halves::Auto => HALVES
                .iter()
                .find(|(pattern, _)| matches(pattern, name))
                .map_or(Halves::None, |(_, halves)| *halves),
            known => known,
        }
    }
}

/// The matrices of a weight: `matrices` of them, each `rows` × `columns`.
///
/// With halves of columns a matrix is not contiguous: element (g, r, c) of the matrices lies at
/// (g / halves) · stride + (g % halves) · half_offset + r · row_stride + c in the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixLayout {
    /// Leading extent of the weight: experts, or 1.
    pub outer: usize,
    /// Matrices side by side or one above the other in each: 1 or 2.
    pub halves: usize,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub columns: usize,
    /// Elements from the first half to the second.
    pub half_offset: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

impl MatrixLayout {
    /// How many matrices there are.
    pub fn matrices(&self) -> usize {
        self.outer * self.halves
    }

    /// Where element (row, column) of matrix `matrix` lies in the weight.
    pub fn index(&self, matrix: usize, row: usize, column: usize) -> usize {
        let stride = self.halves * self.rows * self.columns;
        let (outer, half) = (matrix / self.halves, matrix % self.halves);
        outer * stride + half * self.half_offset + row * self.row_stride + column
    }
}

/// A weight as the model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Its checkpoint name.
    pub name: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
}

/// The group of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Index of the group.
    pub group: usize,
    /// Its matrices, where the group's optimiser is Muon.
    pub layout: Option<MatrixLayout>,
}

/// Every weight's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// One for each weight, in their order.
    pub weights: Vec<Assigned>,
    /// Patterns of the recipe's own groups that name no weight: likely misspelt. Group index and pattern.
    pub unused: Vec<(usize, String)>,
}

/// Why the weights cannot be divided into groups.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GroupError {
    /// No group takes the weight.
    #[error("no group takes weight `{weight}`: add a last [[group]] with params = [\"*\"]")]
    Unassigned {
        /// The weight.
        weight: String,
    },
    /// Muon was asked to move something else than matrices.
    #[error(
        "weight `{weight}` {shape:?} is in [[group]] number {group} with muon, which takes matrices [rows, columns] or [experts, rows, columns]: name it in an earlier group with adamw"
    )]
    NoMatrix {
        /// The weight.
        weight: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The group, from 1.
        group: usize,
    },
    /// An odd number of rows or columns, or none.
    #[error(
        "weight `{weight}` {shape:?} is in [[group]] number {group} with halves = \"{halves}\", but its {halves} cannot be halved"
    )]
    OddHalves {
        /// The weight.
        weight: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The group, from 1.
        group: usize,
        /// `rows` or `columns`.
        halves: &'static str,
    },
}

/// True where `name` is `pattern` with something, or nothing, in the place of every `*`.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // The last star and how far it reached: a mismatch lets it take one character more. No star before it need be tried again, so
    // the time is at most the product of the lengths.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, reached)) = star {
            star = Some((at, reached + 1));
            p = at + 1;
            n = reached + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The group of every weight, the first whose patterns name it, and the matrices of those under Muon.
///
/// # Errors
/// A weight without a group, or one under Muon that is not made of matrices.
pub fn assign(groups: &[Group], weights: &[WeightInfo]) -> Result<Assignment, GroupError> {
    let mut assigned = Vec::with_capacity(weights.len());
    for weight in weights {
        let takes = |group: &Group| group.params.iter().any(|pattern| matches(pattern, &weight.name));
        let Some(group) = groups.iter().position(takes) else {
            return Err(GroupError::Unassigned { weight: weight.name.clone() });
        };
        let layout = match &groups[group].optimizer {
            Optimizer::Muon(muon) => Some(layout(weight, group + 1, muon.halves)?),
            Optimizer::AdamW(_) => None,
        };
        assigned.push(Assigned { group, layout });
    }
    let unused = groups.iter().enumerate().filter(|(_, group)| !group.default).flat_map(|(number, group)| {
        let idle = |pattern: &&String| !weights.iter().any(|weight| matches(pattern, &weight.name));
        group.params.iter().filter(idle).map(move |pattern| (number, pattern.clone()))
    });
    Ok(Assignment { weights: assigned, unused: unused.collect() })
}

fn layout(weight: &WeightInfo, group: usize, halves: Halves) -> Result<MatrixLayout, GroupError> {
    let (name, shape) = (weight.name.clone(), weight.shape.clone());
    let (outer, rows, columns) = match shape[..] {
        [rows, columns] => (1, rows, columns),
        [outer, rows, columns] => (outer, rows, columns),
        _ => return Err(GroupError::NoMatrix { weight: name, shape, group }),
    };
    let whole = MatrixLayout { outer, halves: 1, rows, columns, half_offset: 0, row_stride: columns };
    let odd = |halves| GroupError::OddHalves { weight: name.clone(), shape: shape.clone(), group, halves };
    match halves.of(&name) {
        Halves::Rows if rows == 0 || rows % 2 != 0 => Err(odd("rows")),
        Halves::Columns if columns == 0 || columns % 2 != 0 => Err(odd("columns")),
        Halves::Rows => {
            Ok(MatrixLayout { halves: 2, rows: rows / 2, half_offset: rows / 2 * columns, ..whole })
        }
        Halves::Columns => {
            Ok(MatrixLayout { halves: 2, columns: columns / 2, half_offset: columns / 2, ..whole })
        }
        Halves::None | Halves::Auto => Ok(whole),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str, shape: &[usize]) -> WeightInfo {
        WeightInfo { name: name.to_owned(), shape: shape.to_vec() }
    }

    fn group(patterns: &[&str], optimizer: Optimizer) -> Group {
        Group { params: patterns.iter().map(|p| (*p).to_owned()).collect(), optimizer, default: false }
    }

    #[test]
    fn stars_match_any_characters_and_dots() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("a.*.to_*.weight", "a.3.attn.to_out.0.weight", true),
            ("a.*.to_*.weight", "a.3.attn.to_q.bias", false),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "ab", false),
            ("**x**", "x", true),
            ("", "x", false),
            ("?", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        // The work is bounded by the product of the lengths, not exponential in the stars.
        assert!(!matches(&"*a".repeat(5_000), &"a".repeat(4_999)));
    }

    #[test]
    fn the_first_group_takes_a_weight_and_idle_patterns_are_named() {
        let groups = [
            group(&["*.to_q.weight", "*.tpyo"], Optimizer::Muon(Muon::default())),
            group(&["*"], Optimizer::AdamW(AdamW::default())),
        ];
        let weights = [weight("b.to_q.weight", &[4, 6]), weight("b.norm.weight", &[4])];
        let assignment = assign(&groups, &weights).unwrap();
        assert_eq!(assignment.weights.iter().map(|weight| weight.group).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(assignment.unused, [(0, "*.tpyo".to_owned())]);
        assert_eq!(
            assign(&groups[..1], &weights).unwrap_err().to_string(),
            "no group takes weight `b.norm.weight`: add a last [[group]] with params = [\"*\"]"
        );
    }

    #[test]
    fn matrices_cover_a_weight_without_overlap() {
        let muon = |halves| [group(&["*"], Optimizer::Muon(Muon { halves, ..Muon::default() }))];
        let cases = [
            ("x.to_q.weight", vec![4, 6], Halves::Auto, (1, 4, 6)),
            ("x.net.0.proj.weight", vec![8, 3], Halves::Auto, (2, 4, 3)),
            ("x.experts.gate_up_proj", vec![3, 2, 8], Halves::Auto, (6, 2, 4)),
            ("x.experts.down_proj", vec![3, 4, 2], Halves::Auto, (3, 4, 2)),
            ("x.net.0.proj.weight", vec![8, 3], Halves::None, (1, 8, 3)),
            ("x", vec![2, 6, 5], Halves::Rows, (4, 3, 5)),
        ];
        for (name, shape, halves, (matrices, rows, columns)) in cases {
            let assignment = assign(&muon(halves), &[weight(name, &shape)]).unwrap();
            let layout = assignment.weights[0].layout.unwrap();
            assert_eq!((layout.matrices(), layout.rows, layout.columns), (matrices, rows, columns), "{name}");
            let mut places: Vec<usize> = (0..matrices)
                .flat_map(|m| (0..rows).flat_map(move |r| (0..columns).map(move |c| layout.index(m, r, c))))
                .collect();
            places.sort_unstable();
            assert_eq!(places, (0..shape.iter().product()).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn halves_lie_where_the_checkpoint_has_them() {
        let auto = [group(&["*"], Optimizer::Muon(Muon::default()))];
        let of = |name: &str, shape: &[usize]| {
            assign(&auto, &[weight(name, shape)]).unwrap().weights[0].layout.unwrap()
        };
        // Value rows first, gate rows behind them.
        assert_eq!(of("x.net.0.proj.weight", &[8, 3]).index(1, 0, 0), 12);
        // Gate columns left, up columns right, in every expert.
        assert_eq!(of("x.experts.gate_up_proj", &[3, 2, 8]).index(1, 1, 2), 8 + 4 + 2);
        assert_eq!(of("x.experts.gate_up_proj", &[3, 2, 8]).index(2, 0, 0), 16);
    }

    #[test]
    fn muon_refuses_what_is_no_matrix() {
        let auto = [group(&["*"], Optimizer::Muon(Muon::default()))];
        let message =
            |name: &str, shape: &[usize]| assign(&auto, &[weight(name, shape)]).unwrap_err().to_string();
        assert_eq!(
            message("x.bias", &[4]),
            "weight `x.bias` [4] is in [[group]] number 1 with muon, which takes matrices [rows, columns] or [experts, rows, columns]: name it in an earlier group with adamw"
        );
        assert_eq!(
            message("x.net.0.proj.weight", &[7, 3]),
            "weight `x.net.0.proj.weight` [7, 3] is in [[group]] number 1 with halves = \"rows\", but its rows cannot be halved"
        );
    }

    #[test]
    fn steps_are_scaled_by_the_sizes_of_a_matrix() {
        assert!((AdjustLr::MatchRmsAdamW.factor(400, 100) - 4.0).abs() < 1e-12);
        assert!((AdjustLr::MatchRmsAdamW.factor(100, 400) - 4.0).abs() < 1e-12);
        assert_eq!(AdjustLr::Original.factor(400, 100), 2.0);
        assert_eq!(AdjustLr::Original.factor(100, 400), 1.0);
    }
}
