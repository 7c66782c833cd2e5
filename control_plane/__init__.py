"""The control plane: stores releases and bindings, and streams every change of a binding to gateways."""
