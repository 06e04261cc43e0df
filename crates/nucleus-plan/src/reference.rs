//! A slow interpreter of plans: the oracle for backends.
//!
//! It follows the documentation of [`crate::kernel`] word by word with plain loops on the host. Memory is bytes, laid out as the plan
//! says, so it also shows whether buffers that share an arena disturb each other: memory starts as NaN patterns.

use std::collections::HashMap;

use half::{bf16, f16};
use nucleus_ir::{Bindings, DType, DimError, ScalarOp};

use crate::buffer::{BufferId, Place};
use crate::kernel::{
    Anchor, Attention, AttentionGrad, Contraction, ExpertChoice, InvertIndex, KeySegment, Map, Part, Phase,
    ReductionOp, RowReduction, SegmentSum,
};
use crate::plan::{Launch, Plan};
use crate::scalar::{Access, ScalarFunction, Size, Step};

/// Why a plan could not be interpreted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A size has no value.
    #[error("{0}")]
    Dim(#[from] DimError),
    /// A tensor is not given, or has the wrong number of elements.
    #[error("tensor `{name}` has {given} elements, the plan needs {needed}")]
    Tensor {
        /// Its name.
        name: String,
        /// How many elements were given; 0 if it was not given at all.
        given: usize,
        /// How many the plan needs.
        needed: usize,
    },
    /// An access outside its buffer.
    #[error("launch {launch} reads or writes element {element} of buffer {buffer}, which has {elements}")]
    Bounds {
        /// The launch.
        launch: usize,
        /// The buffer.
        buffer: u32,
        /// The element.
        element: i64,
        /// The size of the buffer.
        elements: usize,
    },
    /// A plan that the verifier would have refused.
    #[error("launch {0} is not valid")]
    Invalid(usize),
}

/// Tensors by name; every element as an `f64`, which holds all dtypes exactly.
pub type Tensors = HashMap<String, Vec<f64>>;

/// Runs every stage of `plan` on these inputs and weights and returns the outputs in order, all row-major.
///
/// Elements are rounded to the dtypes of the plan. An input that is not given takes its default.
pub fn evaluate(
    plan: &Plan,
    bindings: &Bindings,
    inputs: &Tensors,
    weights: &Tensors,
) -> Result<Vec<Vec<f64>>, ReferenceError> {
    let mut memory = Memory::new(plan, bindings)?;
    for (id, buffer) in plan.buffers.iter().enumerate() {
        let (name, given) = match &buffer.place {
            Place::Weight(name) | Place::State(name) => (name, weights.get(name).cloned()),
            Place::Input(position) => {
                let input = &plan.inputs[*position as usize];
                let fill = || input.default.map(|value| vec![value.0; memory.spans[id].elements]);
                (&input.name, inputs.get(&input.name).cloned().or_else(fill))
            }
            Place::Output(_) | Place::Arena { .. } => continue,
        };
        let needed = memory.spans[id].elements;
        let given = given.unwrap_or_default();
        if given.len() != needed {
            return Err(ReferenceError::Tensor { name: name.clone(), given: given.len(), needed });
        }
        for (element, value) in given.into_iter().enumerate() {
            memory.write(id, element, round(value, buffer.dtype));
        }
    }
    for (position, launch) in plan.launches.iter().enumerate() {
        let sizes = launch.sizes.iter().map(|size| size.eval(bindings)).collect::<Result<Vec<i64>, _>>()?;
        let mut run = Run { plan, launch, position, sizes, memory: &mut memory };
        run.kernel(&plan.kernel(launch.kernel).anchor)?;
    }
    let mut outputs = vec![Vec::new(); plan.outputs.len()];
    for (id, buffer) in plan.buffers.iter().enumerate() {
        if let Place::Output(position) = buffer.place {
            outputs[position as usize] =
                (0..memory.spans[id].elements).map(|element| memory.read(id, element)).collect();
        }
    }
    Ok(outputs)
}

/// Where a buffer lies: which allocation, first byte, elements.
struct Span {
    pool: usize,
    start: usize,
    elements: usize,
    dtype: DType,
}

struct Memory {
    pools: Vec<Vec<u8>>,
    spans: Vec<Span>,
}

impl Memory {
    fn new(plan: &Plan, bindings: &Bindings) -> Result<Memory, ReferenceError> {
        // Pools 0 to 2 are the arenas; a buffer without a place in one has a pool of its own.
        let mut pools: Vec<Vec<u8>> = vec![Vec::new(); 3];
        let mut spans = Vec::with_capacity(plan.buffers.len());
        for buffer in &plan.buffers {
            let mut elements = 1;
            for dim in &buffer.shape {
                elements *= dim.eval(bindings)?.max(0) as usize;
            }
            let bytes = elements * buffer.dtype.size();
            let (pool, start) = match &buffer.place {
                Place::Arena { rate, offset: Some(offset) } => {
                    (*rate as usize, offset.eval(bindings)?.max(0) as usize)
                }
                _ => {
                    pools.push(Vec::new());
                    (pools.len() - 1, 0)
                }
            };
            let end = start + bytes;
            if pools[pool].len() < end {
                pools[pool].resize(end, 0xff);
            }
            spans.push(Span { pool, start, elements, dtype: buffer.dtype });
        }
        Ok(Memory { pools, spans })
    }

    fn read(&self, buffer: usize, element: usize) -> f64 {
        let span = &self.spans[buffer];
        let at = span.start + element * span.dtype.size();
        let bytes = &self.pools[span.pool][at..at + span.dtype.size()];
        match (span.dtype, bytes) {
            (DType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DType::I32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
            (DType::Bf16, &[a, b]) => f64::from(bf16::from_le_bytes([a, b])),
            (DType::F16, &[a, b]) => f64::from(f16::from_le_bytes([a, b])),
            (DType::I8, &[a]) => f64::from(a as i8),
            (_, bytes) => f64::from(u8::from(bytes.first().is_some_and(|byte| *byte != 0))),
        }
    }

    fn write(&mut self, buffer: usize, element: usize, value: f64) {
        let span = &self.spans[buffer];
        let at = span.start + element * span.dtype.size();
        let bytes = &mut self.pools[span.pool][at..at + span.dtype.size()];
        match span.dtype {
            DType::F32 => bytes.copy_from_slice(&(value as f32).to_le_bytes()),
            DType::I32 => bytes.copy_from_slice(&(value as i32).to_le_bytes()),
            DType::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value as f32).to_le_bytes()),
            DType::F16 => bytes.copy_from_slice(&f16::from_f32(value as f32).to_le_bytes()),
            DType::Bool => bytes[0] = u8::from(value != 0.0),
            DType::I8 => bytes[0] = (value as i8).to_le_bytes()[0],
        }
    }
}

/// `value` as an element of `dtype` holds it. A float becomes an `i32` by truncation, saturating, NaN as 0.
fn round(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        DType::Bf16 => f64::from(bf16::from_f32(value as f32)),
        DType::F16 => f64::from(f16::from_f32(value as f32)),
        DType::I32 => f64::from(value as i32),
        DType::I8 => f64::from(value as i8),
        DType::Bool => f64::from(u8::from(value != 0.0)),
    }
}

/// `op` on operands of `dtype` (that of the last one), rounded to the dtype of the result.
///
/// Transcendental functions are taken in `f64`; the others have the same result as in the operands' own arithmetic.
pub fn apply(op: ScalarOp, args: &[f64], dtype: DType) -> f64 {
    let truth = |value: bool| f64::from(u8::from(value));
    let x = args[0];
    let y = args.get(1).copied().unwrap_or_default();
    if dtype == DType::I32 {
        let (a, b) = (x as i32, y as i32);
        let integer = match op {
            ScalarOp::Neg => Some(a.wrapping_neg()),
            ScalarOp::Abs => Some(a.wrapping_abs()),
            ScalarOp::Add => Some(a.wrapping_add(b)),
            ScalarOp::Sub => Some(a.wrapping_sub(b)),
            ScalarOp::Mul => Some(a.wrapping_mul(b)),
            ScalarOp::Div => Some(if b == 0 { 0 } else { a.wrapping_div(b) }),
            _ => None,
        };
        if let Some(integer) = integer {
            return f64::from(integer);
        }
    }
    let nan_wins = |pick: fn(f64, f64) -> f64| if x.is_nan() || y.is_nan() { f64::NAN } else { pick(x, y) };
    let value = match op {
        ScalarOp::Neg => -x,
        ScalarOp::Abs => x.abs(),
        ScalarOp::Exp => x.exp(),
        ScalarOp::Log => x.ln(),
        ScalarOp::Sqrt => x.sqrt(),
        ScalarOp::Rsqrt => 1.0 / x.sqrt(),
        ScalarOp::Tanh => x.tanh(),
        ScalarOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        ScalarOp::Sin => x.sin(),
        ScalarOp::Cos => x.cos(),
        ScalarOp::Add => x + y,
        ScalarOp::Sub => x - y,
        ScalarOp::Mul => x * y,
        ScalarOp::Div => x / y,
        ScalarOp::Max => nan_wins(f64::max),
        ScalarOp::Min => nan_wins(f64::min),
        ScalarOp::Less => return truth(x < y),
        ScalarOp::LessEqual => return truth(x <= y),
        ScalarOp::Equal => return truth(x == y),
        ScalarOp::And => return truth(x != 0.0 && y != 0.0),
        ScalarOp::Or => return truth(x != 0.0 || y != 0.0),
        ScalarOp::Not => return truth(x == 0.0),
        ScalarOp::Select => {
            if x != 0.0 {
                y
            } else {
                args[2]
            }
        }
        ScalarOp::Cast(to) => return round(x, to),
    };
    round(value, dtype)
}

/// Calls `body` with every point of a space, last axis fastest.
fn points(
    extents: &[i64],
    mut body: impl FnMut(&[i64]) -> Result<(), ReferenceError>,
) -> Result<(), ReferenceError> {
    if extents.iter().any(|extent| *extent <= 0) {
        return Ok(());
    }
    let mut point = vec![0; extents.len()];
    loop {
        body(&point)?;
        let mut axis = extents.len();
        loop {
            let Some(last) = axis.checked_sub(1) else { return Ok(()) };
            axis = last;
            point[axis] += 1;
            if point[axis] < extents[axis] {
                break;
            }
            point[axis] = 0;
        }
    }
}

fn join(parts: &[&[i64]]) -> Vec<i64> {
    parts.concat()
}

/// One launch.
struct Run<'a> {
    plan: &'a Plan,
    launch: &'a Launch,
    position: usize,
    sizes: Vec<i64>,
    memory: &'a mut Memory,
}

impl Run<'_> {
    fn size(&self, size: Size) -> i64 {
        size.value(&self.sizes)
    }

    fn sizes_of(&self, sizes: &[Size]) -> Vec<i64> {
        sizes.iter().map(|size| self.size(*size)).collect()
    }

    fn invalid(&self) -> ReferenceError {
        ReferenceError::Invalid(self.position)
    }

    fn buffer(&self, operand: u32) -> Result<BufferId, ReferenceError> {
        self.launch.operands.get(operand as usize).copied().ok_or_else(|| self.invalid())
    }

    fn checked(&self, buffer: BufferId, element: i64) -> Result<usize, ReferenceError> {
        let elements = self.memory.spans[buffer.0 as usize].elements;
        let inside = usize::try_from(element).ok().filter(|element| *element < elements);
        inside.ok_or(ReferenceError::Bounds { launch: self.position, buffer: buffer.0, element, elements })
    }

    fn get(&self, operand: u32, element: i64) -> Result<f64, ReferenceError> {
        let buffer = self.buffer(operand)?;
        Ok(self.memory.read(buffer.0 as usize, self.checked(buffer, element)?))
    }

    fn set(&mut self, operand: u32, element: i64, value: f64) -> Result<(), ReferenceError> {
        let buffer = self.buffer(operand)?;
        let element = self.checked(buffer, element)?;
        self.memory.write(buffer.0 as usize, element, value);
        Ok(())
    }

    fn element(&self, access: &Access, point: &[i64]) -> Result<i64, ReferenceError> {
        let mut element = self.size(access.offset);
        for (stride, coordinate) in access.strides.iter().zip(point) {
            element += self.size(*stride) * coordinate;
        }
        if let Some(indirect) = &access.indirect {
            let index = self.get(indirect.index.operand, self.element(&indirect.index, point)?)?;
            element += self.size(indirect.stride) * index as i64;
        }
        Ok(element)
    }

    /// The values of all steps at one point; stores are done. The value of a store is 0.
    fn steps(
        &mut self,
        function: &ScalarFunction,
        point: &[i64],
        accumulators: &[f64],
    ) -> Result<Vec<f64>, ReferenceError> {
        let dtypes = function.dtypes(|operand| {
            let buffer = self.launch.operands.get(operand as usize);
            buffer.map_or(DType::F32, |buffer| self.plan.buffer(*buffer).dtype)
        });
        let mut values: Vec<f64> = Vec::with_capacity(function.steps.len());
        for step in &function.steps {
            let value = match step {
                Step::Load(access) => self.get(access.operand, self.element(access, point)?)?,
                Step::Constant { value, dtype } => round(value.0, *dtype),
                Step::Affine { offset, strides } => {
                    let mut sum = self.size(*offset);
                    for (stride, coordinate) in strides.iter().zip(point) {
                        sum += self.size(*stride) * coordinate;
                    }
                    f64::from(sum as i32)
                }
                Step::Accumulator(index) => {
                    *accumulators.get(*index as usize).ok_or_else(|| self.invalid())?
                }
                Step::Apply { op, args } => {
                    let last = args.last().and_then(|last| dtypes[last.0 as usize]);
                    let dtype = last.ok_or_else(|| self.invalid())?;
                    let args: Vec<f64> = args.iter().map(|arg| values[arg.0 as usize]).collect();
                    apply(*op, &args, dtype)
                }
                Step::Store { access, value } => {
                    let element = self.element(access, point)?;
                    self.set(access.operand, element, values[value.0 as usize])?;
                    0.0
                }
            };
            values.push(value);
        }
        Ok(values)
    }

    fn result(&mut self, function: &ScalarFunction, point: &[i64]) -> Result<f64, ReferenceError> {
        let result = function.result.ok_or_else(|| self.invalid())?;
        Ok(self.steps(function, point, &[])?[result.0 as usize])
    }

    fn kernel(&mut self, anchor: &Anchor) -> Result<(), ReferenceError> {
        match anchor {
            Anchor::Map(map) => self.map(map),
            Anchor::RowReduction(reduction) => self.row_reduction(reduction),
            Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => self.contraction(contraction),
            Anchor::Attention(attention) => self.attention(attention),
            Anchor::AttentionGrad(grad) => self.attention_grad(grad),
            Anchor::ExpertChoice(choice) => self.expert_choice(choice),
            Anchor::InvertIndex(invert) => self.invert_index(invert),
            Anchor::SegmentSum(sum) => self.segment_sum(sum),
        }
    }

    fn map(&mut self, map: &Map) -> Result<(), ReferenceError> {
        let space = self.sizes_of(&map.space);
        points(&space, |point| self.steps(&map.function, point, &[]).map(drop))
    }

    fn row_reduction(&mut self, reduction: &RowReduction) -> Result<(), ReferenceError> {
        let rows = self.sizes_of(&reduction.rows);
        let columns = self.size(reduction.columns);
        points(&rows, |row| {
            let results = self.phases(&reduction.phases, row, &vec![Vec::new(); columns.max(0) as usize])?;
            self.steps(&reduction.row, row, &results)?;
            for column in 0..columns {
                self.steps(&reduction.element, &join(&[row, &[column]]), &results)?;
            }
            Ok(())
        })
    }

    /// The results of all phases along a row whose columns have accumulators of their own in front of them.
    fn phases(
        &mut self,
        phases: &[Phase],
        row: &[i64],
        columns: &[Vec<f64>],
    ) -> Result<Vec<f64>, ReferenceError> {
        let mut results: Vec<f64> = Vec::new();
        for phase in phases {
            let mut totals: Vec<f64> = phase
                .reductions
                .iter()
                .map(|reduction| match reduction.op {
                    ReductionOp::Sum => 0.0,
                    ReductionOp::Max => f64::NEG_INFINITY,
                })
                .collect();
            for (column, own) in columns.iter().enumerate() {
                let accumulators = [own.as_slice(), &results].concat();
                let values = self.steps(&phase.function, &join(&[row, &[column as i64]]), &accumulators)?;
                for (total, reduction) in totals.iter_mut().zip(&phase.reductions) {
                    let value = values[reduction.value.0 as usize];
                    *total = match reduction.op {
                        ReductionOp::Sum => *total + value,
                        ReductionOp::Max => apply(ScalarOp::Max, &[*total, value], DType::F32),
                    };
                }
            }
            results.extend(totals.into_iter().map(|total| round(total, DType::F32)));
        }
        Ok(results)
    }

    fn contraction(&mut self, contraction: &Contraction) -> Result<(), ReferenceError> {
        let batch = self.sizes_of(&contraction.batch);
        let rows = self.sizes_of(&contraction.rows);
        let depth = self.size(contraction.depth);
        for part in &contraction.parts {
            self.part(contraction, part, (&batch, &rows), depth)?;
        }
        Ok(())
    }

    fn part(
        &mut self,
        contraction: &Contraction,
        part: &Part,
        (batch, rows): (&[i64], &[i64]),
        depth: i64,
    ) -> Result<(), ReferenceError> {
        let (columns, segments) = (self.size(part.columns), i64::from(part.segments));
        let product = |run: &mut Self, outer: &[i64], column: i64| -> Result<Vec<f64>, ReferenceError> {
            let mut results = Vec::new();
            for segment in 0..segments {
                let whole =
                    if part.interleaved { column * segments + segment } else { segment * columns + column };
                let mut total = 0.0;
                for k in 0..depth {
                    let a = run.result(&contraction.a, &join(&[outer, &[k]]))?;
                    let b_point = join(&[&outer[..batch.len()], &[k, whole]]);
                    total += a * run.result(&part.b, &b_point)?;
                }
                results.push(round(total, DType::F32));
            }
            Ok(results)
        };
        let Some(groups) = &part.groups else {
            return points(&join(&[batch, rows, &[columns]]), |point| {
                let (outer, column) = point.split_at(point.len() - 1);
                let results = product(self, outer, column[0])?;
                self.steps(&part.epilogue, point, &results).map(drop)
            });
        };
        if !part.has_whole_groups() {
            return Err(self.invalid());
        }
        let width = i64::from(groups.width);
        points(&join(&[batch, rows, &[columns / width]]), |row| {
            let (outer, group) = row.split_at(row.len() - 1);
            let own: Result<Vec<_>, _> =
                (0..width).map(|column| product(self, outer, group[0] * width + column)).collect();
            let own = own?;
            let results = self.phases(&groups.phases, row, &own)?;
            for (column, own) in own.iter().enumerate() {
                let accumulators = [own.as_slice(), &results].concat();
                self.steps(&part.epilogue, &join(&[row, &[column as i64]]), &accumulators)?;
            }
            Ok(())
        })
    }

    fn attention(&mut self, attention: &Attention) -> Result<(), ReferenceError> {
        let (heads, key_heads) = (i64::from(attention.heads), i64::from(attention.key_heads));
        let head_size = i64::from(attention.head_size);
        let space = [self.size(attention.batch), self.size(attention.queries), heads];
        points(&space, |point| {
            let group = point[2] * key_heads / heads;
            let segments: Vec<&KeySegment> = attention.segments.iter().collect();
            let scale = attention.scale.0;
            let weights = self.probabilities((&attention.q, scale, head_size), &segments, (point, group))?;
            for d in 0..head_size {
                let mut sum = 0.0;
                for (segment, l, weight) in &weights {
                    sum += weight * self.result(&segments[*segment].v, &[point[0], *l, group, d])?;
                }
                self.steps(&attention.epilogue, &join(&[point, &[d]]), &[round(sum, DType::F32)])?;
            }
            Ok(())
        })
    }

    /// The softmax of a query's scores: segment, key and probability of every key that is not left out.
    fn probabilities(
        &mut self,
        (q, scale, head_size): (&ScalarFunction, f64, i64),
        segments: &[&KeySegment],
        (point, group): (&[i64], i64),
    ) -> Result<Vec<(usize, i64, f64)>, ReferenceError> {
        let mut scores = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            for l in 0..self.size(segment.length) {
                if let Some(mask) = &segment.mask
                    && self.result(mask, &[point[0], l])? == 0.0
                {
                    continue;
                }
                let mut dot = 0.0;
                for d in 0..head_size {
                    let q = self.result(q, &join(&[point, &[d]]))?;
                    dot += q * self.result(&segment.k, &[point[0], l, group, d])?;
                }
                scores.push((number, l, dot * scale));
            }
        }
        let largest = scores.iter().fold(f64::NEG_INFINITY, |largest, (_, _, score)| largest.max(*score));
        let total: f64 = scores.iter().map(|(_, _, score)| (score - largest).exp()).sum();
        scores.iter_mut().for_each(|(_, _, score)| *score = (*score - largest).exp() / total);
        Ok(scores)
    }

    fn attention_grad(&mut self, grad: &AttentionGrad) -> Result<(), ReferenceError> {
        let (heads, key_heads) = (i64::from(grad.heads), i64::from(grad.key_heads));
        let head_size = i64::from(grad.head_size);
        let batch = self.size(grad.batch);
        let segments: Vec<&KeySegment> = grad.segments.iter().map(|segment| &segment.keys).collect();
        // What every key gets: dk and dv by segment and by (b, l, g, d).
        let mut totals: Vec<[Vec<f64>; 2]> = Vec::new();
        for segment in &segments {
            let count = batch.max(0) * self.size(segment.length).max(0) * key_heads * head_size;
            totals.push([vec![0.0; count as usize], vec![0.0; count as usize]]);
        }
        points(&[batch, self.size(grad.queries), heads], |point| {
            let group = point[2] * key_heads / heads;
            let weights =
                self.probabilities((&grad.q, grad.scale.0, head_size), &segments, (point, group))?;
            let mut query = vec![[0.0; 2]; head_size as usize];
            for (d, query) in query.iter_mut().enumerate() {
                let at = join(&[point, &[d as i64]]);
                *query = [self.result(&grad.q, &at)?, self.result(&grad.dy, &at)?];
            }
            let mut slopes = Vec::new();
            for (segment, l, _) in &weights {
                let mut slope = 0.0;
                for (d, [_, dy]) in query.iter().enumerate() {
                    slope += dy * self.result(&segments[*segment].v, &[point[0], *l, group, d as i64])?;
                }
                slopes.push(slope);
            }
            let mean: f64 = weights.iter().zip(&slopes).map(|((_, _, p), slope)| p * slope).sum();
            let mut dq = vec![0.0; head_size as usize];
            for ((segment, l, p), slope) in weights.into_iter().zip(slopes) {
                let score = grad.scale.0 * p * (slope - mean);
                let key = (point[0] * self.size(segments[segment].length) + l) * key_heads + group;
                for (d, [q, dy]) in query.iter().enumerate() {
                    dq[d] += score * self.result(&segments[segment].k, &[point[0], l, group, d as i64])?;
                    let at = (key * head_size) as usize + d;
                    totals[segment][0][at] += score * q;
                    totals[segment][1][at] += p * dy;
                }
            }
            for (d, dq) in dq.into_iter().enumerate() {
                self.steps(&grad.dq, &join(&[point, &[d as i64]]), &[round(dq, DType::F32)])?;
            }
            Ok(())
        })?;
        for (segment, [dk, dv]) in grad.segments.iter().zip(&totals) {
            let mut at = 0;
            points(&[batch, self.size(segment.keys.length), key_heads, head_size], |point| {
                self.steps(&segment.dk, point, &[round(dk[at], DType::F32)])?;
                self.steps(&segment.dv, point, &[round(dv[at], DType::F32)])?;
                at += 1;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn expert_choice(&mut self, choice: &ExpertChoice) -> Result<(), ReferenceError> {
        let (tokens, capacity) = (self.size(choice.tokens), self.size(choice.capacity));
        let experts = self.size(choice.experts);
        if capacity > tokens {
            return Err(self.invalid());
        }
        for b in 0..self.size(choice.batch) {
            // Token and affinity of every slot, expert by expert.
            let mut slots: Vec<(i64, f64)> = Vec::new();
            for e in 0..experts {
                let mut ranked = Vec::new();
                for token in 0..tokens {
                    ranked.push((token, self.result(&choice.affinity, &[b, token, e])?));
                }
                // NaN counts as smaller than every number; ties go to the lowest token.
                ranked.sort_by(|x, y| {
                    let nan = x.1.is_nan().cmp(&y.1.is_nan());
                    nan.then(y.1.partial_cmp(&x.1).unwrap_or(std::cmp::Ordering::Equal)).then(x.0.cmp(&y.0))
                });
                ranked.truncate(capacity.max(0) as usize);
                ranked.sort_by_key(|(token, _)| *token);
                slots.extend(ranked);
            }
            let first = b * slots.len() as i64;
            for (slot, (token, _)) in slots.iter().enumerate() {
                self.set(choice.slot_token, first + slot as i64, *token as f64)?;
            }
            let mut filled = 0;
            for token in 0..tokens {
                let taken = || slots.iter().enumerate().filter(|(_, (taken, _))| *taken == token);
                let add = |sum, (_, (_, affinity)): (usize, &(i64, f64))| round(sum + affinity, DType::F32);
                let sum = taken().fold(0.0, add);
                if let Some(inverse) = choice.inverse {
                    self.set(inverse.offsets, b * (tokens + 1) + token, filled as f64)?;
                    for (slot, _) in taken() {
                        self.set(inverse.positions, first + filled, slot as f64)?;
                        filled += 1;
                    }
                }
                for (slot, (_, affinity)) in taken() {
                    let (e, slot) = (slot as i64 / capacity, slot as i64 % capacity);
                    self.steps(&choice.epilogue, &[b, e, slot], &[*affinity, sum])?;
                }
            }
            if let Some(inverse) = choice.inverse {
                self.set(inverse.offsets, b * (tokens + 1) + tokens, filled as f64)?;
            }
        }
        Ok(())
    }

    fn invert_index(&mut self, invert: &InvertIndex) -> Result<(), ReferenceError> {
        let (positions, targets) = (self.size(invert.positions), self.size(invert.targets));
        for b in 0..self.size(invert.batch) {
            let mut filled = 0;
            for target in 0..targets {
                self.set(invert.offsets_out, b * (targets + 1) + target, filled as f64)?;
                for position in 0..positions {
                    if self.get(invert.index, b * positions + position)? == target as f64 {
                        self.set(invert.positions_out, b * positions + filled, position as f64)?;
                        filled += 1;
                    }
                }
            }
            self.set(invert.offsets_out, b * (targets + 1) + targets, filled as f64)?;
        }
        Ok(())
    }

    fn segment_sum(&mut self, sum: &SegmentSum) -> Result<(), ReferenceError> {
        let (targets, positions) = (self.size(sum.targets), self.size(sum.position_count));
        let rest = self.sizes_of(&sum.rest);
        points(&join(&[&[self.size(sum.batch), targets], &rest]), |point| {
            let (b, t) = (point[0], point[1]);
            let first = self.get(sum.offsets, b * (targets + 1) + t)? as i64;
            let end = self.get(sum.offsets, b * (targets + 1) + t + 1)? as i64;
            let mut total = self.result(&sum.base, point)?;
            for listed in first..end {
                let position = self.get(sum.positions, b * positions + listed)? as i64;
                let update = self.result(&sum.update, &join(&[&[b, position], &point[2..]]))?;
                total = round(total + update, DType::F32);
            }
            self.steps(&sum.epilogue, point, &[total]).map(drop)
        })
    }
}
