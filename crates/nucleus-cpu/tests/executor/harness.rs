//! Runs a plan on both sides and compares.

use std::collections::HashMap;

use half::{bf16, f16};
use nucleus_cpu::kernels::Isa;
use nucleus_cpu::{BufferPointer, BufferTable, CpuProgram, ExecuteError, Options};
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_plan::reference::{Tensors, evaluate};
use nucleus_plan::text::parse_plan;
use nucleus_plan::{BufferId, Place, Plan};

/// Numbers that look random, the same in every run.
pub(crate) fn noise(seed: u64, position: usize) -> f64 {
    let mut x = (position as u64 ^ (seed << 32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) as f64 / u64::MAX as f64
}

pub(crate) fn encode(values: &[f64], dtype: DType) -> Vec<u8> {
    let one = |&value: &f64| match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::Bf16 => bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(value as f32).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::Bool => vec![u8::from(value != 0.0)],
        DType::I8 => vec![value as i8 as u8],
    };
    values.iter().flat_map(one).collect()
}

pub(crate) fn decode(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let chunks = bytes.chunks_exact(dtype.size());
    chunks
        .map(|chunk| match (dtype, chunk) {
            (DType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DType::I32, &[a, b, c, d]) => f64::from(i32::from_le_bytes([a, b, c, d])),
            (DType::Bf16, &[a, b]) => f64::from(bf16::from_le_bytes([a, b])),
            (DType::I8, &[a]) => f64::from(a as i8),
            (DType::F16, &[a, b]) => f64::from(f16::from_le_bytes([a, b])),
            (_, chunk) => f64::from(chunk[0]),
        })
        .collect()
}

/// How a test runs and what it expects.
pub(crate) struct Case<'a> {
    pub(crate) text: &'a str,
    pub(crate) dims: &'a [(&'a str, i64)],
    /// The value of an element of a tensor, by name, position and seed; the default is noise in −2 … 2.
    pub(crate) value: &'a dyn Fn(&str, usize) -> Option<f64>,
    /// Largest error of an output over its largest value.
    pub(crate) tolerance: f64,
}

pub(crate) const DEFAULT: Case<'static> = Case { text: "", dims: &[], value: &|_, _| None, tolerance: 2e-6 };

/// The plan of a text, written like a printed plan but for `plan`, its braces, and the launches' flops and bytes.
pub(crate) fn plan(text: &str) -> Plan {
    let full: String = text
        .lines()
        .map(|line| match (line.trim_start().starts_with("launch"), line.rsplit_once(';')) {
            (true, Some((launch, _))) => format!("{launch} flops 0 bytes 0;\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    parse_plan(&format!("plan test {{\n{full}\n}}\n")).unwrap_or_else(|error| panic!("{error}\n{full}"))
}

/// Every given tensor of a plan, and the outputs of its interpreter.
pub(crate) struct Expected {
    tensors: HashMap<String, Vec<f64>>,
    pub(crate) outputs: Vec<Vec<f64>>,
}

impl Expected {
    /// Replaces one element of a tensor.
    pub(crate) fn replace(&mut self, name: &str, position: usize, value: f64) {
        self.tensors.get_mut(name).unwrap()[position] = value;
    }
}

fn name_of(plan: &Plan, place: &Place) -> Option<String> {
    match place {
        Place::Weight(name) | Place::State(name) => Some(name.clone()),
        Place::Input(position) => Some(plan.inputs[*position as usize].name.clone()),
        Place::Output(_) | Place::Arena { .. } => None,
    }
}

pub(crate) fn expected(case: &Case, plan: &Plan, dims: &Bindings) -> Expected {
    let mut tensors = Tensors::new();
    for (seed, buffer) in plan.buffers.iter().enumerate() {
        let Some(name) = name_of(plan, &buffer.place) else { continue };
        let count: i64 = buffer.shape.iter().map(|dim| dim.eval(dims).unwrap()).product();
        let values: Vec<f64> = (0..count as usize)
            .map(|position| {
                let random = noise(seed as u64, position);
                (case.value)(&name, position).unwrap_or(match buffer.dtype {
                    DType::Bool => f64::from(u8::from(random < 0.6)),
                    DType::I32 => (random * 200.0 - 100.0).floor(),
                    DType::I8 => (random * 255.0 - 127.0).floor(),
                    _ => random * 4.0 - 2.0,
                })
            })
            .collect();
        tensors.insert(name, decode(&encode(&values, buffer.dtype), buffer.dtype));
    }
    let outputs = evaluate(plan, dims, &tensors, &tensors).unwrap();
    Expected { tensors, outputs }
}

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
        let bytes = bound.buffer_bytes(BufferId(position as u32));
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

/// The largest difference over the largest expected value; infinite where only one side is not finite or NaN.
pub(crate) fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().filter(|x| x.is_finite()).fold(0f64, |largest, x| largest.max(x.abs()));
    let difference = |got: f64, want: f64| match (got.is_nan(), want.is_nan()) {
        (true, true) => 0.0,
        (false, false) if got == want => 0.0,
        (false, false) if got.is_finite() && want.is_finite() => (got - want).abs() / largest,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).fold(0.0, |worst, (&got, &want)| worst.max(difference(got, want)))
}

pub(crate) fn bindings(dims: &[(&str, i64)]) -> Bindings {
    dims.iter().copied().collect()
}

/// Checks outputs against the interpreter and that neither threads nor packing beforehand change a bit.
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
        for (threads, prepare) in [(1, false), (2, true), (4, false)] {
            let options = Options { threads, isa: Some(isa), ..Options::default() };
            let mut program = CpuProgram::compile(plan.clone(), options).unwrap();
            let outputs = run(&mut program, &dims, &expected, prepare).unwrap();
            for (position, (got, want)) in outputs.iter().zip(&expected.outputs).enumerate() {
                let dtype = plan.outputs[position].ty.dtype;
                let got = decode(got, dtype);
                let error = error(&got, want);
                let tolerance = match dtype {
                    DType::F32 => case.tolerance,
                    _ if case.tolerance == 0.0 => 0.0,
                    // One unit in the last place of the largest value.
                    DType::Bf16 => case.tolerance.max(0.008),
                    DType::F16 => case.tolerance.max(0.001),
                    DType::I32 | DType::Bool | DType::I8 => 0.0,
                };
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
                Some(first) => assert!(*first == outputs, "{threads} threads change bits of {:?}", case.dims),
            }
        }
    }
}
