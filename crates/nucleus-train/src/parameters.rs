//! The parameters of a run: weights, gradients and optimiser state, each in one piece of memory.
//!
//! All weights under AdamW with the same numbers lie behind one another, and so do weights of one shape under Muon: an optimiser moves a
//! whole *bucket* at a time. Everything is f32. What products want in bf16 is rounded where it is packed.
//!
//! On a GPU the same pieces lie in its memory, where they stay from step to step; those in host memory are copies, brought up to date when
//! somebody asks ([`Parameters::fetch`], [`Parameters::give`]).

use std::collections::BTreeMap;
use std::ops::Range;

use nucleus_ir::DType;
use nucleus_runtime::gpu::{CudaError, DeviceMemory, Gpu, Transfer};
use nucleus_runtime::routine::{TensorMut, TensorRef};
use thiserror::Error;

use crate::groups::{Assignment, Group, MatrixLayout, Optimizer, WeightInfo};

/// The row in which gradients are summed: memory is filled up to whole rows.
pub const ROW: usize = 4096;

/// Why there is no memory for the parameters.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("not enough memory for {what} of {elements} parameters ({bytes} bytes)")]
pub struct ParameterMemoryError {
    /// Weights, gradients or state.
    pub what: &'static str,
    /// How many.
    pub elements: usize,
    /// Their size.
    pub bytes: usize,
}

/// Why there is no memory for the gradients of a microbatch.
#[derive(Debug, Error)]
pub enum FreshError {
    /// On this computer.
    #[error(transparent)]
    Host(#[from] ParameterMemoryError),
    /// On the GPU.
    #[error(transparent)]
    Device(#[from] CudaError),
}

/// Where one weight lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name and shape.
    pub info: WeightInfo,
    /// The group of the recipe that moves it.
    pub group: usize,
    /// Its elements, in every piece of memory.
    pub range: Range<usize>,
}

/// Weights that an optimiser moves together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The group of the recipe.
    pub group: usize,
    /// For Muon the layout of one weight.
    pub layout: Option<MatrixLayout>,
    /// How many weights.
    pub weights: usize,
    /// Their elements.
    pub range: Range<usize>,
}

/// A weight and the memory of its gradient.
#[derive(Debug)]
pub struct Slot<'a> {
    /// The weight's name.
    pub name: &'a str,
    /// The weight.
    pub weight: TensorRef<'a>,
    /// Its gradient.
    pub gradient: TensorMut<'a>,
}

/// A bucket's memory, as the routine that moves it takes it.
#[derive(Debug)]
pub struct BucketMemory<'a> {
    /// The weights.
    pub weight: TensorMut<'a>,
    /// Their gradients.
    pub gradient: TensorRef<'a>,
    /// First moments or momentum.
    pub first: TensorMut<'a>,
    /// Second moments, under AdamW.
    pub second: Option<TensorMut<'a>>,
}

/// The pieces in a GPU's memory.
#[derive(Debug)]
struct OnDevice {
    gpu: Gpu,
    transfer: Transfer,
    values: DeviceMemory,
    gradients: DeviceMemory,
    first: DeviceMemory,
    second: DeviceMemory,
    /// Gradients of a microbatch, once a step has several.
    fresh: DeviceMemory,
    /// The copies in host memory have been changed.
    host_newer: bool,
    /// The pieces here have been changed.
    device_newer: bool,
}

/// Weights, gradients and state. See the [module documentation](self).
#[derive(Debug)]
pub struct Parameters {
    device: Option<OnDevice>,
    parameters: Vec<Parameter>,
    buckets: Vec<Bucket>,
    /// Elements under AdamW, which come first.
    adamw: usize,
    /// The weights.
    pub values: Vec<f32>,
    /// Their gradients.
    pub gradients: Vec<f32>,
    /// AdamW's first moments, Muon's momentum.
    pub first: Vec<f32>,
    /// AdamW's second moments.
    pub second: Vec<f32>,
}

impl Parameters {
    /// Memory for weights and their optimisers, all zeros.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(
        weights: &[WeightInfo],
        groups: &[Group],
        assignment: &Assignment,
    ) -> Result<Parameters, ParameterMemoryError> {
        // AdamW in front; of one group, one layout; in the model's order.
        let mut order: BTreeMap<(bool, usize, [usize; 4]), Vec<usize>> = BTreeMap::new();
        for (position, assigned) in assignment.weights.iter().enumerate() {
            let muon = matches!(groups[assigned.group].optimizer, Optimizer::Muon(_));
            let shape = assigned.layout.filter(|_| muon).map_or([0; 4], |layout| {
                [
                    layout.outer,
                    layout.halves,
                    layout.rows,
                    layout.columns * 2 + usize::from(layout.half_offset == layout.columns),
                ]
            });
            order.entry((muon, assigned.group, shape)).or_default().push(position);
        }
        let mut ranges = vec![0..0; weights.len()];
        let mut buckets = Vec::new();
        let (mut end, mut adamw) = (0, 0);
        for ((muon, group, _), positions) in order {
            let start = end;
            for position in &positions {
                let elements: usize = weights[*position].shape.iter().product();
                ranges[*position] = end..end + elements;
                end += elements;
            }
            let layout = positions.first().and_then(|position| assignment.weights[*position].layout);
            buckets.push(Bucket {
                group,
                layout: layout.filter(|_| muon),
                weights: positions.len(),
                range: start..end,
            });
            if !muon {
                adamw = end;
            }
        }
        let parameters = weights
            .iter()
            .zip(&assignment.weights)
            .zip(ranges)
            .map(|((info, assigned), range)| Parameter { info: info.clone(), group: assigned.group, range });
        let total = end.next_multiple_of(ROW);
        Ok(Parameters {
            device: None,
            parameters: parameters.collect(),
            buckets,
            adamw,
            values: zeros("weights", total)?,
            gradients: zeros("gradients", total)?,
            first: zeros("the state of optimisers", total)?,
            second: zeros("second moments", adamw)?,
        })
    }

    /// Every weight, in the model's order.
    pub fn list(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What optimisers move, in the order of memory.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Elements under AdamW: the part of `first` and all of `second` that it uses.
    pub fn adamw_elements(&self) -> usize {
        self.adamw
    }

    /// Elements of all weights, without what fills up the last row.
    pub fn elements(&self) -> usize {
        self.buckets.last().map_or(0, |bucket| bucket.range.end)
    }

    /// Bytes of weights, gradients and state.
    pub fn bytes(&self) -> usize {
        4 * (self.values.len() + self.gradients.len() + self.first.len() + self.second.len())
    }

    /// The weights by the order of their memory: with [`split`], a slice for each.
    pub fn by_memory(&self) -> Vec<&Parameter> {
        let mut list: Vec<&Parameter> = self.parameters.iter().collect();
        list.sort_by_key(|parameter| parameter.range.start);
        list
    }

    /// Elements of the longest piece: all weights and what fills up the last row.
    pub fn total(&self) -> usize {
        self.values.len()
    }

    /// Every weight with the memory of its gradient, in the order of memory: here, or in `elsewhere`, which is as long as the gradients. On
    /// a GPU that is a piece of its own, made by [`Parameters::reserve_fresh`], and `elsewhere` says only that it is meant.
    pub fn slots<'a>(&'a mut self, elsewhere: Option<&'a mut Vec<f32>>) -> Vec<Slot<'a>> {
        let mut order: Vec<usize> = (0..self.parameters.len()).collect();
        order.sort_by_key(|at| self.parameters[*at].range.start);
        let Parameters { parameters, values, gradients, device, .. } = self;
        if let Some(device) = device {
            device.device_newer = true;
            let memory = if elsewhere.is_some() { &device.fresh } else { &device.gradients };
            let slot = |at: &usize| {
                let parameter = &parameters[*at];
                Slot {
                    name: &parameter.info.name,
                    weight: TensorRef::on_device(&device.values, bytes(&parameter.range), DType::F32),
                    gradient: TensorMut::on_device(memory, bytes(&parameter.range), DType::F32),
                }
            };
            return order.iter().map(slot).collect();
        }
        let memory = elsewhere.unwrap_or(gradients);
        let slices = split(memory, order.iter().map(|at| parameters[*at].range.len()));
        let slot = |(at, gradient): (&usize, &'a mut [f32])| {
            let parameter = &parameters[*at];
            let weight = &values[parameter.range.clone()];
            Slot { name: &parameter.info.name, weight: weight.into(), gradient: gradient.into() }
        };
        order.iter().zip(slices).map(slot).collect()
    }

    /// All gradients, with what fills up the last row.
    pub fn all_gradients(&self) -> TensorRef<'_> {
        match &self.device {
            Some(device) => TensorRef::on_device(&device.gradients, 0..device.gradients.len(), DType::F32),
            None => self.gradients.as_slice().into(),
        }
    }

    /// All gradients, to be summed to, and those of a microbatch, which on the processor are `fresh`.
    pub fn sum_and_fresh<'a>(&'a mut self, fresh: &'a [f32]) -> (TensorMut<'a>, TensorRef<'a>) {
        match &mut self.device {
            Some(device) => {
                device.device_newer = true;
                let all = 0..device.gradients.len();
                (
                    TensorMut::on_device(&device.gradients, all.clone(), DType::F32),
                    TensorRef::on_device(&device.fresh, all, DType::F32),
                )
            }
            None => (self.gradients.as_mut_slice().into(), fresh.into()),
        }
    }

    /// The memory of some elements, which are a bucket's or a part of one.
    pub fn bucket(&mut self, range: Range<usize>) -> BucketMemory<'_> {
        let Parameters { values, gradients, first, second, device, .. } = self;
        if let Some(device) = device {
            device.device_newer = true;
            let part = bytes(&range);
            let has_second = part.end <= device.second.len();
            return BucketMemory {
                weight: TensorMut::on_device(&device.values, part.clone(), DType::F32),
                gradient: TensorRef::on_device(&device.gradients, part.clone(), DType::F32),
                first: TensorMut::on_device(&device.first, part.clone(), DType::F32),
                second: has_second.then(|| TensorMut::on_device(&device.second, part, DType::F32)),
            };
        }
        BucketMemory {
            weight: (&mut values[range.clone()]).into(),
            gradient: (&gradients[range.clone()]).into(),
            first: (&mut first[range.clone()]).into(),
            second: second.get_mut(range).map(TensorMut::from),
        }
    }

    /// Takes memory for all pieces on a GPU; what is in host memory is copied there when it is first needed.
    ///
    /// # Errors
    /// The GPU's memory is too small, or it failed.
    pub fn move_to(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let device = gpu.device();
        let size = |elements: &[f32]| 4 * elements.len() as u64;
        let parts = [
            ("weights under training", size(&self.values)),
            ("gradients", size(&self.gradients)),
            ("the state of optimisers", size(&self.first) + size(&self.second)),
        ];
        gpu.account(&parts, 0)?;
        let piece = |elements: usize, what| DeviceMemory::new(device, 4 * elements, what);
        self.device = Some(OnDevice {
            transfer: Transfer::new(device, 4 * self.values.len())?,
            values: piece(self.values.len(), "weights under training")?,
            gradients: piece(self.gradients.len(), "gradients")?,
            first: piece(self.first.len(), "the state of optimisers")?,
            second: piece(self.second.len(), "second moments")?,
            fresh: DeviceMemory::empty(device),
            host_newer: true,
            device_newer: false,
            gpu: gpu.clone(),
        });
        Ok(())
    }

    /// The copies in host memory are about to be changed: what is on a GPU is theirs again when it is next needed.
    pub fn touch(&mut self) {
        if let Some(device) = &mut self.device {
            device.host_newer = true;
        }
    }

    /// Copies what was changed in host memory to the GPU.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn give(&mut self) -> Result<(), CudaError> {
        let Some(device) = self.device.as_mut().filter(|device| device.host_newer) else { return Ok(()) };
        let OnDevice { gpu, transfer, values, gradients, first, second, .. } = device;
        let pieces = [
            (&self.values, &*values),
            (&self.gradients, &*gradients),
            (&self.first, &*first),
            (&self.second, &*second),
        ];
        for (host, target) in pieces {
            let host: &[u8] = bytemuck::cast_slice(host);
            transfer.upload::<CudaError>(target, 0, host.len(), gpu.stream(), &mut |part, into| {
                into.copy_from_slice(&host[part]);
                Ok(())
            })?;
        }
        (device.host_newer, device.device_newer) = (false, false);
        Ok(())
    }

    /// Copies what was changed on the GPU to host memory.
    ///
    /// # Errors
    /// The GPU failed, now or in what was computed before.
    pub fn fetch(&mut self) -> Result<(), CudaError> {
        let current = |device: &&mut OnDevice| device.device_newer && !device.host_newer;
        let Some(device) = self.device.as_mut().filter(current) else { return Ok(()) };
        let OnDevice { gpu, transfer, values, gradients, first, second, .. } = device;
        let pieces = [
            (&mut self.values, &*values),
            (&mut self.gradients, &*gradients),
            (&mut self.first, &*first),
            (&mut self.second, &*second),
        ];
        for (host, source) in pieces {
            transfer.download(source, 0, bytemuck::cast_slice_mut(host), gpu.stream())?;
        }
        device.device_newer = false;
        Ok(())
    }

    /// Takes memory for the gradients of a microbatch; on the processor that is `fresh`.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn reserve_fresh(&mut self, fresh: &mut Vec<f32>) -> Result<(), FreshError> {
        const WHAT: &str = "gradients of a microbatch";
        match &mut self.device {
            Some(device) => {
                let bytes = device.gradients.len();
                if device.fresh.is_empty() && bytes > 0 {
                    device.fresh = DeviceMemory::new(device.gpu.device(), bytes, WHAT)?;
                    device.gpu.stream().fill(&device.fresh, 0..bytes, 0)?;
                }
            }
            None if fresh.is_empty() => *fresh = zeros(WHAT, self.gradients.len())?,
            None => {}
        }
        Ok(())
    }

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn clear_gradients(&mut self) -> Result<(), CudaError> {
        match &mut self.device {
            Some(device) => {
                device.device_newer = true;
                device.gpu.stream().fill(&device.gradients, 0..device.gradients.len(), 0)
            }
            None => {
                self.gradients.fill(0.0);
                Ok(())
            }
        }
    }

    /// The first weight with an element that is not finite.
    pub fn first_non_finite_weight(&self) -> Option<&str> {
        self.first_non_finite(&self.values)
    }

    /// The first weight with a gradient that is not finite.
    pub fn first_non_finite_gradient(&self) -> Option<&str> {
        self.first_non_finite(&self.gradients)
    }

    fn first_non_finite(&self, memory: &[f32]) -> Option<&str> {
        let finite =
            |parameter: &&Parameter| memory[parameter.range.clone()].iter().all(|value| value.is_finite());
        self.parameters
            .iter()
            .find(|parameter| !finite(parameter))
            .map(|parameter| parameter.info.name.as_str())
    }
}

/// The bytes of some elements.
fn bytes(elements: &Range<usize>) -> Range<usize> {
    4 * elements.start..4 * elements.end
}

/// Consecutive slices of those lengths; what is left over is not returned.
pub fn split(mut memory: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut slices = Vec::new();
    for length in lengths {
        let (slice, rest) = memory.split_at_mut(length);
        slices.push(slice);
        memory = rest;
    }
    slices
}

fn zeros(what: &'static str, elements: usize) -> Result<Vec<f32>, ParameterMemoryError> {
    let mut memory = Vec::new();
    let full = |_| ParameterMemoryError { what, elements, bytes: elements.saturating_mul(4) };
    memory.try_reserve_exact(elements).map_err(full)?;
    memory.resize(elements, 0.0);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::{AdamW, Muon, assign};

    #[test]
    fn weights_of_one_shape_lie_together_behind_those_of_adamw() {
        let group = |patterns: &[&str], optimizer| Group {
            params: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
            optimizer,
            default: false,
        };
        let groups = [
            group(&["m*"], Optimizer::Muon(Muon::default())),
            group(&["*"], Optimizer::AdamW(AdamW::default())),
        ];
        let shapes: [(&str, &[usize]); 6] = [
            ("m1", &[4, 8]),
            ("a1", &[5]),
            ("m2", &[8, 4]),
            ("m3", &[4, 8]),
            ("a2", &[3, 3]),
            ("m4", &[2, 4, 8]),
        ];
        let weights: Vec<WeightInfo> = shapes
            .iter()
            .map(|(name, shape)| WeightInfo { name: (*name).to_owned(), shape: shape.to_vec() })
            .collect();
        let assignment = assign(&groups, &weights).unwrap();
        let parameters = Parameters::new(&weights, &groups, &assignment).unwrap();
        assert_eq!(parameters.adamw_elements(), 14);
        assert_eq!(parameters.elements(), 14 + 32 * 3 + 64);
        assert_eq!(parameters.values.len(), ROW);
        let buckets: Vec<(usize, Range<usize>)> =
            parameters.buckets().iter().map(|bucket| (bucket.weights, bucket.range.clone())).collect();
        assert_eq!(buckets, [(2, 0..14), (2, 14..78), (1, 78..110), (1, 110..174)]);
        let names: Vec<&str> = parameters.by_memory().iter().map(|p| p.info.name.as_str()).collect();
        assert_eq!(names, ["a1", "a2", "m1", "m3", "m2", "m4"]);
    }
}
