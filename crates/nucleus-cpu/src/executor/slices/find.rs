//! Which launches run slice by slice: what is possible, and what is worth it.

use std::collections::BTreeMap;
use std::ops::Range;

use nucleus_plan::bounds::{range, spaces};
use nucleus_plan::{Access, Anchor, BoundPlan, BufferId, OperandMode, Place, Size};

use super::{LocalBuffer, SlicedBuffer, SlicedRun, Window};
use crate::executor::compiled::{CompiledKernel, Source};
use crate::executor::contraction::packs_as_it_multiplies;
use crate::executor::launch::product;
use crate::executor::reduction_order::CompiledReduction;
use crate::program::{CpuProgram, Slicing};

/// What a slice of one launch may touch: as much as a second-level cache holds, and some that streams through it.
const SLICE_BYTES: i128 = 4 << 20;
/// What launches must hand to each other before it is worth keeping near: less than this is near anyway.
const LEAST_BYTES: i128 = 4 << 20;

/// What a slice of some launches touches of a buffer.
#[derive(Clone, Copy, Debug)]
struct Touch {
    written: bool,
    /// Launches that touch it.
    launches: usize,
    /// The first launch writes it and reads nothing of it.
    begins_written: bool,
    /// Elements of slice 0, and from slice to slice; `None` if slices share elements.
    window: Option<Window>,
}

impl Touch {
    fn with(self, later: Touch) -> Touch {
        let window = match (self.window, later.window) {
            (Some(one), Some(other)) if one.step == other.step => Some(Window {
                first: one.first.min(other.first),
                end: one.end.max(other.end),
                step: one.step,
            }),
            _ => None,
        };
        Touch {
            written: self.written || later.written,
            launches: self.launches + later.launches,
            begins_written: self.begins_written,
            window: window.filter(Window::is_apart),
        }
    }

    /// No slice touches what another writes.
    fn is_apart(&self) -> bool {
        !self.written || self.window.is_some()
    }
}

impl Window {
    /// Slices do not meet.
    fn is_apart(&self) -> bool {
        self.end - self.first <= self.step
    }

    fn len(&self) -> i128 {
        self.end - self.first
    }
}

type Touches = BTreeMap<BufferId, Touch>;

/// Finds the runs of launches that a program of so many threads takes slice by slice at these sizes.
pub(crate) fn sliced_runs(program: &CpuProgram, bound: &BoundPlan, slicing: Slicing) -> Vec<SlicedRun> {
    let search = match slicing {
        Slicing::Worthwhile => Search { program, bound, most: SLICE_BYTES, least: LEAST_BYTES, even: true },
        Slicing::Wherever => Search { program, bound, most: i128::MAX, least: 0, even: false },
        Slicing::Never => return Vec::new(),
    };
    let plan = program.plan();
    let mut runs: Vec<SlicedRun> = Vec::new();
    // Slices and end of the last run that was not worth it: from its other launches nothing else would be found.
    let mut refused = (0, 0);
    let mut at = 0;
    while at < plan.launches.len() {
        let begin = runs.last().map_or(0, |run| run.launches.end);
        let count = search.batch(at).filter(|&count| count != refused.0 || at >= refused.1);
        let run = count.and_then(|count| Some((count, search.run_around(count, begin, at)?)));
        at += 1;
        let Some((count, (launches, touches))) = run else { continue };
        if search.kept(&touches, count) < search.least {
            refused = (count, launches.end);
        } else {
            at = launches.end;
            runs.push(place(program, launches, count, touches));
        }
    }
    runs
}

/// What is looked for.
struct Search<'a> {
    program: &'a CpuProgram,
    bound: &'a BoundPlan,
    /// The most bytes that a slice of a launch may touch, where they are known.
    most: i128,
    /// The fewest bytes that launches must hand to each other.
    least: i128,
    /// Threads must share the slices evenly.
    even: bool,
}

impl Search<'_> {
    /// The slices that a product suggests: as many as its first batch axis has items, if the threads share them evenly.
    fn batch(&self, launch: usize) -> Option<i64> {
        let kernel = self.program.plan().kernel(self.program.plan().launches[launch].kernel);
        let (Anchor::Matmul(c) | Anchor::GroupedMatmul(c)) = &kernel.anchor else { return None };
        let sizes = self.bound.launch_sizes(launch);
        let count = c.batch.iter().map(|extent| extent.value(sizes)).find(|&extent| extent != 1)?;
        let threads = self.program.threads().count() as i64;
        let turns = count.checked_add(threads - 1)? / threads;
        // At most an eighth of the time some thread has nothing left to do.
        let even = turns.saturating_mul(threads) <= count.saturating_add(count / 8);
        (count > 1 && (even || !self.even)).then_some(count)
    }

    /// The longest run of launches around one of them that fall into `count` slices, from launch `begin` on.
    fn run_around(&self, count: i64, begin: usize, seed: usize) -> Option<(Range<usize>, Touches)> {
        let plan = self.program.plan();
        let stage = plan.launches[seed].stage;
        let mut touches = self.launch_touches(seed, count)?;
        let mut launches = seed..seed + 1;
        let add = |launch: usize, touches: &mut Touches, before: bool| {
            if plan.launches[launch].stage != stage {
                return None;
            }
            let own = self.launch_touches(launch, count)?;
            merge(touches, own, before)
        };
        while launches.end < plan.launches.len() && add(launches.end, &mut touches, false).is_some() {
            launches.end += 1;
        }
        while launches.start > begin && add(launches.start - 1, &mut touches, true).is_some() {
            launches.start -= 1;
        }
        Some((launches, touches))
    }

    /// The bytes that stay near: everything that a later launch finds where an earlier one left it.
    fn kept(&self, touches: &Touches, count: i64) -> i128 {
        let bytes = |id: BufferId| self.program.plan().buffer(id).dtype.size() as i128;
        let kept = touches.iter().filter(|(_, touch)| touch.launches > 1 && touch.written);
        kept.filter_map(|(&id, touch)| Some(touch.window?.len() * bytes(id) * i128::from(count)))
            .fold(0, i128::saturating_add)
    }

    /// What a slice of a launch touches; `None` if the launch does not fall into so many slices, or its slices are too large.
    fn launch_touches(&self, number: usize, count: i64) -> Option<Touches> {
        let plan = self.program.plan();
        let launch = &plan.launches[number];
        let kernel = plan.kernel(launch.kernel);
        let sizes = self.bound.launch_sizes(number);
        let values = |axes: &[Size]| axes.iter().map(|axis| axis.value(sizes)).collect::<Vec<i64>>();
        let leading = match (self.program.compiled(launch.kernel), &kernel.anchor) {
            (CompiledKernel::Map { space, in_order, transposes, .. }, Anchor::Map(map)) => {
                let rows = space.rows(sizes);
                let by_columns = !transposes && rows == 1 && space.inner.value(sizes) % count == 0;
                if !in_order || !(rows % count == 0 || by_columns) {
                    return None;
                }
                values(&map.space)
            }
            (CompiledKernel::RowReduction(compiled), Anchor::RowReduction(reduction)) => {
                let CompiledReduction::Rows { long, .. } = compiled else { return None };
                if long.is_some()
                    && reduction.columns.value(sizes) > crate::executor::reduction_order::LONG_ROW
                {
                    return None;
                }
                values(&reduction.rows)
            }
            (CompiledKernel::Contraction(compiled), Anchor::Matmul(c) | Anchor::GroupedMatmul(c)) => {
                let (batch, rows) = (values(&c.batch), product(&values(&c.rows)));
                let packed = self.program.is_packed(number);
                for (part, packed) in compiled.parts.iter().zip(packed) {
                    let near = match &part.b {
                        _ if packed => true,
                        Source::Load { access, .. } => {
                            packs_as_it_multiplies(&values(&access.strides), &batch, rows)
                        }
                        Source::Fill(_) => false,
                    };
                    if !near {
                        return None;
                    }
                }
                batch
            }
            _ => return None,
        };
        let axis = leading.iter().position(|&extent| extent != 1)?;
        if leading[axis] % count != 0 || leading[axis] == 0 {
            return None;
        }
        let mut touches = Touches::new();
        for mut space in spaces(&kernel.anchor, sizes) {
            space.extents[axis] /= count;
            let whole = space.extents[axis];
            let mut touch = |access: &Access, sliced: bool| {
                let Some((low, high)) = range(access, &space.extents, sizes) else { return };
                let step = i128::from(access.strides[axis].value(sizes)) * i128::from(whole);
                let window = Window { first: low, end: high + 1, step };
                let mode = kernel.operands[access.operand as usize].mode;
                let (read, written) = (mode != OperandMode::Write, mode != OperandMode::Read);
                let touch = Touch {
                    written,
                    launches: 1,
                    begins_written: written && !read,
                    window: Some(window).filter(|window| sliced && window.is_apart()),
                };
                let buffer = launch.operands[access.operand as usize];
                let entry = touches.entry(buffer).or_insert(touch);
                *entry =
                    Touch { launches: 1, begins_written: entry.begins_written && !read, ..entry.with(touch) };
            };
            for access in space.function.accesses() {
                // Indices are looked at before the first slice runs; what they lead to may lie anywhere.
                if let Some(indirect) = &access.indirect {
                    touch(&indirect.index, false);
                }
                touch(access, access.indirect.is_none());
            }
        }
        let bytes = |id: &BufferId| plan.buffer(*id).dtype.size() as i128;
        let slice: i128 =
            touches.iter().filter_map(|(id, touch)| Some(touch.window?.len() * bytes(id))).sum();
        (slice <= self.most && touches.values().all(Touch::is_apart)).then_some(touches)
    }
}

/// Adds a launch's touches to those of a run that it comes before or after. `None`, and nothing is added, if a slice would touch what another
/// writes.
fn merge(run: &mut Touches, launch: Touches, before: bool) -> Option<()> {
    let both = |id: &BufferId, own: Touch| match run.get(id) {
        Some(&there) if before => own.with(there),
        Some(&there) => there.with(own),
        None => own,
    };
    let together: Vec<(BufferId, Touch)> = launch.iter().map(|(id, &own)| (*id, both(id, own))).collect();
    together.iter().all(|(_, touch)| touch.is_apart()).then(|| run.extend(together))
}

/// Decides what lives in a worker's memory, and where.
fn place(program: &CpuProgram, launches: Range<usize>, count: i64, touches: Touches) -> SlicedRun {
    let plan = program.plan();
    let stage = plan.launches[launches.start].stage;
    let (mut shared, mut local) = (Vec::new(), Vec::<(LocalBuffer, Range<usize>)>::new());
    let uses = |id: BufferId, numbers: Range<usize>| {
        numbers.filter(move |&number| plan.launches[number].operands.contains(&id))
    };
    for (id, touch) in touches {
        let buffer = plan.buffer(id);
        let size = buffer.dtype.size() as i128;
        let scaled = touch.window.map(|window| Window {
            first: window.first * size,
            end: window.end * size,
            step: window.step * size,
        });
        let elsewhere = || {
            uses(id, 0..launches.start).next().is_some()
                || uses(id, launches.end..plan.launches.len()).next().is_some()
        };
        let temporary = touch.begins_written
            && matches!(buffer.place, Place::Arena { rate, .. } if rate == stage)
            && !elsewhere();
        match scaled {
            Some(window) if temporary => {
                let mut used = uses(id, launches.clone());
                let first = used.next().unwrap_or(launches.start);
                let last = used.next_back().unwrap_or(first);
                local.push((LocalBuffer { buffer: id, window, offset: 0 }, first..last + 1));
            }
            window => shared.push(SlicedBuffer { buffer: id, written: touch.written, window }),
        }
    }
    local.sort_by_key(|(buffer, lives)| (lives.start, buffer.buffer));
    let mut scratch = 0;
    for at in 0..local.len() {
        let bytes = room(&local[at].0);
        let mut taken: Vec<Range<usize>> = local[..at]
            .iter()
            .filter(|(_, lives)| lives.end > local[at].1.start)
            .map(|(other, _)| other.offset..other.offset + room(other))
            .collect();
        taken.sort_by_key(|taken| taken.start);
        let offset =
            taken.iter().fold(
                0,
                |offset, taken| {
                    if offset + bytes <= taken.start { offset } else { offset.max(taken.end) }
                },
            );
        local[at].0.offset = offset;
        scratch = scratch.max(offset + bytes);
    }
    let local = local.into_iter().map(|(buffer, _)| buffer).collect();
    SlicedRun { launches, count, shared, local, scratch }
}

/// Bytes of a slice of a buffer, in whole lines.
fn room(local: &LocalBuffer) -> usize {
    usize::try_from(local.window.len()).unwrap_or(usize::MAX).next_multiple_of(64)
}
