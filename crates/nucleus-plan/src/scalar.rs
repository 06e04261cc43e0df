//! Scalar functions: what a kernel does at one point of its iteration space.

use nucleus_ir::{DType, Float, ScalarOp};
use serde::{Deserialize, Serialize};

/// A size, stride or offset in a kernel: a constant of its code, or an argument that the launch supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Size {
    /// Known when the kernel is compiled.
    Const(i64),
    /// The launch's size argument of that position.
    Arg(u32),
}

impl Size {
    /// The value, given the launch's size arguments.
    pub fn value(self, arguments: &[i64]) -> i64 {
        match self {
            Size::Const(value) => value,
            Size::Arg(position) => arguments[position as usize],
        }
    }

    /// True if this is the constant `value`.
    pub fn is(self, value: i64) -> bool {
        self == Size::Const(value)
    }
}

/// Which element of an operand is loaded or stored: `offset + Σ strides[a] · coordinate[a]`, counted in elements, plus
/// `indirect.stride · index` where the access goes through an index operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// The kernel operand.
    pub operand: u32,
    /// The element at coordinate 0.
    pub offset: Size,
    /// One stride per axis of the function's iteration space; 0 along an axis that the access does not depend on.
    pub strides: Vec<Size>,
    /// The part that goes through an index, if any.
    pub indirect: Option<Box<Indirect>>,
}

/// The indirect part of an access.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Indirect {
    /// Where the index, an `i32`, is loaded from; itself direct.
    #[serde(with = "direct")]
    pub index: Access,
    /// What the index is multiplied by, in elements.
    pub stride: Size,
}

/// The serialised form of an index access has no room for a further indirection, so that reading hostile input cannot recurse.
mod direct {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Access, Size};

    pub(super) fn serialize<S: Serializer>(access: &Access, serializer: S) -> Result<S::Ok, S::Error> {
        (access.operand, access.offset, &access.strides).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Access, D::Error> {
        let (operand, offset, strides) = <(u32, Size, Vec<Size>)>::deserialize(deserializer)?;
        Ok(Access { operand, offset, strides, indirect: None })
    }
}

/// The value of a step, by position in its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StepId(pub u32);

/// One step of a scalar function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// An element of an operand, in the operand's dtype.
    Load(Access),
    /// A constant.
    Constant {
        /// Its value.
        value: Float,
        /// Its dtype.
        dtype: DType,
    },
    /// The `i32` number `offset + Σ strides[a] · coordinate[a]`: coordinates (`iota`) and sizes.
    Affine {
        /// The value at coordinate 0.
        offset: Size,
        /// One factor per axis of the iteration space.
        strides: Vec<Size>,
    },
    /// An `f32` result of the anchor: segment j of a contraction, behind its segments a reduction over a group of columns, reduction j of
    /// a row reduction, affinity or sum of a slot of expert choice, 0 elsewhere.
    Accumulator(u32),
    /// A scalar operation.
    Apply {
        /// The operation.
        op: ScalarOp,
        /// Earlier steps.
        args: Vec<StepId>,
    },
    /// Writes an earlier step's value, which has the operand's dtype.
    Store {
        /// Where to.
        access: Access,
        /// What.
        value: StepId,
    },
}

/// A short list of steps in an order in which values come before their uses. A prologue has a result; an epilogue or loop body
/// has stores.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScalarFunction {
    /// The steps.
    pub steps: Vec<Step>,
    /// The result, for a function that computes an operand.
    pub result: Option<StepId>,
}

impl ScalarFunction {
    /// The function that loads one element.
    pub fn load(access: Access) -> ScalarFunction {
        ScalarFunction { steps: vec![Step::Load(access)], result: Some(StepId(0)) }
    }

    /// Appends a step and returns its id.
    pub fn push(&mut self, step: Step) -> StepId {
        self.steps.push(step);
        StepId(self.steps.len() as u32 - 1)
    }

    /// The access, if the function is one load of its result.
    pub fn as_load(&self) -> Option<&Access> {
        match (self.steps.as_slice(), self.result) {
            ([Step::Load(access)], Some(StepId(0))) => Some(access),
            _ => None,
        }
    }

    /// The dtype of every step; `None` for stores. `operand` gives the dtype of a kernel operand.
    pub fn dtypes(&self, operand: impl Fn(u32) -> DType) -> Vec<Option<DType>> {
        let mut dtypes: Vec<Option<DType>> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let dtype = match step {
                Step::Load(access) => Some(operand(access.operand)),
                Step::Constant { dtype, .. } => Some(*dtype),
                Step::Affine { .. } => Some(DType::I32),
                Step::Accumulator(_) => Some(DType::F32),
                Step::Apply { op, args } => {
                    let of = |id: &StepId| dtypes.get(id.0 as usize).copied().flatten();
                    let args: Option<Vec<DType>> = args.iter().map(of).collect();
                    args.and_then(|args| op.result(&args))
                }
                Step::Store { .. } => None,
            };
            dtypes.push(dtype);
        }
        dtypes
    }

    /// The same function with every operand and size replaced, in the order in which they appear.
    pub fn renumbered(
        &self,
        operand: &mut impl FnMut(u32) -> u32,
        size: &mut impl FnMut(Size) -> Size,
    ) -> ScalarFunction {
        let mut direct = |access: &Access, size: &mut dyn FnMut(Size) -> Size| Access {
            operand: operand(access.operand),
            offset: size(access.offset),
            strides: access.strides.iter().map(|stride| size(*stride)).collect(),
            indirect: None,
        };
        let mut access = |access: &Access, size: &mut dyn FnMut(Size) -> Size| {
            let mut renumbered = direct(access, size);
            if let Some(indirect) = &access.indirect {
                let (index, stride) = (direct(&indirect.index, size), size(indirect.stride));
                renumbered.indirect = Some(Box::new(Indirect { index, stride }));
            }
            renumbered
        };
        let steps = self.steps.iter().map(|step| match step {
            Step::Load(load) => Step::Load(access(load, size)),
            Step::Store { access: store, value } => {
                Step::Store { access: access(store, size), value: *value }
            }
            Step::Affine { offset, strides } => Step::Affine {
                offset: size(*offset),
                strides: strides.iter().map(|stride| size(*stride)).collect(),
            },
            Step::Constant { .. } | Step::Accumulator(_) | Step::Apply { .. } => step.clone(),
        });
        ScalarFunction { steps: steps.collect(), result: self.result }
    }

    /// Every access of the function, loads and stores, the index loads of indirect ones included.
    pub fn accesses(&self) -> impl Iterator<Item = &Access> {
        self.steps.iter().flat_map(|step| {
            let access = match step {
                Step::Load(access) | Step::Store { access, .. } => Some(access),
                _ => None,
            };
            let index = access.and_then(|access| access.indirect.as_ref()).map(|indirect| &indirect.index);
            access.into_iter().chain(index)
        })
    }
}
