//! Stories about whole meshes, told with the real binaries on hosts that are network namespaces.

mod bare;
