//! The builtin functions: what elaboration computes itself or writes in terms of ops.

/// A builtin function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// Its parameters: name, and whether it must be given. Arguments are given by position or by name.
    pub params: &'static [(&'static str, bool)],
    /// What it gives, for people.
    pub doc: &'static str,
}

const X: &[(&str, bool)] = &[("x", true)];
const XY: &[(&str, bool)] = &[("x", true), ("y", true)];
const DIVISION: &[(&str, bool)] = &[("numerator", true), ("denominator", true)];

/// Every builtin. Those that share their name with an element-wise op are computed at once for numbers and sizes, and are the
/// op for tensors.
pub const BUILTINS: &[Builtin] = &[
    Builtin {
        name: "weight",
        params: &[("name", true), ("shape", true), ("dtype", false)],
        doc: "the weight of that name, prefixed by the open scopes; `f32` unless an element type is given",
    },
    Builtin {
        name: "split",
        params: &[("x", true), ("n", true), ("axis", false)],
        doc: "a tuple of `n` equal parts of a tensor along an axis, by default the last",
    },
    Builtin { name: "len", params: X, doc: "the number of elements of a list or tuple" },
    Builtin { name: "floor", params: X, doc: "the largest integer that is not above a float" },
    Builtin {
        name: "ceil",
        params: X,
        doc: "the smallest integer that is not below a float; of a scaled size, a size",
    },
    Builtin {
        name: "floor_div", params: DIVISION, doc: "⌊numerator / denominator⌋ of integers or sizes"
    },
    Builtin { name: "ceil_div", params: DIVISION, doc: "⌈numerator / denominator⌉ of integers or sizes" },
    Builtin {
        name: "ceil_scale",
        params: &[("size", true), ("factor", true), ("divisor", true)],
        doc: "the size ⌈(factor · size) / divisor⌉ in binary64, left to right",
    },
    Builtin { name: "int", params: X, doc: "a float without its fraction, or a bool as 0 or 1" },
    Builtin { name: "float", params: X, doc: "an integer as a float" },
    Builtin { name: "min", params: XY, doc: "the smaller of two numbers, sizes or tensors" },
    Builtin { name: "max", params: XY, doc: "the larger of two numbers, sizes or tensors" },
    Builtin { name: "sqrt", params: X, doc: "√x" },
    Builtin { name: "exp", params: X, doc: "eˣ" },
    Builtin { name: "log", params: X, doc: "the natural logarithm" },
    Builtin { name: "sin", params: X, doc: "the sine of an angle in radians" },
    Builtin { name: "cos", params: X, doc: "the cosine of an angle in radians" },
    Builtin { name: "tanh", params: X, doc: "the hyperbolic tangent" },
    Builtin { name: "abs", params: X, doc: "|x|" },
];

/// The builtin of that name.
pub fn builtin(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|builtin| builtin.name == name)
}
