//! A plan compiled for this machine.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nucleus_ir::{Bindings, DType, Dim, Rate};
use nucleus_plan::bounds::{points, range};
use nucleus_plan::{Anchor, BindError, BufferId, Contraction, Kernel, KernelId, Place, Plan, Size};

use crate::buffer::{AlignedBuffer, OutOfMemory};
use crate::codegen::{Code, Jit};
use crate::executor::compiled::{CompiledKernel, Source, compile_kernel, element};
use crate::executor::pack::{FactorSizes, PackJob, RightFactor, pack_items};
use crate::executor::slots::slots;
use crate::executor::{BoundAccess, BufferPointer, BufferTable, CompileError, CpuBound, ExecuteError};
use crate::kernels::{Element, Isa, Operand, Packing};
use crate::threads::Threads;

/// How to compile and run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads; 0 means one per CPU.
    pub threads: usize,
    /// The instruction set of the micro-kernels; `None` means the fastest, or what `NUCLEUS_ISA` names.
    pub isa: Option<Isa>,
    /// The most bytes that the arenas together, or any one buffer, may have.
    pub memory_limit: u64,
    /// Which launches run slice by slice. No bit of a result depends on it.
    pub slicing: Slicing,
}

/// Which launches over a batch run slice by slice: all of them for one item before any of them for the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slicing {
    /// Those that hand more to each other than the near caches hold, in slices that these do hold.
    #[default]
    Worthwhile,
    /// All that can: for tests.
    Wherever,
    /// None.
    Never,
}

impl Default for Options {
    fn default() -> Options {
        Options { threads: 0, isa: None, memory_limit: 1 << 40, slicing: Slicing::default() }
    }
}

/// How a program uses a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// Its name.
    pub name: String,
    /// Its buffer.
    pub buffer: BufferId,
    /// Launches read it where it lies, in the plan's type: its memory must stay.
    pub plain: bool,
    /// It is packed by [`CpuProgram::pack_weights`]: if it is not also plain, its memory may go afterwards.
    pub packed: bool,
    /// It may be stored as any float type.
    pub any_float: bool,
}

/// Where weights to be packed come from, if they do not lie in memory as a whole.
pub trait PackSource {
    /// Why a weight cannot be given.
    type Error: From<ExecuteError>;

    /// The memory of a weight, valid until the source is called again.
    ///
    /// # Errors
    /// The weight cannot be given.
    fn load(&mut self, buffer: BufferId, weight: &str) -> Result<BufferPointer, Self::Error>;

    /// All uses of a weight are packed.
    fn packed(&mut self, weight: &str);
}

/// Weights that all lie in memory: the function hears which are packed.
impl<F: FnMut(&str)> PackSource for F {
    type Error = ExecuteError;

    fn load(&mut self, buffer: BufferId, weight: &str) -> Result<BufferPointer, ExecuteError> {
        let why = "it has no memory".to_owned();
        Err(ExecuteError::Buffer { buffer: buffer.0, name: format!(" (weight `{weight}`)"), why })
    }

    fn packed(&mut self, weight: &str) {
        self(weight);
    }
}

/// A right factor that is packed once.
#[derive(Debug)]
struct Prepacked {
    key: PackKey,
    layout: RightFactor,
    memory: Option<AlignedBuffer>,
    ready: Option<RightFactor>,
}

/// What tells one packed right factor from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PackKey {
    buffer: BufferId,
    operand: Operand,
    packing: Packing,
    offset: i64,
    strides: Vec<i64>,
    batch: Vec<i64>,
    sizes: FactorSizes,
}

/// A plan compiled for this machine, with its threads and packed weights.
#[derive(Debug)]
pub struct CpuProgram {
    plan: Plan,
    kernels: Vec<CompiledKernel>,
    indices: Vec<bool>,
    code: Code,
    threads: Threads,
    isa: Isa,
    memory_limit: u64,
    slicing: Slicing,
    prepacked: Vec<Prepacked>,
    /// For each launch, and each part of a contraction, the packed factor it uses.
    launch_packs: Vec<Vec<Option<usize>>>,
    /// For each launch which operands must have memory.
    needed: Vec<Vec<bool>>,
}

impl CpuProgram {
    /// Compiles every kernel of a verified plan.
    ///
    /// # Errors
    /// A kernel or launch is malformed, the machine cannot run generated code, or the threads do not start.
    pub fn compile(plan: Plan, options: Options) -> Result<CpuProgram, CompileError> {
        let threads = Threads::new(options.threads)?;
        CpuProgram::compile_on(threads, plan, options)
    }

    /// [`CpuProgram::compile`] for the workers of another program; `options.threads` is not looked at.
    ///
    /// # Errors
    /// As for [`CpuProgram::compile`].
    pub fn compile_on(threads: Threads, plan: Plan, options: Options) -> Result<CpuProgram, CompileError> {
        let isa = match options.isa {
            Some(isa) => isa,
            None => Isa::select()?,
        };
        check_launches(&plan)?;
        let mut jit = Jit::new()?;
        let kernels = plan
            .kernels
            .iter()
            .enumerate()
            .map(|(number, kernel)| compile_kernel(&mut jit, number, kernel))
            .collect::<Result<Vec<_>, _>>()?;
        let code = jit.finish()?;
        let indices = plan.kernels.iter().map(has_indices).collect();
        let mut program = CpuProgram {
            threads: threads.with_limit(usize::try_from(options.memory_limit).unwrap_or(usize::MAX)),
            kernels,
            indices,
            code,
            isa,
            memory_limit: options.memory_limit,
            slicing: options.slicing,
            prepacked: Vec::new(),
            launch_packs: Vec::new(),
            needed: Vec::new(),
            plan,
        };
        for launch in 0..program.plan.launches.len() {
            let parts = contraction(program.plan.kernel(program.plan.launches[launch].kernel));
            let parts = parts.map_or(0, |contraction| contraction.parts.len());
            let packs: Vec<Option<usize>> = (0..parts).map(|part| program.plan_pack(launch, part)).collect();
            let needed = operand_uses(&program.plan, launch, &packs);
            program.needed.push(needed);
            program.launch_packs.push(packs);
        }
        Ok(program)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The worker threads; a runtime may use them for its own loops.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }

    /// The instruction set of the micro-kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    pub(crate) fn compiled(&self, kernel: KernelId) -> &CompiledKernel {
        &self.kernels[kernel.0 as usize]
    }

    pub(crate) fn has_indices(&self, kernel: KernelId) -> bool {
        self.indices[kernel.0 as usize]
    }

    /// For each part of a contraction the right factor that was packed beforehand.
    pub(crate) fn packed_factors(&self, launch: usize) -> Vec<Option<&RightFactor>> {
        self.launch_packs[launch].iter().map(|pack| self.prepacked[(*pack)?].ready.as_ref()).collect()
    }

    /// For each part of a contraction whether its right factor is packed beforehand.
    pub(crate) fn is_packed(&self, launch: usize) -> impl Iterator<Item = bool> + '_ {
        self.launch_packs[launch].iter().map(Option::is_some)
    }

    /// Whether a launch needs an operand's memory: right factors that have been packed are not read again.
    pub(crate) fn needs_operand(&self, launch: usize, operand: usize) -> bool {
        let buffer = self.plan.launches[launch].operands[operand];
        let to_pack = |pack: &usize| {
            let pack = &self.prepacked[*pack];
            pack.ready.is_none() && pack.key.buffer == buffer
        };
        self.needed[launch][operand] || self.launch_packs[launch].iter().flatten().any(to_pack)
    }

    /// Evaluates the plan's sizes, and decides how launches run.
    ///
    /// # Errors
    /// See [`nucleus_plan::BoundPlan::new`].
    pub fn bind(&self, dims: &Bindings) -> Result<CpuBound, BindError> {
        CpuBound::new(self, dims, self.memory_limit, self.slicing)
    }

    /// How each weight is used, in the order of the plan's buffers. Weights that no launch uses are absent.
    pub fn weight_uses(&self) -> Vec<WeightUse> {
        let mut uses = Vec::new();
        for (position, buffer) in self.plan.buffers.iter().enumerate() {
            let Place::Weight(name) = &buffer.place else { continue };
            let id = BufferId(position as u32);
            let mut plain = false;
            for (launch, needed) in self.plan.launches.iter().zip(&self.needed) {
                plain |=
                    launch.operands.iter().zip(needed).any(|(&operand, &needed)| needed && operand == id);
            }
            let packs: Vec<&PackKey> =
                self.prepacked.iter().map(|pack| &pack.key).filter(|key| key.buffer == id).collect();
            let any_float = !plain && packs.iter().all(|key| any_float(buffer.dtype, key.operand));
            if plain || !packs.is_empty() {
                uses.push(WeightUse {
                    name: name.clone(),
                    buffer: id,
                    plain,
                    packed: !packs.is_empty(),
                    any_float,
                });
            }
        }
        uses
    }

    /// Bytes that [`CpuProgram::pack_weights`] and [`CpuProgram::pack_values`] take for packed factors.
    pub fn packed_bytes(&self) -> usize {
        self.prepacked.iter().fold(0, |total, pack| total.saturating_add(pack.layout.bytes()))
    }

    /// Packs every right factor that is a weight, one weight after the other. `source` gives those that have no memory in the table, and
    /// hears when all uses of a weight are packed. Launches run without it too, packing each time.
    ///
    /// # Errors
    /// What the source says; or a buffer is too small, or of a type that cannot be converted.
    ///
    /// # Safety
    /// As for [`CpuProgram::execute`]; what the source gives has as much memory as it says until the source is called again.
    pub unsafe fn pack_weights<S: PackSource + ?Sized>(
        &mut self,
        table: &BufferTable,
        source: &mut S,
    ) -> Result<(), S::Error> {
        let bytes = self.packed_bytes();
        if bytes as u64 > self.memory_limit {
            return Err(ExecuteError::from(OutOfMemory { bytes }).into());
        }
        let mut packs: BTreeMap<BufferId, Vec<usize>> = BTreeMap::new();
        for (position, pack) in self.prepacked.iter().enumerate() {
            packs.entry(pack.key.buffer).or_default().push(position);
        }
        for (buffer, positions) in packs {
            let Place::Weight(name) = &self.plan.buffer(buffer).place else { continue };
            let name = name.clone();
            let pointer = match table.get(buffer) {
                Some(pointer) => pointer,
                None => source.load(buffer, &name)?,
            };
            for position in positions {
                // SAFETY: passed on.
                unsafe { self.pack(position, Some(pointer))? };
            }
            source.packed(&name);
        }
        Ok(())
    }

    /// Packs every right factor that is a value of the stage `model`; run it when that stage has run.
    ///
    /// # Errors
    /// A buffer is missing or too small.
    ///
    /// # Safety
    /// As for [`CpuProgram::execute`].
    pub unsafe fn pack_values(&mut self, table: &BufferTable) -> Result<(), ExecuteError> {
        for position in 0..self.prepacked.len() {
            let buffer = self.prepacked[position].key.buffer;
            if !matches!(self.plan.buffer(buffer).place, Place::Weight(_)) {
                // SAFETY: passed on.
                unsafe { self.pack(position, table.get(buffer))? };
            }
        }
        Ok(())
    }

    /// Packs one factor from the memory of its buffer.
    ///
    /// # Safety
    /// As for [`CpuProgram::pack_weights`].
    unsafe fn pack(&mut self, position: usize, memory: Option<BufferPointer>) -> Result<(), ExecuteError> {
        let Prepacked { key, layout, .. } = &self.prepacked[position];
        let buffer = self.plan.buffer(key.buffer);
        let name = || crate::executor::buffer_name(&self.plan, key.buffer);
        let fail = |why: String| Err(ExecuteError::Buffer { buffer: key.buffer.0, name: name(), why });
        let Some(pointer) = memory else { return fail("it has no memory".to_owned()) };
        let stored = match element(pointer.dtype) {
            Some(stored)
                if pointer.dtype == buffer.dtype
                    || float_will_do(pointer.dtype, buffer.dtype, key.operand) =>
            {
                stored
            }
            _ => return Err(ExecuteError::stored_type(key.buffer.0, name(), pointer.dtype, buffer.dtype)),
        };
        let elements = constant_elements(&self.plan, key.buffer).unwrap_or(i64::MAX as i128);
        let needed = elements.saturating_mul(stored.size() as i128);
        if (pointer.bytes as i128) < needed {
            return fail(format!("it has {} bytes where {needed} are needed", pointer.bytes));
        }
        let mut memory = AlignedBuffer::default();
        memory.try_reserve(layout.bytes())?;
        let access = BoundAccess { operand: 0, offset: key.offset, strides: key.strides.clone() };
        let job = PackJob {
            threads: &self.threads,
            isa: self.isa,
            packing: key.packing,
            element: stored,
            access: &access,
            batch: &key.batch,
            sizes: key.sizes,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the access was checked against the buffer's shape when the program was compiled, and the buffer has that many
            // elements; the memory is as large as the layout says.
            unsafe { pack_items(&job, pointer.data, memory.as_ptr()) }
        }));
        if let Err(payload) = outcome {
            if let Some(&source) = payload.downcast_ref::<OutOfMemory>() {
                return Err(source.into());
            }
            return fail(format!(
                "packing failed inside: {}",
                crate::executor::panic_message(payload.as_ref())
            ));
        }
        let ready = layout.clone().with_data(memory.as_ptr());
        let pack = &mut self.prepacked[position];
        pack.ready = Some(ready);
        pack.memory = Some(memory);
        Ok(())
    }

    /// The packed factor that a part of a launch's contraction can use: the right factor is a load from a weight or from a value of stage `model`, and its
    /// sizes do not depend on the run-time dims.
    fn plan_pack(&mut self, number: usize, part: usize) -> Option<usize> {
        let launch = &self.plan.launches[number];
        let contraction = contraction(self.plan.kernel(launch.kernel))?;
        let CompiledKernel::Contraction(compiled) = self.compiled(launch.kernel) else { return None };
        let Source::Load { access, element: loaded } = &compiled.parts[part].b else { return None };
        let part = &contraction.parts[part];
        let buffer = launch.operands[access.operand as usize];
        let constant = |size: Size| match size {
            Size::Const(value) => Some(value),
            Size::Arg(argument) => launch.sizes.get(argument as usize)?.as_constant(),
        };
        let constants =
            |sizes: &[Size]| sizes.iter().map(|&size| constant(size)).collect::<Option<Vec<i64>>>();
        let settled = match &self.plan.buffer(buffer).place {
            Place::Weight(_) => true,
            Place::Arena { rate, .. } => *rate == Rate::Model,
            Place::Input(_) | Place::Output(_) | Place::State(_) => false,
        };
        if launch.stage == Rate::Model || !settled {
            return None;
        }
        let (batch, strides) = (constants(&contraction.batch)?, constants(&access.strides)?);
        let (k, n) = (constant(contraction.depth)?, constant(part.columns)?);
        let (k, n) = (usize::try_from(k).ok()?, usize::try_from(n).ok()?);
        let segments = part.segments as usize;
        let offset = constant(access.offset)?;
        // The whole factor must lie inside the buffer, whose own size must be settled too.
        let mut extents = batch.clone();
        extents.extend([k as i64, n.checked_mul(segments)? as i64]);
        points(&extents)?;
        let direct = nucleus_plan::Access {
            operand: 0,
            offset: Size::Const(offset),
            strides: strides.iter().copied().map(Size::Const).collect(),
            indirect: None,
        };
        let (low, high) = range(&direct, &extents, &[])?;
        let elements = constant_elements(&self.plan, buffer)?;
        if low < 0
            || high >= elements
            || strides.iter().any(|&stride| stride < 0)
            || *loaded != element(self.plan.buffer(buffer).dtype)?
        {
            return None;
        }
        let operand = compiled.operand;
        let packing = Packing::of(operand, *loaded);
        let sizes = FactorSizes { k, n, segments, interleaved: part.interleaved };
        let item_bytes = sizes.packed_bytes(self.isa, packing);
        let layout = RightFactor::layout(&strides[..batch.len()], &batch, item_bytes);
        let key = PackKey { buffer, operand, packing, offset, strides, batch, sizes };
        let known = self.prepacked.iter().position(|pack| pack.key == key);
        Some(known.unwrap_or_else(|| {
            self.prepacked.push(Prepacked { key, layout, memory: None, ready: None });
            self.prepacked.len() - 1
        }))
    }
}

/// Whether packing may read elements of type `stored` in place of the plan's.
fn float_will_do(stored: DType, planned: DType, operand: Operand) -> bool {
    stored.is_float() && any_float(planned, operand)
}

/// Whether packing may read any float type in place of the plan's: the operand type is the plan's, so that both ways round once.
fn any_float(planned: DType, operand: Operand) -> bool {
    element(planned) == Some(operand.element()) && operand.element() != Element::F16
}

fn contraction(kernel: &Kernel) -> Option<&Contraction> {
    match &kernel.anchor {
        Anchor::Matmul(c) | Anchor::GroupedMatmul(c) => Some(c),
        _ => None,
    }
}

fn has_indices(kernel: &Kernel) -> bool {
    slots(&kernel.anchor).iter().any(|slot| slot.function.accesses().any(|access| access.indirect.is_some()))
}

/// Elements of a buffer whose shape has no run-time dim.
fn constant_elements(plan: &Plan, buffer: BufferId) -> Option<i128> {
    let shape = &plan.buffer(buffer).shape;
    shape.iter().try_fold(1i128, |product, dim: &Dim| product.checked_mul(i128::from(dim.as_constant()?)))
}

/// Which operands a launch reads or writes besides the right factors that are packed, part by part.
fn operand_uses(plan: &Plan, launch: usize, packs: &[Option<usize>]) -> Vec<bool> {
    let launch = &plan.launches[launch];
    let anchor = &plan.kernel(launch.kernel).anchor;
    let mut used = vec![false; launch.operands.len()];
    let numbered = packs.iter().enumerate().filter(|(_, pack)| pack.is_some());
    let packed: HashSet<String> = numbered.map(|(part, _)| format!("b{part}")).collect();
    for slot in slots(anchor).iter().filter(|slot| !packed.contains(&slot.name)) {
        slot.function.accesses().for_each(|access| used[access.operand as usize] = true);
    }
    anchor.dense_operands().iter().for_each(|dense| used[dense.operand as usize] = true);
    used
}

/// Launches must fit their kernels in number and type of operands and sizes.
fn check_launches(plan: &Plan) -> Result<(), CompileError> {
    for (number, launch) in plan.launches.iter().enumerate() {
        plan.check_launch(launch).map_err(|why| CompileError::Launch { launch: number, why })?;
    }
    Ok(())
}
