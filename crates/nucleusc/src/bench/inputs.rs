//! Inputs made up for timing.

use anyhow::Context;
use nucleus_ir::{Bindings, DType};
use nucleus_runtime::inputs::evaluated_shape;
use nucleus_runtime::{HostTensor, InputSpec, Signature, TensorMap};

/// Inputs of the given sizes: floats between −1 and 1 that follow from the position, masks all true. Optional inputs are left out.
pub fn random_inputs(signature: &Signature, dims: &[(String, i64)]) -> anyhow::Result<TensorMap> {
    let bindings: Bindings = dims.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let mut map = TensorMap::new();
    for InputSpec { name, ty, .. } in signature.inputs.iter().filter(|spec| spec.default.is_none()) {
        let shape = evaluated_shape(ty, &bindings)
            .with_context(|| format!("input `{name}` is random: its sizes must be given, e.g. --dim B=1"))?;
        let elements: usize = shape
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size))
            .context("an input is too large")?;
        anyhow::ensure!(elements <= 1 << 32, "input `{name}` would have {elements} elements");
        let tensor = match ty.dtype {
            DType::Bool => HostTensor::from_bool(&shape, &vec![true; elements])?,
            DType::I32 => HostTensor::from_i32(&shape, &vec![0; elements])?,
            // No entry has such an input: only weights are quantised.
            DType::I8 => HostTensor::from_i8(&shape, &vec![0; elements])?,
            DType::F32 | DType::Bf16 | DType::F16 => {
                // A multiplicative congruential sequence (Knuth's MMIX constants): the same inputs on every machine.
                let mut state = 0x9e37_79b9_7f4a_7c15_u64;
                let values: Vec<f32> = (0..elements)
                    .map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                    })
                    .collect();
                HostTensor::from_f32(&shape, &values)?
            }
        };
        map.insert(name.clone(), tensor);
    }
    Ok(map)
}
