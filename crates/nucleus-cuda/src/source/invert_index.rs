//! `invert_index`: the positions of every target of an index map.

use nucleus_plan::{InvertIndex, Kernel};

use super::space::size;
use super::{Blocks, Direct, Function, Grid, KernelSource, SourceError, Unit};

/// Threads of most functions, of that which adds counts, and of a warp.
const THREADS: u32 = 256;
const SCAN_THREADS: u32 = 512;
const WARP: u32 = 32;

/// Prints the inversion of an index map: its functions, in order, are described in `sm80_invert_index.cuh`.
pub(super) fn source(kernel: &Kernel, invert: &InvertIndex) -> Result<KernelSource, SourceError> {
    let InvertIndex { batch, positions, targets, .. } = *invert;
    let sizes = [("batch_count", batch), ("position_count", positions), ("target_count", targets)];
    let sizes = sizes.map(|(name, value)| {
        format!("DEVICE int {name}(const Arguments& args) {{ return {}; }}\n", size(value, &Direct))
    });
    let operands = [
        ("const int", "index_in", invert.index),
        ("int", "offsets_out", invert.offsets_out),
        ("int", "positions_out", invert.positions_out),
    ];
    let operands = operands.map(|(ty, name, operand)| {
        format!("DEVICE {ty}* {name}(const Arguments& args) {{ return memory<{ty}>(args.o[{operand}]); }}\n")
    });
    let function = |name, threads, shared_bytes, blocks| Function {
        name,
        threads,
        shared_bytes,
        grid: Grid::line(blocks),
    };
    let over = |extents: &[_], each| Blocks::points(extents).over(each);
    let unit = Unit {
        kernel,
        name: "invert_index",
        slots: vec![sizes.concat(), operands.concat()],
        constants: Vec::new(),
        template: "sm80_invert_index.cuh",
        functions: vec![
            function("clear", THREADS, 0, over(&[batch, targets], THREADS)),
            function("count", THREADS, 0, over(&[batch, positions], THREADS)),
            function("offsets", SCAN_THREADS, 4 * (SCAN_THREADS / WARP), Blocks::points(&[batch])),
            function("place", THREADS, 0, over(&[batch, positions], THREADS)),
            function("order", THREADS, 0, over(&[batch, targets], THREADS / WARP)),
        ],
        scratch: Blocks::constant(4).times(&[batch, targets], 1),
    };
    unit.finish()
}
