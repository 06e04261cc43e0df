//! The printed slots of a row reduction: its functions, and adapters that give all structures the same way to call them.
//!
//! ```text
//! struct Row                                      the coordinates of a row
//! Row row_of(args, u64 row)                       … from its number; the axis along which lanes lie is the fastest
//! u64 row_count(args)
//! bool is_max(int reduction)
//! struct Phase<P>  FIRST, COUNT                   the numbers of its reductions
//!     at<V>(args, row, column, lane, sum, value)  value[COUNT][V]
//! cached_at<V>(args, row, column, value)          value[CACHED][V]
//! element_at<V>(args, row, column, lane, sum)
//! row_at(args, row, sum), or row_at<V>(args, row, lane) where lanes are rows
//! ```
//!
//! Where lanes are columns, `lane` holds the cached operands and `sum` the results of the row; where they are rows, `lane` holds the results.

use std::fmt::Write;

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Kernel, Phase, ReductionOp, RowReduction, ScalarFunction, Step, StepId};

use super::shape::Shape;
use crate::facts::Facts;
use crate::source::space::{count, size};
use crate::source::{Direct, Slot, SourceError};

/// What is printed into the slots.
pub(super) struct Slots<'a> {
    kernel: &'a Kernel,
    reduction: &'a RowReduction,
    facts: &'a Facts,
    shape: &'a Shape,
    /// The phases that reduce something.
    pub(super) phases: Vec<&'a Phase>,
}

impl<'a> Slots<'a> {
    pub(super) fn new(
        kernel: &'a Kernel,
        reduction: &'a RowReduction,
        facts: &'a Facts,
        shape: &'a Shape,
    ) -> Slots<'a> {
        let phases = reduction.phases.iter().filter(|phase| !phase.reductions.is_empty()).collect();
        Slots { kernel, reduction, facts, shape, phases }
    }

    /// The number of all reductions.
    pub(super) fn reductions(&self) -> u32 {
        self.phases.iter().map(|phase| phase.reductions.len() as u32).sum()
    }

    /// True if the element function does anything.
    pub(super) fn has_element(&self) -> bool {
        stores_anything(&self.reduction.element)
    }

    /// True if the row function must be done before element functions begin: both touch an operand that one of them stores.
    pub(super) fn row_first(&self) -> bool {
        let touched = |function: &ScalarFunction, stored: bool| -> Vec<u32> {
            let steps = function.steps.iter().filter_map(|step| match step {
                Step::Load(access) if !stored => Some(access.operand),
                Step::Store { access, .. } => Some(access.operand),
                _ => None,
            });
            steps.collect()
        };
        let (row, element) = (&self.reduction.row, &self.reduction.element);
        let meet = |stored: Vec<u32>, other: Vec<u32>| stored.iter().any(|operand| other.contains(operand));
        meet(touched(row, true), touched(element, false)) || meet(touched(element, true), touched(row, false))
    }

    /// Everything but `column_count`.
    pub(super) fn print(&self) -> Result<Vec<String>, SourceError> {
        let mut printed = vec![self.row(), count("row_count", &self.reduction.rows, &Direct), self.is_max()];
        let cached = self.shape.cached();
        printed.push(self.cached_function(cached)?);
        printed.push("template <int P>\nstruct Phase;\n".to_owned());
        let mut first = 0;
        for (number, phase) in self.phases.iter().enumerate() {
            printed.push(self.phase(number, phase, first)?);
            first += phase.reductions.len();
        }
        printed.push(self.row_function()?);
        printed.push(self.element_function()?);
        Ok(printed)
    }

    /// The coordinates of a row: number to coordinates, the axis of lanes being the fastest.
    fn row(&self) -> String {
        let axes = self.reduction.rows.len();
        let mut order: Vec<usize> = (0..axes).collect();
        if let Some(fastest) = self.shape.row_axis() {
            order.retain(|axis| *axis != fastest);
            order.push(fastest);
        }
        let fields: String = (0..axes).map(|axis| format!("    int i{axis};\n")).collect();
        let mut text = format!("struct Row {{\n{fields}}};\n\n");
        text.push_str("template <class Index>\nDEVICE Row row_from(const Arguments& args, Index number) {\n    Row row;\n");
        for (position, axis) in order.iter().enumerate().rev() {
            if position == 0 {
                let _ = writeln!(text, "    row.i{axis} = int(number);");
            } else {
                let extent = size(self.reduction.rows[*axis], &Direct);
                let _ = writeln!(text, "    row.i{axis} = int(number % u32({extent}));");
                let _ = writeln!(text, "    number /= u32({extent});");
            }
        }
        // Division of 64-bit numbers takes many instructions.
        text.push_str(
            "    return row;\n}\n\nDEVICE Row row_of(const Arguments& args, u64 row) {\n    \
             return row <= 0xffffffffu ? row_from<u32>(args, u32(row)) : row_from<u64>(args, row);\n}\n",
        );
        text
    }

    fn is_max(&self) -> String {
        let reductions = self.phases.iter().flat_map(|phase| &phase.reductions).enumerate();
        let largest = reductions.filter(|(_, reduction)| reduction.op == ReductionOp::Max);
        let numbers: String = largest.map(|(number, _)| format!(" || r == {number}")).collect();
        format!("DEVICE constexpr bool is_max(int r) {{ return r < 0{numbers}; }}\n")
    }

    /// Lane and shared accumulators of functions over rows and columns.
    fn accumulators(&self) -> (u32, u32) {
        match self.shape.row_axis() {
            Some(_) => (self.reductions(), 0),
            None => (self.shape.cached().len() as u32, self.reductions()),
        }
    }

    /// Parameters and arguments of accumulators; nothing where there are none.
    fn lists(&self) -> (String, &'static str) {
        let (lanes, sums) = self.accumulators();
        let parameters =
            format!(", const float (&lane)[{}][V], const float (&sum)[{}]", lanes.max(1), sums.max(1));
        (parameters, if lanes + sums > 0 { ", lane, sum" } else { "" })
    }

    fn coordinates(&self) -> String {
        (0..self.reduction.rows.len()).map(|axis| format!(", row.i{axis}")).collect()
    }

    /// A slot over rows and columns.
    fn slot<'s>(&'s self, name: String, function: &'s ScalarFunction, values: &'s [StepId]) -> Slot<'s> {
        let (lane_accumulators, sums) = self.accumulators();
        Slot {
            name,
            function,
            axes: self.reduction.rows.len() + 1,
            lanes: Some(self.shape.row_axis().unwrap_or(self.reduction.rows.len())),
            operands: &self.kernel.operands,
            facts: self.facts,
            lane_accumulators,
            sums,
            values,
            parameters: "",
            names: &Direct,
        }
    }

    fn phase(&self, number: usize, phase: &Phase, first: usize) -> Result<String, SourceError> {
        let (function, steps) = self.with_cached(&phase.function);
        let moved = |reduction: &nucleus_plan::Reduction| steps.get(reduction.value.0 as usize).copied();
        let values: Option<Vec<StepId>> = phase.reductions.iter().map(moved).collect();
        let name = format!("phase{number}");
        let values = values.ok_or_else(|| SourceError::Malformed(name.clone()))?;
        let mut text = self.slot(name, &function, &values).print()?;
        let (parameters, lists) = self.lists();
        let (coordinates, count) = (self.coordinates(), values.len());
        let _ = write!(
            text,
            "\ntemplate <>\nstruct Phase<{number}> {{\n    static constexpr int FIRST = {first}, COUNT = {count};\n    template <int V>\n    \
             DEVICE void at(const Arguments& args, const Row& row, int column{parameters}, float (&value)[{count}][V]) {{\n        \
             phase{number}<V>(args{coordinates}, column{lists}, value);\n    }}\n}};\n"
        );
        Ok(text)
    }

    fn cached_function(&self, cached: &[Access]) -> Result<String, SourceError> {
        let steps = cached.iter().cloned().map(Step::Load).collect();
        let function = ScalarFunction { steps, result: None };
        let values: Vec<StepId> = (0..cached.len() as u32).map(StepId).collect();
        let slot =
            Slot { lane_accumulators: 0, sums: 0, ..self.slot("cached".to_owned(), &function, &values) };
        let (mut text, mut body) = (String::new(), String::new());
        if !cached.is_empty() {
            text = slot.print()?;
            body = format!("    cached<V>(args{}, column, value);\n", self.coordinates());
        }
        let count = cached.len().max(1);
        let _ = write!(
            text,
            "\ntemplate <int V>\nDEVICE void cached_at(const Arguments& args, const Row& row, int column, float (&value)[{count}][V]) {{\n{body}}}\n"
        );
        Ok(text)
    }

    fn row_function(&self) -> Result<String, SourceError> {
        let function = &self.reduction.row;
        let lanes = self.shape.row_axis();
        let reductions = self.reductions();
        let (lane_accumulators, sums) = if lanes.is_some() { (reductions, 0) } else { (0, reductions) };
        let slot = Slot {
            axes: self.reduction.rows.len(),
            lanes,
            lane_accumulators,
            sums,
            ..self.slot("row_function".to_owned(), function, &[])
        };
        let empty = !stores_anything(function);
        let mut text = if empty { String::new() } else { slot.print()? };
        let coordinates = self.coordinates();
        let count = reductions.max(1);
        let (head, none, template, lists) = match lanes {
            Some(_) => (
                format!(
                    "template <int V>\nDEVICE void row_at(const Arguments& args, const Row& row, const float (&lane)[{count}][V])"
                ),
                "const float sum[1] = {};",
                "<V>",
                ", lane, sum",
            ),
            None => (
                format!(
                    "DEVICE void row_at(const Arguments& args, const Row& row, const float (&sum)[{count}])"
                ),
                "const float lane[1][1] = {};",
                "",
                ", lane, sum",
            ),
        };
        let lists = if reductions > 0 { lists } else { "" };
        let body = if empty {
            String::new()
        } else {
            format!("    {none}\n    row_function{template}(args{coordinates}{lists});\n")
        };
        let _ = write!(text, "\n{head} {{\n{body}}}\n");
        Ok(text)
    }

    fn element_function(&self) -> Result<String, SourceError> {
        let (parameters, lists) = self.lists();
        let (mut text, mut body) = (String::new(), String::new());
        if self.has_element() {
            let (function, _) = self.with_cached(&self.reduction.element);
            text = self.slot("element_function".to_owned(), &function, &[]).print()?;
            body = format!("    element_function<V>(args{}, column{lists});\n", self.coordinates());
        }
        let _ = write!(
            text,
            "\ntemplate <int V>\nDEVICE void element_at(const Arguments& args, const Row& row, int column{parameters}) {{\n{body}}}\n"
        );
        Ok(text)
    }

    /// A function with accumulators in place of the loads that are cached, and where its steps went.
    fn with_cached(&self, function: &ScalarFunction) -> (ScalarFunction, Vec<StepId>) {
        let cached = self.shape.cached();
        let mut result = ScalarFunction::default();
        let mut moved: Vec<StepId> = Vec::new();
        // A malformed step stays as it is: the printer refuses it.
        let at = |id: &StepId, moved: &[StepId]| moved.get(id.0 as usize).copied().unwrap_or(*id);
        for step in &function.steps {
            let id = match step {
                Step::Load(access) => match cached.iter().position(|known| known == access) {
                    Some(number) => {
                        let value = result.push(Step::Accumulator(number as u32));
                        let operand = self.kernel.operands.get(access.operand as usize);
                        match operand.map_or(DType::F32, |operand| operand.dtype) {
                            DType::F32 => value,
                            narrow => {
                                result.push(Step::Apply { op: ScalarOp::Cast(narrow), args: vec![value] })
                            }
                        }
                    }
                    None => result.push(step.clone()),
                },
                Step::Accumulator(number) => {
                    let before = if self.shape.row_axis().is_some() { 0 } else { cached.len() as u32 };
                    result.push(Step::Accumulator(before + number))
                }
                Step::Apply { op, args } => {
                    let args = args.iter().map(|id| at(id, &moved)).collect();
                    result.push(Step::Apply { op: *op, args })
                }
                Step::Store { access, value } => {
                    result.push(Step::Store { access: access.clone(), value: at(value, &moved) })
                }
                Step::Constant { .. } | Step::Affine { .. } => result.push(step.clone()),
            };
            moved.push(id);
        }
        (result, moved)
    }
}

fn stores_anything(function: &ScalarFunction) -> bool {
    function.steps.iter().any(|step| matches!(step, Step::Store { .. }))
}
