//! A session's weights while they are loaded.

use nucleus_ir::DType;

use crate::tensor::HostTensor;
use crate::weights::{WeightError, WeightSource, WeightSpec};

/// A session's weights: what the plan lists and who gives it.
pub(super) struct Weights {
    pub(super) source: Box<dyn WeightSource>,
    pub(super) specs: Vec<WeightSpec>,
    pub(super) threads: usize,
}

impl Weights {
    /// The weight of that name, or the one whose scales have it.
    pub(super) fn spec(&self, name: &str) -> Option<&WeightSpec> {
        let known = |spec: &&WeightSpec| spec.name == name || spec.scale_name().as_deref() == Some(name);
        self.specs.iter().find(known)
    }

    /// A weight or the scales of one; for a quantised weight its scales too.
    pub(super) fn load(&self, name: &str) -> Result<(HostTensor, Option<(String, HostTensor)>), WeightError> {
        let spec = self.spec(name).ok_or_else(|| WeightError::Missing { name: name.to_owned() })?;
        let Some(scale) = spec.scale_name() else {
            return Ok((self.source.load(spec, self.threads)?, None));
        };
        let quantised = self.source.view(&spec.name).is_some_and(|view| view.dtype() == Some(DType::I8));
        if scale == name && quantised {
            let shape = spec.scale_shape();
            let stored = WeightSpec { name: scale, dtype: DType::F32, shape, channel_axis: None };
            return Ok((self.source.load(&stored, self.threads)?, None));
        }
        let scaled = self.source.load_scaled(spec, self.threads)?;
        if scale == name {
            Ok((scaled.scales, None))
        } else {
            Ok((scaled.values, Some((scale, scaled.scales))))
        }
    }
}
