//! The Plan: kernels, scalar functions, buffers, launch order and the analytic cost model.
