//! From symbolic to actual sizes: the proofs of every backend, and what each launch dispatches.

use nucleus_ir::Bindings;
use nucleus_plan::{BoundPlan, IndexCheck, index_checks};

use super::error::{CudaBindError, RunError};
use super::{CudaProgram, LoadedKernel};

/// A plan's sizes for one binding of its dims, with what its launches dispatch.
#[derive(Clone, Debug)]
pub struct CudaBound {
    sizes: BoundPlan,
    /// For every launch its size arguments, and for every function of its kernel the blocks, if there are any.
    pub(super) launches: Vec<Dispatch>,
    scratch: usize,
    checks: Vec<IndexCheck>,
}

/// What a launch dispatches.
#[derive(Clone, Debug)]
pub(super) struct Dispatch {
    pub(super) sizes: Vec<i32>,
    pub(super) blocks: Vec<Option<[u32; 3]>>,
}

impl CudaBound {
    pub(super) fn new(program: &CudaProgram, dims: &Bindings) -> Result<CudaBound, CudaBindError> {
        let plan = program.plan();
        // What there is room for is decided when memory is taken: then it can be said how much is missing.
        let sizes = BoundPlan::new(plan, dims, i64::MAX as u64)?;
        let checks = index_checks(plan, &sizes)?;
        let mut launches = Vec::with_capacity(plan.launches.len());
        let mut scratch = 0;
        for (number, launch) in plan.launches.iter().enumerate() {
            let kernel = &program.kernels[launch.kernel.0 as usize];
            let place = || plan.describe(launch);
            let (dispatch, bytes) =
                dispatch(kernel, sizes.launch_sizes(number)).map_err(|why| match why {
                    Refused::Size(what, value) => {
                        CudaBindError::Size { launch: number, place: place(), what, value }
                    }
                    Refused::Grid(source) => CudaBindError::Grid { launch: number, place: place(), source },
                })?;
            scratch = scratch.max(bytes);
            launches.push(dispatch);
        }
        Ok(CudaBound { sizes, launches, scratch, checks })
    }

    /// The sizes of buffers, arenas and launches.
    pub fn sizes(&self) -> &BoundPlan {
        &self.sizes
    }

    /// Bytes of scratch memory: the most that any launch needs.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    /// The inputs whose elements are used as indices, by position.
    pub fn index_inputs(&self) -> impl Iterator<Item = u32> + '_ {
        self.checks.iter().map(|check| check.input)
    }

    /// Checks the indices in an input before it is given to kernels, which look at nothing.
    ///
    /// # Errors
    /// The launch that would leave what it indexes.
    pub fn check_indices(&self, program: &CudaProgram, input: u32, elements: &[i32]) -> Result<(), RunError> {
        for check in self.checks.iter().filter(|check| check.input == input) {
            if let Some(value) = check.find_outside(elements) {
                let plan = program.plan();
                return Err(RunError::Index {
                    launch: check.launch,
                    place: plan.describe(&plan.launches[check.launch]),
                    slot: check.slot.clone(),
                    value,
                    start: check.allowed.start,
                    end: check.allowed.end,
                });
            }
        }
        Ok(())
    }
}

enum Refused {
    Size(String, i64),
    Grid(crate::source::GridError),
}

/// What a launch dispatches at these sizes, and its scratch memory.
fn dispatch(kernel: &LoadedKernel, sizes: &[i64]) -> Result<(Dispatch, usize), Refused> {
    let mut arguments = Vec::with_capacity(sizes.len());
    for (position, size) in sizes.iter().enumerate() {
        let small = i32::try_from(*size);
        arguments.push(small.map_err(|_| Refused::Size(format!("size s{position}"), *size))?);
    }
    let blocks = kernel.functions.iter().map(|(_, grid)| grid.extents(sizes).map_err(Refused::Grid));
    let blocks = blocks.collect::<Result<Vec<_>, Refused>>()?;
    let scratch = kernel.scratch.count(sizes).and_then(|bytes| usize::try_from(bytes).ok());
    let scratch = scratch.ok_or_else(|| Refused::Size("its scratch memory".to_owned(), i64::MAX))?;
    Ok((Dispatch { sizes: arguments, blocks }, scratch))
}
