//! The choice of tiles and the text of contractions: what needs no kernel to run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nucleus_cuda::tiles::Device;
use nucleus_cuda::{Architecture, Facts, KernelSource, Tile, Tuning, kernel_source};
use nucleus_ir::DType;
use nucleus_plan::text::parse_plan;
use nucleus_plan::{Access, Anchor, ColumnGroups, Contraction, KernelId, Plan, ScalarFunction, Step};

const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

fn architecture(name: &str) -> Architecture {
    name.parse().unwrap()
}

/// `x wᵀ` for `parts` weights of 256 columns.
fn product(rows: &str, depth: u32, parts: u32) -> Plan {
    let list = |item: &dyn Fn(u32) -> String| (0..parts).map(item).collect::<String>();
    let text = format!(
        "plan test {{
    dim T;
    input x: bf16[{rows}, {depth}] per step;
{}{}    buffer b0: bf16[{rows}, {depth}] input 0;
{}    kernel k0(read bf16{}) sizes 1 matmul bf16 {{
        batch;
        rows s0;
        depth {depth};
        a {{ v0 = load o0[{depth}*i0 + i1]; return v0; }}
{}    }}
    launch k0(b0{}) sizes {rows} per step flops 0 bytes 0;
}}
",
        list(&|n| format!("    output y{n}: bf16[{rows}, 256];\n")),
        list(&|n| format!("    weight \"w{n}\": bf16[256, {depth}];\n")),
        list(&|n| format!(
            "    buffer b{}: bf16[256, {depth}] weight \"w{n}\";\n    buffer b{}: bf16[{rows}, 256] output {n};\n",
            2 * n + 1,
            2 * n + 2
        )),
        list(&|_| ", read bf16, write bf16".to_owned()),
        list(&|n| format!(
            "        part columns 256; segments 1;
        b {{ v0 = load o{}[i0 + {depth}*i1]; return v0; }}
        epilogue {{ v0 = accumulator 0; v1 = cast(v0, bf16); store o{}[256*i0 + i1] = v1; }}
",
            2 * n + 1,
            2 * n + 2
        )),
        list(&|n| format!(", b{}, b{}", 2 * n + 1, 2 * n + 2)),
    );
    parse_plan(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn source(plan: &Plan, architecture: Architecture) -> KernelSource {
    kernel_source(plan.kernel(KernelId(0)), &Facts::of(plan, KernelId(0)), architecture).unwrap()
}

fn constant(source: &KernelSource, name: &str) -> u32 {
    let prefix = format!("constexpr int {name} = ");
    let line = source.text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap();
    line.trim_end_matches(';').parse().unwrap()
}

#[test]
fn every_tile_fits_its_device() {
    for name in ARCHITECTURES {
        let device = Device::of(architecture(name));
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            let tiles = Tile::all(dtype, &device);
            assert!(tiles.len() >= 5, "{name} {dtype}: {tiles:?}");
            for tile in tiles {
                assert!(tile.is_legal(dtype, &device), "{name} {dtype}: {tile:?}");
                let shared = tile.shared_bytes(dtype, &device);
                assert!(shared <= architecture(name).shared_memory());
                // As many blocks as registers are limited for.
                assert!(tile.blocks * (shared + 1024) <= device.shared_memory, "{name} {dtype}: {tile:?}");
            }
        }
    }
}

#[test]
fn many_rows_take_large_tiles_and_few_rows_small_ones() {
    for name in ARCHITECTURES {
        // At the largest sample T is 3.
        let many = source(&product("8192*T", 2048, 8), architecture(name));
        let accumulators = constant(&many, "TILE_ROWS") * constant(&many, "TILE_COLUMNS");
        assert!(accumulators >= 128 * 128, "{name}: {accumulators}");
        let few = source(&product("T", 2048, 8), architecture(name));
        assert!(constant(&few, "TILE_ROWS") <= 32, "{name}");
    }
}

#[test]
fn parts_that_are_alike_share_their_structs() {
    let source = source(&product("T", 64, 40), Architecture::SM90);
    assert!(source.text.contains("struct Part0 {") && !source.text.contains("struct Part1 {"));
    let one = self::source(&product("T", 64, 1), Architecture::SM90);
    assert!(source.text.len() < one.text.len() + 4000, "{} characters", source.text.len());
}

fn table(kernel: &str, more: &str) -> String {
    format!(
        "# measured\n\n[[tile]]\ndevice = \"a # device\"   # as it is\nkernel = \"{kernel}\"\nshape = \"1x4096x256x64\"\nrows = 64\n\
         columns = 128\ndepth = 32\nstages = 4\nwarps = 4\nacross = 2\n{more}"
    )
}

#[test]
fn measured_tiles_override_the_model() {
    let plan = product("1000*T", 64, 1);
    let kernel = plan.kernel(KernelId(0));
    let hash = blake3::hash(kernel.to_string().as_bytes()).to_hex();
    let tuning = Tuning::parse(&table(&hash, "blocks = 2\n")).unwrap();
    let facts = Facts::of(&plan, KernelId(0));
    let tuned = tuning.apply("a # device", kernel, facts.clone());
    let source = kernel_source(kernel, &tuned, Architecture::SM80).unwrap();
    assert_eq!((constant(&source, "TILE_ROWS"), constant(&source, "TILE_COLUMNS")), (64, 128));
    assert_eq!((constant(&source, "STAGES"), constant(&source, "BLOCKS")), (4, 2));
    // Not on another device, not for another kernel.
    assert_eq!(tuning.apply("another", kernel, facts.clone()), facts);
    let other = product("1000*T", 128, 1);
    let facts = Facts::of(&other, KernelId(0));
    assert_eq!(tuning.apply("a # device", other.kernel(KernelId(0)), facts.clone()), facts);
}

#[test]
fn a_tile_that_no_device_can_run_is_not_taken() {
    let plan = product("1000*T", 64, 1);
    let facts = Facts::of(&plan, KernelId(0));
    let kernel = plan.kernel(KernelId(0));
    let chosen = kernel_source(kernel, &facts, Architecture::SM80).unwrap();
    let tile = Tile { rows: 128, columns: 128, depth: 32, stages: 4, warps: 4, across: 2, blocks: 2 };
    let legal = kernel_source(kernel, &facts.clone().with_tile(tile), Architecture::SM80).unwrap();
    assert_eq!(constant(&legal, "TILE_ROWS"), 128);
    for wrong in [
        Tile { rows: 48, ..tile },
        Tile { rows: 0, ..tile },
        Tile { stages: 1, ..tile },
        Tile { stages: 16, ..tile },
        Tile { warps: 3, ..tile },
        Tile { warps: 0, ..tile },
        Tile { across: 8, ..tile },
        Tile { depth: 16, ..tile },
        Tile { warps: 1, across: 1, ..tile },
    ] {
        let source = kernel_source(kernel, &facts.clone().with_tile(wrong), Architecture::SM80).unwrap();
        assert_eq!(source, chosen, "{wrong:?}");
    }
}

#[test]
fn malformed_tables_are_errors_with_their_line() {
    let error = |text: &str| Tuning::parse(text).unwrap_err().to_string();
    assert_eq!(error("rows = 1"), "line 1 of the table of tiles: a value before the first `[[tile]]`");
    assert_eq!(error(&table("00", "")), "line 3 of the table of tiles: `blocks` is missing");
    assert_eq!(error(&table("00", "blocks = x")), "line 13 of the table of tiles: `blocks` must be a number");
    assert_eq!(error(&table("00", "rows = 3")), "line 13 of the table of tiles: `rows` is there twice");
    assert_eq!(error(&table("00", "height = 3")), "line 13 of the table of tiles: unknown key `height`");
    assert!(error(&table("00", "what")).starts_with("line 13 of the table of tiles: expected"));
    assert_eq!(Tuning::parse("# nothing\n"), Ok(Tuning::default()));
}

#[test]
fn malformed_contractions_are_errors() {
    let plan = product("T", 64, 2);
    let refused = |change: &dyn Fn(&mut Contraction)| {
        let mut kernel = plan.kernel(KernelId(0)).clone();
        let Anchor::Matmul(contraction) = &mut kernel.anchor else { panic!("a product") };
        change(contraction);
        let error = kernel_source(&kernel, &Facts::of(&plan, KernelId(0)), Architecture::SM80).unwrap_err();
        assert!(error.to_string().contains("malformed"), "{error}");
    };
    refused(&|contraction| contraction.parts.clear());
    refused(&|contraction| contraction.parts[1].segments = 0);
    refused(&|contraction| contraction.dtype = DType::I32);
    refused(&|contraction| contraction.parts[0].groups = Some(ColumnGroups { width: 3, phases: Vec::new() }));
    let access = |function: &mut ScalarFunction, change: &dyn Fn(&mut Access)| {
        let Some(Step::Load(access)) = function.steps.first_mut() else { panic!("a load") };
        change(access);
    };
    refused(&|contraction| access(&mut contraction.a, &|load| load.strides.truncate(1)));
    refused(&|contraction| access(&mut contraction.parts[1].b, &|load| load.strides.clear()));
    refused(&|contraction| access(&mut contraction.parts[1].b, &|load| load.operand = 9));
}
