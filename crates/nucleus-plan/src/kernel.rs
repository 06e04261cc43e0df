//! Kernels: an anchor with scalar functions in its slots.
//!
//! Every scalar function is stated over an iteration space whose axes, in order, are named with each anchor. The strides of its
//! accesses have one entry per axis of that space.

use nucleus_ir::{DType, Float};
use serde::{Deserialize, Serialize};

use crate::scalar::{ScalarFunction, Size, StepId};

/// A handle to a kernel of one plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KernelId(pub u32);

/// What a kernel does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OperandMode {
    /// Only loads.
    Read,
    /// Only stores.
    Write,
    /// Loads and stores; each point of the iteration space touches only its own elements.
    ReadWrite,
}

/// An operand: a buffer that the launch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    /// Its element type.
    pub dtype: DType,
    /// What is done with it.
    pub mode: OperandMode,
}

/// A distinct kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    /// The operands, in the order in which a launch binds buffers.
    pub operands: Vec<Operand>,
    /// How many size arguments a launch gives.
    pub size_args: u32,
    /// What it computes.
    pub anchor: Anchor,
}

/// The loop structure of a kernel and the scalar functions in its slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Anchor {
    /// One function at every point.
    Map(Map),
    /// Reductions along the last axis, then functions of their results.
    RowReduction(RowReduction),
    /// A matrix product.
    Matmul(Contraction),
    /// One matrix product per group, all of the same size: the batch axis is the group.
    GroupedMatmul(Contraction),
    /// Scaled dot-product attention.
    Attention(Attention),
    /// The gradients of scaled dot-product attention.
    AttentionGrad(AttentionGrad),
    /// The choice of tokens by experts.
    ExpertChoice(ExpertChoice),
    /// The inverse of an index map.
    InvertIndex(InvertIndex),
    /// Sums of rows listed by an inverted index map.
    SegmentSum(SegmentSum),
}

/// `function` at every point of `space`, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Map {
    /// Extents of the axes, outermost first.
    pub space: Vec<Size>,
    /// Over the axes of `space`; has stores.
    pub function: ScalarFunction,
}

/// For every row, that is, every point of `rows`: the phases in order, then `row` once, then `element` at every point of the row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowReduction {
    /// Extents of the outer axes.
    pub rows: Vec<Size>,
    /// Extent of the reduced axis.
    pub columns: Size,
    /// Each runs along the row once. Reductions are numbered through all phases; a phase may use the results of earlier ones as
    /// `Accumulator(j)`.
    pub phases: Vec<Phase>,
    /// Over `rows` (the column axis is absent: stride lists have one entry per outer axis): stores of row results. May be empty.
    pub row: ScalarFunction,
    /// Over `rows` and the column: stores of element results. May be empty.
    pub element: ScalarFunction,
}

/// One pass along a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Phase {
    /// Over the outer axes and the column.
    pub function: ScalarFunction,
    /// What is reduced.
    pub reductions: Vec<Reduction>,
}

/// A reduction along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reduction {
    /// How values are combined.
    pub op: ReductionOp,
    /// The step of the phase's function whose values, of dtype `f32`, are combined.
    pub value: StepId,
}

/// How a reduction combines values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReductionOp {
    /// The sum, from 0.
    Sum,
    /// The largest value, from −∞; NaN if any is.
    Max,
}

/// Products of one left factor with the right factors of its parts. For every part
/// `acc[segment][batch, row, column] = Σ_k a[batch, row, k] · b[batch, k, j]` in `f32`, where j is `segment·columns + column`, or
/// `column·segments + segment` if its segments are interleaved; then its reductions over groups of columns, then its epilogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contraction {
    /// Extents of the axes along which both factors vary: groups of a grouped product, leading axes of a batched one. Often empty.
    pub batch: Vec<Size>,
    /// Extents of the row axes; several where an epilogue tells images and tokens apart.
    pub rows: Vec<Size>,
    /// The contracted extent.
    pub depth: Size,
    /// Over batch axes, row axes and k: the left factor, in `dtype`. A gather is an indirect load.
    pub a: ScalarFunction,
    /// The element type in which factors are multiplied: `f32`, `bf16` or `f16`.
    pub dtype: DType,
    /// The tile from the cost model or a tuning table, for every part; `None` before the group pass.
    pub tile: Option<Tile>,
    /// At least one; several where products share their left factor, e.g. queries, keys and values. In any order, or at a time.
    pub parts: Vec<Part>,
}

/// A right factor of a contraction, and what becomes of its product.
///
/// Segments are sets of columns whose accumulators the epilogue sees at one point: gate and up halves of SwiGLU, or, interleaved, the
/// even and odd elements that a rotary embedding turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// Columns of one segment.
    pub columns: Size,
    /// The number of segments, at least 1.
    pub segments: u32,
    /// False if segments lie one behind the other, true if neighbouring columns of the right factor belong to one segment after the other.
    pub interleaved: bool,
    /// True where the product is known to equal its transpose, such as x·xᵀ: one half of it is enough. It has one segment, no groups, and as
    /// many columns as rows, which have one axis.
    pub symmetric: bool,
    /// Over batch axes, k and the column counted through all segments: the right factor, in the contraction's dtype.
    pub b: ScalarFunction,
    /// What is reduced over groups of neighbouring columns before the epilogue; `None` for nothing.
    pub groups: Option<ColumnGroups>,
    /// Over batch axes, row axes and the column: stores. With groups over batch axes, row axes, the group and the column within it.
    pub epilogue: ScalarFunction,
}

/// Groups of neighbouring columns of a part, such as the heads of a projection, whose products are reduced before the epilogue.
///
/// For every row and group the phases in order, as those of a [`RowReduction`] along the columns of the group, then the epilogue at each
/// of them. After the part's segments, the reductions of all phases are numbered as further accumulators of later phases and of the
/// epilogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnGroups {
    /// Columns of a group, of each segment; divides the part's columns, which are constant.
    pub width: u32,
    /// Over batch axes, row axes, the group and the column within it.
    pub phases: Vec<Phase>,
}

/// The most accumulators of a group: its columns times the part's segments. All of a group is computed at a time.
pub const MAX_GROUP: u32 = 4096;

/// Which function of a part a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartSlot {
    /// The right factor.
    Right,
    /// The phase of that number.
    Phase(usize),
    /// The epilogue.
    Epilogue,
}

impl Part {
    /// The extents of the column axes of the epilogue: groups and columns within a group, or columns.
    pub fn column_axes(&self) -> Vec<Size> {
        let Some(groups) = &self.groups else { return vec![self.columns] };
        let width = i64::from(groups.width);
        let count = match self.columns {
            Size::Const(columns) => Size::Const(columns.checked_div(width).unwrap_or(0)),
            // A malformed part: verifiers refuse it.
            argument => argument,
        };
        vec![count, Size::Const(width)]
    }

    /// The accumulators that the phase of that number sees; those of the epilogue for the number of phases.
    pub fn accumulators(&self, phase: usize) -> usize {
        let groups = self.groups.iter();
        let before = groups.flat_map(|groups| groups.phases.iter().take(phase));
        self.segments as usize + before.map(|phase| phase.reductions.len()).sum::<usize>()
    }

    /// True if the columns of groups, if there are any, are whole groups of a legal size.
    pub fn has_whole_groups(&self) -> bool {
        let Some(groups) = &self.groups else { return true };
        let size = groups.width.checked_mul(self.segments);
        let whole = |columns: i64| columns >= 0 && columns % i64::from(groups.width) == 0;
        size.is_some_and(|size| (1..=MAX_GROUP).contains(&size))
            && matches!(self.columns, Size::Const(columns) if whole(columns))
    }

    /// `columns` rounded up to whole groups.
    pub fn whole_groups(&self, columns: u32) -> u32 {
        let width = self.groups.as_ref().map_or(1, |groups| groups.width.max(1));
        columns.div_ceil(width).saturating_mul(width)
    }
}

impl Contraction {
    /// The part that a slot `b0`, `phase0.0`, `epilogue0`, `b1`, … belongs to, and which of its functions that is; `None` for `a`.
    pub fn part_of(&self, slot: &str) -> Option<(&Part, PartSlot)> {
        let (number, kind) = if let Some(number) = slot.strip_prefix("epilogue") {
            (number, PartSlot::Epilogue)
        } else if let Some((number, phase)) = slot.strip_prefix("phase").and_then(|rest| rest.split_once('.'))
        {
            (number, PartSlot::Phase(phase.parse().ok()?))
        } else {
            (slot.strip_prefix('b')?, PartSlot::Right)
        };
        Some((self.parts.get(number.parse::<usize>().ok()?)?, kind))
    }
}

/// The block of a contraction that one worker (thread or thread block) computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tile {
    /// Rows.
    pub rows: u32,
    /// Columns of one segment.
    pub columns: u32,
    /// Contracted elements per step.
    pub depth: u32,
}

/// `acc[b, s, h, d] = Σ_l softmax_l(scale · Σ_d q[b, s, h, d] · k[b, l, g, d]) · v[b, l, g, d]` with g = ⌊h · key_heads / heads⌋, over the keys l
/// of all segments one behind the other, then the epilogue. A query without any unmasked key gives 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attention {
    /// The batch extent.
    pub batch: Size,
    /// Queries per batch item.
    pub queries: Size,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub key_heads: u32,
    /// The head size d.
    pub head_size: u32,
    /// Factor on the dot products.
    pub scale: Float,
    /// The element type in which products are taken: `f32`, `bf16` or `f16`.
    pub dtype: DType,
    /// Over (b, s, h, d), in `dtype`.
    pub q: ScalarFunction,
    /// The keys and values.
    pub segments: Vec<KeySegment>,
    /// Over (b, s, h, d): stores.
    pub epilogue: ScalarFunction,
}

/// Keys and values that lie together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeySegment {
    /// Keys per batch item.
    pub length: Size,
    /// Over (b, l, g, d), in the attention's dtype.
    pub k: ScalarFunction,
    /// Over (b, l, g, d), in the attention's dtype.
    pub v: ScalarFunction,
    /// Over (b, l), `bool`: false leaves the key out. `None` if all are used.
    pub mask: Option<ScalarFunction>,
}

/// The gradients of [`Attention`] with respect to its queries, keys and values, given `dy`, that with respect to its result. With the
/// scores s and their softmax p as there, r = Σ_d dy · v and u = scale · p · (r − Σ_l p · r):
///
/// ```text
/// dq[b, s, h, d] = Σ_l u[b, s, h, l] · k[b, l, g, d]
/// dk[b, l, g, d] = Σ_s Σ_h u[b, s, h, l] · q[b, s, h, d]        over the heads h of key head g
/// dv[b, l, g, d] = Σ_s Σ_h p[b, s, h, l] · dy[b, s, h, d]
/// ```
///
/// Each is the accumulator of its epilogue. A key that is left out, and a query without any key, have the gradient 0. In any order, or
/// at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttentionGrad {
    /// The batch extent.
    pub batch: Size,
    /// Queries per batch item.
    pub queries: Size,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub key_heads: u32,
    /// The head size d.
    pub head_size: u32,
    /// Factor on the dot products.
    pub scale: Float,
    /// The element type in which q, k, v and dy are multiplied: `f32`, `bf16` or `f16`. Products of p and u take these in `f32`.
    pub dtype: DType,
    /// Over (b, s, h, d), in `dtype`.
    pub q: ScalarFunction,
    /// Over (b, s, h, d), in `dtype`.
    pub dy: ScalarFunction,
    /// The keys and values, and what becomes of their gradients.
    pub segments: Vec<GradSegment>,
    /// Over (b, s, h, d): stores of the gradient of q. May be empty.
    pub dq: ScalarFunction,
}

/// A key segment and the epilogues of its gradients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GradSegment {
    /// Keys and values.
    pub keys: KeySegment,
    /// Over (b, l, g, d): stores of the gradient of the keys. May be empty.
    pub dk: ScalarFunction,
    /// Over (b, l, g, d): stores of the gradient of the values. May be empty.
    pub dv: ScalarFunction,
}

/// Every expert takes its `capacity` tokens of largest affinity; see the op `expert_choice` for ties and order. Then the epilogue at
/// every slot, with two accumulators: 0 is the slot's affinity, 1 the sum of the affinities of all slots that took the slot's token,
/// from 0 in ascending order of the slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertChoice {
    /// The batch extent.
    pub batch: Size,
    /// Tokens per batch item.
    pub tokens: Size,
    /// Experts.
    pub experts: Size,
    /// Tokens per expert and batch item.
    pub capacity: Size,
    /// Over (b, token, expert), `f32`.
    pub affinity: ScalarFunction,
    /// The operand that receives `i32[batch, experts, capacity]`, dense.
    pub slot_token: u32,
    /// Where the inverse of that map goes, if it is wanted.
    pub inverse: Option<InverseMap>,
    /// Over (b, expert, slot): stores.
    pub epilogue: ScalarFunction,
}

/// Where a kernel writes the slots of every token, in compressed rows: what `invert_index` makes of the map from slots to tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InverseMap {
    /// The operand that receives `i32[batch, tokens + 1]`, dense.
    pub offsets: u32,
    /// The operand that receives `i32[batch, experts · capacity]`, dense: slots counted through all experts.
    pub positions: u32,
}

/// The positions of every target in an index map, in compressed rows; see the op `invert_index`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InvertIndex {
    /// The batch extent.
    pub batch: Size,
    /// Positions per batch item.
    pub positions: Size,
    /// The number of targets.
    pub targets: Size,
    /// The operand that holds `i32[batch, positions]`, dense.
    pub index: u32,
    /// The operand that receives `i32[batch, targets + 1]`, dense.
    pub offsets_out: u32,
    /// The operand that receives `i32[batch, positions]`, dense.
    pub positions_out: u32,
}

/// `acc[b, t, r…] = base[b, t, r…] + Σ_p update[b, p, r…]` over the positions p listed for target t, ascending, then the epilogue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentSum {
    /// The batch extent.
    pub batch: Size,
    /// Targets per batch item.
    pub targets: Size,
    /// Extents of the other axes r….
    pub rest: Vec<Size>,
    /// The operand that holds `i32[batch, targets + 1]`, dense.
    pub offsets: u32,
    /// The operand that holds `i32[batch, positions]`, dense.
    pub positions: u32,
    /// Positions per batch item: the row size of `positions`.
    pub position_count: Size,
    /// Over (b, t, r…), `f32`: what the sum starts from.
    pub base: ScalarFunction,
    /// Over (b, p, r…), `f32`: what is added.
    pub update: ScalarFunction,
    /// Over (b, t, r…): stores.
    pub epilogue: ScalarFunction,
}

impl Anchor {
    /// The name of the anchor in printed plans and profiles.
    pub const fn name(&self) -> &'static str {
        match self {
            Anchor::Map(_) => "map",
            Anchor::RowReduction(_) => "row_reduction",
            Anchor::Matmul(_) => "matmul",
            Anchor::GroupedMatmul(_) => "grouped_matmul",
            Anchor::Attention(_) => "attention",
            Anchor::AttentionGrad(_) => "attention_grad",
            Anchor::ExpertChoice(_) => "expert_choice",
            Anchor::InvertIndex(_) => "invert_index",
            Anchor::SegmentSum(_) => "segment_sum",
        }
    }

    /// The scalar functions in the slots: slot name, number of axes of its iteration space, function.
    pub fn functions(&self) -> Vec<(String, usize, &ScalarFunction)> {
        match self {
            Anchor::Map(map) => vec![("function".to_owned(), map.space.len(), &map.function)],
            Anchor::RowReduction(reduction) => {
                let rows = reduction.rows.len();
                let phases = reduction.phases.iter().enumerate();
                let mut list: Vec<_> =
                    phases.map(|(i, phase)| (format!("phase{i}"), rows + 1, &phase.function)).collect();
                list.push(("row".to_owned(), rows, &reduction.row));
                list.push(("element".to_owned(), rows + 1, &reduction.element));
                list
            }
            Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
                let (batch, rows) = (c.batch.len(), c.rows.len());
                let mut list = vec![("a".to_owned(), batch + rows + 1, &c.a)];
                for (i, part) in c.parts.iter().enumerate() {
                    list.push((format!("b{i}"), batch + 2, &part.b));
                    let axes = batch + rows + 1 + usize::from(part.groups.is_some());
                    let phases = part.groups.iter().flat_map(|groups| &groups.phases).enumerate();
                    list.extend(phases.map(|(j, phase)| (format!("phase{i}.{j}"), axes, &phase.function)));
                    list.push((format!("epilogue{i}"), axes, &part.epilogue));
                }
                list
            }
            Anchor::Attention(attention) => {
                let mut list = vec![("q".to_owned(), 4, &attention.q)];
                for (i, segment) in attention.segments.iter().enumerate() {
                    list.extend(segment.functions(i));
                }
                list.push(("epilogue".to_owned(), 4, &attention.epilogue));
                list
            }
            Anchor::AttentionGrad(grad) => {
                let mut list = vec![("q".to_owned(), 4, &grad.q), ("dy".to_owned(), 4, &grad.dy)];
                for (i, segment) in grad.segments.iter().enumerate() {
                    list.extend(segment.keys.functions(i));
                    list.push((format!("dk{i}"), 4, &segment.dk));
                    list.push((format!("dv{i}"), 4, &segment.dv));
                }
                list.push(("dq".to_owned(), 4, &grad.dq));
                list
            }
            Anchor::ExpertChoice(choice) => {
                vec![
                    ("affinity".to_owned(), 3, &choice.affinity),
                    ("epilogue".to_owned(), 3, &choice.epilogue),
                ]
            }
            Anchor::InvertIndex(_) => Vec::new(),
            Anchor::SegmentSum(sum) => {
                let axes = 2 + sum.rest.len();
                vec![
                    ("base".to_owned(), axes, &sum.base),
                    ("update".to_owned(), axes, &sum.update),
                    ("epilogue".to_owned(), axes, &sum.epilogue),
                ]
            }
        }
    }

    /// The same with the extents of each function's axes: slot name, extents, function. For a right factor in several segments whose
    /// columns are an argument, the last extent is that of one segment.
    pub fn slots(&self) -> Vec<(String, Vec<Size>, &ScalarFunction)> {
        let extents = |name: &str| -> Vec<Size> {
            match self {
                Anchor::Map(map) => map.space.clone(),
                Anchor::RowReduction(reduction) if name == "row" => reduction.rows.clone(),
                Anchor::RowReduction(reduction) => [reduction.rows.as_slice(), &[reduction.columns]].concat(),
                Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => match c.part_of(name) {
                    None => [c.batch.as_slice(), &c.rows, &[c.depth]].concat(),
                    Some((part, PartSlot::Right)) => {
                        let columns = match part.columns {
                            Size::Const(columns) => {
                                Size::Const(columns.saturating_mul(i64::from(part.segments)))
                            }
                            argument => argument,
                        };
                        [c.batch.as_slice(), &[c.depth, columns]].concat()
                    }
                    Some((part, _)) => [c.batch.as_slice(), &c.rows, &part.column_axes()].concat(),
                },
                Anchor::Attention(a) => {
                    let segments = a.segments.iter().collect::<Vec<_>>();
                    attention_extents(
                        name,
                        (a.batch, a.queries),
                        [a.heads, a.key_heads, a.head_size],
                        &segments,
                    )
                }
                Anchor::AttentionGrad(a) => {
                    let segments = a.segments.iter().map(|segment| &segment.keys).collect::<Vec<_>>();
                    attention_extents(
                        name,
                        (a.batch, a.queries),
                        [a.heads, a.key_heads, a.head_size],
                        &segments,
                    )
                }
                Anchor::ExpertChoice(choice) if name == "epilogue" => {
                    vec![choice.batch, choice.experts, choice.capacity]
                }
                Anchor::ExpertChoice(choice) => vec![choice.batch, choice.tokens, choice.experts],
                Anchor::InvertIndex(_) => Vec::new(),
                Anchor::SegmentSum(sum) => {
                    let second = if name == "update" { sum.position_count } else { sum.targets };
                    [&[sum.batch, second], sum.rest.as_slice()].concat()
                }
            }
        };
        let slots = self.functions().into_iter();
        slots.map(|(name, _, function)| (name.clone(), extents(&name), function)).collect()
    }
}

impl KeySegment {
    /// The functions of segment `i`: slot name, number of axes, function.
    fn functions(&self, i: usize) -> impl Iterator<Item = (String, usize, &ScalarFunction)> {
        let mask = self.mask.iter().map(move |mask| (format!("mask{i}"), 2, mask));
        [(format!("k{i}"), 4, &self.k), (format!("v{i}"), 4, &self.v)].into_iter().chain(mask)
    }
}

/// The extents of a slot of attention or its gradients: `mask` and a number over the keys of a batch item, `k`, `v`, `dk` and `dv` and a
/// number over the keys' heads, all others over the queries' heads.
fn attention_extents(
    name: &str,
    (batch, queries): (Size, Size),
    [heads, key_heads, head_size]: [u32; 3],
    segments: &[&KeySegment],
) -> Vec<Size> {
    let of = |count: u32| Size::Const(i64::from(count));
    let length = |prefix: &str| {
        let number = name.strip_prefix(prefix)?.parse::<usize>().ok();
        number.and_then(|i| segments.get(i)).map(|segment| segment.length)
    };
    if let Some(length) = length("mask") {
        vec![batch, length]
    } else if let Some(length) = ["k", "v", "dk", "dv"].into_iter().find_map(length) {
        vec![batch, length, of(key_heads), of(head_size)]
    } else {
        vec![batch, queries, of(heads), of(head_size)]
    }
}
