//! The just-in-time module: functions in, callable machine code out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cranelift_codegen::Context;
use cranelift_codegen::ir::{AbiParam, FuncRef, Signature, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, default_libcall_names};

use super::constants::ConstantPool;
use super::emit::Emit;
use super::error::CodegenError;

/// What one call of a compiled function covers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First row: flat number over all axes but the last.
    pub outer_begin: i64,
    /// One past the last row.
    pub outer_end: i64,
    /// First point of the last axis.
    pub inner_begin: i64,
    /// One past the last point of the last axis.
    pub inner_end: i64,
    /// Accumulators, or the destination of results: element [`outer_begin`, `inner_begin`].
    pub block: *mut u8,
    /// Elements of the block from one row to the next.
    pub row_stride: i64,
    /// Elements of the block from one accumulator to the next.
    pub segment_stride: i64,
}

/// A compiled loop nest: a launch's operands, its size arguments, and what to cover.
pub type LoopFunction = unsafe extern "C" fn(*const *mut u8, *const i64, *const Region);

/// A function of one [`Jit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionId(FuncId);

/// Collects functions until [`Jit::finish`].
pub struct Jit {
    module: JITModule,
    context: Context,
    builder_context: FunctionBuilderContext,
    fused_multiply_add: bool,
    constants: ConstantPool,
    signature: Signature,
    sin: FuncId,
    cos: FuncId,
    count: usize,
}

extern "C" fn sin(x: f32) -> f32 {
    x.sin()
}

extern "C" fn cos(x: f32) -> f32 {
    x.cos()
}

impl Jit {
    /// A module for the machine this runs on.
    ///
    /// # Errors
    /// Cranelift has no code generator for it.
    pub fn new() -> Result<Jit, CodegenError> {
        let host = |why: &dyn std::fmt::Display| CodegenError::Host(why.to_string());
        let mut flags = settings::builder();
        let checks = if cfg!(debug_assertions) { "true" } else { "false" };
        let options = [
            ("opt_level", "speed"),
            ("enable_nan_canonicalization", "false"),
            ("enable_verifier", checks),
            ("use_colocated_libcalls", "false"),
            ("is_pic", "false"),
        ];
        for (name, value) in options {
            flags.set(name, value).map_err(|error| host(&error))?;
        }
        let isa = cranelift_native::builder().map_err(|error| host(&error))?;
        let isa = isa.finish(settings::Flags::new(flags)).map_err(|error| host(&error))?;
        let x86 = isa.isa_flags().into_iter().find(|flag| flag.name == "has_fma");
        let fused_multiply_add = x86.is_none_or(|flag| flag.as_bool() == Some(true));
        let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
        builder.symbol("nucleus_sin", sin as *const u8);
        builder.symbol("nucleus_cos", cos as *const u8);
        let mut module = JITModule::new(builder);
        let mut unary = module.make_signature();
        unary.params.push(AbiParam::new(types::F32));
        unary.returns.push(AbiParam::new(types::F32));
        let mut import = |name: &str| {
            let imported = module.declare_function(name, Linkage::Import, &unary);
            imported
                .map_err(|error| CodegenError::Backend { function: name.to_owned(), why: error.to_string() })
        };
        let (sin, cos) = (import("nucleus_sin")?, import("nucleus_cos")?);
        let mut signature = module.make_signature();
        signature.params = vec![AbiParam::new(types::I64); 3];
        let context = module.make_context();
        let builder_context = FunctionBuilderContext::new();
        let constants = ConstantPool::new();
        Ok(Jit {
            module,
            context,
            builder_context,
            fused_multiply_add,
            constants,
            signature,
            sin,
            cos,
            count: 0,
        })
    }

    /// Compiles one function; `body` emits its instructions, all blocks and the return included.
    pub(super) fn define(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Emit),
    ) -> Result<FunctionId, CodegenError> {
        let fail = |why: String| CodegenError::Backend { function: name.to_owned(), why };
        let symbol = format!("{name}#{}", self.count);
        self.count += 1;
        let id = self
            .module
            .declare_function(&symbol, Linkage::Local, &self.signature)
            .map_err(|error| fail(error.to_string()))?;
        self.context.func.signature = self.signature.clone();
        let host: [FuncRef; 2] = [
            self.module.declare_func_in_func(self.sin, &mut self.context.func),
            self.module.declare_func_in_func(self.cos, &mut self.context.func),
        ];
        let mut builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder_context);
        body(&mut Emit::new(&mut builder, self.fused_multiply_add, host, &mut self.constants));
        builder.seal_all_blocks();
        builder.finalize(self.module.target_config());
        let defined = self.module.define_function(id, &mut self.context);
        self.module.clear_context(&mut self.context);
        // The alternate form of the message names the instruction that the verifier refused.
        defined.map_err(|error| fail(format!("{error:#?}")))?;
        Ok(FunctionId(id))
    }

    /// Makes everything compiled so far callable.
    ///
    /// # Errors
    /// The operating system gives no executable memory.
    pub fn finish(mut self) -> Result<Code, CodegenError> {
        let fail = |error: cranelift_module::ModuleError| CodegenError::Backend {
            function: "the program".to_owned(),
            why: error.to_string(),
        };
        self.module.finalize_definitions().map_err(fail)?;
        let mut addresses = HashMap::new();
        for (id, declaration) in self.module.declarations().get_functions() {
            if declaration.linkage == Linkage::Local {
                let address = self.module.get_finalized_function(id);
                // SAFETY: the address is that of code just compiled for exactly this signature.
                let function = unsafe { std::mem::transmute::<*const u8, LoopFunction>(address) };
                addresses.insert(id, function);
            }
        }
        Ok(Code { module: Mutex::new(Some(self.module)), addresses, _constants: self.constants })
    }
}

/// Executable memory and the functions in it.
pub struct Code {
    module: Mutex<Option<JITModule>>,
    addresses: HashMap<FuncId, LoopFunction>,
    /// The functions read it.
    _constants: ConstantPool,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Code({} functions)", self.addresses.len())
    }
}

impl Code {
    /// The function of that id; it lives as long as this value.
    ///
    /// # Panics
    /// The id is of another module.
    pub fn function(&self, id: FunctionId) -> LoopFunction {
        self.addresses[&id.0]
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        let module = self.module.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(module) = module {
            // SAFETY: functions are called through `&Code` only, so none is running or can be called later.
            unsafe { module.free_memory() };
        }
    }
}
