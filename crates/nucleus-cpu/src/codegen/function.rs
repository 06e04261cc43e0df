//! One scalar function: what of it is computed once per row, and its code at a point.

use std::collections::HashMap;

use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step, StepId};

use super::emit::{Emit, Lanes};
use super::memory::Place;
use super::pairs::{self, Pair};
use super::space::Extent;

/// Loads and stores never trap: every access is checked against its buffer before a launch.
pub(super) fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Operand addresses and size arguments, loaded once per call.
pub(super) struct Environment {
    operands: HashMap<u32, Value>,
    sizes: HashMap<u32, Value>,
}

impl Environment {
    /// Loads what `functions` and `extents` mention.
    pub(super) fn load<'a>(
        emit: &mut Emit,
        [operands, sizes]: [Value; 2],
        functions: impl IntoIterator<Item = &'a ScalarFunction>,
        extents: impl IntoIterator<Item = &'a Extent>,
    ) -> Environment {
        let mut arguments: Vec<Size> =
            extents.into_iter().flat_map(|extent| extent.0.iter().copied()).collect();
        let mut environment = Environment { operands: HashMap::new(), sizes: HashMap::new() };
        for function in functions {
            for access in function.accesses() {
                environment.operands.entry(access.operand).or_insert_with(|| {
                    emit.builder.ins().load(types::I64, flags(), operands, 8 * access.operand as i32)
                });
                arguments.push(access.offset);
                arguments.extend(&access.strides);
                arguments.extend(access.indirect.as_ref().map(|indirect| indirect.stride));
            }
            for step in &function.steps {
                if let Step::Affine { offset, strides } = step {
                    arguments.push(*offset);
                    arguments.extend(strides);
                }
            }
        }
        for size in arguments {
            if let Size::Arg(argument) = size {
                environment.sizes.entry(argument).or_insert_with(|| {
                    emit.builder.ins().load(types::I64, flags(), sizes, 8 * argument as i32)
                });
            }
        }
        environment
    }

    /// A size as a 64-bit value.
    pub(super) fn size(&self, emit: &mut Emit, size: Size) -> Value {
        match size {
            Size::Const(value) => emit.int64(value),
            Size::Arg(argument) => self.sizes[&argument],
        }
    }

    /// An extent as a 64-bit value.
    pub(super) fn extent(&self, emit: &mut Emit, extent: &Extent) -> Value {
        match extent.constant() {
            Some(value) => emit.int64(value),
            None => extent
                .0
                .iter()
                .map(|&size| self.size(emit, size))
                .collect::<Vec<_>>()
                .into_iter()
                .reduce(|x, y| emit.imul(x, y))
                .unwrap_or_else(|| emit.int64(1)),
        }
    }

    /// sum + coordinate · size.
    fn add_product(&self, emit: &mut Emit, sum: Value, coordinate: Value, size: Size) -> Value {
        let product = match size {
            Size::Const(0) => return sum,
            Size::Const(1) => coordinate,
            Size::Const(value) => emit.builder.ins().imul_imm_s(coordinate, value),
            Size::Arg(_) => {
                let size = self.size(emit, size);
                emit.imul(coordinate, size)
            }
        };
        emit.iadd(sum, product)
    }
}

/// How an address or number changes along the last axis.
#[derive(Clone, Copy)]
enum Inner {
    Zero,
    One,
    Stride(Size),
}

impl From<Size> for Inner {
    fn from(size: Size) -> Inner {
        match size {
            Size::Const(0) => Inner::Zero,
            Size::Const(1) => Inner::One,
            size => Inner::Stride(size),
        }
    }
}

/// An access within a row: the address at position 0 of the last axis, and the index that varies along it, if any.
struct RowAccess {
    base: Value,
    inner: Inner,
    index: Option<(Box<RowAccess>, Value)>,
}

/// What is known at the beginning of a row.
pub(super) struct Row {
    accesses: Vec<Option<RowAccess>>,
    affine: Vec<Option<Value>>,
    scalars: Vec<Option<Value>>,
    vectors: Vec<Option<Value>>,
}

/// Where `Accumulator` steps come from.
#[derive(Clone)]
pub(super) enum AccumulatorValues {
    /// All are 0.
    Zero,
    /// A block of floats: the address of accumulator 0 at position 0 of the last axis, and the bytes between accumulators.
    Block {
        /// The address.
        base: Value,
        /// The distance.
        segment_bytes: Value,
    },
    /// One-lane results of a row.
    Row(Vec<Value>),
    /// Those of a block, as many as there are segments, then one-lane results of the row.
    Group {
        /// As for `Block`.
        base: Value,
        /// As for `Block`.
        segment_bytes: Value,
        /// How many there are in the block.
        segments: u32,
        /// The accumulators behind them.
        results: Vec<Value>,
    },
}

impl AccumulatorValues {
    /// Appends one-lane results of the row.
    pub(super) fn extend(&mut self, more: Vec<Value>) {
        match self {
            AccumulatorValues::Zero | AccumulatorValues::Block { .. } => {}
            AccumulatorValues::Row(results) | AccumulatorValues::Group { results, .. } => {
                results.extend(more)
            }
        }
    }
}

/// A function ready to be emitted.
pub(super) struct Body<'a> {
    function: &'a ScalarFunction,
    operands: &'a [Operand],
    dtypes: Vec<Option<DType>>,
    /// Steps that have the same value at every point of a row.
    invariant: Vec<bool>,
    /// Those of them that other steps use.
    needed: Vec<bool>,
    /// Accesses that four lanes make together.
    pairs: Vec<Option<Pair>>,
}

impl<'a> Body<'a> {
    /// Accumulators from number `row_accumulators` on are the same at every point of a row. `keep` are steps whose values the caller wants of
    /// every point.
    pub(super) fn new(
        function: &'a ScalarFunction,
        operands: &'a [Operand],
        row_accumulators: u32,
        keep: &[StepId],
    ) -> Body<'a> {
        let dtypes = function.dtypes(|operand| operands[operand as usize].dtype);
        let mut invariant: Vec<bool> = Vec::new();
        let along = |strides: &[Size]| strides.last().is_some_and(|stride| *stride != Size::Const(0));
        let constant = |access: &Access| {
            operands[access.operand as usize].mode == OperandMode::Read && !along(&access.strides)
        };
        for step in &function.steps {
            invariant.push(match step {
                Step::Load(access) => {
                    constant(access)
                        && access.indirect.as_ref().is_none_or(|indirect| constant(&indirect.index))
                }
                Step::Constant { .. } => true,
                Step::Affine { strides, .. } => !along(strides),
                Step::Accumulator(number) => *number >= row_accumulators,
                Step::Apply { args, .. } => args.iter().all(|arg| invariant[arg.0 as usize]),
                Step::Store { .. } => false,
            });
        }
        let mut needed = vec![false; invariant.len()];
        for (position, step) in function.steps.iter().enumerate() {
            let uses: &[StepId] = match step {
                Step::Apply { args, .. } if !invariant[position] => args,
                Step::Store { value, .. } => std::slice::from_ref(value),
                _ => &[],
            };
            uses.iter().for_each(|id| needed[id.0 as usize] = true);
        }
        keep.iter().for_each(|id| needed[id.0 as usize] = true);
        let pairs = pairs::find(function, operands);
        Body { function, operands, dtypes, invariant, needed, pairs }
    }

    fn dtype(&self, access: &Access) -> DType {
        self.operands[access.operand as usize].dtype
    }

    /// Emits what is common to a row. `coordinates` are those of all axes but the last.
    pub(super) fn begin_row(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        coordinates: &[Value],
        accumulators: &AccumulatorValues,
    ) -> Row {
        emit.lanes = Lanes::One;
        let count = self.function.steps.len();
        let none = || (0..count).map(|_| None).collect::<Vec<Option<Value>>>();
        let mut row = Row { accesses: Vec::new(), affine: none(), scalars: none(), vectors: none() };
        for (position, step) in self.function.steps.iter().enumerate() {
            let access = match step {
                Step::Load(access) | Step::Store { access, .. } => {
                    Some(self.row_access(emit, environment, coordinates, access))
                }
                _ => None,
            };
            row.accesses.push(access);
            if let Step::Affine { offset, strides } = step {
                let mut sum = environment.size(emit, *offset);
                for (&coordinate, &stride) in coordinates.iter().zip(strides) {
                    sum = environment.add_product(emit, sum, coordinate, stride);
                }
                row.affine[position] = Some(sum);
            }
            if self.invariant[position] {
                let zero = emit.int64(0);
                let value = self.step(emit, environment, &row, position, zero, accumulators, &row.scalars);
                row.scalars[position] = value;
                if let (true, Some(value)) = (self.needed[position], value) {
                    emit.lanes = Lanes::Four;
                    row.vectors[position] = Some(emit.splat(value));
                    emit.lanes = Lanes::One;
                }
            }
        }
        row
    }

    fn row_access(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        coordinates: &[Value],
        access: &Access,
    ) -> RowAccess {
        let size = self.dtype(access).size() as i64;
        let mut element = environment.size(emit, access.offset);
        for (&coordinate, &stride) in coordinates.iter().zip(&access.strides) {
            element = environment.add_product(emit, element, coordinate, stride);
        }
        let inner = access.strides.last().map_or(Inner::Zero, |&stride| stride.into());
        let mut index = None;
        if let Some(indirect) = &access.indirect {
            let inside = self.row_access(emit, environment, coordinates, &indirect.index);
            let stride = environment.size(emit, indirect.stride);
            let readable = self.operands[indirect.index.operand as usize].mode == OperandMode::Read;
            if matches!(inside.inner, Inner::Zero) && readable {
                let value = emit.builder.ins().sload32(flags(), inside.base, 0);
                let offset = emit.imul(value, stride);
                element = emit.iadd(element, offset);
            } else {
                let bytes = emit.builder.ins().imul_imm_s(stride, size);
                index = Some((Box::new(inside), bytes));
            }
        }
        let bytes = emit.builder.ins().imul_imm_s(element, size);
        let base = environment.operands[&access.operand];
        RowAccess { base: emit.iadd(base, bytes), inner, index }
    }

    /// Where the lanes of an access lie at position `i` of the last axis.
    fn place(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        access: &RowAccess,
        size: i64,
        i: Value,
    ) -> Place {
        if let (Inner::One, None) = (access.inner, &access.index) {
            let bytes = emit.builder.ins().imul_imm_s(i, size);
            return Place::Contiguous(emit.iadd(access.base, bytes));
        }
        let addresses = (0..emit.lanes.count()).map(|lane| {
            let position = emit.builder.ins().iadd_imm_s(i, lane);
            self.lane_address(emit, environment, access, size, position)
        });
        Place::Scattered(addresses.collect())
    }

    fn lane_address(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        access: &RowAccess,
        size: i64,
        position: Value,
    ) -> Value {
        let mut address = match access.inner {
            Inner::Zero => access.base,
            Inner::One => {
                let bytes = emit.builder.ins().imul_imm_s(position, size);
                emit.iadd(access.base, bytes)
            }
            Inner::Stride(stride) => {
                let stride = environment.size(emit, stride);
                let elements = emit.imul(position, stride);
                let bytes = emit.builder.ins().imul_imm_s(elements, size);
                emit.iadd(access.base, bytes)
            }
        };
        if let Some((inside, stride_bytes)) = &access.index {
            let at = self.lane_address(emit, environment, inside, 4, position);
            let value = emit.builder.ins().sload32(flags(), at, 0);
            let offset = emit.imul(value, *stride_bytes);
            address = emit.iadd(address, offset);
        }
        address
    }

    /// Emits the function at position `i` of the last axis and the lanes behind it, stores included. Gives the value of every step.
    pub(super) fn point(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        row: &Row,
        i: Value,
        accumulators: &AccumulatorValues,
    ) -> Vec<Option<Value>> {
        let mut values = match emit.lanes {
            Lanes::One => row.scalars.clone(),
            Lanes::Four => row.vectors.clone(),
        };
        for position in 0..self.function.steps.len() {
            // The second load of a pair has its value already.
            if self.invariant[position] || values[position].is_some() {
                continue;
            }
            match self.pairs[position].filter(|_| emit.lanes == Lanes::Four) {
                Some(pair) => self.pair(emit, row, (pair, position), i, &mut values),
                None => {
                    values[position] = self.step(emit, environment, row, position, i, accumulators, &values);
                }
            }
        }
        values
    }

    /// Emits a pair of loads at its first step, a pair of stores at its last.
    fn pair(
        &self,
        emit: &mut Emit,
        row: &Row,
        (pair, position): (Pair, usize),
        i: Value,
        values: &mut [Option<Value>],
    ) {
        let (Step::Load(access) | Step::Store { access, .. }) = &self.function.steps[pair.even] else {
            return;
        };
        let Some(row_access) = &row.accesses[pair.even] else { return };
        let dtype = self.dtype(access);
        let bytes = emit.builder.ins().imul_imm_s(i, 2 * dtype.size() as i64);
        let address = emit.iadd(row_access.base, bytes);
        let value_of = |step: usize| match &self.function.steps[step] {
            Step::Store { value, .. } => values[value.0 as usize],
            _ => None,
        };
        match (&self.function.steps[position], value_of(pair.even), value_of(pair.odd)) {
            (Step::Load(_), ..) => {
                let [even, odd] = emit.load_pair(dtype, address, flags());
                values[pair.even] = Some(even);
                values[pair.odd] = Some(odd);
            }
            (_, Some(even), Some(odd)) if position == pair.last() => {
                emit.store_pair(dtype, [even, odd], address, flags());
            }
            _ => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a row and the place in it")]
    fn step(
        &self,
        emit: &mut Emit,
        environment: &Environment,
        row: &Row,
        position: usize,
        i: Value,
        accumulators: &AccumulatorValues,
        values: &[Option<Value>],
    ) -> Option<Value> {
        let value_of = |id: &StepId| values.get(id.0 as usize).copied().flatten();
        match &self.function.steps[position] {
            Step::Load(access) => {
                let dtype = self.dtype(access);
                let at = row.accesses[position].as_ref()?;
                let place = self.place(emit, environment, at, dtype.size() as i64, i);
                Some(emit.load(dtype, &place, flags()))
            }
            Step::Store { access, value } => {
                let dtype = self.dtype(access);
                let at = row.accesses[position].as_ref()?;
                let place = self.place(emit, environment, at, dtype.size() as i64, i);
                let value = value_of(value)?;
                emit.store(dtype, value, &place, flags());
                None
            }
            Step::Constant { value, dtype } => Some(constant(emit, value.0, *dtype)),
            Step::Affine { strides, .. } => {
                let base = row.affine[position]?;
                let inner = strides.last().copied().unwrap_or(Size::Const(0));
                Some(affine(emit, environment, base, inner, i))
            }
            Step::Accumulator(index) => Some(accumulator(emit, *index, i, accumulators)),
            Step::Apply { op, args } => {
                let args: Option<Vec<(Value, DType)>> =
                    args.iter().map(|id| Some((value_of(id)?, self.dtypes[id.0 as usize]?))).collect();
                let (args, dtypes): (Vec<Value>, Vec<DType>) = args?.into_iter().unzip();
                // A cast from f32 by way of itself and the like cost nothing; everything else is one operation.
                Some(match op {
                    ScalarOp::Cast(to) if *to == dtypes[0] => args[0],
                    op => emit.apply(*op, &args, &dtypes),
                })
            }
        }
    }

    /// The dtype of a step's value.
    pub(super) fn value_dtype(&self, step: StepId) -> DType {
        self.dtypes[step.0 as usize].unwrap_or(DType::F32)
    }
}

fn constant(emit: &mut Emit, value: f64, dtype: DType) -> Value {
    match dtype {
        DType::F32 => emit.float(value as f32),
        DType::Bf16 => emit.float(half::bf16::from_f64(value).to_f32()),
        DType::F16 => emit.float(half::f16::from_f64(value).to_f32()),
        DType::I32 | DType::I8 => emit.int(value as i32),
        DType::Bool => emit.int(-i32::from(value != 0.0)),
    }
}

fn affine(emit: &mut Emit, environment: &Environment, base: Value, inner: Size, i: Value) -> Value {
    let first = environment.add_product(emit, base, i, inner);
    let first = emit.builder.ins().ireduce(types::I32, first);
    match (emit.lanes, inner) {
        (Lanes::One, _) => first,
        (Lanes::Four, Size::Const(0)) => emit.splat(first),
        (Lanes::Four, _) => {
            let first = emit.splat(first);
            let stride = environment.size(emit, inner);
            let stride = emit.builder.ins().ireduce(types::I32, stride);
            let stride = emit.splat(stride);
            let lanes = emit.vector([0, 1, 2, 3], types::I32X4);
            let steps = emit.imul(stride, lanes);
            emit.iadd(first, steps)
        }
    }
}

fn accumulator(emit: &mut Emit, index: u32, i: Value, accumulators: &AccumulatorValues) -> Value {
    let row = |emit: &mut Emit, values: &[Value], index: u32| match values.get(index as usize) {
        Some(&value) => emit.splat(value),
        None => emit.float(0.0),
    };
    match accumulators {
        AccumulatorValues::Zero => emit.float(0.0),
        AccumulatorValues::Row(values) => row(emit, values, index),
        AccumulatorValues::Group { segments, results, .. } if index >= *segments => {
            row(emit, results, index - segments)
        }
        AccumulatorValues::Block { base, segment_bytes }
        | AccumulatorValues::Group { base, segment_bytes, .. } => {
            let segment = emit.builder.ins().imul_imm_s(*segment_bytes, i64::from(index));
            let address = emit.iadd(*base, segment);
            let bytes = emit.builder.ins().imul_imm_s(i, 4);
            let address = emit.iadd(address, bytes);
            emit.load(DType::F32, &Place::Contiguous(address), flags())
        }
    }
}
