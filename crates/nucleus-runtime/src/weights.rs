//! Where a session's weights come from: what a plan needs of them, and sources that give them one at a time.

use nucleus_ir::{Bindings, DType, TensorType};
use nucleus_passes::quantize::scale_name;
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, Expected, Extras, WeightView};
use crate::convert::{self, ConvertError};
use crate::inputs::evaluated_shape;
use crate::quantize::{self, Channels};
use crate::tensor::{HostTensor, TensorError};

/// A weight that a plan or graph needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name.
    pub name: String,
    /// The type in which it is needed.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// For a quantised weight, the axis along which the elements of a channel lie. Its scales are a weight of their own, which this entry
    /// stands for too.
    pub channel_axis: Option<usize>,
}

impl WeightSpec {
    /// The weights that a plan or graph lists, each quantised one with its scales in one entry.
    pub fn list<'a>(weights: impl IntoIterator<Item = (&'a str, &'a TensorType)>) -> Vec<WeightSpec> {
        let shape = |ty: &TensorType| evaluated_shape(ty, &Bindings::new()).unwrap_or_default();
        let mut specs: Vec<WeightSpec> = weights
            .into_iter()
            .map(|(name, ty)| WeightSpec {
                name: name.to_owned(),
                dtype: ty.dtype,
                shape: shape(ty),
                channel_axis: None,
            })
            .collect();
        let floats: std::collections::HashMap<String, Vec<usize>> = specs
            .iter()
            .filter(|spec| spec.dtype.is_float())
            .map(|spec| (spec.name.clone(), spec.shape.clone()))
            .collect();
        let mut scales = std::collections::HashSet::new();
        for spec in specs.iter_mut().filter(|spec| spec.dtype == DType::I8) {
            let name = scale_name(&spec.name);
            spec.channel_axis = floats.get(&name).and_then(|scale| channel_axis(&spec.shape, scale));
            if spec.channel_axis.is_some() {
                scales.insert(name);
            }
        }
        specs.retain(|spec| !scales.contains(&spec.name));
        specs
    }

    /// The name of its scales, if it is quantised.
    pub fn scale_name(&self) -> Option<String> {
        self.channel_axis.map(|_| scale_name(&self.name))
    }

    /// The shape of its scales: its own with 1 along the channels' axis.
    pub fn scale_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(extent) = self.channel_axis.and_then(|axis| shape.get_mut(axis)) {
            *extent = 1;
        }
        shape
    }

    /// How its channels lie in memory, if it is quantised.
    pub fn channels(&self) -> Option<Channels> {
        Channels::new(&self.shape, self.channel_axis?)
    }
}

/// The axis in which a weight and its scales differ, the scales having 1 there. Where they do not differ, any axis of 1 does.
fn channel_axis(weight: &[usize], scale: &[usize]) -> Option<usize> {
    if weight.len() != scale.len() {
        return None;
    }
    let differ: Vec<usize> = (0..weight.len()).filter(|&axis| weight[axis] != scale[axis]).collect();
    match differ[..] {
        [axis] if scale[axis] == 1 => Some(axis),
        [] => weight.iter().position(|&extent| extent == 1),
        _ => None,
    }
}

/// A quantised weight: elements and scales.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The elements, `i8`.
    pub values: HostTensor,
    /// One `f32` per channel, in the shape of [`WeightSpec::scale_shape`].
    pub scales: HostTensor,
}

/// Why a weight could not be given.
#[derive(Debug, Error)]
pub enum WeightError {
    /// The source has no such weight.
    #[error("there is no weight `{name}`")]
    Missing {
        /// The weight.
        name: String,
    },
    /// Its type cannot be converted to the one that is needed.
    #[error("weight `{name}`: {source}")]
    Convert {
        /// The weight.
        name: String,
        /// Why.
        source: ConvertError,
    },
    /// There is not enough memory.
    #[error("weight `{name}`: {source}")]
    Tensor {
        /// The weight.
        name: String,
        /// Why.
        source: TensorError,
    },
}

/// A source of weights, asked for one at a time so that memory never holds them all twice.
pub trait WeightSource: Send + Sync {
    /// Whether it has what is needed, all of it in shapes and types that fit.
    ///
    /// # Errors
    /// Everything that does not fit.
    fn check(&self, needed: &[WeightSpec], extras: Extras) -> Result<(), CheckpointError>;

    /// A weight in the type that is needed. Results do not depend on `threads`.
    ///
    /// # Errors
    /// There is no such weight, it cannot be converted, or there is not enough memory.
    fn load(&self, weight: &WeightSpec, threads: usize) -> Result<HostTensor, WeightError>;

    /// A quantised weight with its scales: stored so, or quantised now.
    ///
    /// # Errors
    /// As for [`WeightSource::load`].
    fn load_scaled(&self, weight: &WeightSpec, threads: usize) -> Result<Scaled, WeightError>;

    /// A weight where it lies, in the type in which it is stored, if that costs no memory.
    fn view(&self, _name: &str) -> Option<WeightView<'_>> {
        None
    }

    /// The weight is not needed any more.
    fn release(&self, _name: &str) {}
}

/// The source of a model without weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWeights;

impl WeightSource for NoWeights {
    fn check(&self, needed: &[WeightSpec], _extras: Extras) -> Result<(), CheckpointError> {
        match needed.first() {
            Some(weight) => Err(CheckpointError::NotGiven { weight: weight.name.clone() }),
            None => Ok(()),
        }
    }

    fn load(&self, weight: &WeightSpec, _threads: usize) -> Result<HostTensor, WeightError> {
        Err(WeightError::Missing { name: weight.name.clone() })
    }

    fn load_scaled(&self, weight: &WeightSpec, _threads: usize) -> Result<Scaled, WeightError> {
        Err(WeightError::Missing { name: weight.name.clone() })
    }
}

impl WeightSource for Checkpoint {
    /// A quantised weight may be stored as `i8` with its scales, or as floats without; all others as any float.
    fn check(&self, needed: &[WeightSpec], extras: Extras) -> Result<(), CheckpointError> {
        let mut expected = Vec::with_capacity(needed.len());
        for weight in needed {
            let mut own = Expected::new(weight.name.as_str(), weight.shape.clone());
            let stored = self.get(&weight.name).and_then(|view| view.dtype());
            match weight.scale_name() {
                Some(scale) if stored == Some(DType::I8) => {
                    own.dtype = stored;
                    expected.push(own);
                    expected.push(Expected::new(scale, weight.scale_shape()));
                }
                Some(_) => expected.push(own),
                None => {
                    own.dtype = (!weight.dtype.is_float()).then_some(weight.dtype);
                    expected.push(own);
                }
            }
        }
        Checkpoint::check(self, &expected, extras)
    }

    fn load(&self, weight: &WeightSpec, _threads: usize) -> Result<HostTensor, WeightError> {
        self.converted(&weight.name, weight.dtype)
    }

    fn load_scaled(&self, weight: &WeightSpec, threads: usize) -> Result<Scaled, WeightError> {
        let name = &weight.name;
        let view = self.get(name).ok_or_else(|| WeightError::Missing { name: name.clone() })?;
        let scale = weight.scale_name();
        if let (Some(scale), Some(DType::I8)) = (&scale, view.dtype()) {
            let values = self.converted(name, DType::I8)?;
            return Ok(Scaled { values, scales: self.converted(scale, DType::F32)? });
        }
        let memory = |source| WeightError::Tensor { name: name.clone(), source };
        let refused = |source| WeightError::Convert { name: name.clone(), source };
        let from = view.dtype().unwrap_or(DType::Bool);
        let scales = stored_scales(&view, weight, threads).map_err(refused)?;
        let mut values = HostTensor::zeros(DType::I8, view.shape).map_err(memory)?;
        if let Some(channels) = weight.channels() {
            quantize::quantize(from, view.bytes, channels, &scales, threads, values.bytes_mut())
                .map_err(refused)?;
        }
        let scales = HostTensor::from_f32(&weight.scale_shape(), &scales).map_err(memory)?;
        Ok(Scaled { values, scales })
    }

    fn view(&self, name: &str) -> Option<WeightView<'_>> {
        self.get(name)
    }

    fn release(&self, name: &str) {
        Checkpoint::release(self, name);
    }
}

/// The scales of a weight that is stored as floats.
pub(crate) fn stored_scales(
    view: &WeightView<'_>,
    weight: &WeightSpec,
    threads: usize,
) -> Result<Vec<f32>, ConvertError> {
    let from = view.dtype().unwrap_or(DType::Bool);
    match weight.channels() {
        Some(channels) => quantize::scales(from, view.bytes, channels, threads),
        None => Ok(Vec::new()),
    }
}

impl Checkpoint {
    /// A copy of a weight in type `to`.
    fn converted(&self, name: &str, to: DType) -> Result<HostTensor, WeightError> {
        let view = self.get(name).ok_or_else(|| WeightError::Missing { name: name.to_owned() })?;
        let memory = |source| WeightError::Tensor { name: name.to_owned(), source };
        if view.dtype() == Some(to) {
            return HostTensor::from_bytes(to, view.shape, view.bytes).map_err(memory);
        }
        let mut tensor = HostTensor::zeros(to, view.shape).map_err(memory)?;
        convert::convert(view.dtype().unwrap_or(DType::Bool), view.bytes, to, tensor.bytes_mut())
            .map_err(|source| WeightError::Convert { name: name.to_owned(), source })?;
        Ok(tensor)
    }
}
