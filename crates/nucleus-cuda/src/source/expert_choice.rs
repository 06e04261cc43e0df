//! `expert_choice`: the tokens of every expert, the experts of every token, and the epilogue at every slot.

use nucleus_plan::{ExpertChoice, Kernel, Size};

use super::space::size;
use super::{Blocks, Direct, Function, Grid, KernelSource, Slot, SourceError, Unit};
use crate::facts::Facts;

/// Threads of `choose` and `offsets`, and of one warp.
const CHOOSE_THREADS: u32 = 512;
const WARP: u32 = 32;
/// Tokens and experts of a tile of `affinities`, and its threads.
const TILE: u32 = 32;
const TILE_THREADS: u32 = 256;
/// Threads of `tokens` and `slots`.
const TOKEN_THREADS: u32 = 128;
const SLOT_THREADS: u32 = 256;
/// Shared memory of `choose`: its struct `Selection`, a histogram of 2048 bins, two numbers for each warp, two more.
const SELECTION_BYTES: u32 = 4 * 2048 + (8 + 4) * (CHOOSE_THREADS / WARP) + 8;

/// Prints an expert choice: its functions, in order, are described in `sm80_expert_choice.cuh`.
pub(super) fn source(
    kernel: &Kernel,
    choice: &ExpertChoice,
    facts: &Facts,
) -> Result<KernelSource, SourceError> {
    let slot = |name: &str, function, sums| Slot {
        name: name.to_owned(),
        function,
        axes: 3,
        lanes: None,
        operands: &kernel.operands,
        facts,
        lane_accumulators: 0,
        sums,
        values: &[],
        parameters: "",
        names: &Direct,
    };
    let ExpertChoice { batch, tokens, experts, capacity, slot_token, .. } = *choice;
    let mut sizes = String::new();
    for (name, value) in
        [("image_count", batch), ("token_count", tokens), ("expert_count", experts), ("capacity", capacity)]
    {
        sizes.push_str(&format!(
            "DEVICE int {name}(const Arguments& args) {{ return {}; }}\n",
            size(value, &Direct)
        ));
    }
    let (offsets, positions) = choice.inverse.map(|inverse| (inverse.offsets, inverse.positions)).unzip();
    for (name, operand) in
        [("slot_token", Some(slot_token)), ("offsets_out", offsets), ("positions_out", positions)]
    {
        let memory =
            operand.map_or("nullptr".to_owned(), |operand| format!("memory<int>(args.o[{operand}])"));
        sizes.push_str(&format!("DEVICE int* {name}(const Arguments& args) {{ return {memory}; }}\n"));
    }
    let function = |name, threads, shared_bytes, blocks| Function {
        name,
        threads,
        shared_bytes,
        grid: Grid::line(blocks),
    };
    let tiles = Blocks::points(&[batch]).times(&[tokens], TILE).times(&[experts], TILE);
    let mut functions = vec![
        function("affinities", TILE_THREADS, 4 * TILE * (TILE + 1), tiles),
        function("choose", CHOOSE_THREADS, SELECTION_BYTES, Blocks::points(&[batch, experts])),
        function("tokens", TOKEN_THREADS, 0, Blocks::points(&[batch, tokens]).over(TOKEN_THREADS)),
    ];
    if choice.inverse.is_some() {
        let bytes = 4 * (CHOOSE_THREADS / WARP);
        functions.push(function("offsets", CHOOSE_THREADS, bytes, Blocks::points(&[batch])));
    }
    let slots = Blocks::points(&[batch, experts, capacity]).over(SLOT_THREADS);
    functions.push(function("slots", SLOT_THREADS, 0, slots));
    // Two numbers for every pair of an expert and a token, two for every token.
    let scratch = match experts {
        Size::Const(experts) => {
            Blocks::constant(4).times(&[batch, tokens, Size::Const(2 * experts.clamp(0, 1 << 30) + 2)], 1)
        }
        Size::Arg(_) => Blocks::constant(16).times(&[batch, tokens, experts], 1),
    };
    let unit = Unit {
        kernel,
        name: "expert_choice",
        slots: vec![
            slot("affinity", &choice.affinity, 0).print()?,
            slot("epilogue", &choice.epilogue, 2).print()?,
            sizes,
        ],
        constants: vec![("INVERSE", u32::from(choice.inverse.is_some()).to_string())],
        template: "sm80_expert_choice.cuh",
        functions,
        scratch,
    };
    unit.finish()
}
