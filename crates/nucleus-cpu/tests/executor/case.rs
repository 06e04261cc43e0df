//! What backends are tested with: a plan, its tensors, and what the plan's interpreter makes of them.

use std::collections::HashMap;

use half::{bf16, f16};
use nucleus_ir::{Bindings, DType};
use nucleus_plan::reference::{Tensors, evaluate};
use nucleus_plan::text::parse_plan;
use nucleus_plan::{Place, Plan};

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
    pub(crate) tensors: HashMap<String, Vec<f64>>,
    pub(crate) outputs: Vec<Vec<f64>>,
}

pub(crate) fn name_of(plan: &Plan, place: &Place) -> Option<String> {
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

/// The largest difference over the largest expected value, taken to be at least `least`; infinite where only one side is not finite or NaN.
pub(crate) fn error(got: &[f64], want: &[f64], least: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().filter(|x| x.is_finite()).fold(least, |largest, x| largest.max(x.abs()));
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

/// The error that an output may have, given the tolerance of a case for `f32`.
pub(crate) fn tolerance_of(dtype: DType, tolerance: f64) -> f64 {
    match dtype {
        DType::F32 => tolerance,
        _ if tolerance == 0.0 => 0.0,
        // One unit in the last place of the largest value.
        DType::Bf16 => tolerance.max(0.008),
        DType::F16 => tolerance.max(0.001),
        DType::I32 | DType::Bool | DType::I8 => 0.0,
    }
}
