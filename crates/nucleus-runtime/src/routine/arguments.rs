//! What a routine reads and writes: memory of the caller, on this computer or on a GPU.

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use nucleus_cuda::driver::DeviceMemory;
use nucleus_cuda::{CudaError, DevicePointer};
use nucleus_ir::DType;

use crate::tensor::HostTensor;
use crate::tensor_map::TensorMap;

/// A part of a piece of device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DevicePart<'a> {
    pub(crate) memory: &'a DeviceMemory,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

impl DevicePart<'_> {
    pub(crate) fn pointer(&self) -> Result<DevicePointer, CudaError> {
        DevicePointer::inside(self.memory, self.offset, self.bytes)
    }
}

/// Where elements lie that are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Host(&'a [u8]),
    Device(DevicePart<'a>),
}

/// Where elements are written.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    Host(&'a mut [u8]),
    Device(DevicePart<'a>),
}

/// Memory that a routine reads: elements in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    pub(crate) dtype: DType,
    /// If the shape is known, sizes follow from it.
    pub(crate) shape: Option<&'a [usize]>,
    pub(crate) source: Source<'a>,
}

impl<'a> TensorRef<'a> {
    /// Elements in a GPU's memory, by their bytes.
    pub fn on_device(memory: &'a DeviceMemory, bytes: Range<usize>, dtype: DType) -> TensorRef<'a> {
        let part = DevicePart { memory, offset: bytes.start, bytes: bytes.len() };
        TensorRef { dtype, shape: None, source: Source::Device(part) }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self.source {
            Source::Host(bytes) => bytes.len(),
            Source::Device(part) => part.bytes,
        }
    }
}

impl<'a> From<&'a HostTensor> for TensorRef<'a> {
    fn from(tensor: &'a HostTensor) -> TensorRef<'a> {
        TensorRef { dtype: tensor.dtype(), shape: Some(tensor.shape()), source: Source::Host(tensor.bytes()) }
    }
}

impl<'a> From<&'a [f32]> for TensorRef<'a> {
    fn from(elements: &'a [f32]) -> TensorRef<'a> {
        TensorRef { dtype: DType::F32, shape: None, source: Source::Host(cast_slice(elements)) }
    }
}

impl<'a> From<&'a f32> for TensorRef<'a> {
    fn from(element: &'a f32) -> TensorRef<'a> {
        TensorRef { dtype: DType::F32, shape: Some(&[]), source: Source::Host(bytemuck::bytes_of(element)) }
    }
}

/// Memory that a routine writes.
#[derive(Debug)]
pub struct TensorMut<'a> {
    pub(crate) dtype: DType,
    pub(crate) target: Target<'a>,
}

impl<'a> TensorMut<'a> {
    /// Elements in a GPU's memory, by their bytes. What else uses them the caller knows; launches follow one another.
    pub fn on_device(memory: &'a DeviceMemory, bytes: Range<usize>, dtype: DType) -> TensorMut<'a> {
        let part = DevicePart { memory, offset: bytes.start, bytes: bytes.len() };
        TensorMut { dtype, target: Target::Device(part) }
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.target {
            Target::Host(bytes) => bytes.len(),
            Target::Device(part) => part.bytes,
        }
    }
}

impl<'a> From<&'a mut HostTensor> for TensorMut<'a> {
    fn from(tensor: &'a mut HostTensor) -> TensorMut<'a> {
        TensorMut { dtype: tensor.dtype(), target: Target::Host(tensor.bytes_mut()) }
    }
}

impl<'a> From<&'a mut [f32]> for TensorMut<'a> {
    fn from(elements: &'a mut [f32]) -> TensorMut<'a> {
        TensorMut { dtype: DType::F32, target: Target::Host(typed(elements)) }
    }
}

impl<'a> From<&'a mut f32> for TensorMut<'a> {
    fn from(element: &'a mut f32) -> TensorMut<'a> {
        TensorMut { dtype: DType::F32, target: Target::Host(bytemuck::bytes_of_mut(element)) }
    }
}

fn typed<T: Pod>(elements: &mut [T]) -> &mut [u8] {
    cast_slice_mut(elements)
}

/// What one run of a routine reads and writes.
#[derive(Debug, Default)]
pub struct Arguments<'a> {
    pub(crate) inputs: BTreeMap<&'a str, TensorRef<'a>>,
    pub(crate) weights: BTreeMap<&'a str, TensorRef<'a>>,
    pub(crate) outputs: BTreeMap<&'a str, TensorMut<'a>>,
}

impl<'a> Arguments<'a> {
    /// No arguments.
    pub fn new() -> Arguments<'a> {
        Arguments::default()
    }

    /// Gives an input.
    pub fn input(&mut self, name: &'a str, tensor: impl Into<TensorRef<'a>>) -> &mut Arguments<'a> {
        self.inputs.insert(name, tensor.into());
        self
    }

    /// Gives every tensor of a map as the input of its name.
    pub fn inputs(&mut self, tensors: &'a TensorMap) -> &mut Arguments<'a> {
        self.inputs.extend(tensors.iter().map(|(name, tensor)| (name.as_str(), TensorRef::from(tensor))));
        self
    }

    /// Gives a weight.
    pub fn weight(&mut self, name: &'a str, tensor: impl Into<TensorRef<'a>>) -> &mut Arguments<'a> {
        self.weights.insert(name, tensor.into());
        self
    }

    /// Gives the memory of an output; if there is an input of that name and type that is not given, its value is read from here.
    pub fn output(&mut self, name: &'a str, tensor: impl Into<TensorMut<'a>>) -> &mut Arguments<'a> {
        self.outputs.insert(name, tensor.into());
        self
    }
}
