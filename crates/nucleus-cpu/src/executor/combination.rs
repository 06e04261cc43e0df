//! Epilogues that are linear combinations of the sums and stored matrices: no code is compiled for them, a micro-kernel with wide registers does
//! them. Factors are constants, or computed from numbers in memory, such as a learning rate, once for each item of the batch.

use nucleus_ir::{DType, ScalarOp};
use nucleus_plan::{Access, Operand, OperandMode, Part, ScalarFunction, Step};

use super::compiled::element;
use super::launch::{BoundAccess, LaunchContext, row_offset};
use crate::codegen::Region;
use crate::kernels::{Combination, Element, MOST_OUTPUTS, MOST_TERMS, Output, Term, combine};

/// The most numbers that factors are computed from.
const MOST_NUMBERS: usize = 32;

/// A number that all rows and columns of an item of the batch have in common.
#[derive(Clone, Debug, PartialEq)]
enum Number {
    Constant(f32),
    Load(Access),
    /// Of two numbers before it.
    Apply(Arithmetic, [usize; 2]),
}

/// The operations that numbers may be made with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

impl Arithmetic {
    fn of(op: ScalarOp) -> Option<Arithmetic> {
        match op {
            ScalarOp::Add => Some(Arithmetic::Add),
            ScalarOp::Sub => Some(Arithmetic::Sub),
            ScalarOp::Mul => Some(Arithmetic::Mul),
            ScalarOp::Div => Some(Arithmetic::Div),
            _ => None,
        }
    }

    fn apply(self, x: f32, y: f32) -> f32 {
        match self {
            Arithmetic::Add => x + y,
            Arithmetic::Sub => x - y,
            Arithmetic::Mul => x * y,
            Arithmetic::Div => x / y,
        }
    }
}

/// An epilogue that stores multiples of `sum_factor · sum + Σ factor · term`. Factors are numbers by their position.
#[derive(Clone, Debug)]
pub(crate) struct CombinationForm {
    numbers: Vec<Number>,
    sum_factor: usize,
    terms: Vec<(Access, Element, usize)>,
    outputs: Vec<(Access, Element, usize)>,
}

/// What a step is.
#[derive(Clone, Copy, Debug)]
enum Value {
    Number(usize),
    /// A multiple of one of the sums of terms so far.
    Multiple {
        sum: usize,
        factor: usize,
    },
    /// The same rounded to bf16, to be stored.
    Rounded {
        sum: usize,
        factor: usize,
    },
    /// A bf16 that was loaded, to be widened.
    Narrow {
        sum: usize,
    },
}

/// `sum_factor · sum + Σ factor · load`, loads by their step.
#[derive(Clone, Debug, PartialEq)]
struct Sum {
    sum_factor: Option<usize>,
    terms: Vec<(usize, usize)>,
}

impl CombinationForm {
    /// The form of the epilogue of a part with so many batch axes, if it has one.
    pub(crate) fn of(part: &Part, operands: &[Operand], batch: usize) -> Option<CombinationForm> {
        if part.groups.is_some() || part.segments != 1 {
            return None;
        }
        let function = &part.epilogue;
        let numbers = vec![Number::Constant(1.0)];
        Recogniser { function, operands, batch, numbers, sums: Vec::new(), values: Vec::new() }.form()
    }
}

/// A form with the addresses of one launch.
pub(crate) struct BoundCombination {
    numbers: Vec<BoundNumber>,
    sum_factor: usize,
    /// Extents of the rows, axes merged where all matrices and numbers allow it.
    extents: Vec<i64>,
    /// Each matrix with the number of its factor, and its elements from one row to the next along every axis.
    terms: Vec<(Term, usize, Vec<i64>)>,
    outputs: Vec<(Output, usize, Vec<i64>)>,
}

enum BoundNumber {
    Constant(f32),
    /// Where it lies, and numbers from one row to the next along every axis; along the last there is but one.
    Load(*const f32, Vec<i64>),
    Apply(Arithmetic, [usize; 2]),
}

// SAFETY: addresses are shared between workers; each call states why its place belongs to one of them.
unsafe impl Sync for BoundCombination {}

impl LaunchContext<'_> {
    /// Fills in the addresses. `extents` are those of the rows.
    pub(crate) fn bind_combination(&self, form: &CombinationForm, extents: &[i64]) -> BoundCombination {
        let bind = |access: &Access| {
            let BoundAccess { operand, offset, mut strides } = self.bind(access);
            strides.truncate(extents.len());
            (self.address(operand, offset), strides)
        };
        let mut terms: Vec<(Term, usize, Vec<i64>)> = Vec::with_capacity(form.terms.len());
        for (access, element, factor) in &form.terms {
            let (data, strides) = bind(access);
            terms.push((Term { data: data.cast_const(), element: *element, ..EMPTY_TERM }, *factor, strides));
        }
        let mut outputs: Vec<(Output, usize, Vec<i64>)> = Vec::with_capacity(form.outputs.len());
        for (access, element, factor) in &form.outputs {
            let (data, strides) = bind(access);
            outputs.push((Output { data, element: *element, ..EMPTY_OUTPUT }, *factor, strides));
        }
        let bind_number = |number: &Number| match number {
            Number::Constant(value) => BoundNumber::Constant(*value),
            Number::Load(access) => {
                let (data, strides) = bind(access);
                BoundNumber::Load(data.cast_const().cast(), strides)
            }
            Number::Apply(op, args) => BoundNumber::Apply(*op, *args),
        };
        let mut numbers: Vec<BoundNumber> = form.numbers.iter().map(bind_number).collect();
        let mut all: Vec<&mut Vec<i64>> = Vec::new();
        all.extend(terms.iter_mut().map(|(_, _, strides)| strides));
        all.extend(outputs.iter_mut().map(|(_, _, strides)| strides));
        all.extend(numbers.iter_mut().filter_map(|number| match number {
            BoundNumber::Load(_, strides) => Some(strides),
            _ => None,
        }));
        let extents = merged(extents, &mut all);
        BoundCombination { numbers, sum_factor: form.sum_factor, extents, terms, outputs }
    }

    /// Finishes a tile: the sums of some rows and columns.
    ///
    /// # Safety
    /// The region lies within the launch and its block holds the sums; nothing else touches what its points store.
    pub(crate) unsafe fn combine_region(&self, bound: &BoundCombination, region: &Region) {
        let (mut row, end) = (region.outer_begin, region.outer_end);
        let cols = region.inner_end - region.inner_begin;
        let inner = bound.extents.last().copied().unwrap_or(1).max(1);
        while row < end {
            // A run of rows along the last axis.
            let count = (inner - row % inner).min(end - row);
            let row_at = |strides: &[i64]| row_offset(row, &bound.extents, strides) as isize;
            let first = region.inner_begin as isize;
            let stride_of = |strides: &[i64]| strides.last().copied().unwrap_or(0) as isize;
            let mut numbers = [0.0f32; MOST_NUMBERS];
            for (at, number) in bound.numbers.iter().enumerate() {
                numbers[at] = match number {
                    BoundNumber::Constant(value) => *value,
                    // SAFETY: the access was checked against its operand when sizes were bound.
                    BoundNumber::Load(data, strides) => unsafe {
                        data.wrapping_offset(row_at(strides)).read_unaligned()
                    },
                    BoundNumber::Apply(op, [x, y]) => op.apply(numbers[*x], numbers[*y]),
                };
            }
            let mut terms = [EMPTY_TERM; MOST_TERMS];
            for (to, (term, factor, strides)) in terms.iter_mut().zip(&bound.terms) {
                let at = (row_at(strides) + first) * term.element.size() as isize;
                let data = term.data.wrapping_offset(at);
                *to = Term { data, row_stride: stride_of(strides), factor: numbers[*factor], ..*term };
            }
            let mut outputs = [EMPTY_OUTPUT; MOST_OUTPUTS];
            for (to, (output, factor, strides)) in outputs.iter_mut().zip(&bound.outputs) {
                let at = (row_at(strides) + first) * output.element.size() as isize;
                let data = output.data.wrapping_offset(at);
                *to = Output { data, row_stride: stride_of(strides), factor: numbers[*factor], ..*output };
            }
            let sums = region.block.cast::<f32>().cast_const();
            // SAFETY: accesses were checked against their operands when sizes were bound; the rest is the caller's promise.
            unsafe {
                combine(&Combination {
                    isa: self.isa,
                    rows: count as usize,
                    cols: cols as usize,
                    sums: sums.wrapping_offset(((row - region.outer_begin) * region.row_stride) as isize),
                    sums_stride: region.row_stride as usize,
                    sum_factor: numbers[bound.sum_factor],
                    terms: &terms[..bound.terms.len()],
                    outputs: &outputs[..bound.outputs.len()],
                });
            }
            row += count;
        }
    }
}

const EMPTY_TERM: Term = Term { data: std::ptr::null(), element: Element::F32, row_stride: 0, factor: 0.0 };
const EMPTY_OUTPUT: Output =
    Output { data: std::ptr::null_mut(), element: Element::F32, row_stride: 0, factor: 0.0 };

/// Extents without those of neighbouring axes that are one to all matrices, whose strides lose them too.
fn merged(extents: &[i64], matrices: &mut [&mut Vec<i64>]) -> Vec<i64> {
    let mut extents = extents.to_vec();
    for axis in (1..extents.len()).rev() {
        let extent = extents[axis];
        if extents[axis - 1] == 1
            || matrices.iter().all(|strides| strides[axis - 1] == strides[axis] * extent)
        {
            extents[axis - 1] *= extent;
            extents.remove(axis);
            for strides in matrices.iter_mut() {
                strides.remove(axis - 1);
            }
        }
    }
    extents
}

struct Recogniser<'a> {
    function: &'a ScalarFunction,
    operands: &'a [Operand],
    /// Batch axes.
    batch: usize,
    /// The first is 1.
    numbers: Vec<Number>,
    sums: Vec<Sum>,
    values: Vec<Option<Value>>,
}

/// The number 1.
const ONE: usize = 0;

impl Recogniser<'_> {
    fn form(mut self) -> Option<CombinationForm> {
        let mut outputs: Vec<(Access, Element, Value)> = Vec::new();
        let function = self.function;
        for step in &function.steps {
            let value = match step {
                Step::Constant { value, dtype: DType::F32 } => {
                    Some(Value::Number(self.number(Number::Constant(value.0 as f32))))
                }
                Step::Accumulator(0) => Some(self.sum(Sum { sum_factor: Some(ONE), terms: Vec::new() })),
                Step::Load(access) if self.is_number(access) => {
                    Some(Value::Number(self.number(Number::Load(access.clone()))))
                }
                Step::Load(access) => {
                    let element = self.matrix(access)?;
                    let sum = self.sum(Sum { sum_factor: None, terms: vec![(self.values.len(), ONE)] });
                    match (element, sum) {
                        (Element::Bf16, Value::Multiple { sum, .. }) => Some(Value::Narrow { sum }),
                        _ => Some(sum),
                    }
                }
                Step::Apply { op, args } => {
                    let args: Option<Vec<Value>> =
                        args.iter().map(|id| self.values.get(id.0 as usize).copied().flatten()).collect();
                    Some(self.apply(*op, &args?)?)
                }
                Step::Store { access, value } => {
                    let value = self.values.get(value.0 as usize).copied().flatten()?;
                    outputs.push((access.clone(), self.matrix(access)?, value));
                    None
                }
                _ => return None,
            };
            self.values.push(value);
        }
        let of_output = |(_, element, value): &(Access, Element, Value)| match (*value, element) {
            (Value::Multiple { sum, factor }, Element::F32)
            | (Value::Rounded { sum, factor }, Element::Bf16) => Some((sum, factor)),
            _ => None,
        };
        let first = of_output(outputs.first()?)?.0;
        let sum = &self.sums[first];
        let small = sum.terms.len() <= MOST_TERMS && outputs.len() <= MOST_OUTPUTS;
        if !small || self.numbers.len() > MOST_NUMBERS {
            return None;
        }
        let outputs = outputs.iter().map(|output| {
            let (sum, factor) = of_output(output)?;
            (sum == first).then(|| (output.0.clone(), output.1, factor))
        });
        let term = |&(step, factor): &(usize, usize)| match &self.function.steps[step] {
            Step::Load(access) => Some((access.clone(), self.matrix(access)?, factor)),
            _ => None,
        };
        Some(CombinationForm {
            sum_factor: sum.sum_factor?,
            terms: sum.terms.iter().map(term).collect::<Option<_>>()?,
            outputs: outputs.collect::<Option<_>>()?,
            numbers: self.numbers,
        })
    }

    /// The type of a matrix whose columns are contiguous.
    fn matrix(&self, access: &Access) -> Option<Element> {
        let dtype = self.operands[access.operand as usize].dtype;
        let contiguous = access.strides.last().is_some_and(|stride| stride.is(1));
        element(dtype)
            .filter(|element| matches!(element, Element::F32 | Element::Bf16))
            .filter(|_| contiguous && access.indirect.is_none())
    }

    /// One number for all rows and columns of an item of the batch, which nothing of this launch writes.
    fn is_number(&self, access: &Access) -> bool {
        let Operand { dtype, mode, .. } = self.operands[access.operand as usize];
        let constant = access.strides.iter().skip(self.batch).all(|stride| stride.is(0));
        dtype == DType::F32 && mode == OperandMode::Read && constant && access.indirect.is_none()
    }

    fn number(&mut self, number: Number) -> usize {
        self.numbers.push(number);
        self.numbers.len() - 1
    }

    fn constant(&self, number: usize) -> Option<f32> {
        match self.numbers[number] {
            Number::Constant(value) => Some(value),
            _ => None,
        }
    }

    fn arithmetic(&mut self, op: Arithmetic, x: usize, y: usize) -> usize {
        match (op, self.constant(x), self.constant(y)) {
            (Arithmetic::Mul, Some(1.0), _) => y,
            (Arithmetic::Mul, _, Some(1.0)) => x,
            (_, Some(x), Some(y)) => self.number(Number::Constant(op.apply(x, y))),
            _ => self.number(Number::Apply(op, [x, y])),
        }
    }

    fn product(&mut self, x: usize, y: usize) -> usize {
        self.arithmetic(Arithmetic::Mul, x, y)
    }

    fn negative(&mut self, x: usize) -> usize {
        let minus = self.number(Number::Constant(-1.0));
        self.product(minus, x)
    }

    fn sum(&mut self, sum: Sum) -> Value {
        self.sums.push(sum);
        Value::Multiple { sum: self.sums.len() - 1, factor: ONE }
    }

    fn apply(&mut self, op: ScalarOp, args: &[Value]) -> Option<Value> {
        use Value::{Multiple, Narrow, Number, Rounded};
        match (op, args) {
            (_, &[Number(x), Number(y)]) => Some(Number(self.arithmetic(Arithmetic::of(op)?, x, y))),
            (ScalarOp::Neg, &[Number(x)]) => Some(Number(self.negative(x))),
            (
                ScalarOp::Mul,
                &([Number(number), Multiple { sum, factor }] | [Multiple { sum, factor }, Number(number)]),
            ) => Some(Multiple { sum, factor: self.product(number, factor) }),
            (ScalarOp::Neg, &[Multiple { sum, factor }]) => {
                Some(Multiple { sum, factor: self.negative(factor) })
            }
            (ScalarOp::Add, [Multiple { .. }, Multiple { .. }]) => self.add(args, false),
            (ScalarOp::Sub, [Multiple { .. }, Multiple { .. }]) => self.add(args, true),
            (ScalarOp::Cast(DType::Bf16), &[Multiple { sum, factor }]) => Some(Rounded { sum, factor }),
            (ScalarOp::Cast(DType::F32), &[Narrow { sum }]) => Some(Multiple { sum, factor: ONE }),
            _ => None,
        }
    }

    /// The first plus or minus the second. What is there twice is none of these sums.
    fn add(&mut self, args: &[Value], minus: bool) -> Option<Value> {
        let mut total = Sum { sum_factor: None, terms: Vec::new() };
        for (value, minus) in args.iter().zip([false, minus]) {
            let Value::Multiple { sum, factor } = *value else { return None };
            let factor = if minus { self.negative(factor) } else { factor };
            let Sum { sum_factor, terms } = self.sums[sum].clone();
            if let Some(of_sum) = sum_factor {
                if total.sum_factor.is_some() {
                    return None;
                }
                total.sum_factor = Some(self.product(factor, of_sum));
            }
            for (load, of_load) in terms {
                if total.terms.iter().any(|(known, _)| *known == load) {
                    return None;
                }
                total.terms.push((load, self.product(factor, of_load)));
            }
        }
        Some(self.sum(total))
    }
}

#[cfg(test)]
mod tests {
    use nucleus_plan::Anchor;
    use nucleus_plan::text::parse_plan;

    use super::*;

    /// The form of an epilogue over `f32` operands 2 and 3, `bf16` operands 4 and 5, and outputs 6 (`f32`) and 7 (`bf16`).
    fn form(epilogue: &str) -> Option<CombinationForm> {
        let text = format!(
            "plan test {{
    input x: f32[8, 8] per step;
    input n: bf16[8, 8] per step;
    output z: f32[8, 8];
    output r: bf16[8, 8];
    arenas model 0, prompt 0, step 0;
    buffer b0: f32[8, 8] input 0;
    buffer b1: bf16[8, 8] input 1;
    buffer b2: f32[8, 8] output 0;
    buffer b3: bf16[8, 8] output 1;
    kernel k0(read f32, read f32, read f32, read f32, read bf16, read bf16, write f32, write bf16) sizes 0 matmul f32 {{
        batch;
        rows 8;
        columns 8; segments 1; depth 8;
        a {{ v0 = load o0[8*i0 + i1]; return v0; }}
        b {{ v0 = load o1[8*i0 + i1]; return v0; }}
        epilogue {{ {epilogue} }}
    }}
    launch k0(b0, b0, b0, b0, b1, b1, b2, b3) per step flops 0 bytes 0;
}}"
        );
        let plan = parse_plan(&text).unwrap();
        let Anchor::Matmul(contraction) = &plan.kernels[0].anchor else { unreachable!("a product") };
        CombinationForm::of(&contraction.parts[0], &plan.kernels[0].operands, contraction.batch.len())
    }

    const STORE: &str = "store o6[8*i0 + i1]";

    #[test]
    fn sums_and_multiples_are_recognised_with_their_factors() {
        let factor = |form: &CombinationForm, number: usize| match form.numbers[number] {
            Number::Constant(value) => value,
            _ => f32::NAN,
        };
        let factors = |form: &CombinationForm, list: &[(Access, Element, usize)]| {
            list.iter().map(|(_, element, number)| (*element, factor(form, *number))).collect::<Vec<_>>()
        };
        let plain = form(&format!("v0 = accumulator 0; {STORE} = v0;")).unwrap();
        assert_eq!((factor(&plain, plain.sum_factor), plain.terms.len()), (1.0, 0));
        assert_eq!(factors(&plain, &plain.outputs), [(Element::F32, 1.0)]);
        let both = form(&format!(
            "v0 = accumulator 0; v1 = load o2[i1]; v2 = load o4[8*i0 + i1]; v3 = cast(v2, f32); v4 = constant -0.5 f32;
             v5 = mul(v3, v4); v6 = sub(v1, v0); v7 = add(v5, v6); v8 = cast(v7, bf16); store o7[8*i0 + i1] = v8;
             v10 = constant 4.0 f32; v11 = mul(v7, v10); {STORE} = v11;"
        ));
        let both = both.unwrap();
        assert_eq!(factor(&both, both.sum_factor), -1.0);
        assert_eq!(factors(&both, &both.terms), [(Element::Bf16, -0.5), (Element::F32, 1.0)]);
        assert_eq!(factors(&both, &both.outputs), [(Element::Bf16, 1.0), (Element::F32, 4.0)]);
    }

    #[test]
    fn factors_may_be_numbers_in_memory() {
        let form = form(&format!(
            "v0 = accumulator 0; v1 = load o2[0]; v2 = mul(v1, v0); v3 = load o3[8*i0 + i1]; v4 = sub(v3, v2); {STORE} = v4;"
        ));
        let form = form.unwrap();
        let Number::Apply(Arithmetic::Mul, [minus, loaded]) = form.numbers[form.sum_factor] else {
            panic!("{form:?}")
        };
        assert_eq!(form.numbers[minus], Number::Constant(-1.0));
        assert!(matches!(&form.numbers[loaded], Number::Load(access) if access.operand == 2));
        assert_eq!(form.numbers[form.terms[0].2], Number::Constant(1.0));
    }

    #[test]
    fn everything_else_is_compiled() {
        let not = [
            // A number that is added, and one that this launch may write.
            "v0 = accumulator 0; v1 = load o2[0]; v2 = add(v0, v1); STORE = v2;",
            "v0 = accumulator 0; v1 = load o6[0]; v2 = mul(v0, v1); STORE = v2;",
            // No sum of products, a product of two values, a function, a term that cancels, and one that is there twice.
            "v0 = load o2[8*i0 + i1]; STORE = v0;",
            "v0 = accumulator 0; v1 = load o2[8*i0 + i1]; v2 = mul(v0, v1); STORE = v2;",
            "v0 = accumulator 0; v1 = exp(v0); STORE = v1;",
            "v0 = accumulator 0; v1 = load o2[8*i0 + i1]; v2 = add(v0, v1); v3 = sub(v2, v1); STORE = v3;",
            "v0 = accumulator 0; v1 = add(v0, v0); STORE = v1;",
            // What is rounded in between, columns that are not contiguous, and three terms.
            "v0 = accumulator 0; v1 = cast(v0, bf16); v2 = cast(v1, f32); STORE = v2;",
            "v0 = accumulator 0; v1 = load o2[8*i1 + i0]; v2 = add(v0, v1); STORE = v2;",
            "v0 = accumulator 0; v1 = load o2[i0]; v2 = add(v0, v1); STORE = v2;",
            "v0 = accumulator 0; v1 = load o2[8*i0 + i1]; v2 = add(v0, v1); v3 = load o3[i1]; v4 = add(v2, v3);
             v5 = load o2[i1]; v6 = add(v4, v5); STORE = v6;",
            // Two sums that are no multiples of one another.
            "v0 = accumulator 0; v1 = load o2[8*i0 + i1]; v2 = add(v0, v1); STORE = v2; v4 = cast(v0, bf16); store o7[8*i0 + i1] = v4;",
            // Arithmetic in bf16.
            "v0 = load o4[8*i0 + i1]; v1 = load o5[8*i0 + i1]; v2 = add(v0, v1); v3 = cast(v2, f32); v4 = accumulator 0;
             v5 = add(v3, v4); STORE = v5;",
        ];
        for epilogue in not {
            assert!(form(&epilogue.replace("STORE", STORE)).is_none(), "{epilogue}");
        }
    }

    #[test]
    fn axes_that_are_one_to_all_matrices_are_merged() {
        let (mut rows, mut bias) = (vec![120, 40, 8], vec![0, 0, 0]);
        assert_eq!(merged(&[2, 3, 5], &mut [&mut rows, &mut bias]), [30]);
        assert_eq!((rows, bias), (vec![8], vec![0]));
        let (mut rows, mut gate) = (vec![120, 40, 8], vec![7, 0, 0]);
        assert_eq!(merged(&[2, 3, 5], &mut [&mut rows, &mut gate]), [2, 15]);
        assert_eq!((rows, gate), (vec![120, 8], vec![7, 0]));
        let (mut rows, mut apart) = (vec![99, 8], vec![5, 8]);
        assert_eq!(merged(&[1, 5], &mut [&mut rows, &mut apart]), [5]);
        assert_eq!((rows, apart), (vec![8], vec![8]));
    }
}
