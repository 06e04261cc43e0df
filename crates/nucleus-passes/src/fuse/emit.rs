//! Scalar functions from graph values.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use nucleus_ir::graph::{NodeData, Value};
use nucleus_ir::{DType, Dim, DimError, Op, ScalarOp};
use nucleus_plan::{Access, BufferId, Indirect, Operand, OperandMode, ScalarFunction, Size, Step, StepId};

use super::affine::{Coord, IndexAccess, IndirectTerm, Map, linear, row_major};
use super::group::{Group, IsView};
use super::homes::Home;
use super::state::State;
use crate::error::PassError;

/// Why a function could not be made.
#[derive(Debug)]
pub(crate) enum Stop {
    /// These values must be stored first.
    Store(Vec<Value>),
    /// A defect or a limit.
    Fail(PassError),
}

impl Stop {
    /// This value must be stored first.
    pub(crate) fn store(value: Value) -> Stop {
        Stop::Store(vec![value])
    }
}

/// What several parts of a kernel could not do without.
#[derive(Default)]
pub(crate) struct Missing {
    stopped: bool,
    values: Vec<Value>,
}

impl Missing {
    /// The result of a part; `None` if it must wait for a value to be stored.
    pub(crate) fn part<T>(&mut self, result: Result<T, Stop>) -> Result<Option<T>, Stop> {
        match result {
            Ok(part) => Ok(Some(part)),
            Err(Stop::Store(values)) => {
                self.stopped = true;
                self.values.extend(values);
                Ok(None)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Stops if any part had to.
    pub(crate) fn check(self) -> Result<(), Stop> {
        if self.stopped { Err(Stop::Store(self.values)) } else { Ok(()) }
    }
}

impl From<PassError> for Stop {
    fn from(error: PassError) -> Stop {
        Stop::Fail(error)
    }
}

impl From<DimError> for Stop {
    fn from(error: DimError) -> Stop {
        Stop::Fail(error.into())
    }
}

/// The operands and size arguments of a kernel, numbered in the order of first use so that equal kernels are equal.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) buffers: Vec<BufferId>,
    pub(crate) operands: Vec<Operand>,
    pub(crate) sizes: Vec<Dim>,
    /// Bytes per operand: what its distinct accesses touch.
    pub(crate) bytes: Vec<Dim>,
    operand_of: HashMap<BufferId, u32>,
    size_of: HashMap<Dim, u32>,
    seen: HashSet<Access>,
}

impl Arguments {
    /// The operand bound to `buffer`.
    pub(crate) fn operand(&mut self, buffer: BufferId, dtype: DType, mode: OperandMode) -> u32 {
        if let Some(&position) = self.operand_of.get(&buffer) {
            let operand = &mut self.operands[position as usize];
            if operand.mode != mode {
                operand.mode = OperandMode::ReadWrite;
            }
            return position;
        }
        let position = self.buffers.len() as u32;
        self.operand_of.insert(buffer, position);
        self.buffers.push(buffer);
        self.operands.push(Operand { dtype, mode });
        self.bytes.push(Dim::constant(0));
        position
    }

    /// A size: a constant or an argument.
    pub(crate) fn size(&mut self, dim: &Dim) -> Size {
        if let Some(value) = dim.as_constant() {
            return Size::Const(value);
        }
        if let Some(&position) = self.size_of.get(dim) {
            return Size::Arg(position);
        }
        let position = self.sizes.len() as u32;
        self.size_of.insert(dim.clone(), position);
        self.sizes.push(dim.clone());
        Size::Arg(position)
    }

    /// Counts the bytes of an access once: the elements that it reaches along the axes on which it depends.
    pub(crate) fn count(&mut self, access: &Access, extents: &[Dim]) -> Result<(), DimError> {
        if !self.seen.insert(access.clone()) {
            return Ok(());
        }
        let operand = access.operand as usize;
        let index = access.indirect.as_ref().map(|indirect| &indirect.index);
        let depends = |axis: usize| {
            !access.strides[axis].is(0) || index.is_some_and(|index| !index.strides[axis].is(0))
        };
        let mut bytes = Dim::constant(self.operands[operand].dtype.size() as i64);
        for (axis, extent) in extents.iter().enumerate() {
            if depends(axis) {
                bytes = bytes.mul(extent)?;
            }
        }
        self.bytes[operand] = self.bytes[operand].add(&bytes)?;
        Ok(())
    }
}

/// What a slot accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Any function.
    Any,
    /// A load, perhaps gathered, perhaps followed by casts.
    Cast,
    /// A direct load, perhaps cast from 8-bit integers.
    Packed,
    /// A direct load.
    Load,
}

/// Makes one scalar function.
pub(crate) struct Emitter<'a> {
    pub(crate) state: &'a State,
    pub(crate) homes: &'a [Option<Home>],
    pub(crate) group: &'a Group,
    pub(crate) arguments: &'a mut Arguments,
    /// Extents of the axes of the function.
    pub(crate) extents: Vec<Dim>,
    /// Axes `first .. first + count` are one axis of the kernel.
    pub(crate) merged: Option<(usize, usize)>,
    pub(crate) form: Form,
    /// True where the group's results are at hand.
    pub(crate) results: bool,
    pub(crate) function: ScalarFunction,
    /// The steps of values, `None` for those that could not be computed.
    memo: HashMap<(Value, Map), Option<StepId>>,
    numbers: HashMap<Step, StepId>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(
        state: &'a State,
        homes: &'a [Option<Home>],
        group: &'a Group,
        arguments: &'a mut Arguments,
        extents: &[Dim],
    ) -> Emitter<'a> {
        Emitter {
            state,
            homes,
            group,
            arguments,
            extents: extents.to_vec(),
            merged: None,
            form: Form::Any,
            results: true,
            function: ScalarFunction::default(),
            memo: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// The step equal to `step`, added if there is none yet.
    pub(crate) fn push(&mut self, step: Step) -> StepId {
        let function = &mut self.function;
        *self.numbers.entry(step).or_insert_with_key(|step| function.push(step.clone()))
    }

    /// The step that computes `value` at `map`.
    pub(crate) fn value(&mut self, value: Value, map: &[Coord]) -> Result<StepId, Stop> {
        let key = (value, map.to_vec());
        if let Some(step) = self.memo.get(&key) {
            // What is missing has been told the first time.
            return step.ok_or(Stop::Store(Vec::new()));
        }
        let step = self.compute(value, map);
        self.memo.insert(key, step.as_ref().ok().copied());
        step
    }

    fn compute(&mut self, value: Value, map: &[Coord]) -> Result<StepId, Stop> {
        if self.results
            && let Some(number) = self.group.accumulator(value, map)
        {
            let accumulator = self.push(Step::Accumulator(number));
            let dtype = self.state.graph.ty(value).dtype;
            if dtype == DType::F32 {
                return Ok(accumulator);
            }
            return Ok(self.push(Step::Apply { op: ScalarOp::Cast(dtype), args: vec![accumulator] }));
        }
        if self.state.stored[value.index()] && !self.is_local(value) {
            return self.load(value, map);
        }
        let Some((_, data)) = self.state.def(value) else { return Err(Stop::store(value)) };
        match &data.op {
            Op::Constant { value: constant, dtype } if self.form == Form::Any => {
                Ok(self.push(Step::Constant { value: *constant, dtype: *dtype }))
            }
            Op::Size { dim } if self.form == Form::Any => self.affine(&Coord::constant(dim.clone()), value),
            Op::Iota { axis, .. } if self.form == Form::Any => self.affine(&map[*axis], value),
            Op::Reshape { .. } => self.reshape(value, data, map),
            op if op.is_view() => match self.state.through_view(data, map, &self.extents)? {
                Some(operand) => self.value(data.operands[0], &operand),
                None => Err(Stop::store(data.operands[0])),
            },
            Op::Concat { .. } => match self.state.through_concat(data, map, &self.extents)? {
                Some((piece, map)) => self.value(piece, &map),
                None => Err(Stop::store(value)),
            },
            Op::Gather if matches!(self.form, Form::Any | Form::Cast) => self.gather(data, map),
            op => match op.scalar() {
                Some(scalar) if self.accepts(scalar, data.operands[0]) => {
                    let mut args = Vec::with_capacity(data.operands.len());
                    let mut missing = Missing::default();
                    for operand in &data.operands {
                        let step = self.value(*operand, map);
                        args.extend(missing.part(step)?);
                    }
                    missing.check()?;
                    Ok(self.push(Step::Apply { op: scalar, args }))
                }
                _ => Err(Stop::store(value)),
            },
        }
    }

    fn accepts(&self, op: ScalarOp, operand: Value) -> bool {
        match self.form {
            Form::Any => true,
            Form::Cast => matches!(op, ScalarOp::Cast(_)),
            Form::Packed => {
                matches!(op, ScalarOp::Cast(_)) && self.state.graph.ty(operand).dtype == DType::I8
            }
            Form::Load => false,
        }
    }

    /// True for a value that this kernel computes, and so must not load.
    fn is_local(&self, value: Value) -> bool {
        self.results && (self.group.inside.contains(&value) || self.group.owned.contains(&value))
    }

    fn reshape(&mut self, value: Value, data: &NodeData, map: &[Coord]) -> Result<StepId, Stop> {
        // Elements keep their row-major order, so a dense value needs no coordinates of its own.
        let source = self.state.reshaped(data.operands[0]);
        if self.state.stored[source.index()]
            && !self.is_local(source)
            && let Some(home) = self.home(source)
            && home.dense
        {
            let strides = row_major(&self.state.graph.ty(value).shape)?;
            let home = Home { strides, ..home };
            return self.load_at(source, &home, map);
        }
        match self.state.through_view(data, map, &self.extents)? {
            Some(operand) => self.value(data.operands[0], &operand),
            None => Err(Stop::store(data.operands[0])),
        }
    }

    fn home(&self, value: Value) -> Option<Home> {
        self.homes[value.index()].clone()
    }

    fn load(&mut self, value: Value, map: &[Coord]) -> Result<StepId, Stop> {
        match self.home(value) {
            Some(home) => self.load_at(value, &home, map),
            None => Err(Stop::store(value)),
        }
    }

    fn load_at(&mut self, value: Value, home: &Home, map: &[Coord]) -> Result<StepId, Stop> {
        let at = linear(map, &home.strides)?.ok_or(Stop::store(value))?.shifted(&home.offset)?;
        let access = self.access(home, &at, OperandMode::Read)?.ok_or(Stop::store(value))?;
        Ok(self.push(Step::Load(access)))
    }

    /// The access to the element at `at` of a buffer; `None` if merged axes do not lie one behind the other.
    fn access(&mut self, home: &Home, at: &Coord, mode: OperandMode) -> Result<Option<Access>, Stop> {
        let Some(strides) = self.merge(&at.terms)? else { return Ok(None) };
        let operand = self.arguments.operand(home.buffer, home.dtype, mode);
        let indirect = match &at.indirect {
            None => None,
            Some(term) => {
                if matches!(self.form, Form::Load | Form::Packed) {
                    return Ok(None);
                }
                let Some(index_strides) = self.merge(&term.access.terms)? else { return Ok(None) };
                let index_operand = self.arguments.operand(term.access.buffer, DType::I32, OperandMode::Read);
                let index = Access {
                    operand: index_operand,
                    offset: self.arguments.size(&term.access.offset),
                    strides: index_strides.iter().map(|stride| self.arguments.size(stride)).collect(),
                    indirect: None,
                };
                let extents = self.merged_extents()?;
                self.arguments.count(&index, &extents)?;
                Some(Box::new(Indirect { index, stride: self.arguments.size(&term.factor) }))
            }
        };
        let offset = self.arguments.size(&at.offset);
        let strides = strides.iter().map(|stride| self.arguments.size(stride)).collect();
        let access = Access { operand, offset, strides, indirect };
        let extents = self.merged_extents()?;
        self.arguments.count(&access, &extents)?;
        Ok(Some(access))
    }

    fn merged_extents(&self) -> Result<Vec<Dim>, DimError> {
        let Some((first, count)) = self.merged else { return Ok(self.extents.clone()) };
        let merged = nucleus_ir::dim::product(&self.extents[first..first + count])?;
        let mut extents = self.extents[..first].to_vec();
        extents.push(merged);
        extents.extend_from_slice(&self.extents[first + count..]);
        Ok(extents)
    }

    /// Dense strides of an access, with merged axes as one.
    fn merge(&self, terms: &[(usize, Dim)]) -> Result<Option<Vec<Dim>>, DimError> {
        let mut strides = vec![Dim::constant(0); self.extents.len()];
        for (axis, stride) in terms {
            strides[*axis] = stride.clone();
        }
        let Some((first, count)) = self.merged else { return Ok(Some(strides)) };
        let last = first + count - 1;
        // The stride of the innermost merged axis that has several points, and the number of points so far.
        let mut inner: Option<(Dim, Dim)> = None;
        for axis in (first..=last).rev().filter(|axis| !self.extents[*axis].is_constant(1)) {
            let (stride, points) = match inner {
                None => (strides[axis].clone(), Dim::constant(1)),
                Some(inner) => inner,
            };
            if strides[axis] != stride.mul(&points)? {
                return Ok(None);
            }
            inner = Some((stride, points.mul(&self.extents[axis])?));
        }
        let stride = inner.map_or(Dim::constant(0), |(stride, _)| stride);
        let mut merged = strides[..first].to_vec();
        merged.push(stride);
        merged.extend_from_slice(&strides[last + 1..]);
        Ok(Some(merged))
    }

    /// The `i32` value of a coordinate.
    fn affine(&mut self, coord: &Coord, value: Value) -> Result<StepId, Stop> {
        if coord.indirect.is_some() {
            return Err(Stop::store(value));
        }
        if let (Some(constant), []) = (coord.offset.as_constant(), coord.terms.as_slice()) {
            let value = nucleus_ir::Float(constant as f64);
            return Ok(self.push(Step::Constant { value, dtype: DType::I32 }));
        }
        let strides = self.merge(&coord.terms)?.ok_or(Stop::store(value))?;
        let offset = self.arguments.size(&coord.offset);
        let strides = strides.iter().map(|stride| self.arguments.size(stride)).collect();
        Ok(self.push(Step::Affine { offset, strides }))
    }

    fn gather(&mut self, data: &NodeData, map: &[Coord]) -> Result<StepId, Stop> {
        let (source, index) = (data.operands[0], data.operands[1]);
        let index_rank = self.state.graph.ty(index).rank();
        let access = self.index_access(index, &map[..index_rank])?;
        let bound = self.state.graph.ty(source).shape[1].clone();
        let factor = Dim::constant(1);
        let term = IndirectTerm { access, factor, bound };
        let row = Coord { indirect: Some(Rc::new(term)), ..Coord::zero() };
        let mut operand = vec![map[0].clone(), row];
        operand.extend_from_slice(&map[index_rank..]);
        // Only rows of stored values are taken by index: what computes a row would run once for every time it is taken.
        let mut at = (source, operand);
        loop {
            if self.state.stored[at.0.index()] {
                let form = std::mem::replace(&mut self.form, Form::Cast);
                let step = self.load(at.0, &at.1);
                self.form = form;
                return step;
            }
            let source = self.state.reshaped(at.0);
            let stored_densely = self.state.stored[source.index()]
                && self.homes[source.index()].as_ref().is_some_and(|home| home.dense);
            if stored_densely {
                let form = std::mem::replace(&mut self.form, Form::Cast);
                let (_, view) = self.state.def(at.0).ok_or(Stop::store(at.0))?;
                let step = self.reshape(at.0, view, &at.1);
                self.form = form;
                return step;
            }
            let Some((_, view)) = self.state.def(at.0).filter(|(_, data)| data.op.is_view()) else {
                return Err(Stop::store(at.0));
            };
            match self.state.through_view(view, &at.1, &self.extents)? {
                Some(map) => at = (view.operands[0], map),
                None => return Err(Stop::store(view.operands[0])),
            }
        }
    }

    /// Where an index is loaded from.
    fn index_access(&mut self, index: Value, map: &[Coord]) -> Result<IndexAccess, Stop> {
        let mut at = (index, map.to_vec());
        loop {
            let source = self.state.reshaped(at.0);
            let home = if self.state.stored[source.index()] { self.home(source) } else { None };
            if let Some(home) = home
                && (source == at.0 || home.dense)
            {
                let strides =
                    if source == at.0 { home.strides } else { row_major(&self.state.graph.ty(at.0).shape)? };
                let coord = linear(&at.1, &strides)?.filter(|coord| coord.indirect.is_none());
                let coord = coord.ok_or(Stop::store(index))?.shifted(&home.offset)?;
                return Ok(IndexAccess { buffer: home.buffer, offset: coord.offset, terms: coord.terms });
            }
            let Some((_, view)) = self.state.def(at.0).filter(|(_, data)| data.op.is_view()) else {
                return Err(Stop::store(at.0));
            };
            match self.state.through_view(view, &at.1, &self.extents)? {
                Some(map) => at = (view.operands[0], map),
                None => return Err(Stop::store(view.operands[0])),
            }
        }
    }

    /// Adds a store of `value`, computed at each of `maps`, to its home.
    pub(crate) fn store(&mut self, value: Value, maps: &[Map]) -> Result<(), Stop> {
        let home = self.home(value).ok_or(Stop::store(value))?;
        let mut missing = Missing::default();
        for map in maps {
            let step = self.value(value, map);
            if let Some(step) = missing.part(step)? {
                self.store_at(step, &home, map, value)?;
            }
        }
        missing.check()
    }

    /// Adds a store of a step to the element of `home` at `map`.
    pub(crate) fn store_at(
        &mut self,
        step: StepId,
        home: &Home,
        map: &[Coord],
        value: Value,
    ) -> Result<(), Stop> {
        let at = linear(map, &home.strides)?.ok_or(Stop::store(value))?.shifted(&home.offset)?;
        let access = self.access(home, &at, OperandMode::Write)?.ok_or(Stop::store(value))?;
        self.function.push(Step::Store { access, value: step });
        Ok(())
    }

    /// The function whose result is `step`, converted to `dtype`.
    pub(crate) fn finish(mut self, step: StepId, from: DType, dtype: DType) -> ScalarFunction {
        let step = if from == dtype {
            step
        } else {
            self.push(Step::Apply { op: ScalarOp::Cast(dtype), args: vec![step] })
        };
        self.function.result = Some(step);
        self.function
    }
}
