//! The parameters of a run: weights, gradients and optimiser state, each in one piece of memory.
//!
//! All weights under AdamW with the same numbers lie behind one another, and so do weights of one shape under Muon: an optimiser moves a
//! whole *bucket* at a time. Everything is f32. What products want in bf16 is rounded where it is packed.

use std::collections::BTreeMap;
use std::ops::Range;

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
    pub weight: &'a [f32],
    /// Its gradient.
    pub gradient: &'a mut [f32],
}

/// Weights, gradients and state. See the [module documentation](self).
#[derive(Debug)]
pub struct Parameters {
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

    /// Every weight with the memory of its gradient, in the order of memory: here, or in `elsewhere`, which is as long as the gradients.
    pub fn slots<'a>(&'a mut self, elsewhere: Option<&'a mut Vec<f32>>) -> Vec<Slot<'a>> {
        let mut order: Vec<usize> = (0..self.parameters.len()).collect();
        order.sort_by_key(|at| self.parameters[*at].range.start);
        let Parameters { parameters, values, gradients, .. } = self;
        let memory = elsewhere.unwrap_or(gradients);
        let slices = split(memory, order.iter().map(|at| parameters[*at].range.len()));
        let slot = |(at, gradient): (&usize, &'a mut [f32])| {
            let parameter = &parameters[*at];
            Slot { name: &parameter.info.name, weight: &values[parameter.range.clone()], gradient }
        };
        order.iter().zip(slices).map(slot).collect()
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
