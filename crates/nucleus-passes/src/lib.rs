//! The passes from a verified graph to a Plan, one file per pass.
