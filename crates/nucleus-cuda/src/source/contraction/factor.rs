//! A factor as a struct in C++: see `matmul/factor.cuh`.

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Operand, ScalarFunction, Size, Step, StepId};

use crate::facts::Facts;
use crate::source::SourceError;
use crate::source::function::{Names, Slot, element, memory_type};
use crate::source::space::{coordinates, size};

/// The function of a factor and the space that it is stated over: batch axes, and, in either order, the axes of lines and the depth.
pub(super) struct Factor<'a> {
    pub(super) function: &'a ScalarFunction,
    pub(super) operands: &'a [Operand],
    pub(super) facts: &'a Facts,
    pub(super) names: &'a dyn Names,
    /// The element type of the products.
    pub(super) dtype: DType,
    pub(super) batch: &'a [Size],
    /// The contraction's names for what is not the part's: extents of batch and rows.
    pub(super) outer: &'a dyn Names,
    /// The first of the axes of lines; the others follow.
    pub(super) first_line: usize,
    /// Extents of the axes of lines, of which the columns have one.
    pub(super) lines: &'a [Size],
    pub(super) depth_axis: usize,
    /// A power of two that divides the depth.
    pub(super) depth_divisor: i64,
    /// A power of two such that lines from a multiple of it on, as many as it says, lie side by side if lines do.
    pub(super) granularity: i64,
    /// Whether bytes may be widened on their way: not those of left factors.
    pub(super) may_widen: bool,
    /// True if the number of lines is a multiple of as many lines as are moved at a time, given that number.
    pub(super) whole_lines: i64,
}

/// How a factor is moved to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// Neighbours along the depth lie side by side.
    pub(super) depth_major: bool,
    /// How many at a time.
    pub(super) elements: i64,
    /// Not a copy.
    pub(super) computed: bool,
    /// A copy of bytes, which are widened once they are there.
    pub(super) widened: bool,
    /// `elements` divides the depth.
    pub(super) whole_depth: bool,
    /// `elements` divides the number of lines.
    pub(super) whole_lines: bool,
}

impl Factor<'_> {
    /// The axis along which lines are neighbours.
    fn line_axis(&self) -> Option<usize> {
        (self.first_line + self.lines.len()).checked_sub(1).filter(|_| !self.lines.is_empty())
    }

    /// The best way to move it.
    pub(super) fn choose(&self) -> Move {
        let bytes = self.dtype.size() as i64;
        let copied = self.copied();
        let widened = copied.is_some_and(|(_, widened)| widened);
        let way = |depth_major: bool, elements: i64, computed: bool| {
            let whole = |divisor: i64| divisor % elements == 0;
            let (whole_depth, whole_lines) = (whole(self.depth_divisor), whole(self.whole_lines));
            Move { depth_major, elements, computed, widened: widened && !computed, whole_depth, whole_lines }
        };
        // The fewest bytes of an asynchronous copy are 4.
        let stored = if widened { 1 } else { bytes };
        let copy = |depth_major: bool, elements: i64| {
            let elements = elements.min(16 / stored);
            (elements * stored >= 4).then(|| way(depth_major, elements, false))
        };
        let copies = copied.and_then(|(access, _)| {
            let unit = |axis: usize| access.strides[axis].is(1) && !through(access, axis);
            let along_depth = unit(self.depth_axis)
                .then(|| copy(true, self.facts.alignment(access, self.depth_axis)))
                .flatten();
            let line_axis = self.line_axis().filter(|axis| unit(*axis));
            let along_lines = line_axis
                .and_then(|axis| copy(false, self.facts.alignment(access, axis).min(self.granularity)));
            [along_depth, along_lines].into_iter().flatten().max_by_key(|way| (way.elements, way.depth_major))
        });
        copies.unwrap_or_else(|| {
            let loads = self.function.accesses().filter(|access| access.strides.len() > self.depth_axis);
            let mut lines_side_by_side = false;
            for access in loads {
                if access.strides[self.depth_axis].is(1) {
                    lines_side_by_side = false;
                    break;
                }
                lines_side_by_side |= self.line_axis().is_some_and(|axis| access.strides[axis].is(1));
            }
            let most = 16 / bytes;
            if lines_side_by_side {
                way(false, most.min(self.granularity), true)
            } else {
                way(true, most, true)
            }
        })
    }

    /// The access, if the factor is one load whose place in memory changes evenly along the depth, of elements that are multiplied as they
    /// are; or of bytes that are widened, and that they are.
    fn copied(&self) -> Option<(&Access, bool)> {
        let plain = self.function.as_load().filter(|access| {
            let operand = self.operands.get(access.operand as usize);
            operand.is_some_and(|operand| operand.dtype == self.dtype)
        });
        let widened = || widened(self.function, self.operands, self.dtype).filter(|_| self.may_widen);
        let (access, widened) = match plain {
            Some(access) => (access, false),
            None => (widened()?, true),
        };
        (!through(access, self.depth_axis)).then_some((access, widened))
    }

    /// The slot, if there is one, and the struct.
    pub(super) fn print(&self, name: &str) -> Result<(String, String), SourceError> {
        let way = self.choose();
        let axes = self.depth_axis.max(self.first_line + self.lines.len().max(1) - 1) + 1;
        let mut coordinates = coordinates("u32(batch)", 0, self.batch, self.outer);
        coordinates +=
            &crate::source::space::coordinates("u32(line)", self.first_line, self.lines, self.outer);
        let depth = self.depth_axis;
        let (mut slot, body) = (
            String::new(),
            match self.copied().filter(|_| !way.computed) {
                Some((access, _)) => {
                    let along = if way.depth_major { depth } else { self.line_axis().unwrap_or(depth) };
                    let step = if way.depth_major { Size::Const(1) } else { access.strides[depth] };
                    debug_assert!(access.strides[along].is(1));
                    format!(
                        "    DEVICE const Stored* address(const Arguments& args, int part, int batch, int line) {{\n{coordinates}    \
                     const int i{depth} = 0;\n    return memory<const Stored>({}) + ({});\n    }}\n    \
                     DEVICE i64 step(const Arguments& args, int part) {{ return {}; }}\n",
                        self.names.operand(access.operand),
                        element(access, self.names),
                        size(step, self.names),
                    )
                }
                None => {
                    let arguments: String = (0..axes).map(|axis| format!(", i{axis}")).collect();
                    format!(
                        "    template <int V>\n    DEVICE Lanes<float, V> value(const Arguments& args, int part, int batch, int line, int depth) \
                     {{\n{coordinates}    const int i{depth} = depth;\n    return {name}_value<V>(args, part{arguments});\n    }}\n",
                    )
                }
            },
        );
        if way.computed {
            slot = Slot {
                name: format!("{name}_value"),
                function: self.function,
                axes,
                lanes: Some(if way.depth_major { depth } else { self.line_axis().unwrap_or(depth) }),
                operands: self.operands,
                facts: self.facts,
                lane_accumulators: 0,
                sums: 0,
                values: &[],
                parameters: ", int part",
                names: self.names,
            }
            .print()?;
        }
        let fact = |name: &str, value: bool| format!("    static constexpr bool {name} = {value};\n");
        let text = format!(
            "struct {name} {{\n    typedef {} Stored;\n{}    static constexpr int ELEMENTS = {};\n{}{}{}{}{body}}};\n",
            if way.widened { memory_type(DType::I8) } else { "Product" },
            fact("DEPTH_MAJOR", way.depth_major),
            way.elements,
            fact("COMPUTED", way.computed),
            fact("WIDENED", way.widened),
            fact("WHOLE_DEPTH", way.whole_depth),
            fact("WHOLE_LINES", way.whole_lines),
        );
        Ok((slot, text))
    }
}

/// The access, if a function is a load of bytes and their conversion to the element type of products.
pub(super) fn widened<'a>(
    function: &'a ScalarFunction,
    operands: &[Operand],
    dtype: DType,
) -> Option<&'a Access> {
    match (function.steps.as_slice(), function.result) {
        ([Step::Load(access), Step::Apply { op: ScalarOp::Cast(to), args }], Some(StepId(1)))
            if args[..] == [StepId(0)] && *to == dtype =>
        {
            let bytes = operands.get(access.operand as usize)?.dtype == DType::I8;
            bytes.then_some(access)
        }
        _ => None,
    }
}

/// True if an access goes through an index that is another along the axis.
fn through(access: &Access, axis: usize) -> bool {
    access.indirect.as_ref().is_some_and(|indirect| !indirect.index.strides[axis].is(0))
}

/// The step that a function of stores ends with, for every store: what it writes.
pub(super) fn stores(function: &ScalarFunction) -> impl Iterator<Item = &Access> {
    function.steps.iter().filter_map(|step| match step {
        Step::Store { access, .. } => Some(access),
        _ => None,
    })
}
