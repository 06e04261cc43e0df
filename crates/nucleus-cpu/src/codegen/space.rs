//! Iteration spaces: axes, and which of them can be walked as one.

use nucleus_ir::DType;
use nucleus_plan::{Access, Operand, OperandMode, ScalarFunction, Size, Step};

/// The extent of an axis: a product of sizes, 1 if empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extent(pub Vec<Size>);

impl Extent {
    /// The value, given a launch's size arguments.
    pub fn value(&self, arguments: &[i64]) -> i64 {
        self.0.iter().fold(1, |product, size| product.saturating_mul(size.value(arguments)))
    }

    /// The value, if it needs no arguments.
    pub fn constant(&self) -> Option<i64> {
        self.0.iter().try_fold(1i64, |product, size| match size {
            Size::Const(value) => product.checked_mul(*value),
            Size::Arg(_) => None,
        })
    }
}

impl From<Size> for Extent {
    fn from(size: Size) -> Extent {
        Extent(vec![size])
    }
}

/// The axes of a compiled loop nest. Rows are numbered row-major over `outer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// All axes but the last.
    pub outer: Vec<Extent>,
    /// The last axis.
    pub inner: Extent,
}

impl Space {
    /// The number of rows.
    pub fn rows(&self, arguments: &[i64]) -> i64 {
        self.outer.iter().fold(1, |product, extent| product.saturating_mul(extent.value(arguments)))
    }
}

/// Every stride list of a function, with its offset.
pub(crate) fn for_each_strides(function: &mut ScalarFunction, visit: &mut dyn FnMut(&mut Vec<Size>)) {
    for step in &mut function.steps {
        match step {
            Step::Load(access) | Step::Store { access, .. } => {
                visit(&mut access.strides);
                if let Some(indirect) = &mut access.indirect {
                    visit(&mut indirect.index.strides);
                }
            }
            Step::Affine { strides, .. } => visit(strides),
            Step::Constant { .. } | Step::Accumulator(_) | Step::Apply { .. } => {}
        }
    }
}

/// Reorders the axes of a function: axis i of the result is axis `order[i]` of the argument.
pub(crate) fn permute_axes(function: &ScalarFunction, order: &[usize]) -> ScalarFunction {
    let mut function = function.clone();
    for_each_strides(&mut function, &mut |strides| {
        *strides = order.iter().map(|&axis| strides[axis]).collect();
    });
    function
}

/// Appends an axis that nothing depends on.
pub(crate) fn append_unit_axis(function: &ScalarFunction) -> ScalarFunction {
    let mut function = function.clone();
    for_each_strides(&mut function, &mut |strides| strides.push(Size::Const(0)));
    function
}

/// Removes axes of extent 1 and walks neighbouring axes as one where every access allows it. The numbering of the rows stays; the last
/// axis stays apart if `keep_inner`.
pub(crate) fn collapse(
    axes: &[Extent],
    function: &ScalarFunction,
    keep_inner: bool,
) -> (Space, ScalarFunction) {
    let mut axes = axes.to_vec();
    let mut function = function.clone();
    if axes.is_empty() {
        axes.push(Extent::default());
        function = append_unit_axis(&function);
    }
    let mut axis = axes.len() - 1;
    while axis > 0 {
        axis -= 1;
        let last = axis + 2 == axes.len();
        if last && keep_inner {
            continue;
        }
        let outer_is_one = axes[axis].constant() == Some(1);
        let constant = axes[axis + 1].constant();
        if constant.is_none() && !outer_is_one {
            continue;
        }
        let extent = constant.unwrap_or(0);
        let mut merges = true;
        for_each_strides(&mut function, &mut |strides| {
            let merged = match (strides[axis], strides[axis + 1]) {
                _ if outer_is_one => true,
                _ if extent == 1 => true,
                (Size::Const(outer), Size::Const(inner)) => inner.checked_mul(extent) == Some(outer),
                _ => false,
            };
            merges &= merged;
        });
        if !merges {
            continue;
        }
        for_each_strides(&mut function, &mut |strides| {
            let removed = if outer_is_one || extent != 1 { axis } else { axis + 1 };
            strides.remove(removed);
        });
        let outer = std::mem::take(&mut axes[axis].0);
        axes[axis + 1].0.splice(0..0, outer);
        axes.remove(axis);
    }
    let inner = axes.pop().unwrap_or_default();
    (Space { outer: axes, inner }, function)
}

/// Checks that a function is one that code can be generated for: what the plan verifier guarantees.
pub(crate) fn check(
    function: &ScalarFunction,
    axes: usize,
    operands: &[Operand],
    size_args: u32,
    dtypes: &[Option<DType>],
) -> Result<(), String> {
    let size = |size: &Size| match size {
        Size::Arg(argument) if *argument >= size_args => {
            Err(format!("size argument {argument} of {size_args}"))
        }
        _ => Ok(()),
    };
    let direct = |access: &Access| {
        if access.operand as usize >= operands.len() {
            return Err(format!("operand {} of {}", access.operand, operands.len()));
        }
        if access.strides.len() != axes {
            return Err(format!("an access has {} strides for {axes} axes", access.strides.len()));
        }
        size(&access.offset)?;
        access.strides.iter().try_for_each(size)
    };
    for (position, step) in function.steps.iter().enumerate() {
        let fail = |why: String| Err(format!("step {position}: {why}"));
        let earlier = |id: &nucleus_plan::StepId| (id.0 as usize) < position;
        match step {
            Step::Load(access) | Step::Store { access, .. } => {
                direct(access).or_else(fail)?;
                if let Some(indirect) = &access.indirect {
                    direct(&indirect.index).or_else(fail)?;
                    size(&indirect.stride).or_else(fail)?;
                    let index = operands[indirect.index.operand as usize];
                    let constant = index.dtype == DType::I32 && index.mode == OperandMode::Read;
                    if !constant || indirect.index.indirect.is_some() {
                        return fail(
                            "an index that is itself indirect, or not in an i32 operand that is only read"
                                .to_owned(),
                        );
                    }
                }
            }
            Step::Affine { offset, strides } => {
                size(offset).or_else(fail)?;
                strides.iter().try_for_each(size).or_else(fail)?;
                if strides.len() != axes {
                    return fail(format!("{} strides for {axes} axes", strides.len()));
                }
            }
            Step::Apply { args, .. } if !args.iter().all(earlier) => {
                return fail("an argument that does not come before it".to_owned());
            }
            _ => {}
        }
        match step {
            Step::Store { value, access } => {
                let dtype = operands[access.operand as usize].dtype;
                if !earlier(value) || dtypes[value.0 as usize] != Some(dtype) {
                    return fail(format!("it stores no earlier value of type {dtype}"));
                }
            }
            _ if dtypes[position].is_none() => {
                return fail("an operation on types it is not defined for".to_owned());
            }
            _ => {}
        }
    }
    match function.result {
        Some(result) if dtypes.get(result.0 as usize).copied().flatten().is_none() => {
            Err("the result is not the value of a step".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(strides: &[Size]) -> ScalarFunction {
        ScalarFunction::load(Access {
            operand: 0,
            offset: Size::Const(0),
            strides: strides.to_vec(),
            indirect: None,
        })
    }

    fn collapse(axes: &[Size], function: &ScalarFunction, keep_inner: bool) -> (Space, ScalarFunction) {
        let axes: Vec<Extent> = axes.iter().map(|&size| size.into()).collect();
        super::collapse(&axes, function, keep_inner)
    }

    fn strides(function: &ScalarFunction) -> Vec<Size> {
        function.as_load().unwrap().strides.clone()
    }

    #[test]
    fn contiguous_axes_become_one() {
        use Size::{Arg, Const};
        let axes = [Arg(0), Const(16), Const(128)];
        let (space, function) = collapse(&axes, &load(&[Const(2048), Const(128), Const(1)]), false);
        assert_eq!(space, Space { outer: vec![], inner: Extent(axes.to_vec()) });
        assert_eq!(strides(&function), [Const(1)]);
        let (space, function) = collapse(&axes, &load(&[Arg(1), Const(128), Const(1)]), false);
        assert_eq!(space.outer, [Extent(vec![Arg(0)])]);
        assert_eq!(space.inner, Extent(vec![Const(16), Const(128)]));
        assert_eq!(strides(&function), [Arg(1), Const(1)]);
        let (space, function) = collapse(&axes, &load(&[Const(2048), Const(128), Const(1)]), true);
        assert_eq!(space.outer, [Extent(vec![Arg(0), Const(16)])]);
        assert_eq!(strides(&function), [Const(128), Const(1)]);
    }

    #[test]
    fn broadcast_axes_stay_apart() {
        use Size::Const;
        let axes = [Const(4), Const(8)];
        let (space, _) = collapse(&axes, &load(&[Const(0), Const(1)]), false);
        assert_eq!((space.outer.len(), space.inner.constant()), (1, Some(8)));
    }

    #[test]
    fn unit_axes_vanish_and_no_axis_becomes_one() {
        use Size::{Arg, Const};
        let (space, function) = collapse(&[Const(1), Arg(0)], &load(&[Const(7), Const(1)]), false);
        assert_eq!((space.outer.len(), strides(&function)), (0, vec![Const(1)]));
        let (space, function) = collapse(&[Arg(0), Const(1)], &load(&[Const(1), Const(9)]), false);
        assert_eq!((space.outer.len(), strides(&function)), (0, vec![Const(1)]));
        let (space, function) = collapse(&[], &load(&[]), false);
        assert_eq!((space.outer.len(), space.inner.constant()), (0, Some(1)));
        assert_eq!(strides(&function), [Const(0)]);
    }
}
