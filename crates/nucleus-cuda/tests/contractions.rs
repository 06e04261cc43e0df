//! The cost model's choice of tiles and the text of contractions: what needs no kernel to run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nucleus_cuda::tiles::Device;
use nucleus_cuda::{Architecture, Facts, KernelSource, Tile, kernel_source};
use nucleus_ir::DType;
use nucleus_plan::{Access, Anchor, ColumnGroups, Contraction, KernelId, Plan, ScalarFunction, Step};
use product::product;

mod product;

const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

fn architecture(name: &str) -> Architecture {
    name.parse().unwrap()
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
                assert_eq!(tile.check(dtype, &device), Ok(()), "{name} {dtype}: {tile:?}");
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
