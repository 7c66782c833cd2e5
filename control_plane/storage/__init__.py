"""What is kept: the Store protocol (base) and its backends."""
