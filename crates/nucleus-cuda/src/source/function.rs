//! Scalar functions as C++.
//!
//! A function becomes a `__device__` function of the same steps. It computes `V` neighbouring points at a time, *lanes*, along one axis
//! of its iteration space: what is the same for all of them is computed once, elements that lie side by side are loaded and stored as
//! vectors where [`Facts`] show that they are aligned. `V` is a template parameter, so one text serves whole vectors and edges.
//!
//! In C++ values are `float` for every float type (holding a number of that type), `int` for `i32` and `i8`, `bool` for `bool`;
//! `prelude.cuh` has the operations.

use std::fmt::Write;

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Operand, ScalarFunction, Size, Step, StepId};

use super::SourceError;
use super::pairs::{Pair, pairs};
use crate::facts::Facts;

/// Where a printed function finds its operands and size arguments.
pub trait Names {
    /// A C++ expression of type `void*`: the memory of an operand.
    fn operand(&self, operand: u32) -> String;
    /// A C++ expression of type `int`: a size argument.
    fn size(&self, argument: u32) -> String;
}

/// Operands and sizes straight from the kernel's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Names for Direct {
    fn operand(&self, operand: u32) -> String {
        format!("args.o[{operand}]")
    }

    fn size(&self, argument: u32) -> String {
        format!("args.s[{argument}]")
    }
}

/// A scalar function in a slot of a template, and how it is to be printed.
///
/// The printed function has the parameters `const Arguments& args, int i0, int i1, …`, one coordinate for each axis, the one of
/// `lanes` being that of the first lane and a multiple of `V`. If it has accumulators there follow
/// `const float (&lane)[L][V], const float (&sum)[S]`, where L and S are [`Slot::lane_accumulators`] and [`Slot::sums`], at least 1. A function with a result returns
/// `Lanes<type, V>`; one with [`Slot::values`] gives them in a last parameter `float (&value)[R][V]`; any other returns nothing.
pub struct Slot<'a> {
    /// The name in C++.
    pub name: String,
    /// The function.
    pub function: &'a ScalarFunction,
    /// The number of axes of its iteration space.
    pub axes: usize,
    /// The axis along which lanes lie; `None` for a function of one point, printed without the template parameter, V being 1.
    pub lanes: Option<usize>,
    /// The operands of the kernel.
    pub operands: &'a [Operand],
    /// What is known of its sizes.
    pub facts: &'a Facts,
    /// Accumulators that differ from lane to lane: the first ones.
    pub lane_accumulators: u32,
    /// Accumulators that all lanes share: those behind.
    pub sums: u32,
    /// Steps whose values are given back: what a phase reduces.
    pub values: &'a [StepId],
    /// Further parameters, printed before the first coordinate, e.g. `int part, `.
    pub parameters: &'a str,
    /// Where operands and sizes are found.
    pub names: &'a dyn Names,
}

impl Slot<'_> {
    /// The function as C++.
    ///
    /// # Errors
    /// The function is malformed, which a verified plan's are not.
    pub fn print(&self) -> Result<String, SourceError> {
        Printer::new(self)?.print()
    }
}

/// The C++ type in which an element of this type lies in memory.
pub fn memory_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::I32 => "int",
        DType::I8 => "signed char",
        DType::Bool => "boolean",
    }
}

/// The C++ type of a value of this type.
pub fn value_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => "float",
        DType::I32 | DType::I8 => "int",
        DType::Bool => "bool",
    }
}

/// An element number as a C++ expression of type `i64`.
pub fn element(access: &Access, names: &dyn Names) -> String {
    let mut terms = Vec::new();
    let size = |size: Size| match size {
        Size::Const(value) => format!("i64({value})"),
        Size::Arg(argument) => format!("i64({})", names.size(argument)),
    };
    if !access.offset.is(0) {
        terms.push(size(access.offset));
    }
    for (axis, stride) in access.strides.iter().enumerate() {
        if stride.is(1) {
            terms.push(format!("i{axis}"));
        } else if !stride.is(0) {
            terms.push(format!("{} * i{axis}", size(*stride)));
        }
    }
    if let Some(indirect) = &access.indirect {
        let index = &indirect.index;
        let at = element(index, names);
        terms.push(format!(
            "{} * memory<const int>({})[{at}]",
            size(indirect.stride),
            names.operand(index.operand)
        ));
    }
    if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
}

/// How a value relates to the lanes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The same for all.
    Uniform,
    /// One for each: an array.
    Lanes,
}

struct Printer<'a> {
    slot: &'a Slot<'a>,
    dtypes: Vec<Option<DType>>,
    kinds: Vec<Kind>,
    /// Accesses that are made together.
    pairs: Vec<Pair>,
    text: String,
    /// The body of the loop over lanes that is open, if one is.
    body: String,
    /// A store came since the last loads: loads must wait for it.
    stored: bool,
}

impl<'a> Printer<'a> {
    fn new(slot: &'a Slot<'a>) -> Result<Printer<'a>, SourceError> {
        let known = slot.function.accesses().all(|access| (access.operand as usize) < slot.operands.len());
        if !known {
            return Err(SourceError::Malformed(slot.name.clone()));
        }
        let dtypes = slot.function.dtypes(|operand| slot.operands[operand as usize].dtype);
        let mut kinds: Vec<Kind> = Vec::new();
        for step in &slot.function.steps {
            let lanes = match (step, slot.lanes) {
                (_, None) | (Step::Constant { .. }, _) => false,
                (Step::Load(access) | Step::Store { access, .. }, Some(axis)) => varies(access, axis),
                (Step::Affine { strides, .. }, Some(axis)) => strides.get(axis).is_some_and(|s| !s.is(0)),
                (Step::Accumulator(number), _) => *number < slot.lane_accumulators,
                (Step::Apply { args, .. }, _) => {
                    args.iter().any(|id| kinds.get(id.0 as usize) == Some(&Kind::Lanes))
                }
            };
            kinds.push(if lanes { Kind::Lanes } else { Kind::Uniform });
        }
        let pairs = slot.lanes.map(|axis| pairs(slot.function, slot.operands, axis)).unwrap_or_default();
        Ok(Printer { slot, dtypes, kinds, pairs, text: String::new(), body: String::new(), stored: false })
    }

    fn print(mut self) -> Result<String, SourceError> {
        let slot = self.slot;
        let signature = self.signature()?;
        for (number, step) in slot.function.steps.iter().enumerate() {
            self.step(number, step)?;
        }
        self.close();
        for (number, id) in slot.values.iter().enumerate() {
            let value = self.at(*id)?;
            self.each_lane(&format!("value[{number}][l] = {value};"));
        }
        if let Some(id) = slot.function.result {
            let value = self.at(id)?;
            let ty = value_type(self.dtype(id)?);
            let width = self.width();
            let _ = writeln!(self.text, "    Lanes<{ty}, {width}> result;");
            self.each_lane(&format!("result.at[l] = {value};"));
            self.text.push_str("    return result;\n");
        }
        Ok(format!("{signature} {{\n{}}}\n", self.text))
    }

    fn width(&self) -> &'static str {
        if self.slot.lanes.is_some() { "V" } else { "1" }
    }

    fn signature(&self) -> Result<String, SourceError> {
        let slot = self.slot;
        let width = self.width();
        let mut text = String::new();
        if slot.lanes.is_some() {
            text.push_str("template <int V>\n");
        }
        let result = match slot.function.result {
            Some(id) => format!("Lanes<{}, {width}>", value_type(self.dtype(id)?)),
            None => "void".to_owned(),
        };
        let _ = write!(text, "DEVICE {result} {}(const Arguments& args", slot.name);
        text.push_str(slot.parameters);
        for axis in 0..slot.axes {
            let _ = write!(text, ", int i{axis}");
        }
        if slot.lane_accumulators + slot.sums > 0 {
            let (lanes, sums) = (slot.lane_accumulators.max(1), slot.sums.max(1));
            let _ = write!(text, ", const float (&lane)[{lanes}][{width}], const float (&sum)[{sums}]");
        }
        if !slot.values.is_empty() {
            let _ = write!(text, ", float (&value)[{}][{width}]", slot.values.len());
        }
        text.push(')');
        Ok(text)
    }

    fn step(&mut self, number: usize, step: &Step) -> Result<(), SourceError> {
        let pair = self.pairs.iter().copied().find(|pair| pair.even == number || pair.odd == number);
        match step {
            Step::Load(_) | Step::Store { .. } if pair.is_some() => {
                pair.map_or(Ok(()), |pair| self.pair(number, pair))
            }
            Step::Load(access) => self.load(number, access),
            Step::Store { access, value } => self.store(number, access, *value),
            Step::Constant { value, dtype } => {
                let text = constant(value.0, *dtype);
                self.define(number, *dtype, &text)
            }
            Step::Affine { offset, strides } => {
                let access = Access { operand: 0, offset: *offset, strides: strides.clone(), indirect: None };
                let mut text = element(&access, self.slot.names);
                if let (Kind::Lanes, Some(axis)) = (self.kinds[number], self.slot.lanes) {
                    let _ = write!(text, " + {} * l", self.size(strides[axis]));
                }
                self.define(number, DType::I32, &format!("int({text})"))
            }
            Step::Accumulator(accumulator) => {
                let slot = self.slot;
                let text = if *accumulator < slot.lane_accumulators {
                    format!("lane[{accumulator}][{}]", if self.slot.lanes.is_some() { "l" } else { "0" })
                } else if *accumulator < slot.lane_accumulators + slot.sums {
                    format!("sum[{}]", accumulator - slot.lane_accumulators)
                } else {
                    return Err(SourceError::Malformed(slot.name.clone()));
                };
                self.define(number, DType::F32, &text)
            }
            Step::Apply { op, args } => {
                let dtype = self.dtype(StepId(number as u32))?;
                let from = args.last().map_or(Ok(dtype), |id| self.dtype(*id))?;
                let args = args.iter().map(|id| self.at(*id)).collect::<Result<Vec<_>, _>>()?;
                let text = apply(*op, from, &args);
                self.define(number, dtype, &text)
            }
        }
    }

    /// Defines the value of a step: a constant, or an element of an array in the open loop.
    fn define(&mut self, number: usize, dtype: DType, value: &str) -> Result<(), SourceError> {
        let ty = value_type(dtype);
        match self.kinds[number] {
            Kind::Uniform => {
                // Uniform values follow uniform values alone: they may stand before the loop that is open.
                let _ = writeln!(self.text, "    const {ty} v{number} = {value};");
            }
            Kind::Lanes => {
                let _ = writeln!(self.text, "    {ty} v{number}[V];");
                let _ = writeln!(self.body, "        v{number}[l] = {value};");
            }
        }
        Ok(())
    }

    fn load(&mut self, number: usize, access: &Access) -> Result<(), SourceError> {
        if self.stored {
            self.close();
        }
        let dtype = self.dtype(StepId(number as u32))?;
        let (memory, ty) = (memory_type(dtype), value_type(dtype));
        let pointer = self.pointer(access, &format!("const {memory}"));
        match (self.kinds[number], self.slot.lanes) {
            (Kind::Lanes, Some(axis)) => {
                let _ = writeln!(self.text, "    {ty} v{number}[V];");
                let through = access.indirect.as_ref().is_some_and(|indirect| varies(&indirect.index, axis));
                let stride = access.strides.get(axis).copied().unwrap_or(Size::Const(0));
                if through {
                    let lane = self.lane_element(access, axis);
                    let base = format!("memory<const {memory}>({})", self.slot.names.operand(access.operand));
                    self.each_lane(&format!("v{number}[l] = load({base} + ({lane}));"));
                } else if stride.is(1) {
                    let aligned = self.slot.facts.alignment(access, axis);
                    let _ = writeln!(self.text, "    load_lanes<{aligned}>({pointer}, v{number});");
                } else {
                    let stride = self.size(stride);
                    let _ = writeln!(self.text, "    load_apart({pointer}, {stride}, v{number});");
                }
            }
            _ => {
                let _ = writeln!(self.text, "    const {ty} v{number} = load({pointer});");
            }
        }
        Ok(())
    }

    /// Two loads or stores of alternating elements: where the first of the loads is, where the second of the stores is.
    fn pair(&mut self, number: usize, pair: Pair) -> Result<(), SourceError> {
        let slot = self.slot;
        let Pair { even, odd } = pair;
        let axis = slot.lanes.unwrap_or(0);
        match (&slot.function.steps[even], &slot.function.steps[odd]) {
            (Step::Load(access), _) if number == pair.first() => {
                if self.stored {
                    self.close();
                }
                let dtype = self.dtype(StepId(even as u32))?;
                let (aligned, ty) = (slot.facts.alignment(access, axis), value_type(dtype));
                let pointer = self.pointer(access, &format!("const {}", memory_type(dtype)));
                let _ = writeln!(
                    self.text,
                    "    {ty} p{even}[2 * V], v{even}[V], v{odd}[V];\n    load_lanes<{aligned}>({pointer}, p{even});"
                );
                self.each_lane(&format!("v{even}[l] = p{even}[2 * l], v{odd}[l] = p{even}[2 * l + 1];"));
            }
            (Step::Store { access, value }, Step::Store { value: other, .. }) if number != pair.first() => {
                self.close();
                self.stored = true;
                let memory = memory_type(slot.operands[access.operand as usize].dtype);
                let (aligned, ty) = (slot.facts.alignment(access, axis), value_type(self.dtype(*value)?));
                let (first, second) = (self.at(*value)?, self.at(*other)?);
                let pointer = self.pointer(access, memory);
                let _ = writeln!(self.text, "    {ty} p{even}[2 * V];");
                self.each_lane(&format!("p{even}[2 * l] = {first}, p{even}[2 * l + 1] = {second};"));
                let _ = writeln!(self.text, "    store_global<{aligned}>({pointer}, p{even});");
            }
            _ => {}
        }
        Ok(())
    }

    fn store(&mut self, number: usize, access: &Access, value: StepId) -> Result<(), SourceError> {
        self.close();
        self.stored = true;
        let memory = memory_type(self.slot.operands[access.operand as usize].dtype);
        let pointer = self.pointer(access, memory);
        let ty = value_type(self.dtype(value)?);
        let Some(axis) = self.slot.lanes else {
            let _ = writeln!(self.text, "    store({pointer}, v{});", value.0);
            return Ok(());
        };
        let source = match self.kinds.get(value.0 as usize) {
            Some(Kind::Lanes) => format!("v{}", value.0),
            _ => {
                let _ = writeln!(self.text, "    {ty} u{number}[V];");
                self.each_lane(&format!("u{number}[l] = v{};", value.0));
                format!("u{number}")
            }
        };
        let through = access.indirect.as_ref().is_some_and(|indirect| varies(&indirect.index, axis));
        let stride = access.strides.get(axis).copied().unwrap_or(Size::Const(0));
        if through {
            let lane = self.lane_element(access, axis);
            let base = format!("memory<{memory}>({})", self.slot.names.operand(access.operand));
            self.each_lane(&format!("store({base} + ({lane}), {source}[l]);"));
        } else if stride.is(1) {
            let aligned = self.slot.facts.alignment(access, axis);
            let _ = writeln!(self.text, "    store_global<{aligned}>({pointer}, {source});");
        } else {
            let stride = self.size(stride);
            let _ = writeln!(self.text, "    store_apart({pointer}, {stride}, {source});");
        }
        Ok(())
    }

    /// The element of lane `l`, for accesses whose index is another for each lane.
    fn lane_element(&self, access: &Access, axis: usize) -> String {
        let text = element(access, self.slot.names);
        // The coordinate of the axis is that of the lane.
        replace_coordinate(&text, axis)
    }

    fn pointer(&self, access: &Access, ty: &str) -> String {
        let names = self.slot.names;
        format!("memory<{ty}>({}) + ({})", names.operand(access.operand), element(access, names))
    }

    fn size(&self, size: Size) -> String {
        match size {
            Size::Const(value) => format!("i64({value})"),
            Size::Arg(argument) => format!("i64({})", self.slot.names.size(argument)),
        }
    }

    /// A value as seen by lane `l`.
    fn at(&self, id: StepId) -> Result<String, SourceError> {
        match self.kinds.get(id.0 as usize) {
            Some(Kind::Uniform) => Ok(format!("v{}", id.0)),
            Some(Kind::Lanes) => Ok(format!("v{}[l]", id.0)),
            None => Err(SourceError::Malformed(self.slot.name.clone())),
        }
    }

    fn dtype(&self, id: StepId) -> Result<DType, SourceError> {
        let dtype = self.dtypes.get(id.0 as usize).copied().flatten();
        dtype.ok_or_else(|| SourceError::Malformed(self.slot.name.clone()))
    }

    /// A statement for every lane, at once.
    fn each_lane(&mut self, statement: &str) {
        let width = self.width();
        let _ = writeln!(self.text, "    UNROLL for (int l = 0; l < {width}; ++l) {statement}");
    }

    /// Ends the open loop over lanes.
    fn close(&mut self) {
        if !self.body.is_empty() {
            let width = self.width();
            let body = std::mem::take(&mut self.body);
            let _ = write!(self.text, "    UNROLL for (int l = 0; l < {width}; ++l) {{\n{body}    }}\n");
        }
        self.stored = false;
    }
}

/// True if an access touches another element in every lane.
fn varies(access: &Access, axis: usize) -> bool {
    let along = |access: &Access| access.strides.get(axis).is_some_and(|stride| !stride.is(0));
    along(access) || access.indirect.as_ref().is_some_and(|indirect| along(&indirect.index))
}

/// `text` with the coordinate of `axis` replaced by that of lane `l`.
fn replace_coordinate(text: &str, axis: usize) -> String {
    let name = format!("i{axis}");
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&name) {
        let end = at + name.len();
        let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let whole = !rest[..at].chars().next_back().is_some_and(part_of_word)
            && !rest[end..].chars().next().is_some_and(part_of_word);
        result.push_str(&rest[..at]);
        result.push_str(&if whole { format!("({name} + l)") } else { name.clone() });
        rest = &rest[end..];
    }
    result + rest
}

/// A number of an element type as a C++ expression. `f32` numbers are printed with the digits that give them back.
pub fn constant(value: f64, dtype: DType) -> String {
    match dtype {
        DType::Bool => (value != 0.0).to_string(),
        DType::I32 | DType::I8 => {
            let value = value as i32;
            // The smallest number has no literal.
            if value == i32::MIN { "(-2147483647 - 1)".to_owned() } else { value.to_string() }
        }
        DType::F32 | DType::Bf16 | DType::F16 => {
            let value = value as f32;
            if value.is_nan() {
                "NOT_A_NUMBER".to_owned()
            } else if value.is_infinite() {
                if value > 0.0 { "INFINITE".to_owned() } else { "-INFINITE".to_owned() }
            } else {
                format!("{value:e}f")
            }
        }
    }
}

/// An operation on values of type `dtype` (for a selection that of the alternatives), rounded to its element type.
fn apply(op: ScalarOp, dtype: DType, args: &[String]) -> String {
    let joined = args.join(", ");
    if let ScalarOp::Cast(to) = op {
        return cast(dtype, to, &joined);
    }
    let prefix = match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => "f",
        DType::I32 | DType::I8 => "i",
        DType::Bool => "b",
    };
    let infix = |symbol: &str| args.join(symbol);
    let value = match (op, prefix) {
        (ScalarOp::Add, "f") => infix(" + "),
        (ScalarOp::Sub, "f") => infix(" - "),
        (ScalarOp::Mul, "f") => infix(" * "),
        (ScalarOp::Neg, "f") => format!("-{joined}"),
        (ScalarOp::Less, _) => infix(" < "),
        (ScalarOp::LessEqual, _) => infix(" <= "),
        (ScalarOp::Equal, _) => infix(" == "),
        (ScalarOp::And, _) => infix(" && "),
        (ScalarOp::Or, _) => infix(" || "),
        (ScalarOp::Not, _) => format!("!{joined}"),
        (ScalarOp::Select, _) => match args {
            [condition, yes, no] => format!("{condition} ? {yes} : {no}"),
            _ => joined,
        },
        (op, prefix) => format!("{prefix}_{}({joined})", op.name()),
    };
    let exact = matches!(
        op,
        ScalarOp::Neg
            | ScalarOp::Abs
            | ScalarOp::Max
            | ScalarOp::Min
            | ScalarOp::Select
            | ScalarOp::Less
            | ScalarOp::LessEqual
            | ScalarOp::Equal
    );
    match dtype {
        DType::Bf16 if !exact => format!("round_bf16({value})"),
        DType::F16 if !exact => format!("round_f16({value})"),
        _ => value,
    }
}

fn cast(from: DType, to: DType, value: &str) -> String {
    let number = match (from.is_float(), to) {
        _ if from == to => return value.to_owned(),
        (true, DType::I32) => return format!("float_to_int({value})"),
        (_, DType::Bool) => return format!("{value} != 0"),
        (false, DType::I32) => return format!("int({value})"),
        (true, _) => value.to_owned(),
        (false, _) => format!("float({value})"),
    };
    match to {
        DType::Bf16 => format!("round_bf16({number})"),
        DType::F16 => format!("round_f16({number})"),
        _ => number,
    }
}
