"""The bundled science library: one file of facts, from which passages, a graph and questions come."""
