//! Scalar functions: steps and the accesses of loads and stores.

use nucleus_ir::ScalarOp;

use super::{Parsed, Parser};
use crate::scalar::{Access, Indirect, ScalarFunction, Size, Step, StepId};

impl Parser<'_> {
    pub(super) fn function(&mut self, name: &str, axes: usize) -> Parsed<ScalarFunction> {
        self.expect(name)?;
        self.expect("{")?;
        let mut function = ScalarFunction::default();
        while !self.accept("}") {
            if self.accept("return") {
                function.result = Some(StepId(self.numbered("v")?));
            } else {
                let step = self.step(function.steps.len(), axes)?;
                function.steps.push(step);
            }
            self.expect(";")?;
        }
        Ok(function)
    }

    fn step(&mut self, index: usize, axes: usize) -> Parsed<Step> {
        if self.accept("store") {
            let access = self.access(axes)?;
            self.expect("=")?;
            return Ok(Step::Store { access, value: StepId(self.numbered("v")?) });
        }
        self.expect_number("v", index)?;
        self.expect("=")?;
        match self.name()? {
            "load" => Ok(Step::Load(self.access(axes)?)),
            "constant" => Ok(Step::Constant { value: self.float()?, dtype: self.dtype()? }),
            "affine" => {
                self.expect("[")?;
                let mut terms = Terms::new(axes);
                self.terms(&mut terms, false)?;
                self.expect("]")?;
                Ok(Step::Affine { offset: terms.offset, strides: terms.strides })
            }
            "accumulator" => Ok(Step::Accumulator(self.unsigned()?)),
            name => {
                self.expect("(")?;
                let mut args = vec![StepId(self.numbered("v")?)];
                let mut cast = None;
                while self.accept(",") {
                    if name == "cast" {
                        cast = Some(ScalarOp::Cast(self.dtype()?));
                    } else {
                        args.push(StepId(self.numbered("v")?));
                    }
                }
                self.expect(")")?;
                let op = cast.or_else(|| ScalarOp::from_name(name));
                let op = op.ok_or_else(|| self.error(&format!("`{name}` is not a scalar operation")))?;
                Ok(Step::Apply { op, args })
            }
        }
    }

    fn access(&mut self, axes: usize) -> Parsed<Access> {
        let operand = self.numbered("o")?;
        self.expect("[")?;
        let mut terms = Terms::new(axes);
        self.terms(&mut terms, true)?;
        self.expect("]")?;
        let Terms { offset, strides, indirect } = terms;
        Ok(Access { operand, offset, strides, indirect })
    }

    /// `term + term + …`, a term being a size, a coordinate, a product of both, or a size times an index access.
    fn terms(&mut self, terms: &mut Terms, indirect: bool) -> Parsed<()> {
        loop {
            let coordinate = self.peek().is_some_and(|text| text.starts_with('i'));
            let factor = if coordinate { Size::Const(1) } else { self.size()? };
            if coordinate || self.accept("*") {
                if indirect && self.peek().is_some_and(|text| text.starts_with('o')) {
                    let operand = self.numbered("o")?;
                    self.expect("[")?;
                    let mut index = Terms::new(terms.strides.len());
                    self.terms(&mut index, false)?;
                    self.expect("]")?;
                    let index =
                        Access { operand, offset: index.offset, strides: index.strides, indirect: None };
                    terms.indirect = Some(Box::new(Indirect { index, stride: factor }));
                } else {
                    let axis = self.numbered("i")?;
                    let stride = terms.strides.get_mut(axis as usize);
                    *stride
                        .ok_or_else(|| self.error("a coordinate beyond the iteration space before this"))? =
                        factor;
                }
            } else {
                terms.offset = factor;
            }
            if !self.accept("+") {
                return Ok(());
            }
        }
    }
}

struct Terms {
    offset: Size,
    strides: Vec<Size>,
    indirect: Option<Box<Indirect>>,
}

impl Terms {
    fn new(axes: usize) -> Terms {
        Terms { offset: Size::Const(0), strides: vec![Size::Const(0); axes], indirect: None }
    }
}
