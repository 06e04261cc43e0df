//! The part of `nucleusc compile` that is for GPUs: kernels to cubins, their files, and what is said of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nucleus_cuda::source::{LimitKind, limit_source};
use nucleus_cuda::tuning::{TileChoice, tile_choices, tile_table};
use nucleus_cuda::{
    Architecture, Cache, CompiledKernel, Compiler, DistinctKernel, Nvrtc, Resources, StoredCubins,
};
use nucleus_cuda::{Tuning, compile, distinct_kernels};
use nucleus_plan::{KernelId, Plan};
use serde_json::{Value, json};

use crate::{progress, report};

/// Files that `--emit` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// The CUDA C++ of every kernel.
    pub sources: bool,
    /// Its machine code.
    pub cubins: bool,
    /// The table of tiles.
    pub tiles: bool,
}

/// The kernels of all entries, compiled.
pub struct Kernels {
    kernels: Vec<CompiledKernel>,
    /// What measures a device: `bench` on the artifact needs no compiler either.
    limits: CompiledKernel,
    /// The tile of every product.
    tiles: Vec<TileChoice>,
    /// The entries of the table that apply.
    tuning: Tuning,
    nvrtc: (u32, u32),
    time: Duration,
}

/// NVRTC with the user's cache. What is missing is said before anything else is done.
pub fn compiler() -> anyhow::Result<Compiler> {
    Ok(Compiler::new(Nvrtc::load()?, Cache::standard()))
}

/// Compiles the kernels of all plans on all cores, with tiles of the table where it has some.
pub fn compile_kernels<'a>(
    compiler: &Compiler,
    plans: impl IntoIterator<Item = &'a Plan> + Clone,
    architectures: &[Architecture],
    tuning: &Tuning,
) -> anyhow::Result<Kernels> {
    let start = Instant::now();
    let tuning = tuning.of_plans(plans.clone(), architectures);
    let tiles = tile_choices(plans.clone(), architectures, &tuning)?;
    let mut kernels = distinct_kernels(plans, architectures, &tuning)?;
    // Both of its functions are one unit.
    kernels.push(DistinctKernel {
        first: (0, KernelId(0)),
        anchor: "limits",
        source: limit_source(LimitKind::Plain)?.source,
        architectures: architectures.to_vec(),
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bar = progress::step_bar("kernels");
    let kernels = compiler.compile_kernels(kernels, threads, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    if let Some(warning) = compiler.take_warning() {
        report::note(&format!("warning: {warning}"));
    }
    let (mut kernels, nvrtc) = (kernels?, compiler.nvrtc().version());
    let limits = kernels.pop().context("what was compiled is there")?;
    Ok(Kernels { kernels, limits, tiles, tuning, nvrtc, time: start.elapsed() })
}

/// Of some kernels: sums, and the most that one of their functions takes.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    kernels: usize,
    cubins: usize,
    cached: usize,
    bytes: usize,
    /// Of one thread, now or when what is cached was compiled.
    seconds: f64,
    registers: u32,
    spills: u32,
}

impl Kernels {
    /// The cubins as the artifact holds them.
    pub fn stored(&self) -> anyhow::Result<StoredCubins> {
        Ok(compile::stored(self.kernels.iter().chain([&self.limits]))?)
    }

    /// The measured tiles as the artifact holds them.
    pub fn tuning(&self) -> Tuning {
        self.tuning.clone()
    }

    /// How many products have measured tiles, and how many there are: on every architecture, and again on every device of the table.
    fn tiles(&self) -> (usize, usize) {
        (self.tiles.iter().filter(|choice| choice.tile.given).count(), self.tiles.len())
    }

    /// Writes `<kernel>.<architecture>.cu` and `.cubin`, and `tiles.toml`.
    pub fn write(&self, folder: &Path, emitted: Emitted) -> anyhow::Result<()> {
        let write = |name: String, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
        };
        if emitted != Emitted::default() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make folder `{}`", folder.display()))?;
        }
        if emitted.tiles {
            write("tiles.toml".to_owned(), tile_table(&self.tiles).as_bytes())?;
        }
        for kernel in &self.kernels {
            for image in &kernel.images {
                let name = format!("{}.{}", kernel.source.name, image.architecture);
                if emitted.sources {
                    write(format!("{name}.cu"), kernel.source.text.as_bytes())?;
                }
                if emitted.cubins {
                    write(format!("{name}.cubin"), &image.cubin)?;
                }
            }
        }
        Ok(())
    }

    /// By anchor.
    fn work(&self) -> BTreeMap<&'static str, Work> {
        let mut all: BTreeMap<&str, Work> = BTreeMap::new();
        for kernel in &self.kernels {
            let work = all.entry(kernel.anchor).or_default();
            work.kernels += 1;
            for image in &kernel.images {
                work.cubins += 1;
                work.bytes += image.cubin.len();
                work.cached += usize::from(image.cached);
                work.seconds += image.time.as_secs_f64();
                let most =
                    |value: fn(&Resources) -> u32| image.resources.iter().map(value).max().unwrap_or(0);
                work.registers = work.registers.max(most(|resources| resources.registers));
                work.spills =
                    work.spills.max(most(|resources| resources.spill_stores + resources.spill_loads));
            }
        }
        all
    }

    /// The report.
    pub fn summarise(&self, text: &mut String) -> std::fmt::Result {
        let work = self.work();
        let sum = |value: fn(&Work) -> usize| work.values().map(value).sum::<usize>();
        writeln!(
            text,
            "cubins: {} of {} distinct kernels, {}, by NVRTC {}.{} in {}, {} from the cache",
            sum(|work| work.cubins),
            sum(|work| work.kernels),
            report::bytes(sum(|work| work.bytes) as u64),
            self.nvrtc.0,
            self.nvrtc.1,
            report::duration(self.time),
            sum(|work| work.cached)
        )?;
        let (measured, tiles) = self.tiles();
        writeln!(text, "tiles: {tiles} of matrix products, {measured} of them measured")?;
        for (anchor, work) in &work {
            let spills = match work.spills {
                0 => "no spills".to_owned(),
                bytes => format!("up to {bytes} bytes of spills"),
            };
            writeln!(
                text,
                "    {anchor:16} {:4} distinct {:6} cubins, up to {} registers, {spills}; compiled in {}",
                work.kernels,
                work.cubins,
                work.registers,
                report::duration(Duration::from_secs_f64(work.seconds))
            )?;
        }
        Ok(())
    }

    /// The report as JSON.
    pub fn describe(&self) -> Value {
        let anchors: Vec<Value> = self
            .work()
            .iter()
            .map(|(anchor, work)| {
                json!({
                    "anchor": anchor,
                    "kernels": work.kernels,
                    "cubins": work.cubins,
                    "cached": work.cached,
                    "bytes": work.bytes,
                    "seconds": work.seconds,
                    "registers": work.registers,
                    "spill_bytes": work.spills,
                })
            })
            .collect();
        json!({
            "nvrtc": format!("{}.{}", self.nvrtc.0, self.nvrtc.1),
            "seconds": self.time.as_secs_f64(),
            "tiles": self.tiles().1,
            "measured_tiles": self.tiles().0,
            "anchors": anchors,
        })
    }
}
