"""The gateway: holds the active releases compiled in memory and runs triggers."""
