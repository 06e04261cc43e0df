//! Whether a row reduction runs over groups of a product's columns.

use nucleus_ir::{Dim, DimError};
use nucleus_plan::{
    Access, Anchor, BufferId, Contraction, Launch, OperandMode, Part, Place, Plan, RowReduction,
    ScalarFunction, Step, StepId,
};

use super::{MAX_REDUCED_COLUMNS, MAX_REPEATED_STEPS};
use crate::merge::rebuild::{dim, extents};

/// A product and the reduction that fits into its epilogue.
pub(super) struct Fit<'a> {
    pub(super) plan: &'a Plan,
    pub(super) product: &'a Launch,
    pub(super) reduction: &'a Launch,
    pub(super) contraction: &'a Contraction,
    pub(super) part: &'a Part,
    pub(super) rows: &'a RowReduction,
    /// The step of the product's epilogue that is stored, and where it is.
    pub(super) value: StepId,
    store: &'a Access,
    /// What the product stores and the reduction loads.
    buffer: BufferId,
    /// True if the groups are an axis of the reduction's rows; there is one group otherwise.
    pub(super) has_group_axis: bool,
    /// Columns of a group in each segment.
    pub(super) width: i64,
    /// Columns of the product that the reduction sees at one point.
    pub(super) segments: i64,
}

impl<'a> Fit<'a> {
    /// How the reduction, which alone reads `buffer`, fits the product, which alone writes it; `None` if it does not.
    pub(super) fn of(
        plan: &'a Plan,
        product: &'a Launch,
        reduction: &'a Launch,
        buffer: BufferId,
    ) -> Result<Option<Fit<'a>>, DimError> {
        let (Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction)) =
            &plan.kernel(product.kernel).anchor
        else {
            return Ok(None);
        };
        let Anchor::RowReduction(rows) = &plan.kernel(reduction.kernel).anchor else { return Ok(None) };
        let [part] = contraction.parts.as_slice() else { return Ok(None) };
        let plain = part.groups.is_none()
            && part.segments == 1
            && part.epilogue.steps.len() <= MAX_REPEATED_STEPS
            && rows.row.steps.is_empty()
            && product.stage == reduction.stage
            && matches!(plan.buffer(buffer).place, Place::Arena { .. })
            && operands_are_apart(plan, product, reduction, buffer);
        let Some((store, value)) = only_store(&part.epilogue).filter(|_| plain) else { return Ok(None) };
        let all_columns = dim(product, part.columns).as_constant();
        let width = dim(reduction, rows.columns).as_constant();
        let (Some(all_columns), Some(width)) = (all_columns, width) else { return Ok(None) };

        let outer = extents(product, &[&contraction.batch, &contraction.rows]);
        let over = extents(reduction, &[&rows.rows]);
        let groups = match over.strip_prefix(outer.as_slice()) {
            Some([]) => Some(1),
            Some([groups]) => groups.as_constant(),
            _ => None,
        };
        let Some(groups) = groups.filter(|_| width > 0) else { return Ok(None) };
        let mut fit = Fit {
            plan,
            product,
            reduction,
            contraction,
            part,
            rows,
            value,
            store,
            buffer,
            has_group_axis: over.len() > outer.len(),
            width,
            segments: 1,
        };
        let whole = groups
            .checked_mul(width)
            .filter(|columns| *columns > 0 && all_columns > 0 && all_columns % columns == 0);
        let Some(whole) = whole else { return Ok(None) };
        fit.segments = all_columns / whole;
        let fits = all_columns / groups <= MAX_REDUCED_COLUMNS;
        let functions = rows.phases.iter().map(|phase| &phase.function).chain([&rows.element]);
        for load in functions.flat_map(ScalarFunction::accesses).filter(|access| fit.is_product(access)) {
            if fit.segment(load)?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(fit).filter(|_| fits))
    }

    /// True if the reduction's access is to the product's result.
    pub(super) fn is_product(&self, access: &Access) -> bool {
        self.reduction.operands[access.operand as usize] == self.buffer
    }

    /// The segment whose elements a load of the product's result takes; `None` if it takes others than those at its point.
    pub(super) fn segment(&self, load: &Access) -> Result<Option<i64>, DimError> {
        if load.indirect.is_some() || self.store.indirect.is_some() {
            return Ok(None);
        }
        let stored = |size| dim(self.product, size);
        let loaded = |size| dim(self.reduction, size);
        let Some((column, outer)) = self.store.strides.split_last() else { return Ok(None) };
        let Some(column) = stored(*column).as_constant().filter(|stride| *stride > 0) else {
            return Ok(None);
        };
        let apart = |count: i64| Dim::constant(column).mul(&Dim::constant(count));
        let mut wanted: Vec<Dim> = outer.iter().map(|stride| stored(*stride)).collect();
        if self.has_group_axis {
            wanted.push(apart(self.segments.saturating_mul(self.width))?);
        }
        wanted.push(apart(self.segments)?);
        let mut sizes = extents(self.reduction, &[&self.rows.rows]);
        sizes.push(Dim::constant(self.width));
        let same = wanted.len() == load.strides.len()
            && wanted
                .iter()
                .zip(&load.strides)
                .zip(&sizes)
                .all(|((wanted, stride), size)| size.is_constant(1) || *wanted == loaded(*stride));
        let behind = loaded(load.offset).sub(&stored(self.store.offset))?.as_constant();
        let segment = behind.filter(|behind| same && *behind >= 0 && behind % column == 0);
        Ok(segment.map(|behind| behind / column).filter(|segment| *segment < self.segments))
    }
}

/// The store of a function that has one, and the step that it stores.
fn only_store(function: &ScalarFunction) -> Option<(&Access, StepId)> {
    let mut stores = function.steps.iter().filter_map(|step| match step {
        Step::Store { access, value } => Some((access, *value)),
        _ => None,
    });
    stores.next().filter(|_| stores.next().is_none())
}

/// True if both launches together only read or only write each of their buffers, but for the one that is passed on.
fn operands_are_apart(plan: &Plan, product: &Launch, reduction: &Launch, passed: BufferId) -> bool {
    let of = |launch: &'_ Launch| -> Vec<(BufferId, OperandMode)> {
        let operands = plan.kernel(launch.kernel).operands.iter();
        launch.operands.iter().copied().zip(operands.map(|operand| operand.mode)).collect()
    };
    let (product, reduction) = (of(product), of(reduction));
    let others = product.iter().all(|(buffer, mode)| *mode == OperandMode::Read || *buffer == passed);
    let read = |buffer: &BufferId| product.iter().any(|(other, _)| other == buffer);
    others
        && reduction.iter().all(|(buffer, mode)| match mode {
            OperandMode::Read => true,
            OperandMode::Write => !read(buffer),
            OperandMode::ReadWrite => false,
        })
}
