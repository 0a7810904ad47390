"""The runtime: episodes, policies, the state machine, the store, the command line."""
