//! All kernels of some plans, compiled: each distinct text once for each architecture, on several threads, with the cache between.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nucleus_plan::{KernelId, Plan};
use thiserror::Error;

use crate::architecture::Architecture;
use crate::cache::{Cache, Entry};
use crate::cubin::{CubinError, CubinKey, StoredCubins, check_cubin};
use crate::nvrtc::{Nvrtc, NvrtcError, Resources, resources};
use crate::source::{KernelSource, SourceError};
use crate::tuning::{Printed, Tuning, print_all};

/// Stack of a thread that compiles: compilers recurse.
const STACK_BYTES: usize = 32 << 20;

/// A distinct kernel of some plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistinctKernel {
    /// The first of these plans that has it, and its number there.
    pub first: (usize, KernelId),
    /// The name of its anchor.
    pub anchor: &'static str,
    /// Its text and how it is launched.
    pub source: KernelSource,
    /// The architectures for which this is its text, in the order in which they were asked for.
    pub architectures: Vec<Architecture>,
}

/// A kernel that cannot be printed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("kernel {kernel} of entry `{entry}`, a {anchor}: {source}")]
pub struct PrintError {
    /// The entry.
    pub entry: String,
    /// The number of the kernel in its plan.
    pub kernel: u32,
    /// The name of its anchor.
    pub anchor: &'static str,
    /// Why.
    pub source: SourceError,
}

/// The distinct kernels of some plans in the order of their first use. Of contractions these are, for every architecture, the one for devices
/// that the table does not name and those for the devices that it names.
///
/// # Errors
/// There is no template for a kernel, or the table has a tile for it that it cannot have.
pub fn distinct_kernels<'a>(
    plans: impl IntoIterator<Item = &'a Plan>,
    architectures: &[Architecture],
    tuning: &Tuning,
) -> Result<Vec<DistinctKernel>, PrintError> {
    let mut kernels: Vec<DistinctKernel> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    print_all(plans, architectures, tuning, |plan, printed| {
        let Printed { plan: position, kernel, architecture, source, .. } = printed;
        let at = *known.entry(source.text.clone()).or_insert(kernels.len());
        if at == kernels.len() {
            kernels.push(DistinctKernel {
                first: (position, kernel),
                anchor: plan.kernel(kernel).anchor.name(),
                source,
                architectures: Vec::new(),
            });
        }
        if !kernels[at].architectures.contains(&architecture) {
            kernels[at].architectures.push(architecture);
        }
    })?;
    Ok(kernels)
}

/// A kernel compiled for an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The architecture.
    pub architecture: Architecture,
    /// Machine code, an ELF file.
    pub cubin: Vec<u8>,
    /// What each function of it takes.
    pub resources: Vec<Resources>,
    /// How long its compilation took, now or when it was put into the cache.
    pub time: Duration,
    /// Whether it came from the cache.
    pub cached: bool,
}

/// A distinct kernel with its machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledKernel {
    /// The first of the plans that has it, and its number there.
    pub first: (usize, KernelId),
    /// The name of its anchor.
    pub anchor: &'static str,
    /// Its text and how it is launched.
    pub source: KernelSource,
    /// One for each architecture of the [`DistinctKernel`], in its order.
    pub images: Vec<Image>,
}

/// The cubins of some kernels, as an artifact carries them.
///
/// # Errors
/// One is not whole, which those of a [`Compiler`] are.
pub fn stored<'a>(kernels: impl IntoIterator<Item = &'a CompiledKernel>) -> Result<StoredCubins, CubinError> {
    let mut cubins = StoredCubins::new();
    for kernel in kernels {
        for image in &kernel.images {
            cubins.insert(CubinKey::of(&kernel.source, image.architecture), image.cubin.clone())?;
        }
    }
    Ok(cubins)
}

/// NVRTC with a cache.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    cache: Cache,
    /// The first failure to write to the cache.
    warning: Mutex<Option<String>>,
}

impl Compiler {
    /// A compiler that keeps what it makes.
    pub fn new(nvrtc: Nvrtc, cache: Cache) -> Compiler {
        let warning = Mutex::new(cache.complaint());
        Compiler { nvrtc, cache, warning }
    }

    /// NVRTC, wherever it is found, with the user's cache.
    ///
    /// # Errors
    /// NVRTC is missing or of an unsupported version.
    pub fn standard() -> Result<Compiler, NvrtcError> {
        Ok(Compiler::new(Nvrtc::load()?, Cache::standard()))
    }

    /// NVRTC.
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// What went wrong with the cache, once: kernels were compiled, but may have to be again; or its limit is not a number.
    pub fn take_warning(&self) -> Option<String> {
        self.warning.lock().map_or(None, |mut warning| warning.take())
    }

    /// Compiles one kernel, or takes it from the cache.
    ///
    /// # Errors
    /// It does not compile.
    pub fn compile(&self, source: &KernelSource, architecture: Architecture) -> Result<Image, NvrtcError> {
        let key = self.key(source, architecture);
        let kept = self.cache.get(&key).filter(|entry| check_cubin(&entry.cubin, architecture).is_ok());
        let image = |Entry { cubin, log, time }: Entry, cached| Image {
            architecture,
            cubin,
            resources: resources(&log),
            time,
            cached,
        };
        if let Some(entry) = kept {
            return Ok(image(entry, true));
        }
        let start = Instant::now();
        let compiled = self.nvrtc.compile(&source.name, &source.text, architecture)?;
        let entry = Entry { cubin: compiled.cubin, log: compiled.log, time: start.elapsed() };
        if let Err(error) = self.cache.put(&key, &entry) {
            let folder = self.cache.folder().map(|folder| folder.display().to_string()).unwrap_or_default();
            let why = format!(
                "cannot keep kernels in `{folder}`: {error}; they will be compiled again: set NUCLEUS_CACHE to a folder that can be written"
            );
            if let Ok(mut warning) = self.warning.lock() {
                warning.get_or_insert(why);
            }
        }
        Ok(image(entry, false))
    }

    /// Compiles kernels for all their architectures on `threads` threads. `progress` is told, from any thread, how many of how many are done.
    ///
    /// # Errors
    /// One does not compile; the others that had begun are in the cache.
    pub fn compile_kernels(
        &self,
        kernels: Vec<DistinctKernel>,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<CompiledKernel>, NvrtcError> {
        let work: Vec<(&KernelSource, Architecture)> = kernels
            .iter()
            .flat_map(|kernel| {
                kernel.architectures.iter().map(|architecture| (&kernel.source, *architecture))
            })
            .collect();
        // Long texts take long: begun first, none of them is what all wait for at the end.
        let mut order: Vec<usize> = (0..work.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(work[*at].0.text.len()));
        let results: Vec<Mutex<Option<Result<Image, NvrtcError>>>> =
            work.iter().map(|_| Mutex::new(None)).collect();
        let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let worker = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let (source, architecture) = work[*at];
                let result = self.compile(source, architecture);
                if result.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                if let Ok(mut place) = results[*at].lock() {
                    *place = Some(result);
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, work.len());
            }
        };
        std::thread::scope(|scope| {
            let spawn = |number: usize| {
                let builder = std::thread::Builder::new().name(format!("nvrtc-{number}"));
                builder.stack_size(STACK_BYTES).spawn_scoped(scope, worker).is_ok()
            };
            let spawned = (0..threads.clamp(1, work.len().max(1))).filter(|number| spawn(*number)).count();
            // A system that gives no threads still compiles.
            if spawned == 0 {
                worker();
            }
        });
        let mut images = Vec::with_capacity(work.len());
        let mut error = None;
        for result in results {
            match result.into_inner().ok().flatten() {
                Some(Ok(image)) => images.push(image),
                Some(Err(first)) => error = error.or(Some(first)),
                // Not begun: another had failed.
                None => {}
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        let mut images = images.into_iter();
        let compiled = kernels.into_iter().map(|kernel| CompiledKernel {
            images: images.by_ref().take(kernel.architectures.len()).collect(),
            first: kernel.first,
            anchor: kernel.anchor,
            source: kernel.source,
        });
        Ok(compiled.collect())
    }

    /// The file name of a kernel in the cache: a hash of all that its cubin depends on.
    fn key(&self, source: &KernelSource, architecture: Architecture) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.nvrtc.identity(), architecture.to_string(), source.text.clone()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}
