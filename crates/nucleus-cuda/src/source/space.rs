//! Iteration spaces in C++: extents, and coordinates from numbers of points.

use std::fmt::Write;

use nucleus_plan::Size;

use super::function::Names;

/// A size as a C++ expression of type `int`.
pub fn size(size: Size, names: &dyn Names) -> String {
    match size {
        Size::Const(value) => value.to_string(),
        Size::Arg(argument) => names.size(argument),
    }
}

/// A function `name(args)` of type `u64`: the number of points of a space.
pub fn count(name: &str, extents: &[Size], names: &dyn Names) -> String {
    let product: Vec<String> =
        extents.iter().map(|extent| format!("u64({})", size(*extent, names))).collect();
    let product = if product.is_empty() { "1".to_owned() } else { product.join(" * ") };
    format!("DEVICE u64 {name}(const Arguments& args) {{ return {product}; }}\n")
}

/// Statements that define the coordinates `i{first}`, `i{first + 1}`, … of the point with the number `index`, an unsigned expression; the last
/// axis is the fastest.
pub fn coordinates(index: &str, first: usize, extents: &[Size], names: &dyn Names) -> String {
    let mut text = String::new();
    let mut rest = index.to_owned();
    for (position, extent) in extents.iter().enumerate().rev() {
        let axis = first + position;
        if position == 0 {
            let _ = writeln!(text, "    const int i{axis} = int({rest});");
        } else {
            let extent = size(*extent, names);
            let _ = writeln!(text, "    const int i{axis} = int({rest} % u32({extent}));");
            let _ = writeln!(text, "    const auto r{axis} = {rest} / u32({extent});");
            rest = format!("r{axis}");
        }
    }
    text
}
