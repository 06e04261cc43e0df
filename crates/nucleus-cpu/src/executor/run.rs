//! The launches of a stage in order.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use nucleus_ir::Rate;
use nucleus_plan::bounds::{allowed_indices, find_index_outside, split_accesses};
use nucleus_plan::{Anchor, BoundPlan, BufferId, Kernel, Launch, Place, Plan, Profile};

use super::bind::CpuBound;
use super::compiled::CompiledKernel;
use super::error::ExecuteError;
use super::launch::LaunchContext;
use super::routing::RoutingError;
use super::slots::slots;
use super::table::BufferTable;
use crate::buffer::OutOfMemory;
use crate::program::CpuProgram;

/// What a thread said when it panicked.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// The name of a weight or state in parentheses, for messages.
pub(crate) fn buffer_name(plan: &Plan, buffer: BufferId) -> String {
    match &plan.buffer(buffer).place {
        Place::Weight(name) => format!(" (weight `{name}`)"),
        Place::State(name) => format!(" (state `{name}`)"),
        Place::Input(position) => match plan.inputs.get(*position as usize) {
            Some(input) => format!(" (input `{}`)", input.name),
            None => String::new(),
        },
        Place::Output(position) => match plan.outputs.get(*position as usize) {
            Some(output) => format!(" (output `{}`)", output.name),
            None => String::new(),
        },
        Place::Arena { rate, .. } => format!(" ({rate})"),
    }
}

impl CpuProgram {
    /// Runs the launches of one stage. Values of slower stages must be in their buffers.
    ///
    /// # Errors
    /// A buffer is missing or too small, an index lies outside what it indexes, or a routing kernel refuses its operands. Outputs
    /// then hold anything.
    ///
    /// # Safety
    /// Every buffer of the table points to as much memory as it says, alive and used by nothing else until this returns; buffers
    /// that launches only read may be shared. The plan is one that `nucleus_plan`'s verifier accepts. That the points of a launch do
    /// not write what others of its points touch was proved when its sizes were bound.
    pub unsafe fn execute(
        &self,
        bound: &CpuBound,
        stage: Rate,
        table: &BufferTable,
        mut profile: Option<&mut Profile>,
    ) -> Result<(), ExecuteError> {
        let plan = self.plan();
        let sizes = bound.sizes();
        if !sizes.is_of(plan) {
            return Err(ExecuteError::OtherPlan);
        }
        if let Some(profile) = profile.as_deref_mut() {
            profile.seconds.resize(plan.launches.len(), 0.0);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.threads().install(|| {
                let mut sliced = bound.sliced.iter().peekable();
                let mut number = 0;
                while number < plan.launches.len() {
                    let run = sliced.next_if(|run| run.launches.start == number);
                    if plan.launches[number].stage != stage {
                        number = run.map_or(number + 1, |run| run.launches.end);
                        continue;
                    }
                    if let Some(run) = run {
                        // SAFETY: passed on.
                        if unsafe { self.run_slices(sizes, run, table, profile.as_deref_mut())? } {
                            number = run.launches.end;
                            continue;
                        }
                    }
                    let started = Instant::now();
                    // SAFETY: passed on.
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| unsafe { self.launch(sizes, number, table) }));
                    outcome.unwrap_or_else(|payload| Err(self.panicked(number, payload)))?;
                    if let Some(profile) = profile.as_deref_mut() {
                        profile.seconds[number] += started.elapsed().as_secs_f64();
                    }
                    number += 1;
                }
                Ok(())
            })
        }));
        outcome.unwrap_or_else(|payload| {
            let message = panic_message(payload.as_ref());
            Err(ExecuteError::Panic { launch: 0, place: "all launches".to_owned(), message })
        })
    }

    /// What a panic in a launch means.
    pub(super) fn panicked(&self, launch: usize, payload: Box<dyn Any + Send>) -> ExecuteError {
        let place = self.plan().describe(&self.plan().launches[launch]);
        if let Some(&source) = payload.downcast_ref::<OutOfMemory>() {
            return ExecuteError::Memory { launch, place, source };
        }
        ExecuteError::Panic { launch, place, message: panic_message(payload.as_ref()) }
    }

    /// The address of every operand; null where the launch needs none.
    pub(super) fn operands(
        &self,
        bound: &BoundPlan,
        number: usize,
        launch: &Launch,
        table: &BufferTable,
    ) -> Result<Vec<*mut u8>, ExecuteError> {
        let plan = self.plan();
        let mut operands = Vec::with_capacity(launch.operands.len());
        for (position, &buffer) in launch.operands.iter().enumerate() {
            let fail = |why: String| {
                Err(ExecuteError::Buffer { buffer: buffer.0, name: buffer_name(plan, buffer), why })
            };
            if !self.needs_operand(number, position) {
                operands.push(std::ptr::null_mut());
                continue;
            }
            let Some(pointer) = table.get(buffer) else { return fail("it has no memory".to_owned()) };
            let dtype = plan.buffer(buffer).dtype;
            if pointer.dtype != dtype {
                let name = buffer_name(plan, buffer);
                return Err(ExecuteError::stored_type(buffer.0, name, pointer.dtype, dtype));
            }
            let needed = bound.buffer_bytes(buffer);
            if pointer.bytes < needed {
                return fail(format!("it has {} bytes where {needed} are needed", pointer.bytes));
            }
            operands.push(pointer.data);
        }
        Ok(operands)
    }

    unsafe fn launch(
        &self,
        bound: &BoundPlan,
        number: usize,
        table: &BufferTable,
    ) -> Result<(), ExecuteError> {
        let plan = self.plan();
        let launch = &plan.launches[number];
        let operands = self.operands(bound, number, launch, table)?;
        let context = LaunchContext {
            kernel: plan.kernel(launch.kernel),
            operands: &operands,
            sizes: bound.launch_sizes(number),
            code: self.code(),
            threads: self.threads(),
            isa: self.isa(),
            slice: None,
        };
        // SAFETY: the table's memory is the caller's promise; affine accesses were checked against it when sizes were bound, indirect
        // ones are checked here.
        unsafe {
            self.check_indices(bound, number, &operands)?;
            self.run_anchor(&context, number)
        }
    }

    /// Looks at the indices that a launch will load, if it loads any.
    ///
    /// # Safety
    /// The operands point to as much memory as the launch needs.
    pub(super) unsafe fn check_indices(
        &self,
        bound: &BoundPlan,
        number: usize,
        operands: &[*mut u8],
    ) -> Result<(), ExecuteError> {
        let plan = self.plan();
        let launch = &plan.launches[number];
        if !self.has_indices(launch.kernel) {
            return Ok(());
        }
        let (kernel, sizes) = (plan.kernel(launch.kernel), bound.launch_sizes(number));
        // SAFETY: passed on.
        let checked = unsafe { check_indices((kernel, operands, sizes), bound, launch) };
        checked.map_err(|(slot, value, size)| ExecuteError::Index {
            launch: number,
            place: plan.describe(launch),
            slot,
            value,
            size,
        })
    }

    /// Runs a launch, or a slice of one.
    ///
    /// # Safety
    /// As for `execute`; indices were checked.
    pub(super) unsafe fn run_anchor(
        &self,
        context: &LaunchContext<'_>,
        number: usize,
    ) -> Result<(), ExecuteError> {
        let plan = self.plan();
        let launch = &plan.launches[number];
        let fail = |why: &str| {
            Err(ExecuteError::Launch { launch: number, place: plan.describe(launch), why: why.to_owned() })
        };
        // SAFETY: passed on.
        let routed = unsafe {
            match (self.compiled(launch.kernel), &context.kernel.anchor) {
                (CompiledKernel::Map { space, function, transposes: false, .. }, _) => {
                    context.map(space, *function);
                    Ok(())
                }
                (CompiledKernel::Map { space, function, transposes: true, .. }, _) => {
                    context.transposing_map(space, *function);
                    Ok(())
                }
                (CompiledKernel::RowReduction(compiled), Anchor::RowReduction(reduction)) => {
                    context.row_reduction(reduction, compiled);
                    Ok(())
                }
                (CompiledKernel::Contraction(compiled), Anchor::Matmul(c) | Anchor::GroupedMatmul(c)) => {
                    context.contraction(c, compiled, &self.packed_factors(number));
                    Ok(())
                }
                (CompiledKernel::Attention(compiled), Anchor::Attention(attention)) => {
                    context.attention(attention, compiled);
                    Ok(())
                }
                (CompiledKernel::AttentionGrad(compiled), Anchor::AttentionGrad(grad)) => {
                    context.attention_grad(grad, compiled);
                    Ok(())
                }
                (CompiledKernel::ExpertChoice(compiled), Anchor::ExpertChoice(choice)) => {
                    context.expert_choice(choice, compiled)
                }
                (CompiledKernel::InvertIndex, Anchor::InvertIndex(invert)) => context.invert_index(invert),
                (CompiledKernel::SegmentSum { base, update, epilogue }, Anchor::SegmentSum(sum)) => {
                    context.segment_sum(sum, [*base, *update, *epilogue])
                }
                _ => return fail("the kernel was compiled as something else"),
            }
        };
        match routed {
            Ok(()) => Ok(()),
            Err(RoutingError::Kernel(source)) => {
                Err(ExecuteError::Kernel { launch: number, place: plan.describe(launch), source })
            }
            Err(RoutingError::BadRows) => {
                fail("the inverted index map has rows out of order or positions out of range")
            }
        }
    }
}

/// Looks at every index a launch will load. The error is the slot, the index and the number of places there are.
unsafe fn check_indices(
    (kernel, operands, sizes): (&Kernel, &[*mut u8], &[i64]),
    bound: &BoundPlan,
    launch: &Launch,
) -> Result<(), (String, i64, i64)> {
    for slot in slots(&kernel.anchor) {
        let (_, indirect) = split_accesses(slot.function);
        let extents: Vec<i64> = slot.extents.iter().map(|extent| extent.value(sizes)).collect();
        for access in indirect {
            let Some(through) = &access.indirect else { continue };
            let buffer = launch.operands[access.operand as usize];
            let elements = bound.buffer_elements(buffer);
            let stride = through.stride.value(sizes);
            let allowed = allowed_indices(access, stride, &extents, sizes, elements);
            let data = operands[through.index.operand as usize].cast_const().cast::<i32>();
            // SAFETY: the index access was checked against its buffer when sizes were bound.
            let load = |element: i64| unsafe { data.offset(element as isize).read_unaligned() };
            let found = find_index_outside(&through.index, &extents, sizes, load, &allowed);
            if let Some(value) = found {
                return Err((slot.name, value, allowed.end));
            }
        }
    }
    Ok(())
}
