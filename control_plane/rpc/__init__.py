"""The gRPC door: a module for each service; convert, call, convert."""
