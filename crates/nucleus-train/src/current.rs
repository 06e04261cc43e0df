//! The weights of a run at one moment, as a session takes them.

use nucleus_ir::DType;
use nucleus_runtime::checkpoint::CheckpointError;
use nucleus_runtime::weights::Scaled;
use nucleus_runtime::{Extras, HostTensor, WeightError, WeightSource, WeightSpec, convert};

use crate::parameters::{Parameter, Parameters};

/// A copy of all weights, f32: what is sampled from while training goes on.
#[derive(Clone, Debug)]
pub struct CurrentWeights {
    parameters: Vec<Parameter>,
    values: Vec<f32>,
}

impl CurrentWeights {
    /// Copies the weights, not their gradients and state.
    pub fn new(parameters: &Parameters) -> CurrentWeights {
        CurrentWeights { parameters: parameters.list().to_vec(), values: parameters.values.clone() }
    }

    fn get(&self, name: &str) -> Option<(&[usize], &[f32])> {
        let parameter = self.parameters.iter().find(|parameter| parameter.info.name == name)?;
        Some((&parameter.info.shape, &self.values[parameter.range.clone()]))
    }
}

impl WeightSource for CurrentWeights {
    /// Weights are those of the model that is trained, by construction; what is missing is reported when it is loaded.
    fn check(&self, _needed: &[WeightSpec], _extras: Extras) -> Result<(), CheckpointError> {
        Ok(())
    }

    fn load(&self, weight: &WeightSpec, _threads: usize) -> Result<HostTensor, WeightError> {
        let name = &weight.name;
        let found = self.get(name).filter(|(shape, _)| *shape == weight.shape);
        let (shape, values) = found.ok_or_else(|| WeightError::Missing { name: name.clone() })?;
        let mut tensor = HostTensor::zeros(weight.dtype, shape)
            .map_err(|source| WeightError::Tensor { name: name.clone(), source })?;
        convert::convert(DType::F32, bytemuck::cast_slice(values), weight.dtype, tensor.bytes_mut())
            .map_err(|source| WeightError::Convert { name: name.clone(), source })?;
        Ok(tensor)
    }

    /// Nothing is quantised while it is trained.
    fn load_scaled(&self, weight: &WeightSpec, _threads: usize) -> Result<Scaled, WeightError> {
        Err(WeightError::Missing { name: weight.name.clone() })
    }
}
