//! The files of `kernels-templates/`, which are part of the binary.

use super::SourceError;

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../../kernels-templates/", $name)))),*]
    };
}

/// Path and text of every file.
const FILES: &[(&str, &str)] = files! {
    "prelude.cuh"
    "ptx/async_copy.cuh"
    "ptx/convert.cuh"
    "ptx/matrix.cuh"
    "ptx/shared.cuh"
    "sm80_limits.cuh"
    "sm80_map.cuh"
};

/// The text of a file with what it includes in place of its `#include` lines, each file once: `included` has those that are there.
pub(super) fn flatten(name: &'static str, included: &mut Vec<&'static str>) -> Result<String, SourceError> {
    if included.contains(&name) {
        return Ok(String::new());
    }
    included.push(name);
    let text = find(name).map(|(_, text)| text)?;
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(other) => result.push_str(&flatten(find(other)?.0, included)?),
            None if line == "#pragma once" => {}
            None => {
                result.push_str(line);
                result.push('\n');
            }
        }
    }
    Ok(result)
}

fn find(name: &str) -> Result<(&'static str, &'static str), SourceError> {
    let file = FILES.iter().find(|(file, _)| *file == name);
    file.copied().ok_or_else(|| SourceError::Unsupported(format!("`{name}`, which is not part of the build")))
}
