//! Scalar operations on the values of each element type.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value};
use nucleus_ir::{DType, ScalarOp};

use super::emit::Emit;

impl Emit<'_, '_> {
    /// Applies an operation to values of type `dtypes`; the result has the type that [`ScalarOp::result`] gives.
    pub(super) fn apply(&mut self, op: ScalarOp, args: &[Value], dtypes: &[DType]) -> Value {
        // The operands' type; for a selection that of the alternatives.
        let dtype = dtypes[dtypes.len() - 1];
        if let ScalarOp::Cast(to) = op {
            return self.cast(args[0], dtype, to);
        }
        let value = match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => self.apply_float(op, args),
            // Of 8-bit integers there are only casts.
            DType::I32 | DType::I8 => self.apply_int(op, args),
            DType::Bool => self.apply_bool(op, args),
        };
        if dtype.is_float() && !keeps_representable(op) { self.round(dtype, value) } else { value }
    }

    fn apply_float(&mut self, op: ScalarOp, args: &[Value]) -> Value {
        let x = args[0];
        let y = args.get(1).copied().unwrap_or(x);
        match op {
            ScalarOp::Neg => self.fneg(x),
            ScalarOp::Abs => self.fabs(x),
            ScalarOp::Exp => self.exp(x),
            ScalarOp::Log => self.log(x),
            ScalarOp::Sqrt => self.sqrt(x),
            ScalarOp::Rsqrt => {
                let root = self.sqrt(x);
                let one = self.float(1.0);
                self.fdiv(one, root)
            }
            ScalarOp::Tanh => self.tanh(x),
            ScalarOp::Sigmoid => self.sigmoid(x),
            ScalarOp::Sin => self.sin(x),
            ScalarOp::Cos => self.cos(x),
            ScalarOp::Add => self.fadd(x, y),
            ScalarOp::Sub => self.fsub(x, y),
            ScalarOp::Mul => self.fmul(x, y),
            ScalarOp::Div => self.fdiv(x, y),
            ScalarOp::Max => self.fmax(x, y),
            ScalarOp::Min => self.fmin(x, y),
            ScalarOp::Less => self.compare(FloatCC::LessThan, x, y),
            ScalarOp::LessEqual => self.compare(FloatCC::LessThanOrEqual, x, y),
            ScalarOp::Equal => self.compare(FloatCC::Equal, x, y),
            ScalarOp::Select => self.select(x, y, args[2]),
            ScalarOp::And | ScalarOp::Or | ScalarOp::Not | ScalarOp::Cast(_) => x,
        }
    }

    fn apply_int(&mut self, op: ScalarOp, args: &[Value]) -> Value {
        let x = args[0];
        let y = args.get(1).copied().unwrap_or(x);
        match op {
            ScalarOp::Neg => self.ineg(x),
            ScalarOp::Abs => self.iabs(x),
            ScalarOp::Add => self.iadd(x, y),
            ScalarOp::Sub => self.isub(x, y),
            ScalarOp::Mul => self.imul(x, y),
            ScalarOp::Div => self.each_lane(&[x, y], Self::divide),
            ScalarOp::Max => self.smax(x, y),
            ScalarOp::Min => self.smin(x, y),
            ScalarOp::Less => self.compare_int(IntCC::SignedLessThan, x, y),
            ScalarOp::LessEqual => self.compare_int(IntCC::SignedLessThanOrEqual, x, y),
            ScalarOp::Equal => self.compare_int(IntCC::Equal, x, y),
            ScalarOp::Select => self.select(x, y, args[2]),
            // Not defined for integers; `ScalarOp::result` refuses them before code is generated.
            _ => x,
        }
    }

    fn apply_bool(&mut self, op: ScalarOp, args: &[Value]) -> Value {
        let x = args[0];
        let y = args.get(1).copied().unwrap_or(x);
        match op {
            ScalarOp::And => self.band(x, y),
            ScalarOp::Or => self.bor(x, y),
            ScalarOp::Not => self.bnot(x),
            // Set masks are the largest unsigned number.
            ScalarOp::Less => self.compare_int(IntCC::UnsignedLessThan, x, y),
            ScalarOp::LessEqual => self.compare_int(IntCC::UnsignedLessThanOrEqual, x, y),
            ScalarOp::Equal => self.compare_int(IntCC::Equal, x, y),
            ScalarOp::Select => self.select(x, y, args[2]),
            _ => x,
        }
    }

    /// x / y truncated; 0 where y is 0, wrapping where y is −1. The machine's division traps on both.
    fn divide(&mut self, args: &[Value]) -> Value {
        let (x, y) = (args[0], args[1]);
        let (zero, one, minus_one) = (self.int(0), self.int(1), self.int(-1));
        let is_zero = self.compare_int(IntCC::Equal, y, zero);
        let is_minus_one = self.compare_int(IntCC::Equal, y, minus_one);
        let special = self.bor(is_zero, is_minus_one);
        let divisor = self.select(special, one, y);
        let quotient = self.builder.ins().sdiv(x, divisor);
        let negated = self.ineg(x);
        let quotient = self.select(is_minus_one, negated, quotient);
        self.select(is_zero, zero, quotient)
    }

    fn cast(&mut self, x: Value, from: DType, to: DType) -> Value {
        match (from.is_float(), from, to) {
            (_, from, to) if from == to => x,
            (true, _, DType::I32) => {
                let ty = self.int_type();
                self.builder.ins().fcvt_to_sint_sat(ty, x)
            }
            (true, _, DType::Bool) => {
                let zero = self.float(0.0);
                self.compare(FloatCC::NotEqual, x, zero)
            }
            (true, DType::F32, to) => self.round(to, x),
            // Every bf16 and f16 is an f32; between the two there is rounding.
            (true, _, DType::F32) => x,
            (true, _, to) => self.round(to, x),
            (false, DType::Bool, DType::I32) => self.and_constant(x, 1),
            (false, DType::Bool, _) => {
                let bits = self.and_constant(x, 1.0f32.to_bits() as i32);
                self.as_float(bits)
            }
            (false, _, DType::Bool) => {
                let zero = self.int(0);
                self.compare_int(IntCC::NotEqual, x, zero)
            }
            (false, _, to) => {
                let value = self.int_to_float(x);
                self.round(to, value)
            }
        }
    }

    /// The nearest `f32` to each integer.
    pub(super) fn int_to_float(&mut self, x: Value) -> Value {
        let ty = self.float_type();
        self.builder.ins().fcvt_from_sint(ty, x)
    }
}

/// True if the result is an operand, up to its sign, or no float: then it needs no rounding.
fn keeps_representable(op: ScalarOp) -> bool {
    matches!(
        op,
        ScalarOp::Neg
            | ScalarOp::Abs
            | ScalarOp::Max
            | ScalarOp::Min
            | ScalarOp::Select
            | ScalarOp::Less
            | ScalarOp::LessEqual
            | ScalarOp::Equal
    )
}
