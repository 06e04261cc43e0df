//! `segment_sum`: a row for every target, the rows that its list names added one after the other.

use nucleus_plan::{Kernel, ScalarFunction, SegmentSum, Size, Step};

use super::space::{coordinates, count, size};
use super::{Blocks, Direct, Function, Grid, KernelSource, Slot, SourceError, Unit};
use crate::facts::Facts;

/// Threads of a block.
const THREADS: u32 = 256;

/// Prints a segment sum.
///
/// A thread computes `LANES` neighbouring elements of the last axis of a target's row. Where there are no other axes it computes one target.
pub(super) fn source(kernel: &Kernel, sum: &SegmentSum, facts: &Facts) -> Result<KernelSource, SourceError> {
    let axes = sum.rest.len() + 2;
    let lane_axis = (!sum.rest.is_empty()).then(|| axes - 1);
    let lanes = lane_axis.map_or(1, |axis| lanes(kernel, sum, facts, axis));
    let (outer, columns) = match sum.rest.split_last() {
        Some((columns, outer)) => (outer, *columns),
        None => (&[][..], Size::Const(1)),
    };
    // Without further axes lanes are a template parameter that nothing uses.
    let template = if lane_axis.is_some() { "<V>" } else { "" };
    let slot = |name: &str, function, lane_accumulators| Slot {
        name: name.to_owned(),
        function,
        axes,
        lanes: lane_axis,
        operands: &kernel.operands,
        facts,
        lane_accumulators,
        sums: 0,
        values: &[],
        parameters: "",
        names: &Direct,
    };
    let rows = [&[sum.batch, sum.targets], outer].concat();
    let fields: String = (2..axes).map(|axis| format!("    int i{axis};\n")).collect();
    let mut assign: String =
        (2..axes.saturating_sub(1)).map(|axis| format!("    point.i{axis} = i{axis};\n")).collect();
    if let Some(axis) = lane_axis {
        assign.push_str(&format!("    point.i{axis} = column;\n"));
    }
    let rest: String = (2..axes).map(|axis| format!(", point.i{axis}")).collect();
    let point = format!(
        "struct Point {{\n    int batch;\n    int target;\n{fields}}};\n\ntemplate <class Index>\nDEVICE Point point_of(const Arguments& \
         args, Index row, int column) {{\n{}    Point point;\n    point.batch = i0;\n    point.target = i1;\n{assign}    return point;\n}}\n",
        coordinates("row", 0, &rows, &Direct),
    );
    let adapters = format!(
        "template <int V>\nDEVICE Lanes<float, V> base_at(const Arguments& args, const Point& point) {{\n    \
         return base{template}(args, point.batch, point.target{rest});\n}}\n\n\
         template <int V>\nDEVICE Lanes<float, V> update_at(const Arguments& args, const Point& point, int position) {{\n    \
         return update{template}(args, point.batch, position{rest});\n}}\n\n\
         template <int V>\nDEVICE void epilogue_at(const Arguments& args, const Point& point, const float (&lane)[1][V]) {{\n    \
         const float sum[1] = {{}};\n    epilogue{template}(args, point.batch, point.target{rest}, lane, sum);\n}}\n"
    );
    let sizes = format!(
        "DEVICE int columns(const Arguments& args) {{ return {}; }}\n\
         DEVICE int target_count(const Arguments& args) {{ return {}; }}\n\
         DEVICE int position_count(const Arguments& args) {{ return {}; }}\n\
         DEVICE const int* offsets(const Arguments& args) {{ return memory<const int>(args.o[{}]); }}\n\
         DEVICE const int* positions(const Arguments& args) {{ return memory<const int>(args.o[{}]); }}\n",
        size(columns, &Direct),
        size(sum.targets, &Direct),
        size(sum.position_count, &Direct),
        sum.offsets,
        sum.positions,
    );
    let unit = Unit {
        kernel,
        name: "segment_sum",
        slots: vec![
            slot("base", &sum.base, 0).print()?,
            slot("update", &sum.update, 0).print()?,
            slot("epilogue", &sum.epilogue, 1).print()?,
            count("rows", &rows, &Direct),
            point,
            adapters,
            sizes,
        ],
        constants: vec![("THREADS", THREADS.to_string()), ("LANES", lanes.to_string())],
        template: "sm80_segment_sum.cuh",
        functions: vec![Function {
            name: "segment_sum",
            threads: THREADS,
            shared_bytes: 0,
            grid: Grid::line(Blocks::constant(1).times(&rows, 1).times(&[columns], lanes).over(THREADS)),
        }],
        scratch: Blocks::NONE,
    };
    unit.finish()
}

/// Points that a thread computes at a time: as many as fill 16 bytes of the widest element, where every access along the last axis may be a vector
/// of them or is the same for all. They divide the axis.
fn lanes(kernel: &Kernel, sum: &SegmentSum, facts: &Facts, axis: usize) -> u32 {
    let extent = sum.rest.last().copied().unwrap_or(Size::Const(1));
    let mut lanes = facts.divisor(extent).min(8);
    let functions: [&ScalarFunction; 3] = [&sum.base, &sum.update, &sum.epilogue];
    let accesses = functions.into_iter().flat_map(|function| &function.steps).filter_map(|step| match step {
        Step::Load(access) | Step::Store { access, .. } => Some(access),
        _ => None,
    });
    for access in accesses {
        let Some(stride) = access.strides.get(axis) else { continue };
        if stride.is(1) {
            let bytes =
                kernel.operands.get(access.operand as usize).map_or(4, |operand| operand.dtype.size()) as i64;
            lanes = lanes.min(16 / bytes).min(facts.alignment(access, axis));
        } else if !stride.is(0) {
            return 1;
        }
    }
    lanes.max(1) as u32
}
