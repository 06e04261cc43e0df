//! Loads and stores of every element type, contiguous or one lane at a time.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use nucleus_ir::DType;

use super::emit::{Emit, Lanes};

/// Where the lanes of an access lie.
pub(super) enum Place {
    /// One behind the other from this address.
    Contiguous(Value),
    /// Each at its own address.
    Scattered(Vec<Value>),
}

const INFINITY: i32 = 0x7f80_0000;
const MAGNITUDE: i32 = 0x7fff_ffff;

impl Emit<'_, '_> {
    /// The lanes at a place, widened to the type in which they are held.
    pub(super) fn load(&mut self, dtype: DType, place: &Place, flags: MemFlagsData) -> Value {
        let stored = match (self.lanes, place) {
            (Lanes::One, Place::Contiguous(address)) => self.load_lane(dtype, *address, flags),
            (Lanes::Four, Place::Contiguous(address)) => self.load_lanes(dtype, *address, flags),
            (_, Place::Scattered(addresses)) => {
                let lanes: Vec<Value> =
                    addresses.iter().map(|&address| self.load_lane(dtype, address, flags)).collect();
                self.gather_lanes(&lanes)
            }
        };
        self.widen(dtype, stored)
    }

    /// Writes the lanes to a place; they are representable in `dtype`.
    pub(super) fn store(&mut self, dtype: DType, value: Value, place: &Place, flags: MemFlagsData) {
        let narrow = self.narrow(dtype, value);
        match (self.lanes, place) {
            (Lanes::One, Place::Contiguous(address)) => self.store_lane(dtype, narrow, *address, flags),
            (Lanes::Four, Place::Contiguous(address)) => self.store_lanes(dtype, narrow, *address, flags),
            (_, Place::Scattered(addresses)) => {
                for (lane, &address) in addresses.iter().enumerate() {
                    let value = self.lane(narrow, lane as u8);
                    self.store_lane(dtype, value, address, flags);
                }
            }
        }
    }

    /// One element: a float of 32 bits as it is, everything else as an integer of 32 bits.
    fn load_lane(&mut self, dtype: DType, address: Value, flags: MemFlagsData) -> Value {
        let instruction = self.builder.ins();
        match dtype {
            DType::F32 => instruction.load(types::F32, flags, address, 0),
            DType::I32 => instruction.load(types::I32, flags, address, 0),
            DType::Bf16 | DType::F16 => instruction.uload16(types::I32, flags, address, 0),
            DType::Bool => instruction.uload8(types::I32, flags, address, 0),
            DType::I8 => instruction.sload8(types::I32, flags, address, 0),
        }
    }

    fn load_lanes(&mut self, dtype: DType, address: Value, flags: MemFlagsData) -> Value {
        match dtype {
            DType::F32 => self.builder.ins().load(types::F32X4, flags, address, 0),
            DType::I32 => self.builder.ins().load(types::I32X4, flags, address, 0),
            DType::Bf16 | DType::F16 => self.builder.ins().uload16x4(flags, address, 0),
            DType::Bool => {
                let bytes = self.builder.ins().load(types::I32, flags, address, 0);
                let bytes = self.builder.ins().scalar_to_vector(types::I32X4, bytes);
                let bytes = self.bitcast(types::I8X16, bytes);
                let halves = self.builder.ins().uwiden_low(bytes);
                self.builder.ins().uwiden_low(halves)
            }
            DType::I8 => {
                let bytes = self.builder.ins().load(types::I32, flags, address, 0);
                let bytes = self.builder.ins().scalar_to_vector(types::I32X4, bytes);
                let bytes = self.bitcast(types::I8X16, bytes);
                let halves = self.builder.ins().swiden_low(bytes);
                self.builder.ins().swiden_low(halves)
            }
        }
    }

    fn store_lane(&mut self, dtype: DType, value: Value, address: Value, flags: MemFlagsData) {
        match dtype {
            DType::F32 | DType::I32 => self.builder.ins().store(flags, value, address, 0),
            DType::Bf16 | DType::F16 => self.builder.ins().istore16(flags, value, address, 0),
            DType::Bool | DType::I8 => self.builder.ins().istore8(flags, value, address, 0),
        };
    }

    fn store_lanes(&mut self, dtype: DType, value: Value, address: Value, flags: MemFlagsData) {
        // The low lane as a float: it is stored from where it lies.
        let vector = match dtype {
            DType::F32 | DType::I32 => {
                self.builder.ins().store(flags, value, address, 0);
                return;
            }
            DType::Bf16 | DType::F16 => {
                let halves = self.builder.ins().unarrow(value, value);
                self.bitcast(types::F64X2, halves)
            }
            DType::Bool => {
                let halves = self.builder.ins().unarrow(value, value);
                let bytes = self.builder.ins().unarrow(halves, halves);
                self.bitcast(types::F32X4, bytes)
            }
            DType::I8 => {
                let halves = self.builder.ins().snarrow(value, value);
                let bytes = self.builder.ins().snarrow(halves, halves);
                self.bitcast(types::F32X4, bytes)
            }
        };
        let low = self.builder.ins().extractlane(vector, 0);
        self.builder.ins().store(flags, low, address, 0);
    }

    /// From stored bits to the type in which values are held.
    pub(super) fn widen(&mut self, dtype: DType, stored: Value) -> Value {
        match dtype {
            DType::F32 | DType::I32 | DType::I8 => stored,
            DType::Bf16 => {
                let bits = self.shift_left(stored, 16);
                self.as_float(bits)
            }
            DType::F16 => self.widen_f16(stored),
            DType::Bool => {
                let zero = self.int(0);
                self.compare_int(IntCC::NotEqual, stored, zero)
            }
        }
    }

    /// From the type in which values are held to stored bits.
    pub(super) fn narrow(&mut self, dtype: DType, value: Value) -> Value {
        match dtype {
            DType::F32 | DType::I32 | DType::I8 => value,
            DType::Bf16 => match self.high_halves.get(&value) {
                Some(&high) => high,
                None => {
                    let bits = self.bits(value);
                    self.shift_right(bits, 16)
                }
            },
            DType::F16 => self.narrow_f16(value),
            DType::Bool => self.and_constant(value, 1),
        }
    }

    /// Exact. The exponent is rebiased by a multiplication, which also normalises subnormal numbers.
    fn widen_f16(&mut self, half: Value) -> Value {
        let magnitude = self.and_constant(half, 0x7fff);
        let sign = self.and_constant(half, 0x8000);
        let sign = self.shift_left(sign, 16);
        let shifted = self.shift_left(magnitude, 13);
        let unscaled = self.as_float(shifted);
        let scale = self.float(f32::from_bits((127 + 112) << 23));
        let finite = self.fmul(unscaled, scale);
        let finite = self.bits(finite);
        let infinity = self.int(INFINITY);
        let special = self.bor(shifted, infinity);
        let largest = self.int(0x7bff);
        let is_special = self.compare_int(IntCC::SignedGreaterThan, magnitude, largest);
        let bits = self.select(is_special, special, finite);
        let bits = self.bor(bits, sign);
        self.as_float(bits)
    }

    /// To nearest, ties to even; NaN is kept.
    fn narrow_f16(&mut self, value: Value) -> Value {
        let bits = self.bits(value);
        let magnitude = self.and_constant(bits, MAGNITUDE);
        let sign = self.shift_right(bits, 16);
        let sign = self.and_constant(sign, 0x8000);
        // Normal numbers: rebias, and round by adding half a unit less one, plus the last bit that stays.
        let last = self.shift_right(magnitude, 13);
        let last = self.and_constant(last, 1);
        let rebias = self.int(0xfff - (112 << 23));
        let rounded = self.iadd(magnitude, rebias);
        let rounded = self.iadd(rounded, last);
        let normal = self.shift_right(rounded, 13);
        // Subnormal numbers: a unit in the last place of 0.5 is the unit of subnormal halves, so an addition rounds.
        let half = self.float(0.5);
        let absolute = self.as_float(magnitude);
        let sum = self.fadd(absolute, half);
        let sum = self.bits(sum);
        let half_bits = self.int(0x3f00_0000);
        let subnormal = self.isub(sum, half_bits);
        let smallest_normal = self.int(0x3880_0000);
        let is_small = self.compare_int(IntCC::SignedLessThan, magnitude, smallest_normal);
        let finite = self.select(is_small, subnormal, normal);
        let too_large = self.int(0x477f_ffff);
        let overflows = self.compare_int(IntCC::SignedGreaterThan, magnitude, too_large);
        let half_infinity = self.int(0x7c00);
        let result = self.select(overflows, half_infinity, finite);
        let payload = self.shift_right(magnitude, 13);
        let payload = self.and_constant(payload, 0x3ff);
        let quiet = self.int(0x7e00);
        let nan = self.bor(payload, quiet);
        let infinity = self.int(INFINITY);
        let is_nan = self.compare_int(IntCC::SignedGreaterThan, magnitude, infinity);
        let result = self.select(is_nan, nan, result);
        self.bor(result, sign)
    }

    /// The nearest value of `dtype`, ties to even, held as `f32`.
    pub(super) fn round(&mut self, dtype: DType, value: Value) -> Value {
        match dtype {
            DType::Bf16 => {
                let bits = self.bits(value);
                let last = self.shift_right(bits, 16);
                let last = self.and_constant(last, 1);
                let half = self.int(0x7fff);
                let rounded = self.iadd(bits, half);
                let rounded = self.iadd(rounded, last);
                let high = self.shift_right(rounded, 16);
                // A NaN becomes one with all its bits set.
                let is_nan = self.compare(FloatCC::Unordered, value, value);
                let nan = self.shift_right(is_nan, 17);
                let high = self.bor(high, nan);
                let result = self.shift_left(high, 16);
                let result = self.as_float(result);
                self.high_halves.insert(result, high);
                result
            }
            DType::F16 => {
                let half = self.narrow_f16(value);
                self.widen_f16(half)
            }
            DType::F32 | DType::I32 | DType::Bool | DType::I8 => value,
        }
    }
}
