//! Runs plans on the shim: kernels as they are emitted, compiled by the C++ compiler with sanitizers and executed on this computer.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use nucleus_cuda::tuning::tuned_source;
use nucleus_cuda::{Architecture, KernelSource, Tuning};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{KernelId, Place, Plan};

/// The kernels of a plan in one program.
pub(crate) struct Program {
    sources: Vec<KernelSource>,
    /// For each launched function the number of its entry.
    entries: Vec<Vec<u64>>,
    path: PathBuf,
}

/// Files of the shim, part of what a program is known by.
const SHIM: [(&str, &str); 2] =
    [("shim.hpp", include_str!("../shim/shim.hpp")), ("driver.hpp", include_str!("../shim/driver.hpp"))];

/// Numbers of temporary files.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn directory() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim");
    fs::create_dir_all(&path).unwrap();
    path
}

fn unique(extension: &str) -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory().join(format!("{}-{number}.{extension}", std::process::id()))
}

/// The program of a text; one that was compiled before is used again.
fn executable(text: &str) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    SHIM.iter().for_each(|(_, text)| {
        hasher.update(text.as_bytes());
    });
    hasher.update(text.as_bytes());
    let path = directory().join(&hasher.finalize().to_hex()[..24]);
    if !path.exists() {
        let file = unique("cpp");
        fs::write(&file, text).unwrap();
        let program = unique("exe");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
            .args(["-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unknown-pragmas", "-w"])
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim"))
            .arg("-o")
            .arg(&program)
            .arg(&file)
            .output()
            .expect("a C++ compiler: `c++`, or what CXX names");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}\n(the unit is {})", file.display());
        fs::rename(&program, &path).unwrap();
        fs::rename(&file, path.with_extension("cpp")).unwrap();
    }
    path
}

impl Program {
    /// Prints and compiles the kernels of a plan; a program that was compiled before is used again.
    pub(crate) fn compile(plan: &Plan, architecture: Architecture, tuning: &Tuning) -> Program {
        Program::compile_all(&[plan], architecture, tuning).remove(0)
    }

    /// The same for several plans: one C++ program has all of their kernels, those that are alike once.
    pub(crate) fn compile_all(plans: &[&Plan], architecture: Architecture, tuning: &Tuning) -> Vec<Program> {
        let mut text = String::from("#include \"driver.hpp\"\n");
        let mut table = String::new();
        let mut known: HashMap<String, Vec<u64>> = HashMap::new();
        let mut count = 0;
        let mut add = |source: &KernelSource| {
            if let Some(entries) = known.get(&source.text) {
                return entries.clone();
            }
            let number = known.len();
            let _ =
                write!(text, "\nnamespace k{number} {{\n#line 1 \"{}.cu\"\n{}}}\n", source.name, source.text);
            let mut of_kernel = Vec::new();
            for function in &source.functions {
                let name = function.name;
                let _ = writeln!(
                    table,
                    "    {{\"{}.{name}\", [](const shim::Call& call) {{ k{number}::{name}(shim::arguments_of<k{number}::Arguments>(call)); }}}},",
                    source.name
                );
                of_kernel.push(count);
                count += 1;
            }
            known.insert(source.text.clone(), of_kernel.clone());
            of_kernel
        };
        let mut printed = Vec::new();
        for plan in plans {
            let source = |id: u32| {
                tuned_source(plan, KernelId(id), architecture, None, tuning)
                    .unwrap_or_else(|error| panic!("kernel {id}: {error}"))
            };
            let sources: Vec<KernelSource> = (0..plan.kernels.len() as u32).map(source).collect();
            let entries: Vec<Vec<u64>> = sources.iter().map(&mut add).collect();
            printed.push((sources, entries));
        }
        let _ = write!(
            text,
            "\nstatic const shim::Entry ENTRIES[] = {{\n{table}    {{nullptr, nullptr}},\n}};\n\nint main(int, char** arguments) {{\n    return shim::run_task(ENTRIES, arguments[1], arguments[2]);\n}}\n"
        );
        let path = executable(&text);
        let program = |(sources, entries)| Program { sources, entries, path: path.clone() };
        printed.into_iter().map(program).collect()
    }

    /// Runs every launch in order. `memory` gives the bytes of weights and inputs by buffer; what is not given starts as NaN. Returns the bytes of
    /// every output.
    pub(crate) fn run(
        &self,
        plan: &Plan,
        dims: &Bindings,
        memory: &HashMap<usize, Vec<u8>>,
        seed: u64,
    ) -> Result<Vec<Vec<u8>>, String> {
        // Segments 0 to 2 are the arenas, 3 scratch; a buffer without a place in an arena has one of its own.
        let mut segments: Vec<Vec<u8>> = vec![Vec::new(); 4];
        if let Some(arenas) = &plan.arenas {
            for rate in Rate::ALL {
                let bytes = arenas[rate as usize].eval(dims).unwrap();
                segments[rate as usize] = vec![0xff; bytes as usize];
            }
        }
        let mut places = Vec::new();
        for (number, buffer) in plan.buffers.iter().enumerate() {
            let elements: i64 = buffer.shape.iter().map(|dim| dim.eval(dims).unwrap()).product();
            let bytes = elements as usize * buffer.dtype.size();
            places.push(match &buffer.place {
                Place::Arena { rate, offset: Some(offset) } => {
                    (*rate as usize, offset.eval(dims).unwrap() as u64, bytes)
                }
                _ => {
                    segments.push(memory.get(&number).cloned().unwrap_or_else(|| vec![0xff; bytes]));
                    (segments.len() - 1, 0, bytes)
                }
            });
        }
        let mut launches = Vec::new();
        let mut count = 0u64;
        for launch in &plan.launches {
            let kernel = launch.kernel.0 as usize;
            let sizes: Vec<i64> = launch.sizes.iter().map(|size| size.eval(dims).unwrap()).collect();
            let source = &self.sources[kernel];
            let scratch = source.scratch.count(&sizes).unwrap() as usize;
            if segments[3].len() < scratch {
                segments[3].resize(scratch, 0xff);
            }
            for (function, entry) in source.functions.iter().zip(&self.entries[kernel]) {
                let Some(grid) = function.grid.extents(&sizes).unwrap() else { continue };
                count += 1;
                let mut push = |number: u64| launches.extend(number.to_ne_bytes());
                push(*entry);
                grid.iter().for_each(|extent| push(u64::from(*extent)));
                push(u64::from(function.threads));
                push(u64::from(function.shared_bytes));
                push(launch.operands.len() as u64);
                for operand in &launch.operands {
                    let (segment, offset, _) = places[operand.0 as usize];
                    push(segment as u64);
                    push(offset);
                }
                push(sizes.len() as u64);
                sizes.iter().for_each(|size| push(*size as u64));
                push(3);
            }
        }
        let mut task = Vec::new();
        task.extend(seed.to_ne_bytes());
        task.extend((segments.len() as u64).to_ne_bytes());
        for segment in &segments {
            task.extend((segment.len() as u64).to_ne_bytes());
            task.extend(segment);
        }
        task.extend(count.to_ne_bytes());
        task.extend(launches);
        let (task_file, result_file) = (unique("task"), unique("result"));
        fs::write(&task_file, task).unwrap();
        let output = Command::new(&self.path)
            .args([&task_file, &result_file])
            // Fibres of a block are left where they stand when a kernel fails; programs end after one task.
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .output()
            .unwrap();
        let result = fs::read(&result_file);
        let _ = fs::remove_file(&task_file);
        let _ = fs::remove_file(&result_file);
        if !output.status.success() {
            return Err(format!(
                "{}\n(the unit is {})",
                String::from_utf8_lossy(&output.stderr),
                self.path.with_extension("cpp").display()
            ));
        }
        let result = result.unwrap();
        let starts: Vec<usize> = segments
            .iter()
            .scan(0, |end, segment| {
                let start = *end;
                *end += segment.len();
                Some(start)
            })
            .collect();
        let mut outputs = vec![Vec::new(); plan.outputs.len()];
        for (buffer, (segment, offset, bytes)) in plan.buffers.iter().zip(&places) {
            if let Place::Output(position) = buffer.place {
                let start = starts[*segment] + *offset as usize;
                outputs[position as usize] = result[start..start + bytes].to_vec();
            }
        }
        Ok(outputs)
    }
}
