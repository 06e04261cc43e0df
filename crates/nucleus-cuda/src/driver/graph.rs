//! Launches that are captured once and then run as one.

use cudarc::driver::sys;

use super::device::Device;
use super::error::{CudaError, check};
use super::stream::Stream;

/// Work of a stream as one graph, which a single call runs.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    handle: sys::CUgraphExec,
}

// SAFETY: a handle of the driver; a graph runs in one stream at a time, as launches take `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// What `work` puts into the stream, as a graph; nothing of it runs now.
    ///
    /// # Errors
    /// What `work` says, or the driver cannot make a graph of it.
    pub fn capture<E: From<CudaError>>(
        stream: &Stream,
        work: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let device = stream.device();
        device.make_current()?;
        let doing = || format!("capturing kernels on {}", device.name());
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; the capture is ended below in any case.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.handle(), mode) }, doing)?;
        let worked = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the out-parameter is there; a capture is under way.
        let ended = check(unsafe { sys::cuStreamEndCapture(stream.handle(), &mut graph) }, doing);
        let mut made = worked.and_then(|()| ended.map_err(E::from)).map(|()| std::ptr::null_mut());
        if let Ok(handle) = &mut made {
            // SAFETY: the graph was captured just now, the out-parameter is there.
            let result = unsafe { sys::cuGraphInstantiateWithFlags(handle, graph, 0) };
            if let Err(error) = check(result, || format!("making a graph on {}", device.name())) {
                made = Err(error.into());
            }
        }
        if !graph.is_null() {
            // SAFETY: destroyed once; what was made of it stands by itself.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
        made.map(|handle| Graph { device: device.clone(), handle })
    }

    /// Puts the graph into a stream.
    ///
    /// # Errors
    /// The driver failed.
    ///
    /// # Safety
    /// The memory that the captured launches use is still there, and stays until they are done.
    pub unsafe fn launch(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.device.make_current()?;
        // SAFETY: both handles live; the rest is the caller's promise.
        let result = unsafe { sys::cuGraphLaunch(self.handle, stream.handle()) };
        check(result, || format!("launching a graph on {}", self.device.name()))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.make_current().is_ok() {
            // SAFETY: made once and destroyed once; the driver waits until it is not running.
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}
