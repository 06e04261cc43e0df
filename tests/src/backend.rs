//! Any graph through the whole pipeline and the CPU backend, in memory that shows what a program must not do: every byte that it has not
//! written yet is 0xff (a NaN, a negative index, no truth value), and what it must not write is compared afterwards.

use nucleus_cpu::kernels::Isa;
use nucleus_cpu::{BoundPlan, BufferPointer, BufferTable, CpuBound, CpuProgram, Options, Slicing};
use nucleus_ir::{Bindings, DType, Graph, Rate};
use nucleus_passes::pipeline::{CompileOptions, Form, Pass, compile_graph};
use nucleus_plan::{BufferId, Place, Plan};
use nucleus_runtime::{HostTensor, Signature, TensorMap};

/// Bytes behind every buffer that must stay as they are.
const GUARD: usize = 64;
const UNWRITTEN: u8 = 0xff;

/// The plan of a graph for products in `dtype`, and the graph whose rounding the plan keeps.
///
/// # Errors
/// What a pass, or a verifier between passes, said.
pub fn compiled(graph: &Graph, dtype: DType) -> Result<(Plan, Graph), String> {
    compiled_with(graph, &CompileOptions { dtype, verify: true, ..CompileOptions::default() })
}

/// The plan of a graph, and the graph as it was after the pass `quantize`, whose roundings the plan keeps.
///
/// # Errors
/// As for [`compiled`].
pub fn compiled_with(graph: &Graph, options: &CompileOptions) -> Result<(Plan, Graph), String> {
    let mut rounded = graph.clone();
    let mut observer = |pass: &'static Pass, form: &Form, _| {
        if let ("quantize", Form::Graph(graph)) = (pass.name, form) {
            rounded = graph.clone();
        }
    };
    let plan = compile_graph(graph, options, &mut observer);
    Ok((plan.map_err(|error| error.to_string())?, rounded))
}

/// A plan compiled for one instruction set and number of threads.
pub struct Backend {
    program: CpuProgram,
    pack_first: bool,
}

/// Bytes aligned as tensors are, with a guard behind them.
struct Memory {
    bytes: HostTensor,
    length: usize,
}

impl Memory {
    fn new(length: usize) -> Result<Memory, String> {
        let mut bytes =
            HostTensor::zeros(DType::Bool, &[length + GUARD]).map_err(|error| error.to_string())?;
        bytes.bytes_mut().fill(UNWRITTEN);
        Ok(Memory { bytes, length })
    }

    fn of(tensor: &HostTensor) -> Result<Memory, String> {
        let mut memory = Memory::new(tensor.bytes().len())?;
        memory.bytes.bytes_mut()[..memory.length].copy_from_slice(tensor.bytes());
        Ok(memory)
    }

    fn contents(&self) -> &[u8] {
        &self.bytes.bytes()[..self.length]
    }

    fn guard_holds(&self) -> bool {
        self.bytes.bytes()[self.length..].iter().all(|byte| *byte == UNWRITTEN)
    }

    fn pointer(&mut self, dtype: DType) -> BufferPointer {
        BufferPointer { data: self.bytes.bytes_mut().as_mut_ptr(), bytes: self.length, dtype }
    }
}

impl Backend {
    /// Compiles a plan. With `pack_first`, right factors that do not change are packed after the stage `model` and their weights taken away,
    /// as a session does; without it every launch packs its own.
    ///
    /// # Errors
    /// The backend refuses the plan.
    pub fn new(plan: &Plan, threads: usize, isa: Isa, pack_first: bool) -> Result<Backend, String> {
        // More threads than one also run slices apart, so that no comparison of numbers of threads misses them.
        let slicing = if threads > 1 { Slicing::Wherever } else { Slicing::Never };
        let options = Options { threads, isa: Some(isa), slicing, ..Options::default() };
        let program = CpuProgram::compile(plan.clone(), options).map_err(|error| error.to_string())?;
        Ok(Backend { program, pack_first })
    }

    /// Runs every stage on these tensors and returns the outputs in order. An input that is not given takes its default. Weights may be
    /// of another float type than the plan's: packing converts them, as in a session, where the backend says so.
    ///
    /// # Errors
    /// A tensor is missing, the sizes do not fit, a launch fails, or the program wrote where it must not: to its inputs, to weights or
    /// behind a buffer.
    pub fn run(
        &mut self,
        dims: &Bindings,
        inputs: &TensorMap,
        weights: &TensorMap,
    ) -> Result<Vec<(String, HostTensor)>, String> {
        let bound = self.program.bind(dims).map_err(|error| error.to_string())?;
        let mut table = BufferTable::new(self.program.plan());
        let mut arenas = self.arenas(bound.sizes(), &mut table)?;
        let mut memory = self.tensors(bound.sizes(), dims, inputs, weights, &mut table)?;
        let before: Vec<Option<Vec<u8>>> =
            memory.iter().map(|memory| Some(memory.as_ref()?.contents().to_vec())).collect();
        self.execute(&bound, &mut table)?;

        let intact = |memory: &Memory| memory.guard_holds();
        if !arenas.iter().all(intact) || !memory.iter().flatten().all(intact) {
            return Err("the program wrote behind a buffer".to_owned());
        }
        arenas.clear();
        let mut outputs: Vec<Option<HostTensor>> = vec![None; self.program.plan().outputs.len()];
        for (position, buffer) in self.program.plan().buffers.iter().enumerate() {
            let Some(memory) = memory[position].take() else { continue };
            if let Place::Output(output) = buffer.place {
                // The buffer of a reshaped value has the shape from before.
                let shape = shape(&self.program.plan().outputs[output as usize].ty.shape, dims)?;
                let tensor = HostTensor::from_bytes(buffer.dtype, &shape, memory.contents());
                outputs[output as usize] = Some(tensor.map_err(|error| format!("output {output}: {error}"))?);
            } else if before[position].as_deref() != Some(memory.contents()) {
                return Err(format!("the program wrote to {:?}", buffer.place));
            }
        }
        let named = self.program.plan().outputs.iter().zip(outputs);
        named
            .map(|(output, tensor)| {
                let tensor = tensor.ok_or_else(|| format!("output `{}` has no buffer", output.name))?;
                Ok((output.name.clone(), tensor))
            })
            .collect()
    }

    fn arenas(&self, bound: &BoundPlan, table: &mut BufferTable) -> Result<Vec<Memory>, String> {
        let mut arenas = Vec::new();
        for rate in Rate::ALL {
            let mut memory = Memory::new(bound.arena_bytes(rate))?;
            let pointer = memory.pointer(DType::Bool);
            table
                .place_arena(self.program.plan(), bound, rate, pointer.data, pointer.bytes)
                .map_err(|error| error.to_string())?;
            arenas.push(memory);
        }
        Ok(arenas)
    }

    /// Memory for every buffer outside of the arenas, by position.
    fn tensors(
        &self,
        bound: &BoundPlan,
        dims: &Bindings,
        inputs: &TensorMap,
        weights: &TensorMap,
        table: &mut BufferTable,
    ) -> Result<Vec<Option<Memory>>, String> {
        let plan = self.program.plan();
        let signature = Signature::from(plan);
        let uses = self.program.weight_uses();
        let mut all = Vec::with_capacity(plan.buffers.len());
        for (position, buffer) in plan.buffers.iter().enumerate() {
            let id = BufferId(position as u32);
            let mut dtype = buffer.dtype;
            let memory = match &buffer.place {
                Place::Arena { .. } => None,
                Place::Output(_) => Some(Memory::new(bound.buffer_bytes(id))?),
                Place::Input(input) => {
                    let tensor = Signature::convert(&signature.inputs[*input as usize], inputs, dims)
                        .map_err(|error| error.to_string())?;
                    Some(Memory::of(&tensor)?)
                }
                // A weight under training; no plan here assigns it.
                Place::Weight(name) | Place::State(name) => {
                    let given = weights.get(name).ok_or_else(|| format!("no weight `{name}`"))?;
                    let as_given =
                        self.pack_first && uses.iter().any(|weight| weight.buffer == id && weight.any_float);
                    if as_given {
                        dtype = given.dtype();
                        Some(Memory::of(given)?)
                    } else {
                        let converted = given.to_dtype(buffer.dtype).map_err(|error| error.to_string())?;
                        Some(Memory::of(&converted)?)
                    }
                }
            };
            all.push(memory);
            if let Some(Some(memory)) = all.last_mut() {
                table.set(id, memory.pointer(dtype));
            }
        }
        Ok(all)
    }

    fn execute(&mut self, bound: &CpuBound, table: &mut BufferTable) -> Result<(), String> {
        for rate in Rate::ALL {
            // SAFETY: `run` owns the memory that the table points at, as large as the bound plan says, and touches it again only when this
            // has returned; the plan went through the verifier.
            unsafe { self.program.execute(bound, rate, table, None) }.map_err(|error| error.to_string())?;
            if rate == Rate::Model && self.pack_first {
                // SAFETY: as above.
                let packed = unsafe {
                    self.program
                        .pack_weights(table, &mut |_: &str| {})
                        .and_then(|()| self.program.pack_values(table))
                };
                packed.map_err(|error| error.to_string())?;
                for weight in self.program.weight_uses().iter().filter(|weight| !weight.plain) {
                    table.clear(weight.buffer);
                }
            }
        }
        Ok(())
    }
}

fn shape(dims: &[nucleus_ir::Dim], bindings: &Bindings) -> Result<Vec<usize>, String> {
    let size = |dim: &nucleus_ir::Dim| {
        let value = dim.eval(bindings).map_err(|error| error.to_string())?;
        usize::try_from(value).map_err(|_| format!("size {dim} is {value}"))
    };
    dims.iter().map(size).collect()
}
