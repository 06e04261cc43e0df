//! The invariants of one kernel: what can be said without the launches that use it.

use nucleus_ir::DType;

use super::Verifier;
use crate::kernel::{Anchor, Contraction, Kernel, MAX_GROUP, OperandMode, PartSlot, Phase};
use crate::scalar::{Access, ScalarFunction, Size, Step};

/// What a slot wants of its function.
enum Slot {
    /// A result of that dtype.
    Result(DType),
    /// A result that need not be used: the values of a phase.
    Values,
    /// Stores.
    Stores,
}

/// The checks of one kernel.
pub(super) struct KernelCheck<'a, 'b, 'c> {
    pub(super) kernel: &'a Kernel,
    /// What errors call it.
    pub(super) place: String,
    pub(super) verifier: &'b mut Verifier<'c>,
}

impl KernelCheck<'_, '_, '_> {
    fn report(&mut self, what: String) {
        let place = self.place.clone();
        self.verifier.report(&place, what);
    }

    pub(super) fn check(&mut self) {
        let kernel = self.kernel;
        for (name, extents, function) in kernel.anchor.slots() {
            extents.iter().for_each(|extent| self.size(*extent));
            let (slot, accumulators) = wants(&kernel.anchor, &name);
            self.function(&name, extents.len(), function, &slot, accumulators);
        }
        match &kernel.anchor {
            Anchor::Map(_) | Anchor::SegmentSum(_) => {}
            Anchor::RowReduction(reduction) => self.phases(&reduction.phases),
            Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => self.contraction(contraction),
            Anchor::Attention(a) => self.attention([a.heads, a.key_heads], a.dtype, a.segments.len()),
            Anchor::AttentionGrad(a) => self.attention([a.heads, a.key_heads], a.dtype, a.segments.len()),
            Anchor::ExpertChoice(choice) => {
                self.size(choice.capacity);
                self.whole(choice.slot_token, DType::I32, true);
                if let Some(inverse) = choice.inverse {
                    self.whole(inverse.offsets, DType::I32, true);
                    self.whole(inverse.positions, DType::I32, true);
                }
            }
            Anchor::InvertIndex(invert) => {
                for size in [invert.batch, invert.positions, invert.targets] {
                    self.size(size);
                }
                self.whole(invert.index, DType::I32, false);
                self.whole(invert.offsets_out, DType::I32, true);
                self.whole(invert.positions_out, DType::I32, true);
            }
        }
        if let Anchor::SegmentSum(sum) = &kernel.anchor {
            self.whole(sum.offsets, DType::I32, false);
            self.whole(sum.positions, DType::I32, false);
        }
    }

    fn phases(&mut self, phases: &[Phase]) {
        for phase in phases {
            let dtypes = self.dtypes(&phase.function);
            for reduced in &phase.reductions {
                if dtypes.get(reduced.value.0 as usize) != Some(&Some(DType::F32)) {
                    self.report(format!("reduction of step {}, which is not f32", reduced.value.0));
                }
            }
        }
    }

    fn attention(&mut self, [heads, key_heads]: [u32; 2], dtype: DType, segments: usize) {
        let divides = key_heads > 0 && heads % key_heads == 0;
        if !divides || !dtype.is_float() || segments == 0 {
            self.report("attention needs keys of a float type, heads a multiple of key heads".to_owned());
        }
    }

    fn contraction(&mut self, contraction: &Contraction) {
        let empty = contraction.parts.iter().any(|part| part.segments == 0);
        if contraction.parts.is_empty() || empty || !contraction.dtype.is_float() {
            self.report("a product needs a part, a segment in each, and factors of a float type".to_owned());
        }
        let lone = contraction.rows.len() == 1;
        let halves = |part: &crate::kernel::Part| part.segments == 1 && part.groups.is_none() && lone;
        if contraction.parts.iter().any(|part| part.symmetric && !halves(part)) {
            self.report("a symmetric product has one axis of rows, one segment and no groups".to_owned());
        }
        for part in &contraction.parts {
            let Some(groups) = &part.groups else { continue };
            if !part.has_whole_groups() {
                let (width, columns, segments) = (groups.width, part.columns, part.segments);
                self.report(format!(
                    "groups of {width} columns in {columns}, of {segments} segments: columns must be constant and whole groups, a \
                     group may have {MAX_GROUP} accumulators"
                ));
            }
            self.phases(&groups.phases);
        }
    }

    fn size(&mut self, size: Size) {
        if let Size::Arg(number) = size
            && number >= self.kernel.size_args
        {
            self.report(format!("there is no size argument {number}"));
        }
    }

    /// An operand that the anchor reads or writes itself.
    fn whole(&mut self, operand: u32, dtype: DType, written: bool) {
        match self.kernel.operands.get(operand as usize) {
            None => self.report(format!("there is no operand {operand}")),
            Some(known) => {
                let forbidden = if written { OperandMode::Read } else { OperandMode::Write };
                if known.dtype != dtype || known.mode == forbidden {
                    self.report(format!("operand {operand} does not fit its use"));
                }
            }
        }
    }

    fn dtypes(&self, function: &ScalarFunction) -> Vec<Option<DType>> {
        function.dtypes(|operand| {
            self.kernel.operands.get(operand as usize).map_or(DType::F32, |operand| operand.dtype)
        })
    }

    fn function(
        &mut self,
        name: &str,
        axes: usize,
        function: &ScalarFunction,
        slot: &Slot,
        accumulators: usize,
    ) {
        let dtypes = self.dtypes(function);
        for (number, step) in function.steps.iter().enumerate() {
            let at = format!("{name}, step {number}");
            match step {
                Step::Load(access) => self.access(&at, access, axes, OperandMode::Write),
                Step::Constant { dtype, .. } => {
                    if *dtype == DType::I8 {
                        self.report(format!("{at}: there are no constants of i8"));
                    }
                }
                Step::Affine { offset, strides } => {
                    self.size(*offset);
                    strides.iter().for_each(|stride| self.size(*stride));
                    if strides.len() != axes {
                        self.report(format!("{at}: {} strides for {axes} axes", strides.len()));
                    }
                }
                Step::Accumulator(index) => {
                    if *index as usize >= accumulators {
                        self.report(format!("{at}: there is no accumulator {index}"));
                    }
                }
                Step::Apply { op, args } => {
                    if args.iter().any(|arg| arg.0 as usize >= number) {
                        self.report(format!("{at}: uses a step that does not come before it"));
                    } else if args.len() != op.arity() || dtypes[number].is_none() {
                        self.report(format!("{at}: {op:?} is not defined for its operands"));
                    }
                }
                Step::Store { access, value } => {
                    self.access(&at, access, axes, OperandMode::Read);
                    let operand = self.kernel.operands.get(access.operand as usize);
                    let dtype = dtypes[..number].get(value.0 as usize).copied().flatten();
                    if dtype.is_none() || operand.is_some_and(|operand| Some(operand.dtype) != dtype) {
                        self.report(format!("{at}: the stored value has not the operand's dtype"));
                    }
                    if !matches!(slot, Slot::Stores) {
                        self.report(format!("{at}: this function computes an operand and may not store"));
                    }
                }
            }
        }
        let result = function.result.map(|result| dtypes.get(result.0 as usize).copied().flatten());
        match (slot, result) {
            (Slot::Result(wanted), Some(Some(dtype))) if *wanted == dtype => {}
            (Slot::Result(wanted), _) => self.report(format!("{name}: needs a result of dtype {wanted}")),
            (Slot::Values | Slot::Stores, None) => {}
            (Slot::Values | Slot::Stores, Some(_)) => {
                self.report(format!("{name}: has a result without use"))
            }
        }
    }

    fn access(&mut self, at: &str, access: &Access, axes: usize, forbidden: OperandMode) {
        let mut parts = vec![(access, forbidden)];
        if let Some(indirect) = &access.indirect {
            self.size(indirect.stride);
            parts.push((&indirect.index, OperandMode::Write));
            let index = self.kernel.operands.get(indirect.index.operand as usize);
            if indirect.index.indirect.is_some() || index.is_some_and(|index| index.dtype != DType::I32) {
                self.report(format!("{at}: an index must be an i32 that is loaded directly"));
            }
        }
        for (access, forbidden) in parts {
            self.size(access.offset);
            access.strides.iter().for_each(|stride| self.size(*stride));
            if access.strides.len() != axes {
                self.report(format!("{at}: {} strides for {axes} axes", access.strides.len()));
            }
            match self.kernel.operands.get(access.operand as usize) {
                None => self.report(format!("{at}: there is no operand {}", access.operand)),
                Some(operand) if operand.mode == forbidden => {
                    self.report(format!("{at}: operand {} is not bound for this", access.operand));
                }
                Some(_) => {}
            }
        }
    }
}

/// What the slot `name` of an anchor wants, and how many accumulators it has.
fn wants(anchor: &Anchor, name: &str) -> (Slot, usize) {
    match anchor {
        Anchor::Map(_) => (Slot::Stores, 0),
        Anchor::RowReduction(reduction) => match name.strip_prefix("phase") {
            Some(number) => {
                let number: usize = number.parse().unwrap_or_default();
                let before = reduction.phases.iter().take(number).map(|phase| phase.reductions.len());
                (Slot::Values, before.sum())
            }
            None => (Slot::Stores, reduction.phases.iter().map(|phase| phase.reductions.len()).sum()),
        },
        Anchor::Matmul(contraction) | Anchor::GroupedMatmul(contraction) => match contraction.part_of(name) {
            Some((part, PartSlot::Phase(number))) => (Slot::Values, part.accumulators(number)),
            Some((part, PartSlot::Epilogue)) => (Slot::Stores, part.accumulators(usize::MAX)),
            _ => (Slot::Result(contraction.dtype), 0),
        },
        Anchor::Attention(attention) => match name {
            "epilogue" => (Slot::Stores, 1),
            _ if name.starts_with("mask") => (Slot::Result(DType::Bool), 0),
            _ => (Slot::Result(attention.dtype), 0),
        },
        Anchor::AttentionGrad(grad) => match name {
            "dq" => (Slot::Stores, 1),
            "q" | "dy" => (Slot::Result(grad.dtype), 0),
            _ if name.starts_with("mask") => (Slot::Result(DType::Bool), 0),
            _ if name.starts_with('d') => (Slot::Stores, 1),
            _ => (Slot::Result(grad.dtype), 0),
        },
        Anchor::SegmentSum(_) if name == "epilogue" => (Slot::Stores, 1),
        Anchor::ExpertChoice(_) if name == "epilogue" => (Slot::Stores, 2),
        Anchor::ExpertChoice(_) | Anchor::InvertIndex(_) | Anchor::SegmentSum(_) => {
            (Slot::Result(DType::F32), 0)
        }
    }
}
