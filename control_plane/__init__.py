"""The control plane: stores releases and bindings, and streams every change of a binding to gateways."""

import os

# Else gRPC writes a line for every TLS handshake that fails, with which any stranger could fill a log. It looks when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
