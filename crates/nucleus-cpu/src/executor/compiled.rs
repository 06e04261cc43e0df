//! A kernel of the plan with its slots compiled, or recognised as something a micro-kernel reads by itself.

use std::cmp::Reverse;

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{
    Access, Anchor, Attention, AttentionGrad, Contraction, ExpertChoice, Kernel, KeySegment, Operand, Part,
    ScalarFunction, SegmentSum, Size, Step, StepId,
};

use super::check::check_kernel;
use super::combination::CombinationForm;
use super::reduction_order::{CompiledReduction, compile_reduction};
use super::shared::{SharedFunction, SharedFunctions};
use super::slots::all_columns;
use crate::codegen::{
    Accumulators, CodegenError, Destination, Extent, FunctionId, GroupSpec, Jit, LoopSpec, Space,
    append_unit_axis, collapse, permute_axes,
};
use crate::kernels::{Element, Operand as GemmOperand};

/// The compiled form of an anchor.
#[derive(Clone, Debug)]
pub(crate) enum CompiledKernel {
    /// Rows and columns of the collapsed space, and the loop nest; whether rows and columns are transposed between loads and stores, and
    /// whether points are numbered with the plan's first axis first.
    Map { space: Space, function: FunctionId, transposes: bool, in_order: bool },
    /// Reductions along rows.
    RowReduction(CompiledReduction),
    /// Products of one left factor.
    Contraction(CompiledContraction),
    /// Attention and its epilogue.
    Attention(CompiledAttention),
    /// The gradients of attention and their epilogues.
    AttentionGrad(CompiledAttentionGrad),
    /// The choice and what is made of it.
    ExpertChoice(CompiledChoice),
    /// Nothing to compile.
    InvertIndex,
    /// Base, update and epilogue of a row of sums.
    SegmentSum { base: FunctionId, update: FunctionId, epilogue: FunctionId },
}

/// How a micro-kernel gets one of its operands.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Straight from a buffer, converting elements where they have another type.
    Load { access: Access, element: Element },
    /// By a compiled function that fills a block.
    Fill(FunctionId),
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledContraction {
    pub(crate) operand: GemmOperand,
    /// The left factor as a load, if it is one.
    pub(crate) a: Option<(Access, Element)>,
    /// The left factor computed: always available.
    pub(crate) a_fill: FunctionId,
    pub(crate) parts: Vec<CompiledPart>,
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledPart {
    pub(crate) b: Source,
    pub(crate) epilogue: CompiledEpilogue,
}

/// What finishes the tiles of a part.
#[derive(Clone, Debug)]
pub(crate) enum CompiledEpilogue {
    /// A micro-kernel.
    Combination(CombinationForm),
    /// A compiled function.
    Function(SharedFunction),
}

impl CompiledPart {
    /// The type of the right factor's elements before they are packed for products of `operand`.
    pub(crate) fn b_element(&self, operand: GemmOperand) -> Element {
        match &self.b {
            Source::Load { element, .. } => *element,
            Source::Fill(_) => operand.element(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledAttention {
    pub(crate) operand: GemmOperand,
    pub(crate) q: Source,
    pub(crate) segments: Vec<CompiledSegment>,
    pub(crate) epilogue: FunctionId,
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledAttentionGrad {
    pub(crate) operand: GemmOperand,
    pub(crate) q: Source,
    pub(crate) dy: Source,
    pub(crate) segments: Vec<CompiledSegment>,
    /// Epilogues; `None` for those that store nothing.
    pub(crate) dq: Option<FunctionId>,
    /// Of every segment the keys' and the values'.
    pub(crate) key_gradients: Vec<[Option<FunctionId>; 2]>,
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledChoice {
    /// A plain load, or computed first.
    pub(crate) affinity: Source,
    /// `None` if it stores nothing.
    pub(crate) epilogue: Option<FunctionId>,
    /// True if the epilogue uses the sums.
    pub(crate) sums: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct CompiledSegment {
    pub(crate) k: Source,
    pub(crate) v: Source,
    pub(crate) mask: Option<MaskSource>,
}

#[derive(Clone, Debug)]
pub(crate) enum MaskSource {
    Load(Access),
    Fill(FunctionId),
}

/// The micro-kernels' name of a float type.
pub(crate) fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::Bf16 => Some(Element::Bf16),
        DType::F16 => Some(Element::F16),
        DType::I8 => Some(Element::I8),
        DType::I32 | DType::Bool => None,
    }
}

/// The type that products in `dtype` are computed in: products of `f16` are exact in `f32`.
fn gemm_operand(dtype: DType) -> GemmOperand {
    if dtype == DType::Bf16 { GemmOperand::Bf16 } else { GemmOperand::F32 }
}

fn operand_dtype(operand: GemmOperand) -> DType {
    match operand {
        GemmOperand::F32 => DType::F32,
        GemmOperand::Bf16 => DType::Bf16,
    }
}

/// The access of a function that is a load, or a load and a conversion that the micro-kernel would make anyway.
fn as_load(
    function: &ScalarFunction,
    operands: &[Operand],
    operand: GemmOperand,
) -> Option<(Access, Element)> {
    let (access, last) = match (function.steps.as_slice(), function.result) {
        ([Step::Load(access)], Some(StepId(0))) => (access, None),
        ([Step::Load(access), Step::Apply { op: ScalarOp::Cast(to), args }], Some(StepId(1)))
            if args[..] == [StepId(0)] =>
        {
            (access, Some(*to))
        }
        _ => return None,
    };
    let loaded = operands[access.operand as usize].dtype;
    // A rounding to f16 between wider types is not the micro-kernel's. Bytes are the same number in every float type.
    let plain = match loaded {
        DType::I8 => last.is_some_and(DType::is_float),
        _ => last.is_none_or(|to| to == loaded || to == operand_dtype(operand)),
    };
    Some((access.clone(), element(loaded)?)).filter(|_| plain)
}

struct Compiler<'a> {
    jit: &'a mut Jit,
    kernel: &'a Kernel,
}

/// Compiles one kernel.
pub(crate) fn compile_kernel(
    jit: &mut Jit,
    number: usize,
    kernel: &Kernel,
) -> Result<CompiledKernel, CodegenError> {
    check_kernel(number, kernel)?;
    Compiler { jit, kernel }.anchor()
}

impl Compiler<'_> {
    fn anchor(&mut self) -> Result<CompiledKernel, CodegenError> {
        let kernel = self.kernel;
        match &kernel.anchor {
            Anchor::Map(map) => {
                let (mut space, mut function) = collapse(&extents(&map.space), &map.function, false);
                let neighbour = neighbouring_axis(&space, &function);
                let mut order = match neighbour {
                    // Rows one after the other then touch the same lines of memory.
                    Some(axis) => {
                        (0..space.outer.len()).filter(|other| *other != axis).chain([axis]).collect()
                    }
                    None => memory_order(&space, &function),
                };
                let in_order = order.first().is_none_or(|first| *first == 0);
                if !order.is_sorted() {
                    space.outer = order.iter().map(|axis| space.outer[*axis].clone()).collect();
                    order.push(order.len());
                    function = permute_axes(&function, &order);
                }
                let function =
                    self.compile("map", &space, &function, Accumulators::Zero, Destination::None)?;
                Ok(CompiledKernel::Map { space, function, transposes: neighbour.is_some(), in_order })
            }
            Anchor::RowReduction(reduction) => {
                compile_reduction(self.jit, kernel, reduction).map(CompiledKernel::RowReduction)
            }
            Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => {
                self.contraction(c).map(CompiledKernel::Contraction)
            }
            Anchor::Attention(attention) => self.attention(attention).map(CompiledKernel::Attention),
            Anchor::AttentionGrad(grad) => self.attention_grad(grad).map(CompiledKernel::AttentionGrad),
            Anchor::ExpertChoice(choice) => self.expert_choice(choice).map(CompiledKernel::ExpertChoice),
            Anchor::InvertIndex(_) => Ok(CompiledKernel::InvertIndex),
            Anchor::SegmentSum(sum) => self.segment_sum(sum),
        }
    }

    fn compile(
        &mut self,
        name: &str,
        space: &Space,
        function: &ScalarFunction,
        accumulators: Accumulators,
        destination: Destination,
    ) -> Result<FunctionId, CodegenError> {
        let operands = &self.kernel.operands;
        self.jit.compile_loop(&LoopSpec { name, operands, space, function, accumulators, destination })
    }

    /// A function over some axes, the last of which stays apart, that fills a block or finishes one.
    fn block(
        &mut self,
        name: &str,
        axes: &[Extent],
        function: &ScalarFunction,
        accumulators: Accumulators,
        destination: Destination,
    ) -> Result<FunctionId, CodegenError> {
        let (space, function) = collapse(axes, function, true);
        self.compile(name, &space, &function, accumulators, destination)
    }

    fn fill(
        &mut self,
        name: &str,
        axes: &[Extent],
        function: &ScalarFunction,
        dtype: DType,
    ) -> Result<FunctionId, CodegenError> {
        self.block(name, axes, function, Accumulators::Zero, Destination::Block(dtype))
    }

    fn contraction(&mut self, c: &Contraction) -> Result<CompiledContraction, CodegenError> {
        let operand = gemm_operand(c.dtype);
        let dtype = operand_dtype(operand);
        let rows: Vec<Extent> = extents(&c.batch).into_iter().chain(extents(&c.rows)).collect();
        let with = |last: Extent| rows.iter().cloned().chain([last]).collect::<Vec<_>>();
        // Only right factors are packed from bytes; elsewhere the compiled function widens them.
        let a = as_load(&c.a, &self.kernel.operands, operand).filter(|(_, element)| *element != Element::I8);
        let a_fill = self.fill("a", &with(c.depth.into()), &c.a, dtype)?;
        let mut shared = SharedFunctions::default();
        let mut parts = Vec::with_capacity(c.parts.len());
        for part in &c.parts {
            let load = as_load(&part.b, &self.kernel.operands, operand);
            let b = match load.filter(|(access, _)| access.indirect.is_none()) {
                Some((access, element)) => Source::Load { access, element },
                None => {
                    let axes: Vec<Extent> =
                        extents(&c.batch).into_iter().chain([c.depth.into(), all_columns(part)]).collect();
                    Source::Fill(self.fill("b", &axes, &part.b, dtype)?)
                }
            };
            let epilogue = match CombinationForm::of(part, &self.kernel.operands, c.batch.len()) {
                Some(form) => CompiledEpilogue::Combination(form),
                None => CompiledEpilogue::Function(self.epilogue(&rows, part, &mut shared)?),
            };
            parts.push(CompiledPart { b, epilogue });
        }
        Ok(CompiledContraction { operand, a, a_fill, parts })
    }

    /// The epilogue of a part over these rows, and what it reduces before.
    fn epilogue(
        &mut self,
        rows: &[Extent],
        part: &Part,
        shared: &mut SharedFunctions,
    ) -> Result<SharedFunction, CodegenError> {
        let (jit, operands) = (&mut *self.jit, &self.kernel.operands);
        let columns = part.column_axes();
        let axes: Vec<Extent> = rows.iter().cloned().chain(columns.into_iter().map(Extent::from)).collect();
        if let Some(groups) = &part.groups {
            let spec = (part.segments, groups.phases.as_slice(), &part.epilogue);
            return shared.get(operands, &axes, spec, |canonical| {
                jit.compile_groups(&GroupSpec {
                    name: "epilogue",
                    operands: &canonical.operands,
                    outer: &canonical.axes[..rows.len()],
                    width: groups.width,
                    segments: canonical.segments,
                    phases: &canonical.phases,
                    function: &canonical.function,
                })
            });
        }
        shared.get(operands, &axes, (part.segments, &[], &part.epilogue), |canonical| {
            let (space, function) = collapse(&canonical.axes, &canonical.function, true);
            jit.compile_loop(&LoopSpec {
                name: "epilogue",
                operands: &canonical.operands,
                space: &space,
                function: &function,
                accumulators: Accumulators::Block,
                destination: Destination::None,
            })
        })
    }

    /// An operand of attention: a view of a buffer where heads are contiguous, else computed.
    fn head_source(
        &mut self,
        name: &str,
        axes: &[Extent],
        function: &ScalarFunction,
        operand: GemmOperand,
    ) -> Result<Source, CodegenError> {
        let viewable =
            |access: &Access| access.indirect.is_none() && access.strides.last().is_some_and(|s| s.is(1));
        match as_load(function, &self.kernel.operands, operand) {
            Some((access, element)) if viewable(&access) && element != Element::I8 => {
                Ok(Source::Load { access, element })
            }
            _ => Ok(Source::Fill(self.fill(name, axes, function, operand_dtype(operand))?)),
        }
    }

    fn attention(&mut self, attention: &Attention) -> Result<CompiledAttention, CodegenError> {
        let operand = gemm_operand(attention.dtype);
        let heads = Size::Const(i64::from(attention.heads));
        let key_heads = Size::Const(i64::from(attention.key_heads));
        let head_size = Size::Const(i64::from(attention.head_size));
        let queries = extents(&[attention.batch, attention.queries, heads, head_size]);
        let q = self.head_source("q", &queries, &attention.q, operand)?;
        let mut segments = Vec::with_capacity(attention.segments.len());
        for segment in &attention.segments {
            segments.push(self.key_segment(segment, (attention.batch, key_heads, head_size), operand)?);
        }
        let rows = [attention.batch, heads, attention.queries, head_size];
        let epilogue = self.rows_of_heads("epilogue", rows, &attention.epilogue)?;
        Ok(CompiledAttention { operand, q, segments, epilogue })
    }

    fn key_segment(
        &mut self,
        segment: &KeySegment,
        (batch, key_heads, head_size): (Size, Size, Size),
        operand: GemmOperand,
    ) -> Result<CompiledSegment, CodegenError> {
        let keys = extents(&[batch, segment.length, key_heads, head_size]);
        let mask = match &segment.mask {
            None => None,
            Some(mask) => Some(match mask.as_load() {
                Some(access) if access.indirect.is_none() && access.strides[1].is(1) => {
                    MaskSource::Load(access.clone())
                }
                _ => MaskSource::Fill(self.fill("mask", &keys[..2], mask, DType::Bool)?),
            }),
        };
        let k = self.head_source("k", &keys, &segment.k, operand)?;
        let v = self.head_source("v", &keys, &segment.v, operand)?;
        Ok(CompiledSegment { k, v, mask })
    }

    /// An epilogue over (batch, row, head, column) on finished rows, which come as rows of one head.
    fn rows_of_heads(
        &mut self,
        name: &str,
        [batch, heads, rows, head_size]: [Size; 4],
        function: &ScalarFunction,
    ) -> Result<FunctionId, CodegenError> {
        let by_head = extents(&[batch, heads, rows, head_size]);
        let function = permute_axes(function, &[0, 2, 1, 3]);
        self.block(name, &by_head, &function, Accumulators::Block, Destination::None)
    }

    fn attention_grad(&mut self, grad: &AttentionGrad) -> Result<CompiledAttentionGrad, CodegenError> {
        let operand = gemm_operand(grad.dtype);
        let [heads, key_heads, head_size] =
            [grad.heads, grad.key_heads, grad.head_size].map(|count| Size::Const(i64::from(count)));
        let queries = extents(&[grad.batch, grad.queries, heads, head_size]);
        let q = self.head_source("q", &queries, &grad.q, operand)?;
        let dy = self.head_source("dy", &queries, &grad.dy, operand)?;
        let epilogue = |compiler: &mut Self, name: &str, rows: [Size; 4], function: &ScalarFunction| {
            let stores = function.steps.iter().any(|step| matches!(step, Step::Store { .. }));
            stores.then(|| compiler.rows_of_heads(name, rows, function)).transpose()
        };
        let dq = epilogue(self, "dq", [grad.batch, heads, grad.queries, head_size], &grad.dq)?;
        let (mut segments, mut key_gradients) = (Vec::new(), Vec::new());
        for segment in &grad.segments {
            let keys = &segment.keys;
            segments.push(self.key_segment(keys, (grad.batch, key_heads, head_size), operand)?);
            let rows = [grad.batch, key_heads, keys.length, head_size];
            let dk = epilogue(self, "dk", rows, &segment.dk)?;
            key_gradients.push([dk, epilogue(self, "dv", rows, &segment.dv)?]);
        }
        Ok(CompiledAttentionGrad { operand, q, dy, segments, dq, key_gradients })
    }

    fn expert_choice(&mut self, choice: &ExpertChoice) -> Result<CompiledChoice, CodegenError> {
        let affinity = match choice.affinity.as_load().filter(|access| access.indirect.is_none()) {
            Some(access) => Source::Load { access: access.clone(), element: Element::F32 },
            None => {
                let axes = extents(&[choice.batch, choice.tokens, choice.experts]);
                Source::Fill(self.fill("affinity", &axes, &choice.affinity, DType::F32)?)
            }
        };
        let steps = &choice.epilogue.steps;
        let epilogue = if steps.iter().any(|step| matches!(step, Step::Store { .. })) {
            let axes = extents(&[choice.batch, choice.experts, choice.capacity]);
            let function = &choice.epilogue;
            Some(self.block("epilogue", &axes, function, Accumulators::Block, Destination::None)?)
        } else {
            None
        };
        let sums = steps.contains(&Step::Accumulator(1));
        Ok(CompiledChoice { affinity, epilogue, sums })
    }

    fn segment_sum(&mut self, sum: &SegmentSum) -> Result<CompiledKernel, CodegenError> {
        let axes = |middle: Size| {
            let rest = if sum.rest.is_empty() { &[Size::Const(1)][..] } else { &sum.rest };
            extents(&[sum.batch, middle]).into_iter().chain(extents(rest)).collect::<Vec<_>>()
        };
        let with_rest = |function: &ScalarFunction| {
            if sum.rest.is_empty() { append_unit_axis(function) } else { function.clone() }
        };
        let (targets, positions) = (axes(sum.targets), axes(sum.position_count));
        let base = self.fill("base", &targets, &with_rest(&sum.base), DType::F32)?;
        let update = self.block(
            "update",
            &positions,
            &with_rest(&sum.update),
            Accumulators::Zero,
            Destination::AddToBlock,
        )?;
        let epilogue = self.block(
            "epilogue",
            &targets,
            &with_rest(&sum.epilogue),
            Accumulators::Block,
            Destination::None,
        )?;
        Ok(CompiledKernel::SegmentSum { base, update, epilogue })
    }
}

/// The row axis along which elements lie side by side that lie apart along the columns.
fn neighbouring_axis(space: &Space, function: &ScalarFunction) -> Option<usize> {
    let columns = space.outer.len();
    let apart = |access: &&Access| !matches!(access.strides[columns], Size::Const(0..=2));
    let beside = |access: &Access| (0..columns).rev().find(|axis| access.strides[*axis].is(1));
    function.accesses().filter(apart).find_map(beside)
}

/// The order of the row axes in which most accesses go through memory from front to back.
fn memory_order(space: &Space, function: &ScalarFunction) -> Vec<usize> {
    let axes = space.outer.len();
    let order_of = |access: &Access| {
        let strides: Option<Vec<i64>> = access.strides[..axes]
            .iter()
            .map(|stride| match stride {
                Size::Const(stride) if *stride > 0 && access.indirect.is_none() => Some(*stride),
                _ => None,
            })
            .collect();
        let strides = strides?;
        let mut order: Vec<usize> = (0..axes).collect();
        order.sort_by_key(|axis| Reverse(strides[*axis]));
        Some(order)
    };
    let orders: Vec<Vec<usize>> = function.accesses().filter_map(order_of).collect();
    let count = |order: &Vec<usize>| orders.iter().filter(|other| *other == order).count();
    let usual: Vec<usize> = (0..axes).collect();
    let best = orders.iter().max_by_key(|order| count(order));
    best.filter(|best| count(best) > count(&usual)).cloned().unwrap_or(usual)
}

fn extents(sizes: &[Size]) -> Vec<Extent> {
    sizes.iter().map(|&size| size.into()).collect()
}
