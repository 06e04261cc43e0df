//! Routines on memory of this computer and of the GPU: in place, copied, from run to run.

use nucleus_ir::DType;
use nucleus_passes::pipeline::CompileOptions;
use nucleus_runtime::gpu::{CudaError, DeviceMemory, Transfer};
use nucleus_runtime::routine::{Arguments, Routine, TensorMut, TensorRef};
use nucleus_runtime::{Gpu, Model, ModelText, Profile, Threads};

use crate::{List, gpu};

pub(crate) const LIST: List = &[
    ("host_memory_is_copied_there_and_back", host_memory_is_copied_there_and_back),
    ("device_memory_is_updated_where_it_lies", device_memory_is_updated_where_it_lies),
    ("what_cannot_be_written_in_place_is_copied", what_cannot_be_written_in_place_is_copied),
    ("the_processor_refuses_device_memory", the_processor_refuses_device_memory),
];

/// x ← x − rate · g.
const UPDATE: &str = "dim N;
entry step(x: [N, 4] per step, g: [N, 4] per step, rate: [] per step optional = 0.5) -> (x: [N, 4]) {
    x - rate * g
}";

fn compile(text: &str, backend: impl Into<nucleus_runtime::routine::Backend>) -> Routine {
    let text = ModelText { main: ("test.ir".to_owned(), text.to_owned()), modules: Vec::new() };
    let model = Model::from_text(&text).unwrap_or_else(|error| panic!("{error}"));
    let plan = model.compile_with("step", &CompileOptions::default(), &mut ());
    Routine::new(plan.unwrap_or_else(|error| panic!("{error}")), backend, None)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32 - 3.0).collect()
}

fn upload(gpu: &Gpu, values: &[f32]) -> DeviceMemory {
    let memory = DeviceMemory::new(gpu.device(), 4 * values.len(), "a test").expect("there is memory");
    let mut transfer = Transfer::new(gpu.device(), 64).expect("there is memory");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    transfer
        .upload::<CudaError>(&memory, 0, bytes.len(), gpu.stream(), &mut |part, into| {
            into.copy_from_slice(&bytes[part]);
            Ok(())
        })
        .expect("it fits");
    memory
}

fn download(gpu: &Gpu, memory: &DeviceMemory) -> Vec<f32> {
    let mut bytes = vec![0; memory.len()];
    let mut transfer = Transfer::new(gpu.device(), 64).expect("there is memory");
    transfer.download(memory, 0, &mut bytes, gpu.stream()).expect("it fits");
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn host_memory_is_copied_there_and_back() {
    let mut update = compile(UPDATE, &gpu());
    for (rows, rate) in [(3, None), (1, Some(2.0f32)), (300, None), (3, Some(0.25))] {
        let (mut x, g) = (numbers(4 * rows), vec![2.0f32; 4 * rows]);
        let mut arguments = Arguments::new();
        arguments.input("g", g.as_slice()).output("x", x.as_mut_slice());
        if let Some(rate) = &rate {
            arguments.input("rate", rate);
        }
        let mut profile = Profile::default();
        let timed = (rows == 1).then_some(&mut profile);
        update.run(&[("N".to_owned(), rows as i64)], &mut arguments, timed).expect("the arguments fit");
        let want: Vec<f32> = numbers(4 * rows).iter().map(|x| x - rate.unwrap_or(0.5) * 2.0).collect();
        assert_eq!(x, want, "{rows} rows");
    }
    // Given beside its next value, an input stays.
    let (before, g, mut x) = (numbers(8), vec![1.0f32; 8], vec![f32::NAN; 8]);
    let mut arguments = Arguments::new();
    arguments.input("x", before.as_slice()).input("g", g.as_slice()).output("x", x.as_mut_slice());
    update.run(&[("N".to_owned(), 2)], &mut arguments, None).expect("the arguments fit");
    assert_eq!(x, numbers(8).iter().map(|x| x - 0.5).collect::<Vec<f32>>());
    assert!(update.arena_bytes() > 0);
}

fn device_memory_is_updated_where_it_lies() {
    let gpu = gpu();
    let mut update = compile(UPDATE, &gpu);
    let (x, g) = (upload(&gpu, &numbers(24)), upload(&gpu, &numbers(24)));
    // Pieces of the same memory take turns: graphs are kept for each.
    for round in 1..=3 {
        for piece in [0..32, 32..96] {
            let rows = piece.len() as i64 / 16;
            let mut arguments = Arguments::new();
            arguments.input("g", TensorRef::on_device(&g, piece.clone(), DType::F32));
            arguments.output("x", TensorMut::on_device(&x, piece, DType::F32));
            update.run(&[("N".to_owned(), rows)], &mut arguments, None).expect("the arguments fit");
        }
        let want: Vec<f32> = numbers(24).iter().map(|x| x * (1.0 - 0.5 * round as f32)).collect();
        assert_eq!(download(&gpu, &x), want, "round {round}");
    }
    assert_eq!(download(&gpu, &g), numbers(24));
}

fn what_cannot_be_written_in_place_is_copied() {
    let gpu = gpu();
    let text = "entry step(m: [3, 3] per step, scale: [] per step) -> (m: [3, 3]) {
    scale * transpose(m, permutation = [1, 0])
}";
    let mut turn = compile(text, &gpu);
    let start: Vec<f32> = (0..9).map(|i| i as f32).collect();
    let (mut host, device, scale) = (start.clone(), upload(&gpu, &start), 2.0f32);
    for want in [
        [0.0, 6.0, 12.0, 2.0, 8.0, 14.0, 4.0, 10.0, 16.0],
        [0.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0],
    ] {
        let mut arguments = Arguments::new();
        arguments.input("scale", &scale).output("m", host.as_mut_slice());
        turn.run(&[], &mut arguments, None).expect("the arguments fit");
        assert_eq!(host, want);
        let mut arguments = Arguments::new();
        arguments.input("scale", &scale).output("m", TensorMut::on_device(&device, 0..36, DType::F32));
        turn.run(&[], &mut arguments, None).expect("the arguments fit");
        assert_eq!(download(&gpu, &device), want);
    }
}

fn the_processor_refuses_device_memory() {
    let gpu = gpu();
    let mut update = compile(UPDATE, &Threads::new(1).expect("threads"));
    let (memory, mut x) = (upload(&gpu, &numbers(4)), numbers(4));
    let mut arguments = Arguments::new();
    arguments.input("g", TensorRef::on_device(&memory, 0..16, DType::F32)).output("x", x.as_mut_slice());
    let error = update.run(&[("N".to_owned(), 1)], &mut arguments, None);
    let message = error.expect_err("it cannot be read").to_string();
    assert!(message.contains("input `g` lies in a GPU's memory"), "{message}");
}
