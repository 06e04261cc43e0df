//! NVRTC and the cache, on kernels of a small plan. Where there is no NVRTC, tests say so and assert nothing, unless
//! `NUCLEUS_REQUIRE_NVRTC=1`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "what is not tested is said")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nucleus_cuda::compile::stored;
use nucleus_cuda::cubin::check_cubin;
use nucleus_cuda::{
    Architecture, Cache, CompiledKernel, Compiler, DistinctKernel, Facts, Nvrtc, NvrtcError, Tile, Tuning,
    distinct_kernels, kernel_source, tiles,
};
use nucleus_ir::DType;
use nucleus_plan::KernelId;
use nucleus_plan::text::parse_plan;
use product::product;

mod product;

const PLAN: &str = include_str!("snapshots/map.plan");
const ARCHITECTURES: [Architecture; 2] = [Architecture::SM80, Architecture::SM90];

fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if std::env::var_os("NUCLEUS_REQUIRE_NVRTC").is_none_or(|value| value != "1") => {
            eprintln!("NVRTC is not tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The kernels of the plan, twice: they are listed once.
fn kernels() -> Vec<DistinctKernel> {
    let plan = parse_plan(PLAN).unwrap();
    distinct_kernels([&plan, &plan], &ARCHITECTURES, &Tuning::default()).unwrap()
}

fn compile(compiler: &Compiler) -> Vec<CompiledKernel> {
    let done = AtomicUsize::new(0);
    let progress = |_: usize, all: usize| {
        assert_eq!(all, 4);
        done.fetch_add(1, Ordering::Relaxed);
    };
    let compiled = compiler.compile_kernels(kernels(), 2, &progress).unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 4);
    compiled
}

fn cached(kernels: &[CompiledKernel]) -> Vec<bool> {
    kernels.iter().flat_map(|kernel| kernel.images.iter().map(|image| image.cached)).collect()
}

#[test]
fn distinct_kernels_are_compiled_for_every_architecture() {
    let kernels = kernels();
    assert_eq!(kernels.len(), 2);
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::none());
    let compiled = compile(&compiler);
    for (kernel, compiled) in kernels.iter().zip(&compiled) {
        assert_eq!((&kernel.source, kernel.first), (&compiled.source, compiled.first));
        for (architecture, image) in ARCHITECTURES.iter().zip(&compiled.images) {
            check_cubin(&image.cubin, *architecture).unwrap();
            assert_eq!(image.architecture, *architecture);
            let [map] = image.resources.as_slice() else { panic!("{:?}", image.resources) };
            assert_eq!(map.function, "map");
            assert!((8..=255).contains(&map.registers) && map.spill_stores == 0, "{map:?}");
        }
    }
    let stored = stored(&compiled).unwrap();
    assert_eq!(stored.len(), 4);
    for compiled in &compiled {
        let found = stored.get(&compiled.source, Architecture::SM90).unwrap();
        assert_eq!(found, compiled.images[1].cubin);
    }
    // The same text, whoever compiles it, gives the same bytes.
    assert_eq!(images(&compile(&compiler)), images(&compiled));
}

fn images(kernels: &[CompiledKernel]) -> Vec<&[u8]> {
    kernels.iter().flat_map(|kernel| kernel.images.iter().map(|image| image.cubin.as_slice())).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_compiled_once_comes_from_the_cache_unless_it_is_damaged() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(nvrtc, Cache::at(folder.path()));
    let first = compile(&compiler);
    assert_eq!(cached(&first), [false; 4]);
    let second = compile(&compiler);
    assert_eq!(cached(&second), [true; 4]);
    assert_eq!(images(&first), images(&second));
    let resources = |kernels: &[CompiledKernel]| -> Vec<_> {
        kernels.iter().flat_map(|kernel| kernel.images.iter().map(|image| image.resources.clone())).collect()
    };
    assert_eq!(resources(&first), resources(&second));
    let files = files(folder.path());
    assert_eq!(files.len(), 4);
    let mut bytes = fs::read(&files[0]).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&files[0], bytes).unwrap();
    let third = compile(&compiler);
    assert_eq!(cached(&third).iter().filter(|cached| !**cached).count(), 1);
    assert_eq!(images(&first), images(&third));
    assert_eq!(cached(&compile(&compiler)), [true; 4]);
    assert_eq!(compiler.take_warning(), None);
}

#[test]
fn several_may_fill_one_cache_at_a_time() {
    let Some(_) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let results: Vec<Vec<CompiledKernel>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let compiler = Compiler::new(Nvrtc::load().unwrap(), Cache::at(folder.path()));
                    let compiled = compile(&compiler);
                    assert_eq!(compiler.take_warning(), None);
                    compiled
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(images(&results[0]), images(&results[1]));
    assert_eq!(files(folder.path()).len(), 4);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let compiler = Compiler::new(nvrtc, Cache::at(file.join("below")));
    assert_eq!(cached(&compile(&compiler)), [false; 4]);
    let warning = compiler.take_warning().unwrap();
    assert!(warning.contains("cannot keep kernels in") && warning.contains("NUCLEUS_CACHE"), "{warning}");
    assert_eq!(compiler.take_warning(), None);
}

#[test]
fn an_error_names_the_kernel_and_has_the_compilers_words() {
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::none());
    let mut kernels = kernels();
    kernels[1].source.text.push_str("\nDEVICE int broken() { return undeclared; }\n");
    let name = kernels[1].source.name.clone();
    let error = compiler.compile_kernels(kernels, 2, &|_, _| {}).unwrap_err();
    assert!(matches!(error, NvrtcError::Compile { .. }), "{error}");
    let message = error.to_string();
    assert!(message.starts_with(&format!("kernel `{name}` does not compile for sm_80")), "{message}");
    assert!(message.contains("identifier \"undeclared\" is undefined"), "{message}");
    assert!(message.contains(&format!("{name}.cu(")), "{message}");
}

/// Tiles at the corners of what is allowed, each with as few and as many blocks as a multiprocessor holds.
fn corners(dtype: DType, device: &tiles::Device) -> Vec<Tile> {
    let mut corners = Vec::new();
    let powers = |list: &[u32], corners: &mut Vec<Tile>, set: fn(&mut Tile, u32)| {
        let each = |tile: &Tile| {
            let with = |value: &u32| {
                let mut tile = *tile;
                set(&mut tile, *value);
                tile
            };
            list.iter().map(with).collect::<Vec<Tile>>()
        };
        *corners = corners.iter().flat_map(each).collect();
    };
    corners.push(Tile { rows: 0, columns: 0, depth: 0, stages: 2, warps: 0, across: 0, blocks: 0 });
    powers(&[16, 64, 256], &mut corners, |tile, rows| tile.rows = rows);
    powers(&[16, 64, 256], &mut corners, |tile, columns| tile.columns = columns);
    powers(&[16, 64], &mut corners, |tile, depth| tile.depth = depth);
    powers(&[1, 4, 16], &mut corners, |tile, warps| tile.warps = warps);
    powers(&[1, 2, 4, 16], &mut corners, |tile, across| tile.across = across);
    powers(&[1, 2, 16], &mut corners, |tile, blocks| tile.blocks = blocks);
    corners.retain(|tile| tile.check(dtype, device).is_ok());
    corners
}

#[test]
fn whatever_tile_a_table_may_hold_compiles() {
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::none());
    let plan = product("1000*T", 72, 2);
    let (kernel, facts) = (plan.kernel(KernelId(0)), Facts::of(&plan, KernelId(0)));
    let architecture = Architecture::SM80;
    let print = |tile: &Tile| DistinctKernel {
        first: (0, KernelId(0)),
        anchor: "matmul",
        source: kernel_source(kernel, &facts.clone().with_tile(*tile), architecture).unwrap(),
        architectures: vec![architecture],
    };
    let corners = corners(DType::Bf16, &tiles::Device::of(architecture));
    assert!(corners.len() >= 40, "{}", corners.len());
    // Spills make a tile slow, and not wrong.
    let compiled = compiler.compile_kernels(corners.iter().map(print).collect(), 2, &|_, _| {}).unwrap();
    compiled.iter().for_each(|kernel| check_cubin(&kernel.images[0].cubin, architecture).unwrap());
}
