//! The launches of a stage in order, put into a stream.

use nucleus_ir::Rate;
use nucleus_plan::{Launch, Profile};

use super::CudaProgram;
use super::bind::{CudaBound, Dispatch};
use super::error::RunError;
use super::table::{DevicePointer, DeviceTable};
use crate::driver::{CudaError, Event, Graph, Stream};

impl CudaProgram {
    /// Puts the launches of a stage into a stream and does not wait for them.
    ///
    /// # Errors
    /// A buffer has no memory, or the driver refuses a launch.
    ///
    /// # Safety
    /// What the table and `scratch` point at is memory of this program's device, as large as they say, which stays until the stream has
    /// come past the launches. The plan went through the verifier.
    pub unsafe fn execute(
        &self,
        bound: &CudaBound,
        stage: Rate,
        table: &DeviceTable,
        scratch: DevicePointer,
        stream: &Stream,
    ) -> Result<(), RunError> {
        self.check(bound, scratch)?;
        for (number, launch, dispatch) in self.stage(bound, stage) {
            // SAFETY: passed on.
            unsafe { self.launch(bound, (number, launch, dispatch), table, scratch, stream)? };
            if self.watched {
                stream.synchronize().map_err(|source| self.failed(number, launch, source))?;
            }
        }
        Ok(())
    }

    /// The same, adding the time of every launch to a profile: it waits until all are done.
    ///
    /// # Errors
    /// As for [`CudaProgram::execute`], or a launch failed.
    ///
    /// # Safety
    /// As for [`CudaProgram::execute`].
    pub unsafe fn execute_timed(
        &self,
        bound: &CudaBound,
        stage: Rate,
        table: &DeviceTable,
        scratch: DevicePointer,
        stream: &Stream,
        profile: &mut Profile,
    ) -> Result<(), RunError> {
        self.check(bound, scratch)?;
        profile.seconds.resize(self.plan.launches.len(), 0.0);
        let mark = || -> Result<Event, CudaError> {
            let event = Event::new(&self.device, true)?;
            event.record(stream)?;
            Ok(event)
        };
        let mut marks = vec![(0, mark()?)];
        for (number, launch, dispatch) in self.stage(bound, stage) {
            // SAFETY: passed on.
            unsafe { self.launch(bound, (number, launch, dispatch), table, scratch, stream)? };
            marks.push((number, mark()?));
        }
        stream.synchronize().map_err(RunError::Stage)?;
        for pair in marks.windows(2) {
            let [(_, before), (number, after)] = pair else { continue };
            profile.seconds[*number] += after.seconds_since(before)?;
        }
        Ok(())
    }

    /// The launches of a stage as one graph. Its addresses are those of the table: it is of use as long as they are.
    ///
    /// # Errors
    /// As for [`CudaProgram::execute`].
    ///
    /// # Safety
    /// As for [`CudaProgram::execute`], whenever the graph is launched.
    pub unsafe fn capture(
        &self,
        bound: &CudaBound,
        stage: Rate,
        table: &DeviceTable,
        scratch: DevicePointer,
        stream: &Stream,
    ) -> Result<Graph, RunError> {
        self.check(bound, scratch)?;
        Graph::capture(stream, || {
            for place in self.stage(bound, stage) {
                // SAFETY: passed on.
                unsafe { self.launch(bound, place, table, scratch, stream)? };
            }
            Ok(())
        })
    }

    fn check(&self, bound: &CudaBound, scratch: DevicePointer) -> Result<(), RunError> {
        if !bound.sizes().is_of(&self.plan) || bound.launches.len() != self.plan.launches.len() {
            return Err(RunError::OtherPlan);
        }
        let (bytes, offset) = (bound.scratch_bytes(), 0);
        if scratch.bytes < bytes {
            return Err(
                CudaError::Range { what: "scratch memory", bytes, offset, size: scratch.bytes }.into()
            );
        }
        Ok(())
    }

    /// The launches of a stage that have something to do.
    fn stage<'a>(
        &'a self,
        bound: &'a CudaBound,
        stage: Rate,
    ) -> impl Iterator<Item = (usize, &'a Launch, &'a Dispatch)> {
        let launches = self.plan.launches.iter().zip(&bound.launches).enumerate();
        launches.filter_map(move |(number, (launch, dispatch))| {
            let any = launch.stage == stage && dispatch.blocks.iter().any(Option::is_some);
            any.then_some((number, launch, dispatch))
        })
    }

    fn failed(&self, launch: usize, of: &Launch, source: CudaError) -> RunError {
        RunError::Launch { launch, place: self.plan.describe(of), source }
    }

    /// # Safety
    /// As for [`CudaProgram::execute`].
    unsafe fn launch(
        &self,
        bound: &CudaBound,
        (number, launch, dispatch): (usize, &Launch, &Dispatch),
        table: &DeviceTable,
        scratch: DevicePointer,
        stream: &Stream,
    ) -> Result<(), RunError> {
        let mut operands = Vec::with_capacity(launch.operands.len());
        for buffer in &launch.operands {
            let fail = |why: String| Err(RunError::Buffer { buffer: buffer.0, why });
            let Some(pointer) = table.get(*buffer) else { return fail("it has no memory".to_owned()) };
            let needed = bound.sizes().buffer_bytes(*buffer);
            if pointer.bytes < needed {
                return fail(format!("it has {} bytes where {needed} are needed", pointer.bytes));
            }
            operands.push(pointer.address);
        }
        let arguments = arguments(&operands, &dispatch.sizes, scratch.address);
        let functions = &self.kernels[launch.kernel.0 as usize].functions;
        for ((function, _), blocks) in functions.iter().zip(&dispatch.blocks) {
            let Some(blocks) = blocks else { continue };
            // SAFETY: every operand has the bytes that binding proved to be enough for the launch's accesses; the layout is that of the
            // unit's `Arguments`; the rest is the caller's promise.
            unsafe { function.launch(*blocks, &arguments, stream) }
                .map_err(|source| self.failed(number, launch, source))?;
        }
        Ok(())
    }
}

/// `struct Arguments { void* o[N]; int s[M]; void* scratch; }` in the layout of C, N and M at least 1.
fn arguments(operands: &[u64], sizes: &[i32], scratch: u64) -> Vec<u64> {
    let mut words = Vec::with_capacity(operands.len().max(1) + sizes.len().div_ceil(2).max(1) + 1);
    words.extend_from_slice(operands);
    words.resize(words.len().max(1), 0);
    let halves = |pair: &[i32]| {
        let half = |at: usize| u64::from(pair.get(at).copied().unwrap_or(0) as u32);
        // Devices and the hosts that drive them are little-endian.
        half(0) | half(1) << 32
    };
    words.extend(sizes.chunks(2).map(halves));
    if sizes.is_empty() {
        words.push(0);
    }
    words.push(scratch);
    words
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn arguments_are_laid_out_as_c_does() {
        assert_eq!(arguments(&[1, 2], &[3, -1, 5], 7), [1, 2, 3 | 0xffff_ffff << 32, 5, 7]);
        assert_eq!(arguments(&[1], &[3, 4], 7), [1, 3 | 4 << 32, 7]);
        assert_eq!(arguments(&[], &[], 7), [0, 0, 7], "arrays have at least one element");
    }
}
