//! Runs a plan on both sides and compares.

use nucleus_cpu::kernels::Isa;
use nucleus_cpu::{BufferPointer, BufferTable, CpuProgram, ExecuteError, Options, Slicing};
use nucleus_ir::{Bindings, Rate};
use nucleus_plan::{BufferId, Place, Plan};

use crate::case::name_of;
pub(crate) use crate::case::{
    Case, DEFAULT, Expected, bindings, decode, encode, error, expected, noise, plan, tolerance_of,
};

/// Random functions that are compared: plans, and functions of each.
pub(crate) const RANDOM_PLANS: u32 = 48;
pub(crate) const FUNCTIONS_OF_A_PLAN: usize = 1;

/// Runs a program on the tensors of `given`. Gives the bytes of every output.
pub(crate) fn run(
    program: &mut CpuProgram,
    dims: &Bindings,
    given: &Expected,
    prepare: bool,
) -> Result<Vec<Vec<u8>>, ExecuteError> {
    let plan = program.plan().clone();
    let bound = program.bind(dims).unwrap();
    let mut memory: Vec<Vec<u8>> = Vec::new();
    let mut table = BufferTable::new(&plan);
    for (position, buffer) in plan.buffers.iter().enumerate() {
        let bytes = bound.sizes().buffer_bytes(BufferId(position as u32));
        let mut data = match name_of(&plan, &buffer.place) {
            Some(name) => encode(&given.tensors[&name], buffer.dtype),
            None => vec![0xff; bytes],
        };
        let pointer = BufferPointer { data: data.as_mut_ptr(), bytes, dtype: buffer.dtype };
        table.set(BufferId(position as u32), pointer);
        memory.push(data);
    }
    for rate in Rate::ALL {
        // SAFETY: every buffer has memory of its own, as large as the bound plan says, alive to the end of this function.
        unsafe { program.execute(&bound, rate, &table, None)? };
        if rate == Rate::Model && prepare {
            let mut names = Vec::new();
            // SAFETY: as above.
            unsafe {
                program.pack_weights(&table, &mut |name: &str| names.push(name.to_owned()))?;
                program.pack_values(&table)?;
            }
            for weight in program.weight_uses() {
                assert_eq!(names.contains(&weight.name), weight.packed);
                if !weight.plain {
                    memory[weight.buffer.0 as usize].fill(0xff);
                    table.clear(weight.buffer);
                }
            }
        }
    }
    let mut outputs = vec![Vec::new(); plan.outputs.len()];
    for (position, buffer) in plan.buffers.iter().enumerate() {
        if let Place::Output(output) = buffer.place {
            outputs[output as usize] = memory[position].clone();
        }
    }
    Ok(outputs)
}

/// Checks outputs against the interpreter and that neither threads nor slices nor packing beforehand change a bit.
pub(crate) fn check(case: &Case) {
    check_plan(&plan(case.text), case.dims, case.value, case.tolerance);
}

/// The same for a plan that is not a text.
pub(crate) fn check_plan(
    plan: &Plan,
    dims: &[(&str, i64)],
    value: &dyn Fn(&str, usize) -> Option<f64>,
    tolerance: f64,
) {
    let case = &Case { text: "", dims, value, tolerance };
    let dims = bindings(dims);
    let expected = expected(case, plan, &dims);
    for isa in [Isa::supported()[0], Isa::Portable] {
        let mut first: Option<Vec<Vec<u8>>> = None;
        let runs = [
            (1, false, Slicing::Never),
            (2, true, Slicing::Wherever),
            (4, false, Slicing::Wherever),
            (2, false, Slicing::Worthwhile),
        ];
        for (threads, prepare, slicing) in runs {
            let options = Options { threads, isa: Some(isa), slicing, ..Options::default() };
            let mut program = CpuProgram::compile(plan.clone(), options).unwrap();
            let outputs = run(&mut program, &dims, &expected, prepare).unwrap();
            for (position, (got, want)) in outputs.iter().zip(&expected.outputs).enumerate() {
                let dtype = plan.outputs[position].ty.dtype;
                let got = decode(got, dtype);
                let error = error(&got, want, 0.0);
                let tolerance = tolerance_of(dtype, case.tolerance);
                assert!(
                    error <= tolerance,
                    "output {position}, {isa}, {:?}: error {error}\n got {:?}\nwant {:?}",
                    case.dims,
                    &got[..got.len().min(12)],
                    &want[..want.len().min(12)]
                );
            }
            match &first {
                None => first = Some(outputs),
                Some(first) => assert!(
                    *first == outputs,
                    "{threads} threads, slices {slicing:?} change bits of {:?}",
                    case.dims
                ),
            }
        }
    }
}
