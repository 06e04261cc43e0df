//! The CUDA kernels of the released model, inference, training and optimisers, compiled by NVRTC on this machine, which needs no GPU: what can
//! be told from the machine code is asserted here. `released.rs` says which plans for which architectures.
//!
//! NVRTC and nvdisasm come from `tools/fetch-nvrtc`. Where they are missing, tests say so and assert nothing, unless `NUCLEUS_REQUIRE_NVRTC=1`. Cubins are
//! kept in `target/tmp`, so that a second run compiles what changed. The table of compile times, the slowest first, is written beside
//! them: `target/tmp/static-gates.txt`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "what is not tested is said")]

mod expectations;
mod instructions;
mod released;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use nucleus_cuda::{
    Architecture, Cache, CompiledKernel, Compiler, DistinctKernel, Image, Nvrtc, Resources, Tuning,
    distinct_kernels,
};
use nucleus_plan::Plan;

use expectations::Expectation;

/// Registers of a multiprocessor, which all threads of a block must share; they are given to threads in eights.
const REGISTERS: u32 = 65_536;

/// Kernels that may spill: anchor and reason. None does.
const MAY_SPILL: &[(&str, &str)] = &[];

/// Everything compiled.
struct Compiled {
    compiler: Compiler,
    plans: Vec<Plan>,
    kernels: Vec<CompiledKernel>,
}

/// Compiles everything, once for all tests. `None` where there is no NVRTC and none is asked for.
fn compiled() -> Option<&'static Compiled> {
    static COMPILED: OnceLock<Result<Option<Compiled>, String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(compile);
    compiled.as_ref().unwrap_or_else(|error| panic!("{error}")).as_ref()
}

fn compile() -> Result<Option<Compiled>, String> {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(error) if std::env::var_os("NUCLEUS_REQUIRE_NVRTC").is_none_or(|value| value != "1") => {
            eprintln!("the static gates are not tested: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error.to_string()),
    };
    let (plans, kernels) = kernels()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let compiler = Compiler::new(nvrtc, Cache::at(folder.join("cubins")));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let kernels =
        compiler.compile_kernels(kernels, threads, &|_, _| {}).map_err(|error| error.to_string())?;
    assert_eq!(compiler.take_warning(), None);
    std::fs::write(folder.join("static-gates.txt"), table(&plans, &kernels)).unwrap();
    Ok(Some(Compiled { compiler, plans, kernels }))
}

/// All plans and their distinct kernels, each with the architectures that it is compiled for.
fn kernels() -> Result<(Vec<Plan>, Vec<DistinctKernel>), String> {
    let (mut plans, mut kernels) = (Vec::new(), Vec::<DistinctKernel>::new());
    let mut known = HashMap::new();
    for group in released::groups() {
        let named = group.architectures.iter().map(|name| name.parse());
        let architectures: Vec<Architecture> = named.collect::<Result<_, _>>().unwrap();
        let distinct = distinct_kernels(&group.plans, &architectures, &Tuning::default())
            .map_err(|error| error.to_string())?;
        for mut kernel in distinct.into_iter().filter(|kernel| !group.tiled_alone || is_tiled(kernel.anchor))
        {
            let at = *known.entry(kernel.source.text.clone()).or_insert(kernels.len());
            if at == kernels.len() {
                kernel.first.0 += plans.len();
                kernels.push(kernel);
            } else {
                let there = &mut kernels[at].architectures;
                kernel.architectures.retain(|architecture| !there.contains(architecture));
                there.append(&mut kernel.architectures);
            }
        }
        plans.extend(group.plans);
    }
    Ok((plans, kernels))
}

/// Whether kernels of that anchor differ from architecture to architecture.
fn is_tiled(anchor: &str) -> bool {
    ["matmul", "grouped_matmul", "attention", "attention_grad"].contains(&anchor)
}

/// A line for every cubin: seconds, what its functions take at the most, and what it is.
fn table(plans: &[Plan], kernels: &[CompiledKernel]) -> String {
    let mut lines: Vec<(f64, String)> = Vec::new();
    for kernel in kernels {
        let (plan, id) = kernel.first;
        for Image { architecture, cubin, resources, time, .. } in &kernel.images {
            let most = |value: fn(&Resources) -> u32| resources.iter().map(value).max().unwrap_or(0);
            let spills = most(|function| function.spill_stores + function.spill_loads);
            let line = format!(
                "{:8.3} {:9} {:8} {spills:6} {architecture:7} {} ({} k{})\n",
                time.as_secs_f64(),
                most(|function| function.registers),
                cubin.len(),
                kernel.source.name,
                plans[plan].entry,
                id.0,
            );
            lines.push((time.as_secs_f64(), line));
        }
    }
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    let total: f64 = lines.iter().map(|(seconds, _)| seconds).sum();
    let mut text = String::new();
    writeln!(text, "{} distinct kernels, {} cubins, {total:.1} s of one thread", kernels.len(), lines.len())
        .unwrap();
    text.push_str(" seconds registers    bytes spills\n");
    lines.iter().for_each(|(_, line)| text.push_str(line));
    text
}

/// Fails with all of the messages, if there are any.
fn none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Every image with its kernel.
fn images(compiled: &Compiled) -> impl Iterator<Item = (&CompiledKernel, &Image)> {
    compiled.kernels.iter().flat_map(|kernel| kernel.images.iter().map(move |image| (kernel, image)))
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_says_what_it_takes() {
    let Some(compiled) = compiled() else { return };
    let mut failures = Vec::new();
    for (kernel, image) in images(compiled) {
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let wanted = kernel.source.functions.iter().map(|function| function.name.to_owned());
        let found = image.resources.iter().map(|resources| resources.function.clone());
        let (wanted, found) = (sorted(wanted.collect()), sorted(found.collect()));
        if wanted != found {
            let name = &kernel.source.name;
            failures.push(format!("{name} {}: launched {wanted:?}, compiled {found:?}", image.architecture));
        }
    }
    none(failures);
}

#[test]
fn no_kernel_spills() {
    let Some(compiled) = compiled() else { return };
    let mut failures = Vec::new();
    for (kernel, image) in images(compiled) {
        if MAY_SPILL.iter().any(|(anchor, _)| *anchor == kernel.anchor) {
            continue;
        }
        for function in &image.resources {
            if function.spill_stores + function.spill_loads > 0 {
                failures.push(format!("{} {}: {function:?}", kernel.source.name, image.architecture));
            }
        }
    }
    none(failures);
}

#[test]
fn registers_threads_and_shared_memory_are_within_limits() {
    let Some(compiled) = compiled() else { return };
    let mut failures = Vec::new();
    for (kernel, image) in images(compiled) {
        for function in &kernel.source.functions {
            let taken = image.resources.iter().find(|resources| resources.function == function.name).unwrap();
            let registers = taken.registers.next_multiple_of(8) * function.threads;
            let shared = taken.shared + function.shared_bytes;
            let threads = function.threads;
            if registers > REGISTERS
                || shared > image.architecture.shared_memory()
                || !(1..=1024).contains(&threads)
                || threads % 32 != 0
            {
                failures.push(format!(
                    "{} {}: {} takes {registers} registers, {shared} bytes of shared memory, {threads} threads",
                    kernel.source.name, image.architecture, function.name
                ));
            }
        }
    }
    none(failures);
}

#[test]
fn matrix_kernels_run_on_tensor_cores_and_copy_asynchronously() {
    let Some(compiled) = compiled() else { return };
    let disassembler = match instructions::Disassembler::find(compiled.compiler.nvrtc()) {
        Some(disassembler) => disassembler,
        None if std::env::var_os("NUCLEUS_REQUIRE_NVRTC").is_none_or(|value| value != "1") => {
            eprintln!("instructions are not tested: no nvdisasm; run `tools/fetch-nvrtc`");
            return;
        }
        None => panic!("no nvdisasm: run `tools/fetch-nvrtc`"),
    };
    let next = Mutex::new(images(compiled));
    let failures = Mutex::new(Vec::new());
    // The disassembler takes half a second for a cubin.
    let worker = || loop {
        let Some((kernel, image)) = next.lock().unwrap().next() else { break };
        let expected = Expectation::of(&compiled.plans[kernel.first.0], kernel.first.1);
        if expected == Expectation::default() {
            continue;
        }
        let found = disassembler.instructions(&image.cubin);
        let wanted: [(&[&str], bool); 3] = [
            (&["HMMA"], expected.tensor_cores),
            (&["LDGSTS"], expected.asynchronous),
            // The second where a product with 1 is none.
            (&["HFMA2", "HADD2"], expected.widened),
        ];
        for (instructions, wanted) in wanted {
            if wanted && !instructions.iter().any(|name| found.contains(*name)) {
                let name = &kernel.source.name;
                failures
                    .lock()
                    .unwrap()
                    .push(format!("{name} {} has no {instructions:?}", image.architecture));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    none(failures.into_inner().unwrap());
}
