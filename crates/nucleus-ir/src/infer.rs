//! Type rules: from an op and the types of its operands to the types of its results.
//!
//! Elaboration, the graph builder and the verifier all call [`infer`]; there is no second opinion on what is well typed.

use crate::dim::{Dim, DimError};
use crate::dtype::DType;
use crate::float::Float;
use crate::ops::{Op, OperandCount};
use crate::types::{ShapeDisplay, TensorType};

/// Why an op cannot be applied to operands of these types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// The wrong number of operands.
    #[error("op `{op}` takes {expected}, given {given}")]
    Arity {
        /// The op.
        op: &'static str,
        /// What it takes, in words.
        expected: String,
        /// How many it was given.
        given: usize,
    },
    /// An operand of an element type that the op is not defined for.
    #[error("op `{op}` is not defined for {given}; it takes {rule}")]
    DType {
        /// The op.
        op: &'static str,
        /// The operand types.
        given: String,
        /// The type rule.
        rule: &'static str,
    },
    /// Shapes that do not fit.
    #[error("op `{op}`: {why}")]
    Shape {
        /// The op.
        op: &'static str,
        /// What does not fit.
        why: String,
    },
    /// An attribute out of range.
    #[error("op `{op}`: attribute `{attribute}` {why}")]
    Attribute {
        /// The op.
        op: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Size arithmetic failed.
    #[error("op `{op}`: {source}")]
    Dim {
        /// The op.
        op: &'static str,
        /// Why.
        source: DimError,
    },
}

/// A relation between sizes that types alone cannot decide; it is checked when the run-time sizes are bound.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Constraint {
    /// Must be at most `larger`.
    pub smaller: Dim,
    /// Must be at least `smaller`.
    pub larger: Dim,
    /// What the relation means, e.g. "expert_choice capacity is at most the number of tokens".
    pub what: String,
}

/// The largest rank of a tensor.
pub const MAX_RANK: usize = 8;

/// The result types of `op` on operands of these types.
pub fn infer(op: &Op, operands: &[&TensorType]) -> Result<Vec<TensorType>, TypeError> {
    let results = Rule { op, operands }.infer()?;
    for result in &results {
        if result.rank() > MAX_RANK {
            return Err(TypeError::Shape {
                op: op.name(),
                why: format!("the result has {} axes, more than {MAX_RANK}", result.rank()),
            });
        }
        for dim in &result.shape {
            if dim.as_constant().is_some_and(|size| !(0..=1 << 40).contains(&size)) {
                return Err(TypeError::Shape {
                    op: op.name(),
                    why: format!(
                        "the result has shape {}: a size is negative or above 2^40",
                        ShapeDisplay(&result.shape)
                    ),
                });
            }
        }
    }
    Ok(results)
}

/// The relations between sizes that `op` needs at run time and that its types cannot show.
pub fn constraints(op: &Op, operands: &[&TensorType]) -> Vec<Constraint> {
    let known = |a: &Dim, b: &Dim| {
        matches!((a.as_constant(), b.as_constant()), (Some(a), Some(b)) if a <= b) || a == b
    };
    let mut list = Vec::new();
    let mut require = |smaller: &Dim, larger: &Dim, what: &str| {
        if !known(smaller, larger) {
            list.push(Constraint { smaller: smaller.clone(), larger: larger.clone(), what: what.to_owned() });
        }
    };
    match (op, operands) {
        (Op::ExpertChoice { capacity }, [affinity]) if affinity.rank() == 3 => {
            require(&Dim::constant(1), capacity, "the capacity of expert_choice is at least 1");
            require(
                capacity,
                &affinity.shape[1],
                "the capacity of expert_choice is at most the number of tokens",
            );
        }
        (Op::Slice { axis, start, end }, [x]) if *axis < x.rank() => {
            require(&Dim::constant(0), start, "the start of a slice is not negative");
            require(start, end, "the start of a slice is not after its end");
            require(end, &x.shape[*axis], "the end of a slice is inside its axis");
        }
        (Op::InvertIndex { size }, _) if size.terms().iter().any(|(_, coefficient)| *coefficient < 0) => {
            require(&Dim::constant(0), size, "the number of targets of invert_index is not negative");
        }
        (Op::Iota { shape, .. } | Op::Broadcast { shape } | Op::Reshape { shape }, _) => {
            for dim in shape {
                if dim.terms().iter().any(|(_, coefficient)| *coefficient < 0) {
                    require(&Dim::constant(0), dim, "a size is not negative");
                }
            }
        }
        _ => {}
    }
    list
}

struct Rule<'a> {
    op: &'a Op,
    operands: &'a [&'a TensorType],
}

impl Rule<'_> {
    fn infer(&self) -> Result<Vec<TensorType>, TypeError> {
        self.check_arity()?;
        // Quantised weights are cast to a float where they are used: no other op reads them, so that none has to store them.
        let quantised = self.operands.iter().any(|operand| operand.dtype == DType::I8);
        if quantised && !matches!(self.op, Op::Cast { .. }) {
            return Err(self.dtype_error());
        }
        if let Some(scalar) = self.op.scalar() {
            let dtypes: Vec<DType> = self.operands.iter().map(|operand| operand.dtype).collect();
            let dtype = scalar.result(&dtypes).ok_or_else(|| self.dtype_error())?;
            let first = self.operands[0];
            for other in &self.operands[1..] {
                self.same_shape(&first.shape, &other.shape)?;
            }
            return Ok(vec![first.with_dtype(dtype)]);
        }
        let one = |dtype, shape| Ok(vec![TensorType::new(dtype, shape)]);
        match (self.op, self.operands) {
            (Op::Constant { value, dtype }, []) => {
                let fits = match dtype {
                    DType::I32 => value.0.fract() == 0.0 && value.0.abs() <= f64::from(i32::MAX),
                    DType::Bool => value.0 == 0.0 || value.0 == 1.0,
                    DType::I8 => false,
                    _ => true,
                };
                if !fits {
                    return Err(self.attribute("value", format!("{value} is not a value of {dtype}")));
                }
                one(*dtype, Vec::new())
            }
            (Op::Size { .. }, []) => one(DType::I32, Vec::new()),
            (Op::Iota { shape, axis }, []) => {
                self.check_axis(*axis, shape.len())?;
                one(DType::I32, shape.clone())
            }
            (Op::Reshape { shape }, [x]) => {
                let (from, to) = (self.dim(x.elements())?, self.dim(crate::dim::product(shape))?);
                if from != to {
                    return Err(self.shape(format!(
                        "{} has {from} elements, {} has {to}",
                        ShapeDisplay(&x.shape),
                        ShapeDisplay(shape)
                    )));
                }
                one(x.dtype, shape.clone())
            }
            (Op::Transpose { permutation }, [x]) => {
                let mut seen = vec![false; x.rank()];
                for axis in permutation {
                    match seen.get_mut(*axis) {
                        Some(seen) if !*seen => *seen = true,
                        _ => {
                            return Err(
                                self.attribute("permutation", format!("must name every axis of {x} once"))
                            );
                        }
                    }
                }
                if permutation.len() != x.rank() {
                    return Err(self.attribute("permutation", format!("must name every axis of {x} once")));
                }
                one(x.dtype, permutation.iter().map(|axis| x.shape[*axis].clone()).collect())
            }
            (Op::Broadcast { shape }, [x]) => {
                let fits = x.rank() <= shape.len()
                    && x.shape
                        .iter()
                        .rev()
                        .zip(shape.iter().rev())
                        .all(|(from, to)| from == to || from.is_constant(1));
                if !fits {
                    return Err(self.shape(format!("{x} does not broadcast to {}", ShapeDisplay(shape))));
                }
                one(x.dtype, shape.clone())
            }
            (Op::Slice { axis, start, end }, [x]) => {
                self.check_axis(*axis, x.rank())?;
                let inside = |value: &Dim| value.as_constant().is_none_or(|value| value >= 0);
                let size = self.dim(end.sub(start))?;
                let within = match (end.as_constant(), x.shape[*axis].as_constant()) {
                    (Some(end), Some(size)) => end <= size,
                    _ => true,
                };
                if !inside(start) || !inside(&size) || !within {
                    return Err(self.shape(format!("{start} .. {end} is not inside axis {axis} of {x}")));
                }
                let mut shape = x.shape.clone();
                shape[*axis] = size;
                one(x.dtype, shape)
            }
            (Op::Concat { axis }, [first, rest @ ..]) => {
                self.check_axis(*axis, first.rank())?;
                let mut shape = first.shape.clone();
                for other in rest {
                    let fits = other.dtype == first.dtype
                        && other.rank() == first.rank()
                        && (0..first.rank()).all(|i| i == *axis || other.shape[i] == first.shape[i]);
                    if !fits {
                        return Err(self.shape(format!("{other} does not join {first} along axis {axis}")));
                    }
                    shape[*axis] = self.dim(shape[*axis].add(&other.shape[*axis]))?;
                }
                one(first.dtype, shape)
            }
            (Op::Gather, [data, index]) => {
                self.check_index(index)?;
                self.check_rank(data, 2)?;
                self.equal(&data.shape[0], &index.shape[0], "batch sizes")?;
                let shape = index.shape.iter().chain(&data.shape[2..]).cloned().collect();
                one(data.dtype, shape)
            }
            (Op::ScatterAdd, [base, index, updates]) => {
                self.check_index(index)?;
                self.check_rank(base, 2)?;
                self.floats(&[base, updates])?;
                self.equal(&base.shape[0], &index.shape[0], "batch sizes")?;
                let want: Vec<Dim> = index.shape.iter().chain(&base.shape[2..]).cloned().collect();
                self.same_shape(&want, &updates.shape)?;
                Ok(vec![(*base).clone()])
            }
            (Op::InvertIndex { size }, [index]) => {
                self.check_index(index)?;
                if size.as_constant().is_some_and(|size| size < 0) {
                    return Err(self.attribute("size", format!("{size} is negative")));
                }
                let batch = index.shape[0].clone();
                let positions = self.dim(crate::dim::product(&index.shape[1..]))?;
                let offsets = self.dim(size.add(&Dim::constant(1)))?;
                Ok(vec![
                    TensorType::new(DType::I32, vec![batch.clone(), offsets]),
                    TensorType::new(DType::I32, vec![batch, positions]),
                ])
            }
            (Op::SegmentSum, [base, offsets, positions, updates]) => {
                self.check_rank(base, 2)?;
                self.floats(&[base, updates])?;
                let rest = base.rank() - 2;
                if offsets.dtype != DType::I32 || positions.dtype != DType::I32 {
                    return Err(self.dtype_error());
                }
                let targets = self.dim(base.shape[1].add(&Dim::constant(1)))?;
                self.same_shape(&[base.shape[0].clone(), targets], &offsets.shape)?;
                if updates.rank() < rest + 2 || updates.shape[updates.rank() - rest..] != base.shape[2..] {
                    return Err(self.shape(format!("updates {updates} do not fit base {base}")));
                }
                self.equal(&base.shape[0], &updates.shape[0], "batch sizes")?;
                let count = self.dim(crate::dim::product(&updates.shape[1..updates.rank() - rest]))?;
                self.same_shape(&[base.shape[0].clone(), count], &positions.shape)?;
                Ok(vec![(*base).clone()])
            }
            (Op::ReduceSum { axis, keep } | Op::ReduceMax { axis, keep }, [x]) => {
                self.check_axis(*axis, x.rank())?;
                if x.dtype == DType::Bool {
                    return Err(self.dtype_error());
                }
                let mut shape = x.shape.clone();
                if *keep {
                    shape[*axis] = Dim::constant(1);
                } else {
                    shape.remove(*axis);
                }
                one(x.dtype, shape)
            }
            (Op::Matmul { transpose_a, transpose_b }, [a, b]) => {
                self.floats(&[a, b])?;
                self.check_rank(a, 2)?;
                self.check_rank(b, 2)?;
                if b.rank() > 2 || *transpose_a {
                    self.same_shape(&a.shape[..a.rank() - 2], &b.shape[..b.rank() - 2])?;
                }
                let (m, k) = swap_if(last_two(a), *transpose_a);
                let (k_b, n) = swap_if(last_two(b), *transpose_b);
                self.equal(k, k_b, "contracted sizes")?;
                let mut shape = a.shape[..a.rank() - 2].to_vec();
                shape.extend([m.clone(), n.clone()]);
                one(DType::F32, shape)
            }
            (Op::GroupedMatmul { transpose_b }, [x, w]) => {
                self.floats(&[x, w])?;
                self.exact_rank(x, 4)?;
                self.exact_rank(w, 3)?;
                self.equal(&x.shape[1], &w.shape[0], "group counts")?;
                let (k, n) = swap_if(last_two(w), *transpose_b);
                self.equal(&x.shape[3], k, "contracted sizes")?;
                one(DType::F32, vec![x.shape[0].clone(), x.shape[1].clone(), x.shape[2].clone(), n.clone()])
            }
            (Op::Attention { scale }, [q, k, v, mask @ ..]) => {
                self.attention(scale, [q, k, v], mask)?;
                one(DType::F32, q.shape.clone())
            }
            (Op::AttentionGrad { scale }, [q, k, v, dy, mask @ ..]) => {
                self.attention(scale, [q, k, v], mask)?;
                self.floats(&[q, dy])?;
                self.same_shape(&q.shape, &dy.shape)?;
                let results = [&q.shape, &k.shape, &v.shape];
                Ok(results.map(|shape| TensorType::new(DType::F32, shape.clone())).into())
            }
            (Op::StopGradient | Op::After, [x, ..]) => Ok(vec![(*x).clone()]),
            (Op::ExpertChoice { capacity }, [affinity]) => {
                self.exact_rank(affinity, 3)?;
                if affinity.dtype != DType::F32 {
                    return Err(self.dtype_error());
                }
                let fits = match (capacity.as_constant(), affinity.shape[1].as_constant()) {
                    (Some(capacity), tokens) => {
                        capacity >= 1 && tokens.is_none_or(|tokens| capacity <= tokens)
                    }
                    _ => true,
                };
                if !fits {
                    return Err(
                        self.attribute("capacity", format!("{capacity} is not in 1 … {}", affinity.shape[1]))
                    );
                }
                let shape = vec![affinity.shape[0].clone(), affinity.shape[2].clone(), capacity.clone()];
                Ok(vec![TensorType::new(DType::I32, shape.clone()), TensorType::new(DType::F32, shape)])
            }
            // The element-wise ops were handled above and `check_arity` settled the operand counts.
            _ => Err(self.dtype_error()),
        }
    }

    fn attention(
        &self,
        scale: &Float,
        [q, k, v]: [&TensorType; 3],
        mask: &[&TensorType],
    ) -> Result<(), TypeError> {
        if !scale.0.is_finite() {
            return Err(self.attribute("scale", format!("{scale} is not finite")));
        }
        self.floats(&[q, k, v])?;
        for operand in [q, k, v] {
            self.exact_rank(operand, 4)?;
        }
        self.same_shape(&k.shape, &v.shape)?;
        self.equal(&q.shape[0], &k.shape[0], "batch sizes")?;
        self.equal(&q.shape[3], &k.shape[3], "head sizes")?;
        match (q.shape[2].as_constant(), k.shape[2].as_constant(), q.shape[3].as_constant()) {
            (Some(a), Some(g), Some(_)) if g > 0 && a % g == 0 => {}
            _ => {
                return Err(self.shape(format!(
                    "query heads {} must be a constant multiple of key heads {}, head size {} a constant",
                    q.shape[2], k.shape[2], q.shape[3]
                )));
            }
        }
        if let [mask] = mask {
            if mask.dtype != DType::Bool {
                return Err(self.dtype_error());
            }
            self.same_shape(&k.shape[..2], &mask.shape)?;
        }
        Ok(())
    }

    fn check_arity(&self) -> Result<(), TypeError> {
        let info = self.op.info();
        let last = info.operands.last().map(|operand| operand.count);
        let (least, most) = match last {
            Some(OperandCount::Optional) => (info.operands.len() - 1, info.operands.len()),
            Some(OperandCount::Many) => (info.operands.len(), usize::MAX),
            _ => (info.operands.len(), info.operands.len()),
        };
        if (least..=most).contains(&self.operands.len()) {
            return Ok(());
        }
        let expected = match last {
            Some(OperandCount::Optional) => format!("{least} or {most} operands"),
            Some(OperandCount::Many) => format!("at least {least} operands"),
            _ if least == 1 => "1 operand".to_owned(),
            _ => format!("{least} operands"),
        };
        Err(TypeError::Arity { op: self.op.name(), expected, given: self.operands.len() })
    }

    fn check_axis(&self, axis: usize, rank: usize) -> Result<(), TypeError> {
        if axis < rank {
            Ok(())
        } else {
            Err(self.attribute("axis", format!("{axis} is not below the rank {rank}")))
        }
    }

    fn check_index(&self, index: &TensorType) -> Result<(), TypeError> {
        if index.dtype != DType::I32 {
            return Err(self.dtype_error());
        }
        self.check_rank(index, 1)
    }

    fn check_rank(&self, operand: &TensorType, least: usize) -> Result<(), TypeError> {
        if operand.rank() >= least {
            return Ok(());
        }
        Err(self.shape(format!("{operand} needs at least {least} axes")))
    }

    fn exact_rank(&self, operand: &TensorType, rank: usize) -> Result<(), TypeError> {
        if operand.rank() == rank { Ok(()) } else { Err(self.shape(format!("{operand} needs {rank} axes"))) }
    }

    fn floats(&self, operands: &[&TensorType]) -> Result<(), TypeError> {
        let first = operands[0].dtype;
        if first.is_float() && operands.iter().all(|operand| operand.dtype == first) {
            Ok(())
        } else {
            Err(self.dtype_error())
        }
    }

    fn same_shape(&self, left: &[Dim], right: &[Dim]) -> Result<(), TypeError> {
        if left == right {
            return Ok(());
        }
        Err(self.shape(format!("shapes {} and {} differ", ShapeDisplay(left), ShapeDisplay(right))))
    }

    fn equal(&self, left: &Dim, right: &Dim, what: &str) -> Result<(), TypeError> {
        if left == right { Ok(()) } else { Err(self.shape(format!("{what} {left} and {right} differ"))) }
    }

    fn dim<T>(&self, result: Result<T, DimError>) -> Result<T, TypeError> {
        result.map_err(|source| TypeError::Dim { op: self.op.name(), source })
    }

    fn shape(&self, why: String) -> TypeError {
        TypeError::Shape { op: self.op.name(), why }
    }

    fn attribute(&self, attribute: &'static str, why: String) -> TypeError {
        TypeError::Attribute { op: self.op.name(), attribute, why }
    }

    fn dtype_error(&self) -> TypeError {
        let given: Vec<String> = self.operands.iter().map(ToString::to_string).collect();
        TypeError::DType { op: self.op.name(), given: given.join(", "), rule: self.op.info().rule }
    }
}

fn last_two(ty: &TensorType) -> (&Dim, &Dim) {
    (&ty.shape[ty.rank() - 2], &ty.shape[ty.rank() - 1])
}

fn swap_if<'a>(pair: (&'a Dim, &'a Dim), swap: bool) -> (&'a Dim, &'a Dim) {
    if swap { (pair.1, pair.0) } else { pair }
}
