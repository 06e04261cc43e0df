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
    Architecture, Cache, CompiledKernel, Compiler, DistinctKernel, Nvrtc, NvrtcError, Tuning,
    distinct_kernels,
};
use nucleus_plan::text::parse_plan;

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
