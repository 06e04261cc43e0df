//! The functions of libnvrtc, found by name when the program runs: nothing of CUDA is needed to build.
//!
//! All `unsafe` code of this folder is here. Names and types are those of `nvrtc.h`, which are the same in all versions since 11.1.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr;

use libloading::Library;

/// An `nvrtcResult`; 0 is success.
type Status = c_int;
/// An `nvrtcProgram`.
type Handle = *mut c_void;
/// `nvrtcGetProgramLogSize` and its like.
type SizeOf = unsafe extern "C" fn(Handle, *mut usize) -> Status;
/// `nvrtcGetProgramLog` and its like.
type BytesOf = unsafe extern "C" fn(Handle, *mut c_char) -> Status;

/// The most bytes of a log or a cubin that are fetched; larger answers are taken for a defect.
const MAX_BYTES: usize = 256 << 20;

/// libnvrtc, loaded.
#[derive(Debug)]
pub(super) struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create_program: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy_program: unsafe extern "C" fn(*mut Handle) -> Status,
    compile_program: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status,
    log_size: SizeOf,
    log: BytesOf,
    cubin_size: SizeOf,
    cubin: BytesOf,
    /// Never closed: the library leaves destructors of threads behind, which would run without it.
    _libraries: ManuallyDrop<Vec<Library>>,
}

/// A call that failed: its name, and what NVRTC calls the error.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) call: &'static str,
    pub(super) error: String,
}

/// What a compilation gave.
#[derive(Debug)]
pub(super) struct Output {
    /// Everything the compiler said.
    pub(super) log: String,
    /// The cubin, or the name of the error.
    pub(super) result: Result<Vec<u8>, String>,
}

impl Functions {
    /// Loads libnvrtc from a path, or by its name through the system's loader. `builtins`, the library that it loads itself by name when it
    /// compiles, is loaded first, so that it is found in whatever folder it lies.
    pub(super) fn load(library: &Path, builtins: Option<&Path>) -> Result<Functions, String> {
        let mut libraries = Vec::new();
        if let Some(builtins) = builtins {
            libraries.push(open(builtins, true)?);
        }
        let library = open(library, false)?;
        // SAFETY: the types are those of `nvrtc.h` for these names; the library stays loaded as long as the process runs.
        unsafe {
            Ok(Functions {
                version: symbol(&library, "nvrtcVersion")?,
                error_string: symbol(&library, "nvrtcGetErrorString")?,
                create_program: symbol(&library, "nvrtcCreateProgram")?,
                destroy_program: symbol(&library, "nvrtcDestroyProgram")?,
                compile_program: symbol(&library, "nvrtcCompileProgram")?,
                log_size: symbol(&library, "nvrtcGetProgramLogSize")?,
                log: symbol(&library, "nvrtcGetProgramLog")?,
                cubin_size: symbol(&library, "nvrtcGetCUBINSize")?,
                cubin: symbol(&library, "nvrtcGetCUBIN")?,
                _libraries: {
                    libraries.push(library);
                    ManuallyDrop::new(libraries)
                },
            })
        }
    }

    /// Major and minor version.
    pub(super) fn version(&self) -> Result<(u32, u32), CallError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for a write of an `int`.
        let status = unsafe { (self.version)(&mut major, &mut minor) };
        self.check("nvrtcVersion", status)?;
        Ok((u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)))
    }

    /// Compiles a text to a cubin.
    pub(super) fn compile(&self, text: &CStr, name: &CStr, options: &[CString]) -> Result<Output, CallError> {
        let mut handle = ptr::null_mut();
        // SAFETY: `text` and `name` are NUL-terminated and NVRTC copies them; with 0 headers the two lists are not read; `handle` is valid for a write.
        let status = unsafe {
            (self.create_program)(&mut handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check("nvrtcCreateProgram", status)?;
        let program = Program { functions: self, handle };
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, and `options` holds as many pointers to NUL-terminated strings as are announced.
        let status =
            unsafe { (self.compile_program)(program.handle, options.len() as c_int, options.as_ptr()) };
        let log =
            program.bytes(("nvrtcGetProgramLogSize", self.log_size), ("nvrtcGetProgramLog", self.log))?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        let result = match status {
            0 => Ok(program.bytes(("nvrtcGetCUBINSize", self.cubin_size), ("nvrtcGetCUBIN", self.cubin))?),
            status => Err(self.error_name(status)),
        };
        Ok(Output { log, result })
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CallError> {
        if status == 0 { Ok(()) } else { Err(CallError { call, error: self.error_name(status) }) }
    }

    fn error_name(&self, status: Status) -> String {
        // SAFETY: the function takes any number.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("error {status}");
        }
        // SAFETY: it is not null, so it is a NUL-terminated string that lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// A program under compilation.
struct Program<'a> {
    functions: &'a Functions,
    handle: Handle,
}

impl Program<'_> {
    /// An answer whose size is asked first.
    fn bytes(
        &self,
        size: (&'static str, SizeOf),
        get: (&'static str, BytesOf),
    ) -> Result<Vec<u8>, CallError> {
        let mut length = 0;
        // SAFETY: the program is alive and `length` is valid for a write.
        let status = unsafe { size.1(self.handle, &mut length) };
        self.functions.check(size.0, status)?;
        if length > MAX_BYTES {
            return Err(CallError { call: size.0, error: format!("{length} bytes, more than {MAX_BYTES}") });
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: the program is alive, and `bytes` has as many bytes as the library said that it writes.
        let status = unsafe { get.1(self.handle, bytes.as_mut_ptr().cast()) };
        self.functions.check(get.0, status)?;
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed only here. An error leaves nothing to do.
        unsafe { (self.functions.destroy_program)(&mut self.handle) };
    }
}

/// Loads a shared library; a `global` one gives its symbols to libraries that are loaded later.
fn open(path: &Path, global: bool) -> Result<Library, String> {
    let describe = |error: libloading::Error| error.to_string();
    #[cfg(unix)]
    {
        use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL};
        let flags = RTLD_LAZY | if global { RTLD_GLOBAL } else { RTLD_LOCAL };
        // SAFETY: the path names NVIDIA's library, whose initialisers may be run at any time by any thread.
        unsafe { UnixLibrary::open(Some(path), flags) }.map(Library::from).map_err(describe)
    }
    #[cfg(not(unix))]
    {
        let _ = global;
        // SAFETY: the path names NVIDIA's library, whose initialisers may be run at any time by any thread.
        unsafe { Library::new(path) }.map_err(describe)
    }
}

/// A function of a library.
///
/// # Safety
/// `T` is a function pointer of the type that the function has, and is not called after the library is closed.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<T>(name) }.map(|symbol| *symbol).map_err(|error| error.to_string())
}
