//! The kernel of a product and the reduction in its epilogue.

use std::collections::HashMap;

use nucleus_ir::{Dim, DimError};
use nucleus_plan::{
    Access, Anchor, ColumnGroups, Indirect, Kernel, Launch, Part, Phase, Reduction, ScalarFunction, Size,
    Step, StepId,
};

use super::fit::Fit;
use crate::fuse::Arguments;
use crate::merge::rebuild::{begin, common, count, dim, extents, total, with_arguments};

/// The kernel, and the launch but for the number of its kernel.
pub(super) fn fused(fit: &Fit<'_>) -> Result<(Kernel, Launch), DimError> {
    let mut arguments = Arguments::default();
    let mut whole = begin(fit.plan, fit.product, fit.contraction, &mut arguments)?;
    let b = with_arguments(fit.plan, fit.product, &fit.part.b, &mut arguments);
    let all_columns = dim(fit.product, fit.part.columns);
    let mut axes = extents(fit.product, &[&fit.contraction.batch, &[fit.contraction.depth]]);
    axes.push(all_columns.clone());
    count(&b, &axes, &mut arguments)?;

    let groups = all_columns.as_constant().unwrap_or_default() / (fit.segments * fit.width);
    let mut axes = extents(fit.product, &[&fit.contraction.batch, &fit.contraction.rows]);
    axes.extend([groups, fit.width].map(Dim::constant));
    let mut phases = Vec::with_capacity(fit.rows.phases.len());
    for phase in &fit.rows.phases {
        let mut inliner = Inliner::new(fit, &mut arguments);
        let steps = inliner.function(&phase.function)?;
        let function = inliner.function;
        count(&function, &axes, &mut arguments)?;
        let value = |reduction: &Reduction| steps.get(reduction.value.0 as usize).copied();
        let reductions = phase
            .reductions
            .iter()
            .filter_map(|reduction| Some(Reduction { op: reduction.op, value: value(reduction)? }));
        phases.push(Phase { function, reductions: reductions.collect() });
    }
    let mut inliner = Inliner::new(fit, &mut arguments);
    inliner.function(&fit.rows.element)?;
    let epilogue = inliner.function;
    count(&epilogue, &axes, &mut arguments)?;

    whole.parts.push(Part {
        columns: Size::Const(groups * fit.width),
        segments: fit.segments as u32,
        interleaved: fit.segments > 1,
        symmetric: false,
        b,
        groups: Some(ColumnGroups { width: fit.width as u32, phases }),
        epilogue,
    });
    let anchor = match &fit.plan.kernel(fit.product.kernel).anchor {
        Anchor::GroupedMatmul(_) => Anchor::GroupedMatmul(whole),
        _ => Anchor::Matmul(whole),
    };
    let launch = Launch {
        flops: fit.product.flops.add(&fit.reduction.flops)?,
        bytes: total(&arguments)?,
        scope: common(&fit.product.scope, &fit.reduction.scope),
        operands: arguments.buffers,
        sizes: arguments.sizes,
        ..fit.reduction.clone()
    };
    let size_args = launch.sizes.len() as u32;
    Ok((Kernel { operands: arguments.operands, size_args, anchor }, launch))
}

/// Makes a function over batch axes, row axes, group and column within the group from one of the reduction.
struct Inliner<'a, 'f> {
    fit: &'f Fit<'a>,
    arguments: &'f mut Arguments,
    function: ScalarFunction,
    /// What the product's epilogue makes of the accumulator of a segment, where it is known.
    products: HashMap<i64, StepId>,
}

impl<'a, 'f> Inliner<'a, 'f> {
    fn new(fit: &'f Fit<'a>, arguments: &'f mut Arguments) -> Inliner<'a, 'f> {
        Inliner { fit, arguments, function: ScalarFunction::default(), products: HashMap::new() }
    }

    /// Appends a function of the reduction; gives where each of its steps is.
    fn function(&mut self, function: &ScalarFunction) -> Result<Vec<StepId>, DimError> {
        let fit = self.fit;
        // A group axis that the reduction does not have, since there is one group.
        let place = |offset: Dim, mut strides: Vec<Dim>| {
            if !fit.has_group_axis {
                strides.insert(strides.len().saturating_sub(1), Dim::constant(0));
            }
            Ok::<_, DimError>((offset, strides))
        };
        let mut ids = Vec::with_capacity(function.steps.len());
        for step in &function.steps {
            let id = match step {
                Step::Load(access) if fit.is_product(access) => {
                    let segment = fit.segment(access)?.unwrap_or_default();
                    self.product(segment)?
                }
                Step::Accumulator(number) => {
                    self.function.push(Step::Accumulator(fit.segments as u32 + number))
                }
                step => self.step(fit.reduction, step, &ids, &place)?,
            };
            ids.push(id);
        }
        Ok(ids)
    }

    /// What the product would have stored of this segment.
    fn product(&mut self, segment: i64) -> Result<StepId, DimError> {
        if let Some(id) = self.products.get(&segment) {
            return Ok(*id);
        }
        let fit = self.fit;
        // The product's column is `segments · (width · group + column) + segment`.
        let place = |offset: Dim, mut strides: Vec<Dim>| {
            let along = strides.pop().unwrap_or_else(|| Dim::constant(0));
            let times = |count: i64| along.mul(&Dim::constant(count));
            strides.extend([times(fit.segments * fit.width)?, times(fit.segments)?]);
            Ok::<_, DimError>((offset.add(&times(segment)?)?, strides))
        };
        let mut ids = Vec::new();
        for step in &fit.part.epilogue.steps[..=fit.value.0 as usize] {
            ids.push(match step {
                Step::Accumulator(_) => self.function.push(Step::Accumulator(segment as u32)),
                step => self.step(fit.product, step, &ids, &place)?,
            });
        }
        let id = ids.pop().unwrap_or(StepId(0));
        self.products.insert(segment, id);
        Ok(id)
    }

    /// Appends a step of a function of `launch` whose earlier steps are at `ids`; `place` gives offset and strides over the new axes.
    fn step(
        &mut self,
        launch: &Launch,
        step: &Step,
        ids: &[StepId],
        place: &impl Fn(Dim, Vec<Dim>) -> Result<(Dim, Vec<Dim>), DimError>,
    ) -> Result<StepId, DimError> {
        let sizes = |arguments: &mut Arguments, offset: Size, strides: &[Size]| {
            let strides = strides.iter().map(|stride| dim(launch, *stride)).collect();
            let (offset, strides) = place(dim(launch, offset), strides)?;
            let offset = arguments.size(&offset);
            let strides: Vec<Size> = strides.iter().map(|stride| arguments.size(stride)).collect();
            Ok::<_, DimError>((offset, strides))
        };
        let operands = &self.fit.plan.kernel(launch.kernel).operands;
        let direct = |arguments: &mut Arguments, access: &Access| {
            let known = operands[access.operand as usize];
            let buffer = launch.operands[access.operand as usize];
            let operand = arguments.operand(buffer, known.dtype, known.mode);
            let (offset, strides) = sizes(arguments, access.offset, &access.strides)?;
            Ok::<_, DimError>(Access { operand, offset, strides, indirect: None })
        };
        let access = |arguments: &mut Arguments, access: &Access| {
            let mut placed = direct(arguments, access)?;
            if let Some(indirect) = &access.indirect {
                let index = direct(arguments, &indirect.index)?;
                let stride = arguments.size(&dim(launch, indirect.stride));
                placed.indirect = Some(Box::new(Indirect { index, stride }));
            }
            Ok::<Access, DimError>(placed)
        };
        let known = |id: &StepId| ids[id.0 as usize];
        let step = match step {
            Step::Load(load) => Step::Load(access(self.arguments, load)?),
            Step::Store { access: store, value } => {
                Step::Store { access: access(self.arguments, store)?, value: known(value) }
            }
            Step::Affine { offset, strides } => {
                let (offset, strides) = sizes(self.arguments, *offset, strides)?;
                Step::Affine { offset, strides }
            }
            Step::Apply { op, args } => Step::Apply { op: *op, args: args.iter().map(known).collect() },
            Step::Constant { .. } | Step::Accumulator(_) => step.clone(),
        };
        Ok(self.function.push(step))
    }
}
