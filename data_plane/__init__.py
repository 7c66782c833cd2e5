"""The gateway: holds the active releases compiled in memory and runs triggers."""

import os

# Else gRPC writes a line for every TLS handshake that fails, with which any stranger could fill a log. It looks when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
