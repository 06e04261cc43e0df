//! Instructions on one lane or on four: what the rest of the code generator is written in.
//!
//! Floats of every type are held as `f32` values; `bf16` and `f16` ones are representable in their type. Booleans are held as
//! masks, 0 or −1 in 32 bits.

use std::collections::HashMap;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::V128Imm;
use cranelift_codegen::ir::{
    Block, BlockArg, Endianness, FuncRef, InstBuilder, MemFlagsData, Type, Value, types,
};
use cranelift_frontend::FunctionBuilder;

use super::constants::ConstantPool;

/// How many points are computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lanes {
    /// One.
    One,
    /// Four, in a 128-bit vector.
    Four,
}

impl Lanes {
    pub(super) const fn count(self) -> i64 {
        match self {
            Lanes::One => 1,
            Lanes::Four => 4,
        }
    }
}

/// The instruction stream of one function.
pub(super) struct Emit<'a, 'f> {
    pub(super) builder: &'a mut FunctionBuilder<'f>,
    /// Of the values that operations work on at present.
    pub(super) lanes: Lanes,
    /// The upper 16 bits of floats that were rounded to `bf16`, before they were shifted back.
    pub(super) high_halves: HashMap<Value, Value>,
    fused_multiply_add: bool,
    host: [FuncRef; 2],
    constants: &'a mut ConstantPool,
    /// The address of the pool, where constants come from it: one that differs from round to round of a loop as far as Cranelift
    /// knows, so that it leaves the loads inside, and one for the next round.
    pool: Option<[Value; 2]>,
}

/// Functions of the host that generated code calls where no short formula is exact.
#[derive(Clone, Copy)]
pub(super) enum HostFunction {
    Sin,
    Cos,
}

macro_rules! forward {
    ($($name:ident($($arg:ident),*)),* $(,)?) => {
        $(pub(super) fn $name(&mut self, $($arg: Value),*) -> Value {
            self.builder.ins().$name($($arg),*)
        })*
    };
}

impl<'a, 'f> Emit<'a, 'f> {
    pub(super) fn new(
        builder: &'a mut FunctionBuilder<'f>,
        fused_multiply_add: bool,
        host: [FuncRef; 2],
        constants: &'a mut ConstantPool,
    ) -> Self {
        let high_halves = HashMap::new();
        Emit { builder, lanes: Lanes::One, high_halves, fused_multiply_add, host, constants, pool: None }
    }

    forward! {
        fadd(x, y), fsub(x, y), fmul(x, y), fdiv(x, y), fmax(x, y), fmin(x, y), fneg(x), fabs(x), sqrt(x),
        iadd(x, y), isub(x, y), imul(x, y), smax(x, y), smin(x, y), ineg(x), iabs(x), band(x, y), bor(x, y), bxor(x, y),
        bnot(x),
    }

    /// Takes vector constants from memory from now on.
    pub(super) fn use_constant_pool(&mut self) {
        if let Some(address) = self.constants.address() {
            let address = self.int64(address);
            let flags = MemFlagsData::new().with_notrap();
            self.pool = Some([0, 8].map(|at| self.builder.ins().load(types::I64, flags, address, at)));
        }
    }

    /// The type of float values.
    pub(super) fn float_type(&self) -> Type {
        match self.lanes {
            Lanes::One => types::F32,
            Lanes::Four => types::F32X4,
        }
    }

    /// The type of integers and masks.
    pub(super) fn int_type(&self) -> Type {
        match self.lanes {
            Lanes::One => types::I32,
            Lanes::Four => types::I32X4,
        }
    }

    /// A float constant.
    pub(super) fn float(&mut self, value: f32) -> Value {
        match self.lanes {
            Lanes::One => self.builder.ins().f32const(value),
            Lanes::Four => self.vector([value.to_bits(); 4], types::F32X4),
        }
    }

    /// An integer constant.
    pub(super) fn int(&mut self, value: i32) -> Value {
        match self.lanes {
            Lanes::One => self.builder.ins().iconst(types::I32, i64::from(value as u32)),
            Lanes::Four => self.vector([value as u32; 4], types::I32X4),
        }
    }

    /// A vector constant.
    pub(super) fn vector(&mut self, lanes: [u32; 4], ty: Type) -> Value {
        if let Some([pool, _]) = self.pool
            && let Some(offset) = self.constants.place(lanes)
        {
            let flags = MemFlagsData::new().with_notrap().with_readonly().with_can_move();
            return self.builder.ins().load(ty, flags, pool, offset);
        }
        let bytes: Vec<u8> = lanes.into_iter().flat_map(u32::to_le_bytes).collect();
        let constant = self.builder.func.dfg.constants.insert(V128Imm::from(bytes.as_slice()).into());
        self.builder.ins().vconst(ty, constant)
    }

    /// A 64-bit constant: addresses and coordinates are always one lane.
    pub(super) fn int64(&mut self, value: i64) -> Value {
        self.builder.ins().iconst(types::I64, value)
    }

    /// The one-lane `value` in every lane.
    pub(super) fn splat(&mut self, value: Value) -> Value {
        match self.lanes {
            Lanes::One => value,
            Lanes::Four => {
                let lane = self.builder.func.dfg.value_type(value);
                let vector = lane.by(4).unwrap_or(lane);
                self.builder.ins().splat(vector, value)
            }
        }
    }

    /// x · y + z, rounded once where the machine can.
    pub(super) fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        if self.fused_multiply_add {
            self.builder.ins().fma(x, y, z)
        } else {
            let product = self.fmul(x, y);
            self.fadd(product, z)
        }
    }

    /// The polynomial with these coefficients, highest power first, by Horner's rule.
    pub(super) fn polynomial(&mut self, x: Value, coefficients: &[f32]) -> Value {
        let mut sum = None;
        for &coefficient in coefficients {
            let constant = self.float(coefficient);
            sum = Some(match sum {
                None => constant,
                Some(sum) => self.fma(sum, x, constant),
            });
        }
        sum.unwrap_or(x)
    }

    pub(super) fn shift_left(&mut self, x: Value, bits: i64) -> Value {
        self.builder.ins().ishl_imm_u(x, bits)
    }

    pub(super) fn shift_right(&mut self, x: Value, bits: i64) -> Value {
        self.builder.ins().ushr_imm_u(x, bits)
    }

    pub(super) fn shift_right_signed(&mut self, x: Value, bits: i64) -> Value {
        self.builder.ins().sshr_imm_u(x, bits)
    }

    /// The mask of a comparison of floats.
    pub(super) fn compare(&mut self, condition: FloatCC, x: Value, y: Value) -> Value {
        let outcome = self.builder.ins().fcmp(condition, x, y);
        self.mask(outcome)
    }

    /// The mask of a comparison of integers.
    pub(super) fn compare_int(&mut self, condition: IntCC, x: Value, y: Value) -> Value {
        let outcome = self.builder.ins().icmp(condition, x, y);
        self.mask(outcome)
    }

    fn mask(&mut self, outcome: Value) -> Value {
        match self.lanes {
            Lanes::One => self.builder.ins().bmask(types::I32, outcome),
            Lanes::Four => outcome,
        }
    }

    /// x where the mask is set, else y.
    pub(super) fn select(&mut self, mask: Value, x: Value, y: Value) -> Value {
        match self.lanes {
            Lanes::One => self.builder.ins().select(mask, x, y),
            Lanes::Four => {
                let ty = self.builder.func.dfg.value_type(x);
                let mask = self.bitcast(ty, mask);
                self.builder.ins().bitselect(mask, x, y)
            }
        }
    }

    /// The same bits as another type.
    pub(super) fn bitcast(&mut self, ty: Type, x: Value) -> Value {
        if self.builder.func.dfg.value_type(x) == ty {
            return x;
        }
        self.builder.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), x)
    }

    /// A float's bits.
    pub(super) fn bits(&mut self, x: Value) -> Value {
        let ty = self.int_type();
        self.bitcast(ty, x)
    }

    /// The float of these bits.
    pub(super) fn as_float(&mut self, x: Value) -> Value {
        let ty = self.float_type();
        self.bitcast(ty, x)
    }

    /// `x & constant`.
    pub(super) fn and_constant(&mut self, x: Value, constant: i32) -> Value {
        let constant = self.int(constant);
        self.band(x, constant)
    }

    /// A lane of a vector; the value itself if there is one.
    pub(super) fn lane(&mut self, x: Value, lane: u8) -> Value {
        match self.lanes {
            Lanes::One => x,
            Lanes::Four => self.builder.ins().extractlane(x, lane),
        }
    }

    /// A vector of one-lane values; the value itself if there is one.
    pub(super) fn gather_lanes(&mut self, values: &[Value]) -> Value {
        match self.lanes {
            Lanes::One => values[0],
            Lanes::Four => {
                let mut vector = self.splat(values[0]);
                for (lane, &value) in values.iter().enumerate().skip(1) {
                    vector = self.builder.ins().insertlane(vector, value, lane as u8);
                }
                vector
            }
        }
    }

    /// Applies a one-lane computation to each lane.
    pub(super) fn each_lane(
        &mut self,
        args: &[Value],
        mut body: impl FnMut(&mut Self, &[Value]) -> Value,
    ) -> Value {
        let lanes = self.lanes;
        let results: Vec<Value> = (0..lanes.count() as u8)
            .map(|lane| {
                let args: Vec<Value> = args.iter().map(|&arg| self.lane(arg, lane)).collect();
                self.lanes = Lanes::One;
                let result = body(self, &args);
                self.lanes = lanes;
                result
            })
            .collect();
        self.gather_lanes(&results)
    }

    /// `fast`, unless `mask` is set in any lane: then the host's function of `x`.
    pub(super) fn host_if(&mut self, mask: Value, function: HostFunction, x: Value, fast: Value) -> Value {
        let any = match self.lanes {
            Lanes::One => mask,
            Lanes::Four => self.builder.ins().vany_true(mask),
        };
        let slow_block = self.builder.create_block();
        let join = self.builder.create_block();
        let ty = self.float_type();
        let result = self.builder.append_block_param(join, ty);
        self.builder.set_cold_block(slow_block);
        self.builder.ins().brif(any, slow_block, &[], join, &[BlockArg::Value(fast)]);
        self.builder.switch_to_block(slow_block);
        let function = match function {
            HostFunction::Sin => self.host[0],
            HostFunction::Cos => self.host[1],
        };
        let slow = self.each_lane(&[x], |emit, args| {
            let call = emit.builder.ins().call(function, args);
            emit.builder.inst_results(call)[0]
        });
        let slow = self.select(mask, slow, fast);
        self.builder.ins().jump(join, &[BlockArg::Value(slow)]);
        self.builder.switch_to_block(join);
        result
    }

    /// A loop from `begin` while `position + step <= end`, with values carried from one round to the next. Gives the last position and
    /// values.
    ///
    /// The condition stands at the end of a round, and once before the first: Cranelift moves what is the same in every round out of a
    /// loop only where the loop's first block dominates nothing outside it.
    pub(super) fn count_loop(
        &mut self,
        begin: Value,
        end: Value,
        step: i64,
        carried: &[Value],
        mut body: impl FnMut(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let [inside, exit] = [(); 2].map(|()| self.builder.create_block());
        let [(position, inner), (last, outcome)] = [inside, exit].map(|block| {
            let position = self.builder.append_block_param(block, types::I64);
            (position, self.parameters(block, carried))
        });
        let outer_pool = self.pool;
        self.next_round(begin, end, step, [inside, exit], carried);
        self.builder.switch_to_block(inside);
        if let Some([_, next]) = outer_pool {
            let pool = self.builder.append_block_param(inside, types::I64);
            self.pool = Some([pool, next]);
        }
        let results = body(self, position, &inner);
        let next = self.builder.ins().iadd_imm_s(position, step);
        self.pool = outer_pool.map(|[_, next]| [next, next]);
        self.next_round(next, end, step, [inside, exit], &results);
        self.pool = outer_pool;
        self.builder.switch_to_block(exit);
        (last, outcome)
    }

    /// Goes inside if a round at `position` fits before `end`.
    fn next_round(
        &mut self,
        position: Value,
        end: Value,
        step: i64,
        [inside, exit]: [Block; 2],
        carried: &[Value],
    ) {
        let after = self.builder.ins().iadd_imm_s(position, step);
        let fits = self.builder.ins().icmp(IntCC::SignedLessThanOrEqual, after, end);
        let values = arguments(position, carried);
        let pool = self.pool.iter().map(|[pool, _]| BlockArg::Value(*pool));
        let enter: Vec<BlockArg> = values.iter().copied().chain(pool).collect();
        self.builder.ins().brif(fits, inside, &enter, exit, &values);
    }

    /// Adds block parameters of the types of `values`.
    pub(super) fn parameters(&mut self, block: Block, values: &[Value]) -> Vec<Value> {
        values
            .iter()
            .map(|&value| {
                let ty = self.builder.func.dfg.value_type(value);
                self.builder.append_block_param(block, ty)
            })
            .collect()
    }
}

fn arguments(position: Value, carried: &[Value]) -> Vec<BlockArg> {
    std::iter::once(position).chain(carried.iter().copied()).map(BlockArg::Value).collect()
}
