//! Loops of training that memory bounds: sums over leading axes, long sums, transpositions; each beside a plain pass over as many bytes.

use std::hint::black_box;

use nucleus_cpu::buffer::AlignedBuffer;
use nucleus_cpu::threads::Threads;
use nucleus_cpu::{BufferPointer, BufferTable, CpuBound, CpuProgram, Options};
use nucleus_ir::{Bindings, DType, Rate};
use nucleus_plan::BufferId;
use nucleus_plan::text::parse_plan;

/// One launch, in the text of plans.
struct Shape {
    name: &'static str,
    /// Types and shapes of the inputs, and of the output.
    inputs: &'static [(&'static str, &'static str)],
    output: (&'static str, &'static str),
    kernel: &'static str,
}

/// Σ over the tokens of `[2048, 512]`.
const SUM: &str = "
        rows 512; columns 2048;
        phase { v0 = load o0[i0 + 512*i1]; } reduce sum v0;
        row { v0 = accumulator 0; store o1[i0] = v0; }
        element { }";

const SHAPES: [Shape; 11] = [
    Shape {
        name: "bias [2048, 512] -> [512]",
        inputs: &[("f32", "2048, 512")],
        output: ("f32", "512"),
        kernel: SUM,
    },
    Shape {
        name: "bias [16384, 2048] -> [2048]",
        inputs: &[("f32", "16384, 2048")],
        output: ("f32", "2048"),
        kernel: "
        rows 2048; columns 16384;
        phase { v0 = load o0[i0 + 2048*i1]; } reduce sum v0;
        row { v0 = accumulator 0; store o1[i0] = v0; }
        element { }",
    },
    Shape {
        name: "bias of bf16 [16384, 2048] -> [2048]",
        inputs: &[("bf16", "16384, 2048")],
        output: ("f32", "2048"),
        kernel: "
        rows 2048; columns 16384;
        phase { v0 = load o0[i0 + 2048*i1]; v1 = cast(v0, f32); } reduce sum v1;
        row { v0 = accumulator 0; store o1[i0] = v0; }
        element { }",
    },
    Shape {
        name: "gain of a norm [2048, 512] -> [512]",
        inputs: &[("f32", "2048, 512"), ("f32", "2048, 512"), ("f32", "2048")],
        output: ("f32", "512"),
        kernel: "
        rows 512; columns 2048;
        phase {
            v0 = load o0[i0 + 512*i1];
            v1 = load o1[i0 + 512*i1];
            v2 = load o2[i1];
            v3 = mul(v1, v2);
            v4 = mul(v0, v3);
        } reduce sum v4;
        row { v0 = accumulator 0; store o3[i0] = v0; }
        element { }",
    },
    Shape {
        name: "modulation [8, 256, 512] -> [8, 512]",
        inputs: &[("f32", "8, 256, 512"), ("f32", "8, 256, 512")],
        output: ("f32", "8, 512"),
        kernel: "
        rows 8, 512; columns 256;
        phase {
            v0 = load o0[131072*i0 + i1 + 512*i2];
            v1 = load o1[131072*i0 + i1 + 512*i2];
            v2 = mul(v0, v1);
        } reduce sum v2; reduce sum v0;
        row { v0 = accumulator 0; v1 = accumulator 1; v2 = add(v0, v1); store o2[512*i0 + i1] = v2; }
        element { }",
    },
    Shape {
        name: "batch [8, 1048576] -> [1048576]",
        inputs: &[("f32", "8, 1048576")],
        output: ("f32", "1048576"),
        kernel: "
        rows 1048576; columns 8;
        phase { v0 = load o0[i0 + 1048576*i1]; } reduce sum v0;
        row { v0 = accumulator 0; store o1[i0] = v0; }
        element { }",
    },
    Shape {
        name: "few rows [65536, 64] -> [64]",
        inputs: &[("f32", "65536, 64")],
        output: ("f32", "64"),
        kernel: "
        rows 64; columns 65536;
        phase { v0 = load o0[i0 + 64*i1]; } reduce sum v0;
        row { v0 = accumulator 0; store o1[i0] = v0; }
        element { }",
    },
    Shape {
        name: "squares [16777216] -> []",
        inputs: &[("f32", "16777216")],
        output: ("f32", ""),
        kernel: "
        rows ; columns 16777216;
        phase { v0 = load o0[i0]; v1 = mul(v0, v0); } reduce sum v1;
        row { v0 = accumulator 0; store o1[0] = v0; }
        element { }",
    },
    Shape {
        name: "transpose [2048, 2048] -> [2048, 2048]",
        inputs: &[("f32", "2048, 2048")],
        output: ("f32", "2048, 2048"),
        kernel: "
        space 2048, 2048;
        function { v0 = load o0[i0 + 2048*i1]; store o1[2048*i0 + i1] = v0; }",
    },
    Shape {
        name: "transpose [8, 16, 32, 512] -> [16, 8, 32, 512]",
        inputs: &[("f32", "8, 16, 32, 512")],
        output: ("f32", "16, 8, 32, 512"),
        kernel: "
        space 16, 8, 32, 512;
        function {
            v0 = load o0[16384*i0 + 262144*i1 + 512*i2 + i3];
            store o1[131072*i0 + 16384*i1 + 512*i2 + i3] = v0;
        }",
    },
    Shape {
        name: "broadcast [8, 512], [512] over [8, 1024, 512]",
        inputs: &[("f32", "8, 1024, 512"), ("f32", "8, 512"), ("f32", "512")],
        output: ("f32", "8, 1024, 512"),
        kernel: "
        space 8, 1024, 512;
        function {
            v0 = load o0[524288*i0 + 512*i1 + i2];
            v1 = load o1[512*i0 + i2];
            v2 = load o2[i2];
            v3 = mul(v0, v1);
            v4 = add(v3, v2);
            store o3[524288*i0 + 512*i1 + i2] = v4;
        }",
    },
];

/// A compiled launch with its memory.
pub struct ReductionCase {
    /// For humans.
    pub name: &'static str,
    /// Bytes that are read and written, each counted once.
    pub bytes: usize,
    written: usize,
    program: CpuProgram,
    bound: CpuBound,
    table: BufferTable,
    memory: Vec<AlignedBuffer>,
}

/// All cases whose name contains `filter`, on as many threads.
///
/// # Errors
/// The launches are not such as this version's plans have.
pub fn cases(filter: &str, threads: usize) -> Result<Vec<ReductionCase>, Box<dyn std::error::Error>> {
    SHAPES.iter().filter(|shape| shape.name.contains(filter)).map(|shape| case(shape, threads)).collect()
}

fn case(shape: &Shape, threads: usize) -> Result<ReductionCase, Box<dyn std::error::Error>> {
    let mut text = String::from("plan case {\n");
    let mut modes = String::new();
    let mut operands = String::new();
    for (number, (dtype, dims)) in shape.inputs.iter().enumerate() {
        text += &format!("    input x{number}: {dtype}[{dims}] per step;\n");
        modes += &format!("read {dtype}, ");
        operands += &format!("b{number}, ");
    }
    let (dtype, dims) = shape.output;
    let count = shape.inputs.len();
    text += &format!("    output y: {dtype}[{dims}];\n");
    for (number, (dtype, dims)) in shape.inputs.iter().enumerate() {
        text += &format!("    buffer b{number}: {dtype}[{dims}] input {number};\n");
    }
    text += &format!("    buffer b{count}: {dtype}[{dims}] output 0;\n");
    let anchor = if shape.kernel.contains("rows") { "row_reduction" } else { "map" };
    text += &format!(
        "    kernel k0({modes}write {dtype}) sizes 0 {anchor} {{{kernel}\n    }}\n",
        kernel = shape.kernel
    );
    text += &format!("    launch k0({operands}b{count}) per step flops 0 bytes 0;\n}}\n");
    let plan = parse_plan(&text)?;
    let program = CpuProgram::compile(plan.clone(), Options { threads, ..Options::default() })?;
    let bound = program.bind(&Bindings::default())?;
    let mut table = BufferTable::new(&plan);
    let mut memory = Vec::new();
    let (mut bytes, mut written) = (0, 0);
    for (number, buffer) in plan.buffers.iter().enumerate() {
        let id = BufferId(number as u32);
        let size = bound.sizes().buffer_bytes(id);
        let data = AlignedBuffer::zeroed(size);
        if number < count {
            fill(&data, buffer.dtype, size / buffer.dtype.size());
        } else {
            written = size;
        }
        bytes += size;
        table.set(id, BufferPointer { data: data.as_ptr(), bytes: size, dtype: buffer.dtype });
        memory.push(data);
    }
    Ok(ReductionCase { name: shape.name, bytes, written, program, bound, table, memory })
}

/// Numbers in −1..1.
fn fill(buffer: &AlignedBuffer, dtype: DType, count: usize) {
    let mut state = 1u32;
    for at in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        // SAFETY: the buffer has room for `count` elements of this type.
        unsafe {
            match dtype {
                DType::Bf16 => buffer.as_ptr().cast::<u16>().add(at).write((value.to_bits() >> 16) as u16),
                _ => buffer.as_ptr().cast::<f32>().add(at).write(value),
            }
        }
    }
}

/// Bytes that a job of a plain pass covers.
const JOB: usize = 1 << 18;

impl ReductionCase {
    /// Runs the launch once.
    ///
    /// # Panics
    /// The launch fails.
    pub fn run(&mut self) {
        // SAFETY: every buffer has memory of its own that lives in `self`; `&mut self` keeps others away.
        let outcome = unsafe { self.program.execute(&self.bound, Rate::Step, &self.table, None) };
        outcome.expect("the launch is one of this version's");
    }

    /// What the machine's memory allows: adds up the words of the inputs, or copies as much as the launch writes if that is much.
    pub fn plain(&mut self) {
        let threads: &Threads = self.program.threads();
        let copies = self.written * 4 > self.bytes;
        let (inputs, output) = self.memory.split_at(self.memory.len() - 1);
        for input in inputs.iter().filter(|input| !copies || input.len() >= self.written) {
            let length = if copies { input.len().min(output[0].len()) } else { input.len() };
            threads.parallel_for(length.div_ceil(JOB), |job, _| {
                let (begin, end) = (job * JOB, ((job + 1) * JOB).min(length));
                // SAFETY: the buffers are that long, and jobs write to different parts of the output, which nobody reads.
                unsafe {
                    if copies {
                        let to = output[0].as_ptr().add(begin);
                        std::ptr::copy_nonoverlapping(input.as_ptr().add(begin), to, end - begin);
                    } else {
                        let words = input.as_ptr().add(begin).cast::<u32>();
                        black_box(total(std::slice::from_raw_parts(words, (end - begin) / 4)));
                    }
                }
            });
        }
    }
}

/// The sum of the words modulo 2³², in enough lanes that only reading bounds it.
fn total(words: &[u32]) -> u32 {
    let mut lanes = [0u32; 32];
    let mut chunks = words.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(chunks.remainder()).fold(0, |sum, word| sum.wrapping_add(*word))
}
