"""Analyses that papers make of agents: what a plan or the facts would have changed, what the policy
knows by itself, and one episode in plain words."""
