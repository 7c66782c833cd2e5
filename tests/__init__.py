import os

# Read when grpc is imported. Its handlers of fork crash the child when a test that holds channels starts a server as another user.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
