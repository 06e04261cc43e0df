//! The structs of a contraction in C++: `Left`, and for every class of parts `Right0` and `Part0`; see `matmul/factor.cuh` and `matmul/epilogue.cuh`.

use std::fmt::Write;

use nucleus_plan::{Contraction, Kernel, ReductionOp, ScalarFunction, StepId};

use super::choice::{Shape, column_axis};
use super::class::Class;
use super::factor::{Factor, Move};
use crate::facts::Facts;
use crate::source::space::{coordinates, size};
use crate::source::{Direct, Slot, SourceError};

/// A power of two that divides every multiple of `number`.
fn power_in(number: i64) -> i64 {
    if number == 0 { 64 } else { 1 << number.trailing_zeros().min(6) }
}

/// The left factor.
pub(super) fn left<'a>(kernel: &'a Kernel, contraction: &'a Contraction, facts: &'a Facts) -> Factor<'a> {
    let divisor = contraction.rows.last().map_or(1, |extent| facts.divisor(*extent));
    Factor {
        function: &contraction.a,
        operands: &kernel.operands,
        facts,
        names: &Direct,
        dtype: contraction.dtype,
        batch: &contraction.batch,
        outer: &Direct,
        first_line: contraction.batch.len(),
        lines: &contraction.rows,
        depth_axis: contraction.batch.len() + contraction.rows.len(),
        depth_divisor: facts.divisor(contraction.depth),
        // Rows of the last axis are neighbours, its last and the next one's first are not.
        granularity: if contraction.rows.len() > 1 { divisor } else { 64 },
        may_widen: false,
        whole_lines: divisor,
    }
}

/// The slots and the structs of a class: `Right0` and `Part0`.
pub(super) fn part(
    contraction: &Contraction,
    facts: &Facts,
    class: &Class,
    shape: &Shape,
    number: usize,
) -> Result<Printed, SourceError> {
    let part = &class.part;
    let (batch, segments) = (contraction.batch.len(), part.segments);
    let columns = class.facts.divisor(part.columns);
    let in_tile = power_in(i64::from(shape.columns));
    let (granularity, whole_lines) = if shape.wide {
        (in_tile, columns * power_in(i64::from(segments)))
    } else if part.interleaved {
        let segments = power_in(i64::from(segments));
        (in_tile * segments, columns * segments)
    } else if segments > 1 {
        (in_tile.min(columns), columns)
    } else {
        (in_tile, columns)
    };
    let right = Factor {
        function: &part.b,
        operands: &class.operands,
        facts: &class.facts,
        names: &class.names,
        dtype: contraction.dtype,
        batch: &contraction.batch,
        outer: &Direct,
        first_line: batch + 1,
        lines: &[part.columns],
        depth_axis: batch,
        depth_divisor: facts.divisor(contraction.depth),
        granularity,
        may_widen: true,
        whole_lines,
    };
    let way = right.choose();
    let (value, right) = right.print(&format!("Right{number}"))?;
    let mut slots = vec![value, right];

    let phases = part.groups.iter().flat_map(|groups| &groups.phases);
    let sums: usize = phases.clone().map(|phase| phase.reductions.len()).sum();
    let axis = column_axis(contraction, part);
    let slot = |name: String, function: &ScalarFunction, values: &[StepId]| {
        let slot = Slot {
            name,
            function,
            axes: axis + 1,
            lanes: Some(axis),
            operands: &class.operands,
            facts: &class.facts,
            lane_accumulators: segments,
            sums: sums as u32,
            values,
            parameters: ", int part",
            names: &class.names,
        };
        slot.print()
    };
    let mut place = coordinates("u32(batch)", 0, &contraction.batch, &Direct);
    place += &coordinates("u32(row)", batch, &contraction.rows, &Direct);
    match &part.groups {
        Some(groups) => {
            let width = groups.width;
            let _ = write!(
                place,
                "    const int i{} = column / {width};\n    const int i{axis} = column % {width};\n",
                axis - 1
            );
        }
        None => {
            let _ = writeln!(place, "    const int i{axis} = column;");
        }
    }
    let arguments: String = (0..=axis).map(|axis| format!(", i{axis}")).collect();
    let parameters = format!(
        "const Arguments& args, int part, int batch, int row, int column, const float (&lane)[{segments}][V], const float (&sum)[{}]",
        sums.max(1)
    );

    let (mut structs, mut calls) = (String::new(), String::new());
    let mut first = 0;
    for (position, phase) in phases.enumerate() {
        let count = phase.reductions.len();
        if count == 0 {
            continue;
        }
        if count > 64 {
            return Err(SourceError::Unsupported(format!("{count} reductions at a time")));
        }
        let values: Vec<_> = phase.reductions.iter().map(|reduction| reduction.value).collect();
        slots.push(slot(format!("phase{number}_{position}"), &phase.function, &values)?);
        let largest = phase.reductions.iter().enumerate().filter(|(_, r)| r.op == ReductionOp::Max);
        let largest: u64 = largest.map(|(bit, _)| 1u64 << bit).sum();
        let _ = write!(
            structs,
            "    struct Phase{position} {{\n    static constexpr int COUNT = {count}, FIRST = {first};\n    static constexpr u64 LARGEST = {largest}u;\n    \
             template <int V>\n    DEVICE void values({parameters}, float (&value)[{count}][V]) {{\n{place}    \
             phase{number}_{position}<V>(args, part{arguments}, lane, sum, value);\n    }}\n    }};\n"
        );
        let _ = writeln!(calls, "    phases.template reduce<Phase{position}>();");
        first += count;
    }
    slots.push(slot(format!("epilogue{number}"), &part.epilogue, &[])?);
    let structs = Structs { number, structs, calls, parameters, place, arguments, sums };
    slots.push(structs.print(class, shape));
    if shape.wide {
        slots.push(spilled(class, shape, number));
    }
    Ok(Printed { slots, right: way })
}

/// A class in C++.
pub(super) struct Printed {
    /// Its functions and structs.
    pub(super) slots: Vec<String>,
    /// How its right factor is moved.
    pub(super) right: Move,
}

/// The pieces of the struct of a part.
struct Structs {
    number: usize,
    structs: String,
    calls: String,
    parameters: String,
    place: String,
    arguments: String,
    sums: usize,
}

impl Structs {
    fn print(&self, class: &Class, shape: &Shape) -> String {
        let Structs { number, structs, calls, parameters, place, arguments, sums } = self;
        let part = &class.part;
        let columns = class.facts.divisor(part.columns);
        let group = part.groups.as_ref().map_or(0, |groups| groups.width);
        let segments = part.segments;
        let (name, head) = if shape.wide {
            // What groups, or rows, begin with.
            let begin = if group > 0 {
                power_in(i64::from(group) * i64::from(if part.interleaved { segments } else { 1 }))
            } else {
                64
            };
            let aligned =
                begin.min(columns * if part.interleaved { power_in(i64::from(segments)) } else { 1 }).min(4);
            let row = format!("i64({}) * {segments}", size(part.columns, &class.names));
            let accumulators = format!(
                "    static constexpr int ALIGNED = {aligned};\n    \
                 DEVICE float* accumulators(const Arguments& args, int part, int batch, int row) {{\n    \
                 const i64 all = i64(rows(args)) * batches(args);\n    \
                 return memory<float>(args.scratch) + wide_before(args, part) * all + (i64(rows(args)) * batch + row) * ({row});\n    }}\n"
            );
            ("Whole", accumulators)
        } else {
            ("Part", format!("    typedef Right{number} Right;\n"))
        };
        format!(
            "struct {name}{number} {{\n{head}    \
             static constexpr int SEGMENTS = {segments}, TILE = {}, GROUP = {group}, SUMS = {}, LANES = {lanes};\n    \
             static constexpr bool INTERLEAVED = {}, SYMMETRIC = {}, EVEN = {};\n    \
             DEVICE int columns(const Arguments& args, int part) {{ return {}; }}\n{structs}    \
             template <class Phases>\n    DEVICE void reduce(Phases& phases) {{\n{calls}    }}\n    \
             template <int V>\n    DEVICE void epilogue({parameters}) {{\n{place}    epilogue{number}<V>(args, part{arguments}, lane, sum);\n    }}\n}};\n",
            shape.columns,
            (*sums).max(1),
            part.interleaved,
            shape.symmetric,
            columns % i64::from(shape.lanes) == 0,
            size(part.columns, &class.names),
            lanes = shape.lanes,
        )
    }
}

/// A wide part as `matmul` sees it: one segment, whose accumulators are what it stores.
fn spilled(class: &Class, shape: &Shape, number: usize) -> String {
    let segments = class.part.segments;
    let all = class.facts.divisor(class.part.columns) * power_in(i64::from(segments));
    let lanes = all.min(4);
    format!(
        "struct Part{number} {{\n    typedef Right{number} Right;\n    \
         static constexpr int SEGMENTS = 1, TILE = {}, GROUP = 0, SUMS = 1, LANES = {lanes};\n    \
         static constexpr bool INTERLEAVED = false, SYMMETRIC = false, EVEN = true;\n    \
         DEVICE int columns(const Arguments& args, int part) {{ return {} * {segments}; }}\n    \
         template <int V>\n    DEVICE void epilogue(const Arguments& args, int part, int batch, int row, int column, const float (&lane)[1][V], const float (&sum)[1]) {{\n    \
         store_global<V>(Whole{number}::accumulators(args, part, batch, row) + column, lane[0]);\n    }}\n}};\n",
        shape.columns,
        size(class.part.columns, &class.names),
    )
}
