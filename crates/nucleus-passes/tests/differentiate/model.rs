//! The loss of Nucleus-Image.
