//! Runs plans on a GPU: the same kernels, compiled by NVRTC, where `NUCLEUS_TEST_GPU` asks for it.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use nucleus_cuda::driver::{DeviceMemory, Stream};
use nucleus_cuda::{
    CudaError, CudaProgram, Device, DevicePointer, DeviceTable, KernelCode, Transfer, Tuning,
};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{BufferId, Place, Plan};

/// True if the tests run on the machine's GPU.
pub(crate) fn wanted() -> bool {
    std::env::var_os("NUCLEUS_TEST_GPU").is_some_and(|value| !value.is_empty() && value != "0")
}

/// What tests share: the driver, and the machine code of kernels. They take turns.
fn shared() -> &'static Mutex<(Stream, KernelCode)> {
    static SHARED: OnceLock<Mutex<(Stream, KernelCode)>> = OnceLock::new();
    SHARED.get_or_init(|| {
        let device = Device::open().unwrap_or_else(|error| panic!("{error}"));
        let stream = Stream::new(&device).unwrap_or_else(|error| panic!("{error}"));
        Mutex::new((stream, KernelCode::default()))
    })
}

/// A plan on the GPU.
pub(crate) struct Program(CudaProgram);

impl Program {
    /// Compiles and loads the kernels of a plan.
    pub(crate) fn compile(plan: &Plan, tuning: &Tuning) -> Program {
        let shared = shared().lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, code) = &*shared;
        let program = CudaProgram::load(plan.clone(), stream.device(), code, tuning, &|_, _| {});
        Program(program.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Runs every launch in order. `memory` gives the bytes of weights and inputs by buffer; what is not given starts as NaN. Returns the
    /// bytes of every output.
    pub(crate) fn run(
        &self,
        dims: &Bindings,
        memory: &HashMap<usize, Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, String> {
        let shared = shared().lock().unwrap_or_else(PoisonError::into_inner);
        let stream = &shared.0;
        let bound = self.0.bind(dims).map_err(|error| error.to_string())?;
        self.run_bound(&bound, memory, stream).map_err(|error| error.to_string())
    }

    fn run_bound(
        &self,
        bound: &nucleus_cuda::CudaBound,
        memory: &HashMap<usize, Vec<u8>>,
        stream: &Stream,
    ) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
        let (plan, device) = (self.0.plan(), stream.device());
        let mut transfer = Transfer::new(device, 1 << 20)?;
        let allocate = |bytes: usize| -> Result<DeviceMemory, CudaError> {
            let memory = DeviceMemory::new(device, bytes.max(1), "a test")?;
            stream.fill(&memory, 0..bytes.max(1), 0xff)?;
            Ok(memory)
        };
        let mut table = DeviceTable::new(plan);
        let mut arenas = Vec::new();
        for rate in Rate::ALL {
            let arena = allocate(bound.sizes().arena_bytes(rate))?;
            table.place_arena(bound, rate, &arena)?;
            arenas.push(arena);
        }
        let mut own: HashMap<u32, DeviceMemory> = HashMap::new();
        for number in 0..plan.buffers.len() as u32 {
            if table.get(BufferId(number)).is_some() {
                continue;
            }
            let bytes = bound.sizes().buffer_bytes(BufferId(number));
            let buffer = allocate(bytes)?;
            if let Some(given) = memory.get(&(number as usize)) {
                let mut fill = |part: std::ops::Range<usize>, to: &mut [u8]| -> Result<(), CudaError> {
                    to.copy_from_slice(&given[part]);
                    Ok(())
                };
                transfer.upload(&buffer, 0, given.len(), stream, &mut fill)?;
            }
            table.set(BufferId(number), DevicePointer::inside(&buffer, 0, bytes)?);
            own.insert(number, buffer);
        }
        let scratch = allocate(bound.scratch_bytes())?;
        let pointer = DevicePointer::inside(&scratch, 0, bound.scratch_bytes())?;
        for rate in Rate::ALL {
            // SAFETY: every buffer and the scratch memory are alive until the downloads below have waited for the stream; sizes are those
            // of the bound plan, and plans of the tests are valid.
            unsafe { self.0.execute(bound, rate, &table, pointer, stream)? };
        }
        let mut outputs = vec![Vec::new(); plan.outputs.len()];
        for (number, buffer) in plan.buffers.iter().enumerate() {
            if let (Place::Output(position), Some(memory)) = (&buffer.place, own.get(&(number as u32))) {
                let mut bytes = vec![0; bound.sizes().buffer_bytes(BufferId(number as u32))];
                transfer.download(memory, 0, &mut bytes, stream)?;
                outputs[*position as usize] = bytes;
            }
        }
        stream.synchronize()?;
        Ok(outputs)
    }
}
