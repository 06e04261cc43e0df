//! `map`: one function at every point of a space.

use nucleus_plan::{Kernel, Map, Size, Step};

use super::space::{coordinates, count, size};
use super::{Blocks, Direct, Function, Grid, KernelSource, Slot, SourceError, Unit};
use crate::facts::Facts;

/// Threads of a block.
const THREADS: u32 = 256;

/// Prints a map.
///
/// Rows are the points of all axes but the last, columns those of the last; a thread computes `LANES` neighbouring columns.
pub(super) fn source(kernel: &Kernel, map: &Map, facts: &Facts) -> Result<KernelSource, SourceError> {
    let (rows, columns) = match map.space.split_last() {
        Some((columns, rows)) => (rows, *columns),
        // A space without axes is one point.
        None => (&[][..], Size::Const(1)),
    };
    let axes = map.space.len();
    let lanes = lanes(kernel, map, facts);
    let function = Slot {
        name: "point".to_owned(),
        function: &map.function,
        axes,
        lanes: axes.checked_sub(1),
        operands: &kernel.operands,
        facts,
        lane_accumulators: 0,
        sums: 0,
        values: &[],
        parameters: "",
        names: &Direct,
    };
    let arguments: String = (0..rows.len()).map(|axis| format!(", i{axis}")).collect();
    let call = match axes {
        0 => "point(args);".to_owned(),
        _ => format!("point<V>(args{arguments}, column);"),
    };
    let at = format!(
        "template <int V, class Index>\nDEVICE void point_at(const Arguments& args, Index row, int column) {{\n{}    {call}\n}}\n",
        coordinates("row", 0, rows, &Direct),
    );
    let unit = Unit {
        kernel,
        name: "map",
        slots: vec![
            function.print()?,
            count("rows", rows, &Direct),
            format!("DEVICE int columns(const Arguments& args) {{ return {}; }}\n", size(columns, &Direct)),
            at,
        ],
        constants: vec![("THREADS", THREADS.to_string()), ("LANES", lanes.to_string())],
        template: "sm80_map.cuh",
        functions: vec![Function {
            name: "map",
            threads: THREADS,
            shared_bytes: 0,
            grid: Grid::line(Blocks::constant(1).times(rows, 1).times(&[columns], lanes).over(THREADS)),
        }],
        scratch: Blocks::NONE,
    };
    unit.finish()
}

/// Points that a thread computes at a time: as many as fill 16 bytes of the widest element, where every access along the last axis may be
/// a vector of them or is the same for all.
fn lanes(kernel: &Kernel, map: &Map, facts: &Facts) -> u32 {
    let Some(axis) = map.space.len().checked_sub(1) else { return 1 };
    let mut lanes = 8;
    for step in &map.function.steps {
        let (Step::Load(access) | Step::Store { access, .. }) = step else { continue };
        let Some(stride) = access.strides.get(axis) else { continue };
        if stride.is(1) {
            let bytes = kernel.operands[access.operand as usize].dtype.size() as i64;
            lanes = lanes.min(16 / bytes).min(facts.alignment(access, axis));
        } else if !stride.is(0) {
            // Neighbouring threads should take neighbouring elements.
            return 1;
        }
    }
    lanes.max(1) as u32
}
