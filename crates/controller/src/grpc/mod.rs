//! The gRPC door.
