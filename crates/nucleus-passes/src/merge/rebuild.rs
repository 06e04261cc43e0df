//! Left factors that can be compared, and the kernel of several launches.

use nucleus_ir::{DType, Dim, DimError, Rate};
use nucleus_plan::{
    Anchor, BufferId, ColumnGroups, Contraction, Kernel, Launch, Part, Phase, Plan, ScalarFunction, Size,
    Step, Tile,
};

use super::contraction;
use crate::fuse::Arguments;

/// What launches of products have in common if they have the same left factor: equal for them, whatever the numbers of operands and sizes
/// in their kernels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LeftFactor {
    stage: Rate,
    grouped: bool,
    dtype: DType,
    tile: Option<Tile>,
    batch: Vec<Size>,
    rows: Vec<Size>,
    depth: Size,
    a: ScalarFunction,
    buffers: Vec<BufferId>,
    sizes: Vec<Dim>,
}

/// A function of a launch's kernel with the operands and sizes of `arguments`.
pub(crate) fn with_arguments(
    plan: &Plan,
    launch: &Launch,
    function: &ScalarFunction,
    arguments: &mut Arguments,
) -> ScalarFunction {
    let kernel = plan.kernel(launch.kernel);
    let arguments = std::cell::RefCell::new(arguments);
    let mut operand = |number: u32| {
        let known = kernel.operands[number as usize];
        arguments.borrow_mut().operand(launch.operands[number as usize], known.dtype, known.mode)
    };
    function.renumbered(&mut operand, &mut |size| argument(launch, size, &mut arguments.borrow_mut()))
}

/// The size that a launch gives.
pub(crate) fn dim(launch: &Launch, size: Size) -> Dim {
    match size {
        Size::Const(value) => Dim::constant(value),
        Size::Arg(number) => launch.sizes[number as usize].clone(),
    }
}

pub(crate) fn argument(launch: &Launch, size: Size, arguments: &mut Arguments) -> Size {
    arguments.size(&dim(launch, size))
}

/// Counts the bytes that a function touches in a space of these extents, once for each access.
pub(crate) fn count(
    function: &ScalarFunction,
    extents: &[Dim],
    arguments: &mut Arguments,
) -> Result<(), DimError> {
    for step in &function.steps {
        let (Step::Load(access) | Step::Store { access, .. }) = step else { continue };
        if let Some(indirect) = &access.indirect {
            arguments.count(&indirect.index, extents)?;
        }
        arguments.count(access, extents)?;
    }
    Ok(())
}

pub(crate) fn total(arguments: &Arguments) -> Result<Dim, DimError> {
    arguments.bytes.iter().try_fold(Dim::constant(0), |total, bytes| total.add(bytes))
}

/// The extents of batch, rows and one more axis.
pub(crate) fn extents(launch: &Launch, axes: &[&[Size]]) -> Vec<Dim> {
    axes.iter().flat_map(|sizes| sizes.iter()).map(|size| dim(launch, *size)).collect()
}

/// The left factor of a launch, as the beginning of a kernel whose operands and sizes are `arguments`; its bytes are counted.
pub(crate) fn begin(
    plan: &Plan,
    launch: &Launch,
    contraction: &Contraction,
    arguments: &mut Arguments,
) -> Result<Contraction, DimError> {
    let mut sizes = |sizes: &[Size]| -> Vec<Size> {
        sizes.iter().map(|size| argument(launch, *size, arguments)).collect()
    };
    let (batch, rows, depth) =
        (sizes(&contraction.batch), sizes(&contraction.rows), sizes(&[contraction.depth])[0]);
    let a = with_arguments(plan, launch, &contraction.a, arguments);
    let axes = extents(launch, &[&contraction.batch, &contraction.rows, &[contraction.depth]]);
    count(&a, &axes, arguments)?;
    let Contraction { dtype, tile, .. } = *contraction;
    Ok(Contraction { batch, rows, depth, a, dtype, tile, parts: Vec::new() })
}

/// The left factor of a launch, and its bytes.
pub(super) fn left_factor(
    plan: &Plan,
    launch: &Launch,
    contraction: &Contraction,
) -> Result<(LeftFactor, Dim), DimError> {
    let mut arguments = Arguments::default();
    let Contraction { batch, rows, depth, a, dtype, tile, .. } =
        begin(plan, launch, contraction, &mut arguments)?;
    let bytes = total(&arguments)?;
    let grouped = matches!(plan.kernel(launch.kernel).anchor, Anchor::GroupedMatmul(_));
    let (stage, buffers, sizes) = (launch.stage, arguments.buffers, arguments.sizes);
    Ok((LeftFactor { stage, grouped, dtype, tile, batch, rows, depth, a, buffers, sizes }, bytes))
}

/// The kernel and the launch of several launches with the same left factor; the launch's kernel is that of the first.
pub(super) fn merged(plan: &Plan, members: &[usize]) -> Result<(Kernel, Launch), DimError> {
    let launches: Vec<&Launch> = members.iter().map(|member| &plan.launches[*member]).collect();
    let mut arguments = Arguments::default();
    let mut whole: Option<Contraction> = None;
    for launch in &launches {
        let Some(contraction) = contraction(plan, launch) else { continue };
        let mut current = match whole.take() {
            Some(begun) => begun,
            None => begin(plan, launch, contraction, &mut arguments)?,
        };
        for part in &contraction.parts {
            let columns = argument(launch, part.columns, &mut arguments);
            let b = with_arguments(plan, launch, &part.b, &mut arguments);
            let groups = part.groups.as_ref().map(|groups| {
                let phases = groups.phases.iter().map(|phase| Phase {
                    function: with_arguments(plan, launch, &phase.function, &mut arguments),
                    reductions: phase.reductions.clone(),
                });
                ColumnGroups { width: groups.width, phases: phases.collect() }
            });
            let epilogue = with_arguments(plan, launch, &part.epilogue, &mut arguments);
            let all_columns = dim(launch, part.columns).mul(&Dim::constant(part.segments.into()))?;
            let mut axes = extents(launch, &[&contraction.batch, &[contraction.depth]]);
            axes.push(all_columns);
            count(&b, &axes, &mut arguments)?;
            let axes = extents(launch, &[&contraction.batch, &contraction.rows, &part.column_axes()]);
            for phase in groups.iter().flat_map(|groups| &groups.phases) {
                count(&phase.function, &axes, &mut arguments)?;
            }
            count(&epilogue, &axes, &mut arguments)?;
            let Part { segments, interleaved, symmetric, .. } = *part;
            current.parts.push(Part { columns, segments, interleaved, symmetric, b, groups, epilogue });
        }
        whole = Some(current);
    }
    let first = launches[0];
    let mut launch = Launch { bytes: total(&arguments)?, flops: Dim::constant(0), ..first.clone() };
    for other in &launches {
        launch.flops = launch.flops.add(&other.flops)?;
    }
    launch.scope =
        launches[1..].iter().fold(first.scope.clone(), |scope, other| common(&scope, &other.scope));
    (launch.operands, launch.sizes) = (arguments.buffers, arguments.sizes);
    let anchor = match (whole, &plan.kernel(first.kernel).anchor) {
        (Some(whole), Anchor::GroupedMatmul(_)) => Anchor::GroupedMatmul(whole),
        (Some(whole), _) => Anchor::Matmul(whole),
        (None, anchor) => anchor.clone(),
    };
    let kernel = Kernel { operands: arguments.operands, size_args: launch.sizes.len() as u32, anchor };
    Ok((kernel, launch))
}

/// The scope that two scopes lie in.
pub(crate) fn common(one: &Option<String>, other: &Option<String>) -> Option<String> {
    let (one, other) = (one.as_deref()?, other.as_deref()?);
    let same = one.split('.').zip(other.split('.')).take_while(|(x, y)| x == y).map(|(x, _)| x);
    let scope = same.collect::<Vec<_>>().join(".");
    (!scope.is_empty()).then_some(scope)
}
