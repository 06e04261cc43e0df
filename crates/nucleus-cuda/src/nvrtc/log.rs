//! What the assembler says of every function: registers, stack, spills, shared memory.

/// What one function of a cubin takes on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The function.
    pub function: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of stack of a thread: the largest frame, of it and the functions that it calls.
    pub stack: u32,
    /// Bytes of spilled registers that it and the functions that it calls write.
    pub spill_stores: u32,
    /// Bytes of spilled registers that they read.
    pub spill_loads: u32,
    /// Bytes of shared memory of a block that are not dynamic.
    pub shared: u32,
    /// Barriers of a block.
    pub barriers: u32,
}

/// The functions that a log of `--ptxas-options=-v` tells of, in its order.
///
/// The lines are, with whatever stands before them,
/// `Compiling entry function 'map' for 'sm_90'`, `0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads` and
/// `Used 21 registers, used 1 barriers, 1024 bytes smem`.
pub(super) fn parse(log: &str) -> Vec<Resources> {
    let mut functions: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let function = rest.split('\'').next().unwrap_or_default().to_owned();
            functions.push(Resources { function, ..Resources::default() });
            continue;
        }
        let Some(function) = functions.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            // Functions that it calls, where they are not inlined, have lines of their own behind it.
            function.stack = function.stack.max(before(line, "bytes stack frame"));
            function.spill_stores += before(line, "bytes spill stores");
            function.spill_loads += before(line, "bytes spill loads");
        } else if line.contains(" registers") && line.contains("Used ") {
            function.registers = before(line, "registers");
            function.barriers = before(line, "barriers");
            function.shared = before(line, "bytes smem");
        }
    }
    functions
}

/// The number that stands before some words; 0 where they are missing.
fn before(line: &str, words: &str) -> u32 {
    let number = line.find(words).map(|at| line[..at].trim_end());
    let number = number.and_then(|text| text.rsplit(|c: char| !c.is_ascii_digit()).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_its_own_numbers() {
        let log = "ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'scan' for 'sm_90'
ptxas info    : Function properties for scan
ptxas         .     48 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 1040 bytes smem
ptxas info    : Function properties for called
ptxas         .     32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compile time = 15.569 ms
ptxas info    : Compiling entry function 'map' for 'sm_90'
ptxas info    : Function properties for map
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 21 registers
";
        let scan = Resources {
            function: "scan".to_owned(),
            registers: 255,
            stack: 48,
            spill_stores: 20,
            spill_loads: 24,
            shared: 1040,
            barriers: 1,
        };
        let map = Resources { function: "map".to_owned(), registers: 21, ..Resources::default() };
        assert_eq!(parse(log), [scan, map]);
        assert_eq!(parse(""), []);
    }
}
