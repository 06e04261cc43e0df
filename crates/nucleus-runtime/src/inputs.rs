//! Inputs: what a caller gives, checked against what an entry takes.

use nucleus_ir::{Bindings, DType, Float, Graph, Rate, Symbol, TensorType};
use nucleus_plan::Plan;
use thiserror::Error;

use crate::sizes::{SizeError, bind_sizes};
use crate::tensor::{HostTensor, TensorError};
use crate::tensor_map::TensorMap;

/// What an entry takes under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// How often it may change.
    pub rate: Rate,
    /// The value of every element when it is not given; `None` for a required input.
    pub default: Option<Float>,
}

/// The inputs and sizes of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// The inputs, in order.
    pub inputs: Vec<InputSpec>,
    /// The run-time sizes.
    pub dims: Vec<Symbol>,
}

impl From<&Plan> for Signature {
    fn from(plan: &Plan) -> Signature {
        let inputs = plan.inputs.iter().map(|input| InputSpec {
            name: input.name.clone(),
            ty: input.ty.clone(),
            rate: input.rate,
            default: input.default,
        });
        Signature { inputs: inputs.collect(), dims: plan.dims.clone() }
    }
}

impl From<&Graph> for Signature {
    fn from(graph: &Graph) -> Signature {
        let inputs = graph.inputs.iter().map(|input| InputSpec {
            name: input.name.clone(),
            ty: input.ty.clone(),
            rate: input.rate,
            default: input.default,
        });
        Signature { inputs: inputs.collect(), dims: graph.dims.clone() }
    }
}

/// Why inputs were refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    /// A required input is not given.
    #[error("input `{name}` ({ty}) is missing; given are {given}")]
    Missing {
        /// The input.
        name: String,
        /// Its type.
        ty: TensorType,
        /// What was given.
        given: String,
    },
    /// An input that the entry does not take.
    #[error("the model has no input `{name}`; its inputs are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The inputs of the entry.
        known: String,
    },
    /// An input of another element type.
    #[error("input `{name}` is {given}, the model needs {wanted}")]
    DType {
        /// The input.
        name: String,
        /// Its element type.
        given: DType,
        /// The element type in the model.
        wanted: DType,
    },
    /// Sizes do not fit.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A tensor could not be converted.
    #[error("input `{name}`: {source}")]
    Tensor {
        /// The input.
        name: String,
        /// Why.
        source: TensorError,
    },
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Signature {
    /// The inputs that change less often than `rate`, over the same sizes.
    pub fn slower_than(&self, rate: Rate) -> Signature {
        let inputs = self.inputs.iter().filter(|spec| spec.rate < rate).cloned().collect();
        Signature { inputs, dims: self.dims.clone() }
    }

    /// Checks the inputs of one rate against sizes that are known; inputs of other rates are not looked at.
    ///
    /// # Errors
    /// A missing or unknown input, another element type, a shape that does not fit the sizes.
    pub fn check(&self, inputs: &TensorMap, rate: Rate, sizes: &Bindings) -> Result<(), InputError> {
        for spec in self.inputs.iter().filter(|spec| spec.rate == rate) {
            let Some(tensor) = self.given(spec, inputs)? else { continue };
            let wanted = evaluated_shape(&spec.ty, sizes)?;
            if wanted != tensor.shape() {
                return Err(InputError::Size(SizeError::Shape {
                    input: spec.name.clone(),
                    given: tensor.shape().iter().take(16).copied().collect(),
                    wanted: nucleus_ir::types::ShapeDisplay(&spec.ty.shape).to_string(),
                    evaluated: Some(wanted.iter().map(|size| *size as i64).collect()),
                }));
            }
        }
        self.refuse_unknown(inputs)
    }

    fn refuse_unknown(&self, inputs: &TensorMap) -> Result<(), InputError> {
        match inputs.names().find(|name| self.inputs.iter().all(|spec| spec.name != *name)) {
            Some(name) => {
                let known = listed(self.inputs.iter().map(|spec| spec.name.as_str()));
                Err(InputError::Unknown { name: name.to_owned(), known })
            }
            None => Ok(()),
        }
    }

    /// The tensor given for an input, if it may be left out `None`.
    fn given<'a>(
        &self,
        spec: &InputSpec,
        inputs: &'a TensorMap,
    ) -> Result<Option<&'a HostTensor>, InputError> {
        match inputs.get(&spec.name) {
            Some(tensor) => {
                let (given, wanted) = (tensor.dtype(), spec.ty.dtype);
                if given != wanted && !(given.is_float() && wanted.is_float()) {
                    return Err(InputError::DType { name: spec.name.clone(), given, wanted });
                }
                Ok(Some(tensor))
            }
            None if spec.default.is_none() => Err(InputError::Missing {
                name: spec.name.clone(),
                ty: spec.ty.clone(),
                given: listed(inputs.names()),
            }),
            None => Ok(None),
        }
    }

    /// Checks names and element types and binds the sizes. Floats of another width are accepted and converted by [`Signature::convert`].
    ///
    /// # Errors
    /// Missing or unknown inputs, other element types, sizes that do not fit.
    pub fn bind(&self, inputs: &TensorMap, given: &[(String, i64)]) -> Result<Bindings, InputError> {
        self.refuse_unknown(inputs)?;
        let mut shapes: Vec<(&str, &TensorType, &[usize])> = Vec::new();
        for spec in &self.inputs {
            if let Some(tensor) = self.given(spec, inputs)? {
                shapes.push((&spec.name, &spec.ty, tensor.shape()));
            }
        }
        Ok(bind_sizes(&self.dims, given, &shapes)?)
    }

    /// The input `spec` in the element type of the model: the given tensor, converted if need be, or the default in every element.
    ///
    /// # Errors
    /// The sizes do not fit a tensor.
    pub fn convert(
        spec: &InputSpec,
        inputs: &TensorMap,
        bindings: &Bindings,
    ) -> Result<HostTensor, InputError> {
        let fail = |source| InputError::Tensor { name: spec.name.clone(), source };
        match inputs.get(&spec.name) {
            Some(tensor) if tensor.dtype() == spec.ty.dtype => Ok(tensor.clone()),
            Some(tensor) => tensor.to_dtype(spec.ty.dtype).map_err(fail),
            None => {
                let shape = evaluated_shape(&spec.ty, bindings)?;
                let mut tensor = HostTensor::zeros(spec.ty.dtype, &shape).map_err(fail)?;
                fill(&mut tensor, spec.default.map_or(0.0, |value| value.0));
                Ok(tensor)
            }
        }
    }
}

/// The sizes of a type under a binding.
///
/// # Errors
/// A size is negative, unbound or overflows.
pub fn evaluated_shape(ty: &TensorType, bindings: &Bindings) -> Result<Vec<usize>, SizeError> {
    ty.shape
        .iter()
        .map(|dim| Ok(usize::try_from(dim.eval(bindings)?).map_err(|_| nucleus_ir::DimError::Overflow)?))
        .collect()
}

fn fill(tensor: &mut HostTensor, value: f64) {
    let dtype = tensor.dtype();
    let pattern: Vec<u8> = match dtype {
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::Bf16 => half::bf16::from_f64(value).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(value).to_le_bytes().to_vec(),
        DType::I32 => (value as i32).to_le_bytes().to_vec(),
        DType::I8 => (value as i8).to_le_bytes().to_vec(),
        DType::Bool => vec![u8::from(value != 0.0)],
    };
    for element in tensor.bytes_mut().chunks_exact_mut(pattern.len()) {
        element.copy_from_slice(&pattern);
    }
}
