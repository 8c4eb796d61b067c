//! Container images: registry client, content store, unpacking, overlayfs roots.
pub mod archive;
mod compression;
pub mod digest;
pub mod error;
pub mod manifest;
pub mod platform;
pub mod reference;
mod store;
mod tarball;
mod unpack;
