//! What is wrong with a recipe, and where.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a recipe was refused.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// The file system refused.
    #[error("cannot read recipe `{}`: {source}", .path.display())]
    Io {
        /// The recipe file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, device or pipe, or a file that no one wrote by hand.
    #[error("recipe `{}` {problem}", .path.display())]
    NotARecipe {
        /// The path.
        path: PathBuf,
        /// What it is.
        problem: String,
    },
    /// Something in the text.
    #[error("{}:{line}:{column}: {message}", .path.display())]
    Text {
        /// The recipe file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there, and what would be right.
        message: String,
    },
}
