"""The use cases, a module for each noun: every door (gRPC, console, tests) calls these."""
