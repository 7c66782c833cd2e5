"""The web console: pages over the services, as rpc/ is gRPC over them. Rendered here, no build step, nothing from elsewhere."""
